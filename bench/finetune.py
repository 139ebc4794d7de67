"""What fine-tuning brings back to a library whose body has lost strength.

A controller is trained on the whole body; then the same skills and controller meet a body with a
weak actuator: as they are (`frozen`), with a controller that goes on learning (`controller`), and
with both levels learning (`joint`). `recovered` is the share of the loss that an arm makes good,
in success, or in the share of the goals where an episode has several. A finished row stays in the
CSV and is not run again; runs that were interrupted begin anew.

    python bench/finetune.py --cases cheetah-30 --seeds 0 1 2

Rows: results/finetune/arms.csv; the KL over steps: results/finetune/kl-CASE-sSEED.csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.config import from_dict
from etude.envs import registry
from etude.envs.bodies.locomotion import HalfCheetah
from etude.envs.bodies.points import Point
from etude.envs.changes import Change
from etude.envs.maps import MAZE_LARGE
from etude.envs.spec import Field
from etude.envs.tasks.base import extend
from etude.envs.tasks.half_cheetah import HalfCheetahGoal
from etude.envs.tasks.points import PointMazeGoal
from etude.evaluate import canvas
from etude.evaluate.rollouts import rollout_task
from etude.logger import Logger
from etude.skills.compose import ComposeConfig, Trained, compose, load_trained
from etude.skills.finetune import finetune
from etude.skills.finetune_env import FinetuneConfig
from etude.skills.library import SkillLibrary

STEPS, EPISODES = 200_000, 200
HEAD = ["case", "seed", "arm", "env_steps", "score", "success", "return", "recovered"]
HEAD += ["kl_mean", "kl_max", "kl_target", "cpu_seconds"]
FRONT = ("fthigh", "fshin", "ffoot")


class NearGoal(HalfCheetahGoal):
    """`half-cheetah-goal` with goals within the skills' reach, and a front leg that may be weak."""

    name, low, high = "half-cheetah-near", -30.0, 30.0

    def __init__(self, percent: int) -> None:
        weak = FRONT if percent < 100 else ()
        self.body = HalfCheetah(Change(torque=tuple((joint, percent / 100) for joint in weak)))
        constants = {"goal_reach": max(-self.low, self.high), "goal_radius": self.radius}
        name, fields = f"{self.name}-{percent}", [Field("goal", 1)]
        self.spec = extend(self.body, name, fields, constants, self.max_steps)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the goal."""
        return qpos, qvel, rng.uniform(self.low, self.high, 1)


class OwnReach(NearGoal):
    """Goals wherever `half-cheetah-metra` leads within the time limit, and no further."""

    name, low, high = "half-cheetah-own-reach", -50.0, 13.0


class SlowPoint(Point):
    """The disc whose motor along x has lost strength."""

    def __init__(self, percent: int) -> None:
        super().__init__(MAZE_LARGE, cell=0.25, max_steps=600)
        self._left = np.array([percent / 100, 1.0])

    def control(self, action: np.ndarray) -> np.ndarray:
        """As of the whole disc, less along x."""
        return super().control(action) * self._left


class SlowMaze(PointMazeGoal):
    """`point-maze-large-goal` for that disc."""

    def __init__(self, percent: int) -> None:
        super().__init__("point-maze-large")
        self.body = SlowPoint(percent)
        changes = (*self.spec.changes, f"gear x {percent / 100:g} of x")
        self.spec = dataclasses.replace(self.spec, id=f"point-x-{percent}", changes=changes)


@dataclass(frozen=True)
class Case:
    """A library, a task on the body it was learnt on, and the same task on a weaker one."""

    library: str
    whole: str
    weak: str
    best: float = 1.0
    """return of an episode in which every goal is reached"""
    joint: dict[str, Any] = field(default_factory=lambda: {"low": SMALL})
    """settings of the joint arm"""


TASKS: dict[str, Callable[[], Any]] = {
    **{
        f"{kind.name}-{p}": lambda kind=kind, p=p: kind(p)  # type: ignore[misc]
        for kind in (NearGoal, OwnReach)
        for p in (100, 60, 30)
    },
    **{f"point-x-{p}": lambda p=p: SlowMaze(p) for p in (60, 30)},  # type: ignore[misc]
}
SMALL = {"hidden": (128, 128), "batch_size": 128}
"""Half the width and the batch of the defaults, which take four times as long."""
FAST = {"updates_per_step": 0.5, "low": {**SMALL, "actor_lr": 3e-4, "kl_target": 30.0}}
"""More updates that may lead further: a runner has to find another gait."""
QUIET = {
    "updates_per_step": 0.5,
    "low": {**SMALL, "actor_lr": 1e-3, "log_std": -2.5, "kl_target": 80.0},
}
"""As many, with a third of the noise: what is judged has none, and learns more from little."""
CASES = {
    "ant-60": Case("ant-metra", "ant-multi-goal", "ant-multi-goal-leg-60", best=10.0),
    "cheetah-60": Case(
        "half-cheetah-metra", "half-cheetah-near-100", "half-cheetah-near-60", joint=FAST
    ),
    "cheetah-30": Case(
        "half-cheetah-metra", "half-cheetah-near-100", "half-cheetah-near-30", joint=FAST
    ),
    **{
        f"cheetah-reach-60{name}": Case(
            "half-cheetah-metra",
            "half-cheetah-own-reach-100",
            "half-cheetah-own-reach-60",
            joint=joint,
        )
        for name, joint in {"": QUIET, "-noisy": FAST}.items()
    },
    "point-60": Case("point-maze-large-metra", "point-maze-large-goal", "point-x-60"),
    "point-30": Case("point-maze-large-metra", "point-maze-large-goal", "point-x-30"),
}
ARMS = ("whole", "frozen", "controller", "joint")


class Bench:
    """The arms of one case with one seed; each is a row."""

    def __init__(self, name: str, seed: int, work: Path, out: Path, steps: int) -> None:
        self.name, self.case, self.seed, self.steps = name, CASES[name], seed, steps
        self.library = SkillLibrary.load(self.case.library)
        self.run = work / f"{self.case.whole}-s{seed}"
        self.log, self.out = work / f"{name}-s{seed}", out

    def given(self) -> Trained:
        """The controller of the whole body."""
        if not (self.run / "controller" / "policy").is_dir():
            shutil.rmtree(self.run, ignore_errors=True)
            settings = {"algo": "sac", "env_steps": STEPS, "seed": self.seed}
            made = compose(self.library, self.case.whole, from_dict(ComposeConfig, settings))
            made.save(self.run)
        return load_trained(self.run, self.library)

    def arm(self, name: str) -> dict[str, Any]:
        """The figures of one arm."""
        given, kl = self.given(), {}
        start = time.process_time()
        if name in ("controller", "joint"):
            acting, kl = self.learn(name == "joint")
        else:
            task = self.case.whole if name == "whole" else self.case.weak
            acting = dataclasses.replace(given, task=task)
        seconds = time.process_time() - start
        done = rollout_task(
            acting.task, acting.level, acting.controller, acting.config.k, episodes=EPISODES
        )
        score = float(done.returns.mean()) / self.case.best
        return {
            "env_steps": self.steps if name in ("controller", "joint") else 0,
            "score": f"{score:.4f}",
            "success": f"{done.success_rate:.4f}",
            "return": f"{done.returns.mean():.4f}",
            **kl,
            "cpu_seconds": f"{seconds:.0f}",
        }

    def learn(self, joint: bool) -> tuple[Trained, dict[str, Any]]:
        """Learn on the weak body; the skills too, if `joint`."""
        settings = {"env_steps": self.steps, "seed": self.seed}
        settings |= self.case.joint if joint else {"updates_per_step": 0.0}
        config = from_dict(FinetuneConfig, settings)
        folder = self.log / ("joint" if joint else "controller")
        shutil.rmtree(folder, ignore_errors=True)
        with closing(Logger(folder)) as log:
            made = finetune(self.library, self.case.weak, config, controller=self.run, log=log)
        if not joint:
            return made.trained, {}
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        curve = [(int(r["step"]), float(r["value"])) for r in rows if r["key"] == "finetune/kl"]
        path = self.out / f"kl-{self.name}-s{self.seed}.csv"
        path.write_text("env_steps,kl\n" + "".join(f"{s},{v:.4g}\n" for s, v in curve))
        late = [v for s, v in curve if s > self.steps / 2]
        figures = {"kl_mean": np.mean(late), "kl_max": max(v for _, v in curve)}
        shown = {key: f"{value:.3g}" for key, value in figures.items()}
        return made.trained, {**shown, "kl_target": config.low.kl_target}


def main() -> None:
    """Run what is asked for and not yet in the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["cheetah-30"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--steps", type=int, default=STEPS, help="environment steps of an arm")
    parser.add_argument("--out", type=Path, default=Path("results/finetune"))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-finetune"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    registry.TASKS.update(TASKS)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.cases:
        for seed in args.seeds:
            bench = Bench(name, seed, args.work, args.out, args.steps)
            for arm in args.arms:
                table = Table(args.out / "arms.csv")
                if not table.has(name, seed, arm):
                    table.add({"case": name, "seed": seed, "arm": arm, **bench.arm(arm)})
    draw(args.out)


def draw(out: Path) -> None:
    """The KL of every joint run over steps, as a share of its target."""
    title, note = (
        "How far fine-tuned skills go",
        "KL to the parent / target; a broken line: twice that",
    )
    figure, axes = canvas.blank(title, note, 3.2)
    rows = [r for r in Table(out / "arms.csv").rows if r["arm"] == "joint"]
    for row, colour in zip(rows, canvas.PALETTE, strict=False):
        name = f"{row['case']}-s{row['seed']}"
        data = np.loadtxt(out / f"kl-{name}.csv", delimiter=",", skiprows=1, ndmin=2)
        axes.plot(data[:, 0], data[:, 1] / float(row["kl_target"]), color=colour, label=name)
    axes.axhline(2, color=canvas.MUTED, linestyle="--")
    axes.set(xlabel="environment steps", ylabel="KL / target", ylim=(0, 2.2))
    axes.legend(frameon=False, loc="center right", fontsize=8)
    canvas.save(figure, out / "kl.png")


class Table:
    """The rows that are done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []

    def has(self, case: str, seed: int, arm: str) -> bool:
        """Whether this row is done."""
        return self._score(case, seed, arm) is not None

    def _score(self, case: str, seed: int, arm: str) -> float | None:
        key = case, str(seed), arm
        found = [r["score"] for r in self.rows if (r["case"], r["seed"], r["arm"]) == key]
        return float(found[0]) if found else None

    def add(self, row: dict[str, Any]) -> None:
        """Write a row, with the share of the loss that it made good."""
        whole, frozen = (self._score(row["case"], row["seed"], arm) for arm in ("whole", "frozen"))
        if whole is not None and frozen is not None and whole > frozen:
            row["recovered"] = f"{(float(row['score']) - frozen) / (whole - frozen):.3f}"
        print(row, flush=True)
        self.rows.append(row)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, HEAD, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


if __name__ == "__main__":
    main()
