"""Downstream tasks: sparse goals that a body alone reaches seldom, and that skills should reach.

Reward is paid once per goal. Goals are part of the task state, so that they travel with saved
states, and are drawn anew in every episode by the environment's own generator. Beside them stand
worlds with known values (`options`), bodies that have changed (`changed`) and dense rewards, where
skills should win nothing (`dense`).
"""
