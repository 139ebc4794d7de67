"""Success by distance: how many goals were reached, of those that the skills can reach at all.

A goal beyond the skills' reach cannot be solved, whoever chooses among them, so a success rate over
all goals says as much about the task as about the controller. Here a goal's distance is counted in
shares of the library's own reach, the furthest that any of its skills gets along the way to that
goal within the time limit of the task.

Shapes: M episodes, D descriptor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.envs import registry
from etude.errors import UsageError
from etude.evaluate.rollouts import TASK_SEED, rollout_skills
from etude.evaluate.statistics import Summary, summarise
from etude.skills.controllers.base import goal_and_place
from etude.skills.library import SkillLibrary

EDGES = (0.0, 0.4, 0.8, 1.2, np.inf)
"""Of the bands, in shares of the reach."""
SURE = 0.8
"""Goals up to this share of the reach ought to be reached."""
SKILLS = 48
"""Skills that are tried for the reach."""


def goals(task: str, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and goals (M, D), m, of the episodes that judge a trial.

    Raises:
        UsageError: the task has no goal in the observation, or there is no such task.
    """
    venv = registry.make_vec(task, episodes)
    try:
        obs, _ = venv.reset(seed=TASK_SEED)
        goal, place = goal_and_place(venv.env_spec, "bands")
    finally:
        venv.close()
    return obs[:, place], obs[:, goal]


def reach(library: SkillLibrary, steps: int, ways: np.ndarray) -> np.ndarray:
    """The furthest that any skill gets along each of `ways` (M, D) within `steps`: (M,) m."""
    done = rollout_skills(library, library.env["id"], z=library.space.even(SKILLS), steps=steps)
    gone = (done.paths - done.paths[:, :1]).reshape(-1, done.paths.shape[-1])
    units = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-9)
    furthest: np.ndarray = (units @ gone.T).max(axis=1)
    return furthest


def shares(task: str, library: SkillLibrary, episodes: int) -> np.ndarray:
    """Distance of each goal in shares of the library's reach, (M,)."""
    start, goal = goals(task, episodes)
    ways = goal - start
    far = np.linalg.norm(ways, axis=1)
    steps = registry.spec(task).max_steps
    share: np.ndarray = far / np.maximum(reach(library, steps, ways), 1e-9)
    return share


def success(rows: Sequence[Mapping[str, Any]], share: np.ndarray, low: float, high: float) -> Any:
    """Summary over rows of the success for goals with low <= share < high; None without such goals.

    Raises:
        UsageError: a row does not say which episodes were solved.
    """
    chosen = (share >= low) & (share < high)
    if not chosen.any() or not rows:
        return None
    return summarise([np.mean(_solved(row, len(share))[chosen]) for row in rows])


def table(rows: Sequence[Mapping[str, Any]], share: np.ndarray) -> list[tuple[str, ...]]:
    """Lines of a table: heads, the number of goals, and for each arm its success band by band."""
    bands = [(0.0, SURE), *zip(EDGES, EDGES[1:], strict=False)]
    heads = [f"within {SURE:g}", *(f"{low:g} to {high:g}" for low, high in bands[1:])]
    heads[-1] = f"beyond {EDGES[-2]:g}"
    counts = [str(int(((share >= low) & (share < high)).sum())) for low, high in bands]
    lines = [("arm", *heads), ("goals", *counts)]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        found: list[Summary | None] = [success(own, share, *band) for band in bands]
        lines.append((arm, *("–" if one is None else str(one) for one in found)))
    return lines


def _solved(row: Mapping[str, Any], episodes: int) -> np.ndarray:
    digits = row.get("solved") or ""
    if len(digits) != episodes:
        raise UsageError(
            f"trial {row['trial']} does not say which of {episodes} episodes it solved: run it "
            "again in a new folder."
        )
    return np.array([digit == "1" for digit in digits])
