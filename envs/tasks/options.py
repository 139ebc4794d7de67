"""Two tasks whose values are known exactly: what a bootstrap over held actions must come to.

On the line 23 steps lead to the goal, so its first cell is worth gamma^22, whether an agent chooses
every step or every k; with gamma = 0.9 that is 0.0985. `optimal_values` computes it for any table,
by value iteration over actions that are held (Sutton, Precup and Singh 1999, "Between MDPs and
semi-MDPs").

Shapes: n rows of the call, A primitive actions, S states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.tables import LENGTH, four_rooms, line
from etude.envs.body import View
from etude.envs.maps import FOUR_ROOMS
from etude.envs.spec import Field
from etude.envs.tasks.base import FixedGoal, Outcome, arrival, extend
from etude.errors import UsageError


class CellGoal(FixedGoal):
    """Come to a cell: reward 1 on arrival, which ends the episode.

    Field: goal (x, y), always the same.
    """

    def __init__(self, name: str) -> None:
        """Describe "line-option" or "four-rooms-option"."""
        on_line = name == "line-option"
        self.body = line() if on_line else four_rooms()
        places = self.body.table.places
        self.goal = LENGTH - 1 if on_line else FOUR_ROOMS.free_cells().index(FOUR_ROOMS.goal_cell)
        self._goal = places[self.goal]
        constants = {"goal": self._goal.tolist(), "goal_reach": float(np.abs(places).max())}
        limit = self.body.spec.max_steps
        self.spec = extend(self.body, name, [Field("goal", 2)], constants, limit)

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Reward 1 and the end on arrival."""
        return arrival(view.qpos[:, 0] == self.goal)


def held(transition: np.ndarray, goal: int, gamma: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What it brings to hold each primitive action for k steps, or until arrival at the goal.

    Args:
        transition: p(s' | s, a), (A, S, S).
        goal: the state whose arrival pays 1 and ends the episode.
        gamma: discount per step.
        k: steps for which an action is held.

    Returns:
        The expected discounted reward within them, (A, S), and gamma^k times the probability of
        each state after them, without what has ended, (A, S, S).

    Raises:
        UsageError: k is below 1, or gamma is not in [0, 1).
    """
    if k < 1 or not 0 <= gamma < 1:
        raise UsageError(f"k = {k}, gamma = {gamma}: choose k >= 1 and gamma in [0, 1).")
    on = transition.copy()
    on[:, goal] = 0  # an episode that has ended goes nowhere
    pays = on[:, :, goal].copy()  # (A, S)
    on[:, :, goal] = 0
    reward, weight = np.zeros_like(pays), np.broadcast_to(np.eye(on.shape[1]), on.shape)
    for _ in range(k):
        reward = reward + np.einsum("ast,at->as", weight, pays)
        weight = gamma * weight @ on
    return reward, weight


def optimal_values(
    transition: np.ndarray, goal: int, gamma: float, k: int = 1, tolerance: float = 1e-12
) -> np.ndarray:
    """V*(s), (S,), of agents that choose a primitive action every k steps; see `held`.

    Args:
        transition: p(s' | s, a), (A, S, S).
        goal: the state whose arrival pays 1 and ends the episode, and whose value is 0.
        gamma: discount per step.
        k: steps for which an action is held.
        tolerance: largest change at which the iteration stops.
    """
    reward, weight = held(transition, goal, gamma, k)
    values = np.zeros(transition.shape[1])
    while True:
        better = (reward + weight @ values).max(axis=0)
        if np.abs(better - values).max() <= tolerance:
            return np.asarray(better)
        values = better
