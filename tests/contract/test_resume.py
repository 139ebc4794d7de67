"""Exact resume: every learner, every family of environments, wherever a run is stopped.

A run that was stopped, saved, and restored into a new object ends with the same bits as one that
never stopped: weights, moments, replay, generators, simulators, and the rows of metrics.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import checkpoint
from etude.config import replace
from etude.skills import learners
from etude.skills.discovery import DiscoverConfig, Discovery, preset

ROOT = Path(__file__).resolve().parents[2]
FAST, SLOW = ("point-open",), ("half-cheetah", "ant", "point-maze-u", "point-maze-large")
ENVS = (*FAST, *(pytest.param(env, marks=pytest.mark.slow) for env in SLOW))
STEPS, UPDATES = 20, 3  # of an epoch
PLACES = {  # how often a run may have asked whether to stop
    "between epochs": 2 * STEPS + UPDATES,  # nothing was learnt in the first: warm-up
    "in mid-episode": STEPS + 7,
    "between updates": 2 * STEPS + 1,
}
VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "all": {"visited_starts": 0.5, "hold": 10}}

every_learner = pytest.mark.parametrize("learner", learners.ids())
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_env = pytest.mark.parametrize("env", ENVS)


def config(learner: str, env: str, variant: str) -> DiscoverConfig:
    """Four epochs, the first of them warm-up, in a replay that holds three."""
    loop = {"num_envs": 4, "episode_steps": STEPS, "updates_per_epoch": UPDATES}
    loop |= {"batch_size": 32, "warmup_steps": 160, "replay_capacity": 240}
    small = {"steps": 320, "agent": {"hidden": [16, 16]}, "loop": loop}
    return replace(replace(preset(learner, env), small), {"loop": VARIANTS[variant]})


def finish(run: Discovery) -> list[dict[str, float]]:
    """Epochs to the end; their rows of metrics, without the clock."""
    rows = []
    while not (run.done and run.between_epochs):
        assert run.epoch()
        rows.append({k: v for k, v in run.metrics.items() if not k.startswith("time/")})
    return rows


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a checkpoint but the clock; arrays and rows as type, shape and bytes."""
    if isinstance(tree, dict):
        for name, node in tree.items():
            if name != "seconds":
                yield from leaves(node, f"{path}/{name}")
        return
    if isinstance(tree, checkpoint.Rows):
        tree = tree.read(tree.begin, tree.end)
    if hasattr(tree, "__array__"):
        array = np.asarray(tree)
        yield path, (array.dtype.str, array.shape, array.tobytes())
    else:
        yield path, tree


@cache
def uninterrupted(learner: str, env: str, variant: str) -> tuple[list[dict[str, float]], Any]:
    """The rows and the leaves of a run that was left alone."""
    run = Discovery(config(learner, env, variant))
    return finish(run), dict(leaves(run.checkpoint()))


@every_learner
@every_env
@every_variant
@pytest.mark.parametrize("place", PLACES)
def test_a_stopped_run_ends_as_one_that_never_stopped(
    learner: str,
    env: str,
    variant: str,
    place: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    rows, expected = uninterrupted(learner, env, variant)
    asked = iter(range(PLACES[place]))
    first = Discovery(config(learner, env, variant))
    seen = []
    while first.epoch(stop=lambda: next(asked, None) is None):
        seen.append({k: v for k, v in first.metrics.items() if not k.startswith("time/")})
    stopped_at = {"between epochs": (0, 0), "in mid-episode": (7, 0), "between updates": (STEPS, 1)}
    assert (first._t, first._u) == stopped_at[place]
    path = checkpoint.save(tmp_path, "stopped", first.checkpoint())
    second = Discovery(config(learner, env, variant))
    second.restore(checkpoint.load(path))
    assert [*seen, *finish(second)] == rows
    found = dict(leaves(second.checkpoint()))
    assert {k for k in expected if found.get(k) != expected[k]} == set()
    assert found.keys() == expected.keys()
    record_property("count", 1)


@pytest.mark.slow
@every_learner
def test_a_seed_means_the_same_in_every_process(learner: str, tmp_path: Path) -> None:
    """Whole commands in processes that order their sets differently; another seed differs."""
    found = [ended(learner, tmp_path / f"{s}-{h}", s, h) for s, h in ((0, 1), (0, 2), (1, 1))]
    assert found[0] == found[1]
    assert found[0]["metrics.csv"] != found[2]["metrics.csv"]
    assert found[0]["weights.safetensors"] != found[2]["weights.safetensors"]


def ended(learner: str, out: Path, seed: int, hash_seed: int) -> dict[str, Any]:
    """What a command leaves: the checkpoint's leaves, the library's arrays, metrics untimed."""
    command = [sys.executable, str(ROOT / "train.py"), "discover", learner, "--env", "point-open"]
    command += ["--steps", "320", "--seed", str(seed), "--out", str(out), "--agent.hidden", "16"]
    command += ["--loop.num-envs", "4", "--loop.episode-steps", "20", "--loop.warmup-steps", "80"]
    settings = {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=os.environ | settings, check=True, capture_output=True)
    found = dict(leaves(checkpoint.load_newest(out / "checkpoints")))
    for file in (out / "library").glob("*.safetensors"):
        found[file.name] = file.read_bytes()
    rows = (out / "metrics.csv").read_text().splitlines()
    untimed = [row.split(",") for row in rows if "time/" not in row]
    return found | {"metrics.csv": [row[:1] + row[2:] for row in untimed]}


def test_the_comparison_sees_the_smallest_difference() -> None:
    """One step of one generator, one bit of one weight, and the type of an array."""
    run = Discovery(config("metra", "point-open", "plain"))
    before = dict(leaves(run.checkpoint()))
    assert dict(leaves(run.checkpoint())) == before
    run.rng.random()
    assert {k for k, v in leaves(run.checkpoint()) if before[k] != v} == {"/rng/state/state"}
    zero = {"x": np.float32([0.0])}
    assert dict(leaves(zero)) != dict(leaves({"x": np.float32([-0.0])}))
    assert dict(leaves(zero)) != dict(leaves({"x": np.int32([0])}))
