"""What hierarchical control makes of an oracle: the waypoints it passes, the goals it reaches.

With directions made by hand nothing has to be learnt downstream, so a miss is the fault of the
controller, of the tasks, or of the skills themselves. The last are measured apart: a library's
*speed* is the distance that a skill covers along its own direction in 200 steps from rest, per
step, the median over 48 directions. A point that moves at that speed in a straight line reaches a
share of the goals of `ant-multi-goal` that can be computed; the oracle's goals are divided by it.
Since a goal has 50 steps, in which a body has to turn and to gather speed, the same is also told
for the speed over 50 steps from rest (*early*).

    python bench/oracle.py
    python bench/oracle.py --library runs/ant-oracle --tasks ant-waypoints ant-multi-goal

Rows: results/oracle/control.csv.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from etude.envs import registry
from etude.envs.tasks.ant import AntMultiGoal
from etude.evaluate.rollouts import rollout_skills, rollout_task
from etude.evaluate.trials import tables
from etude.evaluate.trials.tasks import most
from etude.skills.controllers.goal_direction import GoalDirectionController
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel

FILE = Path(__file__).resolve().parents[1] / "results" / "oracle" / "control.csv"
DIRECTIONS, STEPS = 48, 200
HOLDS = (1, 10, 25)


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    library: str = "point-open-oracle"
    """folder or name of a library whose skills are directions"""
    tasks: tuple[str, ...] = ("point-open-goal",)
    """tasks with a goal"""
    holds: tuple[int, ...] = HOLDS
    """steps for which a direction is held"""
    out: Path = FILE
    """the table; rows are added"""


def speed(library: SkillLibrary, steps: int = STEPS) -> float:
    """Median over directions of the distance along a skill per step, for `steps` from rest, m."""
    z = library.space.even(DIRECTIONS)
    done = rollout_skills(library, library.env["id"], z=z, steps=steps)
    gone = done.paths[:, -1] - done.paths[:, 0]
    return float(np.median((gone * z).sum(1) / steps))


def near(radius: float, half: float) -> float:
    """Share of the square [-half, half]^2 that lies within `radius` of its centre."""
    if radius <= half:
        return float(np.pi * max(radius, 0.0) ** 2 / (2 * half) ** 2)
    if radius >= half * np.sqrt(2):
        return 1.0
    edge = np.sqrt(radius**2 - half**2)  # where the circle leaves the square
    arc = radius**2 / 2 * (np.arcsin(half / radius) - np.arcsin(edge / radius))
    return float((half * edge + arc) / half**2)  # of one quadrant


def goals_of_a_point(speed: float, task: type[AntMultiGoal] = AntMultiGoal) -> float:
    """Goals per episode that a point reaches which heads for each at `speed` m per step.

    A goal is drawn around the place where the body is then and has its own clock, so each is
    reached or not whatever came before.
    """
    return task.goals * near(task.radius + task.steps_per_goal * speed, task.spread)


def control(library: SkillLibrary, task: str, hold: int) -> dict[str, object]:
    """One row: what following the goal in the library's features earns on the fixed episodes."""
    spec = registry.spec(task)
    controller = GoalDirectionController(library, spec)
    made = rollout_task(task, LibraryLevel.for_spec(library, spec), controller, hold)
    worth = most(task)
    pieces = made.returns if worth is None else made.returns / worth * _pieces(task)
    pace = speed(library)
    row: dict[str, object] = {
        "library": library.name,
        "task": task,
        "hold": hold,
        "pieces": round(float(pieces.mean()), 3),
        "of": _pieces(task),
        "success": made.success_rate,
        "steps": float(made.lengths.mean()),
        "speed": round(pace, 4),
        "point": None,
        "share": None,
        "early_speed": None,
        "early_point": None,
        "early_share": None,
    }
    if "goal_spread" in spec.constants:
        early = speed(library, AntMultiGoal.steps_per_goal)
        row["early_speed"] = round(early, 4)
        for name, rate in (("", pace), ("early_", early)):
            point = goals_of_a_point(rate)
            row[f"{name}point"] = round(point, 3)
            row[f"{name}share"] = round(float(pieces.mean()) / point, 3)
    return row


def _pieces(task: str) -> int:
    """Goals, waypoints or arrivals of an episode."""
    constants = registry.spec(task).constants
    return int(constants.get("goals") or len(constants.get("waypoints", ())) or 1)


def main() -> None:
    """Measure, print and keep."""
    args = tyro.cli(Arguments)
    library = SkillLibrary.load(args.library)
    rows = [control(library, task, hold) for task in args.tasks for hold in args.holds]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tables.append(args.out, rows)
    for row in rows:
        print(*(f"{key} {value}" for key, value in row.items() if value is not None), sep=", ")


if __name__ == "__main__":
    main()
