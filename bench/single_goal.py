"""One hard goal, nobody's reward: CRL told to reach the far end of a maze, against SAC paid there.

    python bench/single_goal.py                              all that has no row yet
    python bench/single_goal.py --env point-maze-u --steps 60000 --arms crl

`crl` commands the maze's goal in every episode and learns from goals in hindsight ("A Single Goal
is All You Need", Liu, Tang, Eysenbach 2024, arXiv:2408.05804). `sac` has the same loop, sizes of
networks and number of updates, and a reward of 1 for being there; `sac-random` is asked besides to
stay as random as it can. For all, an action lasts `REPEAT` steps: a step of this point is an eighth
of a cell, and one of the paper's a whole one. All begin with the same uniform actions.

*first* is the environment step after which a training episode had come to the goal, empty if none
did; *hits* the number of training episodes that did; *left* the metres of way from the nearest
place that training reached to the goal, in whole cells, and *left_random* those of the uniform
actions; *late* the share of the last 100 training episodes that came to the goal, *success* that of
20 episodes of the last policy without its noise, which alone brings the disc off a wall; *cells*
the cells of a metre entered. Places are looked at where an action ends.

Rows: results/single_goal/arms.csv, and a picture of *left* and *left_random* of each maze.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from torch import Tensor

from etude.agents.replay import Batch
from etude.agents.sac import SAC, SACConfig
from etude.config import replace
from etude.envs import registry
from etude.envs.bodies.points import Point
from etude.envs.maps import Cell
from etude.envs.tasks.points import PointMazeGoal
from etude.evaluate import canvas
from etude.evaluate.rollouts import rollout_skills
from etude.evaluate.trials import tables
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.crl import Crl

EPISODES, LATE = 20, 100
FILE = Path(__file__).resolve().parents[1] / "results" / "single_goal" / "arms.csv"
HEAD = ["env", "arm", "seed", "env_steps", "updates", "first", "hits", "left_random", "left"]
HEAD += ["late", "success", "cells", "cpu_seconds"]
REPEAT = 8
"""Steps of the body for which an action lasts: 0.8 s, in which the disc crosses a cell."""
EPISODE, RANDOM = 75, 4_500  # actions
LOOP = {
    "num_envs": 4,
    "episode_steps": EPISODE,
    "updates_per_epoch": 300,
    "batch_size": 256,
    "visited_starts": 0.0,
    "random_steps": RANDOM,
    "warmup_steps": RANDOM,
}
AGENT = {"hidden": [256, 256], "dim": 64, "lr": 5e-4, "alpha_lr": 1e-3, "alpha0": 0.1}
AGENT |= {"scale": 3.0, "target_entropy_scale": -0.45}
Arm = Literal["crl", "sac", "sac-random"]
ENTROPY = {"sac": 1.0, "sac-random": 0.0}
"""Target entropy -scale |A| of SAC, nats: its authors', and 0; uniform actions have 0.69 |A|."""
Maze = Literal["point-maze-u", "point-maze-large"]


class Slow(Point):
    """The disc of a maze that looks up every `REPEAT` steps."""

    frame_skip = REPEAT * Point.frame_skip

    def __init__(self, env: Maze) -> None:
        body = PointMazeGoal(env).body
        spec = body.spec
        super().__init__(body.maze, cell=spec.cell, max_steps=spec.max_steps // REPEAT)
        dt = REPEAT * spec.dt
        self.spec = dataclasses.replace(self.spec, id=slow(env), body=slow(env), dt=dt)


def slow(env: Maze) -> str:
    """Id of the maze with that disc."""
    return f"{env}-every-{REPEAT}"


class Paid(SAC):
    """SAC for the sparse reward of one place, in the loop of CRL."""

    place: Tensor  # the goal, normalised
    width: Tensor  # how near is there, normalised

    def update(self, batch: Batch, signal: Tensor, task_vector: Tensor) -> dict[str, Tensor]:
        """As SAC, with reward 1 where the next observation is at the goal."""
        there = ((batch.next_obs[:, :2] - self.place).abs() <= self.width).all(1)
        zero = torch.zeros_like(batch.skill)  # there is one goal, so nothing to be told
        paid = batch.replace(skill=zero, terminated=there.float())
        return super().update(paid, there.float().unsqueeze(1), task_vector)


@dataclass(frozen=True)
class Arguments:
    """Train what is missing and write a row for each run."""

    env: Maze = "point-maze-large"
    """maze"""
    arms: tuple[Arm, ...] = ("crl", "sac", "sac-random")
    """what to run"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of every arm"""
    steps: int = 240_000
    """environment steps of a run"""


def place(env: Maze) -> np.ndarray:
    """The goal, m."""
    return np.asarray(registry.spec(f"{env}-goal").constants["goal"], np.float64)


def unit(env: Maze) -> np.ndarray:
    """Deviations of the place that observations are normalised with, m."""
    std = registry.spec(env).obs_std
    assert std is not None
    return np.asarray(std)[:2]


def there(env: Maze, paths: np.ndarray) -> np.ndarray:
    """Which of the episodes (M, T + 1, 2) come to the goal."""
    near = np.abs(paths - place(env)) <= PointMazeGoal.half_width
    return np.asarray(near.all(-1).any(-1))


def prepared(env: Maze, arm: Arm, seed: int, steps: int) -> tuple[Discovery, np.ndarray]:
    """A run that has not begun, and the skill (2,) that its policy is given."""
    skill = place(env) / unit(env) / Crl.Config().reach
    registry.BODIES[slow(env)] = partial(Slow, env)
    goal = {"skill_obs": ["x", "y"], "goals": "single", "goal": skill.tolist()}
    loop = {"steps": steps // REPEAT, "loop": LOOP}
    settings = {"seed": seed, "method": goal, "agent": AGENT, **loop}
    run = Discovery(replace(preset("crl", slow(env)), settings))
    if arm == "crl":
        return run, skill.astype(np.float32)
    spec, own = run.env_spec, run.config.agent
    config = SACConfig(
        hidden=own.hidden,
        lr=own.lr,
        alpha_lr=own.alpha_lr,
        target_entropy_scale=ENTROPY[arm],
    )
    generator = torch.Generator().manual_seed(seed)
    agent = Paid(spec.obs_dim, spec.action_dim, 2, config, generator=generator)
    agent.place = torch.as_tensor(place(env) / unit(env), dtype=torch.float32)
    agent.width = torch.as_tensor(PointMazeGoal.half_width / unit(env), dtype=torch.float32)
    run.agent = agent
    return run, np.zeros(2, np.float32)


def one(env: Maze, arm: Arm, seed: int, steps: int) -> dict[str, object]:
    """Train and measure."""
    began = time.process_time()
    run, skill = prepared(env, arm, seed, steps)
    maze = PointMazeGoal(env).body.maze
    way = maze.distances(maze.goal_cell)  # metres, from cell to cell
    first: int | None = None
    came: list[bool] = []
    entered: set[Cell] = set()
    left: list[float] = []
    while not run.done:
        run.epoch()
        cells = {maze.cell_at(x, y) for x, y in run.collected.reshape(-1, 2)}
        entered |= cells
        left.append(min(float(way[cell]) for cell in cells))
        came += there(env, run.collected).tolist()
        if first is None and any(came):
            first = REPEAT * run.steps
    told = np.tile(skill, (EPISODES, 1))
    done = rollout_skills(run.snapshot(), slow(env), z=told, steps=EPISODE)
    values = {
        "env": env,
        "arm": arm,
        "seed": seed,
        "env_steps": REPEAT * run.steps,
        "updates": run.updates,
        "first": first or "",
        "hits": sum(came),
        "left_random": min(left[: RANDOM // (run.steps // len(left))]),
        "left": min(left),
        "late": sum(came[-LATE:]) / LATE,
        "success": float(there(env, done.paths).mean()),
        "cells": len(entered),
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    return {name: values[name] for name in HEAD}


def draw(env: str, rows: list[dict[str, Any]]) -> None:
    """Way left to the goal for each seed: after the uniform actions, and after training."""
    note = "Metres of way from the nearest place reached; ring: by uniform actions, dot: by all."
    figure, axes = canvas.blank(f"{env}: one goal, which nobody had been to", note, 3.2)
    for place, (arm, colour) in enumerate(zip(get_args(Arm), canvas.PALETTE, strict=False)):
        own = [row for row in rows if (row["env"], row["arm"]) == (env, arm)]
        seed = [row["seed"] + 0.2 * place for row in own]
        before, after = ([row[name] for row in own] for name in ("left_random", "left"))
        axes.vlines(seed, after, before, colour)
        axes.scatter(seed, before, 50, facecolor="white", edgecolor=colour, zorder=3)
        axes.scatter(seed, after, 50, colour, label=arm, zorder=4)
    axes.set(xlabel="seed", ylabel="way left (m)", ylim=(-0.5, None))
    axes.legend(frameon=False, fontsize=8)
    canvas.save(figure, FILE.parent / f"{env}.png")


def main(args: Arguments) -> None:
    """Every run that has no row."""
    torch.set_num_threads(1)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    rows = tables.read(FILE, ("env", "arm"))
    known = {(row["env"], row["arm"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for arm in args.arms:
            if (args.env, arm, seed) not in known:
                rows.append(one(args.env, arm, seed, args.steps))
                tables.append(FILE, rows[-1:])
                print(rows[-1], flush=True)
    draw(args.env, rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
