"""Adapters for the tasks of other packages; `etude.envs.external` makes them."""
