"""What a long run costs: saves in proportion to what is new, and nothing that grows with time.

`ETUDE_SOAK_STEPS` sets the length of the soak test in environment steps.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import checkpoint
from etude.agents.replay import Replay
from etude.config import replace
from etude.evaluate.monitor import Monitor
from etude.logger import Logger
from etude.skills.discovery import Discovery, preset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"),
]

SOAK_STEPS = int(os.environ.get("ETUDE_SOAK_STEPS", "100000"))
ENVS, WIDTHS = 1000, {"obs_dim": 29, "action_dim": 8, "skill_dim": 2}  # of an ant
MILLION = 1_000_000
GIGABYTE = 1e9


def status(name: str) -> int:
    """An entry of this process in /proc, in bytes: VmRSS is its memory, VmHWM the most it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


class Peak:
    """In a `with`: the most memory taken beyond what was taken before.

    `arrays` counts what Python and NumPy ask for; `process` all there is, also the copies inside
    torch and safetensors and what the allocator keeps for later.
    """

    def __enter__(self) -> Peak:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the most is what it has now
        self.before = status("VmRSS")
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.process = status("VmHWM") - self.before

    def check(self, size: int) -> None:
        assert self.arrays < 0.05 * size, f"{self.arrays / size:.1%}"
        assert self.process < 0.1 * size, f"{self.process / size:.1%}"


def fill(replay: Replay, rows: int) -> None:
    rng, ends = np.random.default_rng(replay.total), np.zeros(ENVS, bool)
    for step in range(rows // ENVS):
        obs, action, skill = (rng.random((ENVS, n), np.float32) for n in WIDTHS.values())
        replay.add(obs, action, obs, skill, ends, ends | (step % 50 == 49))


class Counting(checkpoint.Disk):
    """Counts what is written."""

    written = 0

    def write(self, path: Path, data: bytes) -> None:
        self.written += len(data)
        super().write(path, data)


def test_a_million_transitions_are_saved_and_loaded_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Replay(ENVS, ENVS, **WIDTHS)
    fill(few, ENVS)
    few.load_state_dict(checkpoint.load(checkpoint.save(tmp_path / "few", "0", few.state_dict())))
    replay = Replay(MILLION, ENVS, **WIDTHS, seed=0)  # the libraries have their memory by now
    fill(replay, MILLION)
    written: checkpoint.Written = {}
    with Peak() as save:
        path = checkpoint.save(tmp_path, "0", replay.state_dict(), written)
    save.check(replay.nbytes)
    copied = Replay(MILLION, ENVS, **WIDTHS, seed=1)
    copied._rows.zero_(), copied._last.fill(0)  # so has this
    start = time.process_time()
    with Peak() as load:
        copied.load_state_dict(checkpoint.load(path))
    seconds = time.process_time() - start
    load.check(replay.nbytes)
    assert seconds < 10 * replay.nbytes / GIGABYTE, f"{seconds:.1f} s"
    assert np.array_equal(copied._rows.numpy(), replay._rows.numpy())
    row, costs = 4 * sum(replay.widths), {}
    for name, new in enumerate((0, 50_000, 100_000, 200_000), start=1):
        fill(replay, new)
        disk = Counting()
        monkeypatch.setattr(checkpoint, "disk", disk)
        checkpoint.save(tmp_path, f"{name}", replay.state_dict(), written)
        costs[new] = disk.written
    assert costs[0] < 0.02 * replay.nbytes, "where the episodes end"
    for new, cost in costs.items():
        assert cost - costs[0] == pytest.approx(new * row, rel=0.01)


TINY: dict[str, Any] = {
    "agent": {"hidden": [16, 16]},
    "method": {"hidden": [16, 16]},
    "steps": SOAK_STEPS,
    "loop": {
        "num_envs": 20,
        "episode_steps": 25,
        "updates_per_epoch": 3,
        "batch_size": 64,
        "replay_capacity": 5000,
        "warmup_steps": 500,
        "visited_starts": 0.2,
    },
}


def test_a_long_run_takes_no_more_than_a_short_one(tmp_path: Path) -> None:
    """Memory and open files stay within 2 % once everything has happened once; so does its pace."""
    run = Discovery(replace(preset("metra", "point-open"), TINY))
    logger, written = Logger(tmp_path), checkpoint.Written()
    monitor = Monitor("point-open", SOAK_STEPS // 20, logger, tmp_path, episodes=4)
    memory, files, seconds = [], [], []
    while not run.done:
        start = time.process_time()
        run.epoch()
        seconds.append(time.process_time() - start)
        logger.scalars(run.steps, run.metrics)
        monitor.on_epoch(run)
        checkpoint.save(tmp_path / "checkpoints", f"{run.steps:012d}", run.checkpoint(), written)
        gc.collect()
        memory.append(status("VmRSS"))
        files.append(len(list(Path("/proc/self/fd").iterdir())))
    logger.close()
    fifth = len(memory) // 5
    first, last = (np.median(part) for part in (seconds[fifth : 2 * fifth], seconds[-fifth:]))
    assert 0.5 < last / first < 1.5, f"{first:.4f} s an epoch, then {last:.4f} s"
    assert len(set(files[fifth:])) == 1, files
    assert max(memory[fifth:]) < 1.02 * memory[fifth], memory  # the allocator may give some back
    assert len(memory) >= 100 and run.replay.total > 2 * run.replay.steps_kept
