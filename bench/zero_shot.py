"""Goals reached without any training downstream, by the distance at which they lie.

A library's skills answer a goal at every k steps: z points from here to there in its features. The
body is a half-cheetah, which has 200 steps to come within 3 m of a goal that is drawn evenly from
+-20 m; bands are 5 m wide, behind it and ahead of it.

    python bench/zero_shot.py
    python bench/zero_shot.py --library runs/half-cheetah-metra-s1

Rows: results/zero-shot/half-cheetah.csv.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from etude.envs import registry
from etude.envs.spec import Field
from etude.envs.tasks.base import extend
from etude.envs.tasks.half_cheetah import HalfCheetahGoal
from etude.evaluate.rollouts import rollout_task
from etude.skills.controllers.goal_direction import GoalDirectionController
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel

RANGE, BAND, EPISODES = 20.0, 5.0, 400
FILE = Path(__file__).resolve().parents[1] / "results" / "zero-shot" / "half-cheetah.csv"


class Near(HalfCheetahGoal):
    """`half-cheetah-goal` with goals within 20 m."""

    reach = RANGE

    def __init__(self) -> None:
        super().__init__()
        constants = {"goal_reach": self.reach, "goal_radius": self.radius}
        name = "half-cheetah-goal-20"
        self.spec = extend(self.body, name, [Field("goal", 1)], constants, self.max_steps)


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    library: tuple[str, ...] = (
        "half-cheetah-metra",
        "half-cheetah-metra-unseen",
        "half-cheetah-oracle",
        "half-cheetah-qrl",
    )
    """folders or names of libraries"""
    hold: int = 1
    """steps for which a direction is held"""
    out: Path = FILE
    """the table"""


class Goals(GoalDirectionController):
    """Remembers the goals that it was given."""

    goals: np.ndarray

    def reset(self, obs: np.ndarray) -> None:
        """Note the goals (N,)."""
        self.goals = obs[:, self._goal][:, 0].copy()


def reached(library: SkillLibrary, hold: int) -> tuple[np.ndarray, np.ndarray]:
    """Goals (N,) and whether each was reached, (N,)."""
    task = Near()
    registry.TASKS[task.spec.id] = Near
    controller = Goals(library, task.spec)
    level = LibraryLevel.for_spec(library, task.spec)
    done = rollout_task(task.spec.id, level, controller, hold, episodes=EPISODES)
    assert done.success is not None
    return controller.goals, done.success


def bands(goals: np.ndarray, success: np.ndarray) -> list[tuple[str, int, float]]:
    """Name, number of goals and share of them that was reached: over all, then band by band."""
    edges = np.arange(-RANGE, RANGE + BAND, BAND)
    found = [("all", len(goals), float(success.mean()))]
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (goals >= low) & (goals < high)
        if inside.any():
            share = float(success[inside].mean())
            found.append((f"{low:g} to {high:g} m", int(inside.sum()), share))
    return found


def main() -> None:
    """Measure, print, and write the table."""
    asked = tyro.cli(Arguments, description=__doc__.splitlines()[0])
    rows = []
    for name in asked.library:
        library = SkillLibrary.load(name)
        for band, goals, share in bands(*reached(library, asked.hold)):
            rows.append((library.name, library.id[:12], asked.hold, band, goals, f"{share:.4f}"))
            print(f"{library.name}, {band}: {share:.1%} of {goals}")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("library", "library_id", "hold", "band", "goals", "reached"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
