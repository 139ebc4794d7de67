"""Environment steps per second: `BatchedEnv` against a native loop and against Gymnasium.

The native loop (`native_loop.cpp`) is compiled against the MuJoCo of the wheel when the benchmark
runs. It steps the same simulations from the same starts with the same controls, and a check before
the timing shows that both end in the same bits after the same number of `mj_step` calls. Two arms:
`native` lets each thread run through its half, which no environment with an agent could do;
`native, in step` makes the threads wait for each other after every step. The goal takes the first.

Resets after 200 steps are part of every arm. Gymnasium's environments get the options under which
ours equal them (`envs/bodies/locomotion.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rounds import ROWS, UNMEASURED, Row, compared, interleave, script

from etude.envs.engine import BatchedEnv
from etude.envs.registry import build, make_vec

THREADS = 2
EPISODE = 200  # steps
CHECKED = 50  # steps
PLACED = {"exclude_current_positions_from_observation": False}
UNCHARGED = {
    "include_cfrc_ext_in_observation": False,
    "contact_cost_weight": 0,
    "terminate_when_unhealthy": False,
}
UNIT = "steps/s"


@dataclass(frozen=True)
class Setting:
    """A body and the vector steps in a reading: whole episodes."""

    env: str
    gymnasium_id: str
    options: dict[str, Any]
    steps_64: int
    steps_16: int
    steps_sync: int


SETTINGS = (
    Setting("ant", "Ant-v5", {**PLACED, **UNCHARGED}, 200, 400, 200),
    Setting("half-cheetah", "HalfCheetah-v5", PLACED, 400, 1200, 400),
)


class NativeLoop:
    """The compiled loop on one model, with its starts and its tape of controls."""

    def __init__(
        self, folder: Path, program: Path, env: str, starts: np.ndarray, tape: np.ndarray
    ) -> None:
        body, _ = build(env)
        self.n, self.frame_skip, self.tape = len(starts), body.frame_skip, len(tape)
        self.files = [program, folder / f"{env}.mjb", folder / f"{env}.doubles"]
        self.output = folder / f"{env}.observations"
        mujoco.mj_saveModel(body.model(), str(self.files[1]))
        with self.files[2].open("wb") as file:
            file.write(starts.astype(np.float64).tobytes())
            file.write(tape.astype(np.float64).tobytes())

    def run(self, steps: int, together: bool) -> float:
        """Steps per second of N environments over `steps` vector steps."""
        plan = (self.n, THREADS, self.frame_skip, EPISODE, self.tape, steps, int(together))
        command = [*map(str, self.files), *map(str, plan), str(self.output)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, calls = done.stdout.split()
        if int(calls) != self.n * steps * self.frame_skip:
            raise RuntimeError(f"{calls} calls of mj_step in {self.n} x {steps} steps")
        return self.n * steps / float(seconds)

    def observations(self) -> np.ndarray:
        """The last observations (N, nq + nv) of the last run."""
        return np.fromfile(self.output).reshape(self.n, -1)


def compiler() -> str | None:
    """A C++ compiler: $CXX, or the first that is found."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def compiled(folder: Path) -> Path | str:
    """The native loop's program, or why there is none."""
    found = compiler()
    home = Path(mujoco.__file__).parent
    libraries = sorted([*home.glob("libmujoco.so.*"), *home.glob("libmujoco*.dylib")])
    if found is None:
        return "no C++ compiler"
    if not libraries or sys.platform == "win32":
        return "no libmujoco to link with"
    program = folder / "native_loop"
    source = str(Path(__file__).with_name("native_loop.cpp"))
    flags = ["-O2", "-std=c++20", "-pthread", f"-I{home / 'include'}", f"-Wl,-rpath,{home}"]
    command = [found, *flags, source, str(libraries[0]), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return f"{Path(found).name} could not compile the native loop"
    return program


def tape(n: int, actions: int) -> np.ndarray:
    """Controls (EPISODE, n, actions) in [-1, 1], float32."""
    drawn = np.random.default_rng(0).uniform(-1, 1, (EPISODE, n, actions))
    return drawn.astype(np.float32)


def stepped(venv: Any, controls: np.ndarray, steps: int) -> float:
    """Environment steps per second of a vector environment over `steps` vector steps."""
    envs: int = controls.shape[1]
    start = time.perf_counter()
    for t in range(steps):
        venv.step(controls[t % len(controls)])
    return envs * steps / (time.perf_counter() - start)


def check_same(venv: BatchedEnv, native: NativeLoop, controls: np.ndarray) -> None:
    """Both loops do the same physics: same simulated time, same bits after some steps."""
    body, _ = build(venv.env_spec.id)
    stepped(venv, controls, CHECKED)
    clock = venv._batch.bind("time")
    calls = np.rint(clock / body.model().opt.timestep)  # of mj_step, in each simulation
    if not (calls == CHECKED * body.frame_skip).all():
        raise RuntimeError(f"{venv.env_spec.id}: {calls} calls of mj_step in {CHECKED} steps")
    native.run(CHECKED, together=False)
    ours = np.concatenate((venv._batch.bind("qpos"), venv._batch.bind("qvel")), axis=1)
    if not np.array_equal(ours, native.observations()):
        raise RuntimeError(f"{venv.env_spec.id}: the native loop does other physics")


def against_native(setting: Setting, rounds: int, folder: Path, program: Path | str) -> Row:
    """64 environments, ours and native."""
    row = f"stepping/{setting.env}-64"
    if isinstance(program, str):
        return replace(ROWS[row], note=f"{UNMEASURED}: {program}")
    venv = make_vec(setting.env, 64, seed=0, threads=THREADS)
    controls = tape(64, venv.env_spec.action_dim)
    venv.reset(seed=0)
    starts = np.concatenate((venv._batch.bind("qpos"), venv._batch.bind("qvel")), axis=1)
    native = NativeLoop(folder, program, setting.env, starts, controls)
    check_same(venv, native, controls)
    venv.reset(seed=0)
    arms: dict[str, Callable[[], float]] = {
        "Étude": partial(stepped, venv, controls, setting.steps_64),
        "native": partial(native.run, setting.steps_64, together=False),
        "native, in step": partial(native.run, setting.steps_64, together=True),
    }
    return compared(row, interleave(arms, rounds), "Étude", "native", UNIT)


def against_sync(setting: Setting, rounds: int) -> Row:
    """16 environments of ours, 8 of Gymnasium's `SyncVectorEnv`."""
    ours = make_vec(setting.env, 16, seed=0, threads=THREADS)
    make = partial(
        gymnasium.make, setting.gymnasium_id, max_episode_steps=EPISODE, **setting.options
    )
    sync = SyncVectorEnv([make] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    for venv in (ours, sync):
        venv.reset(seed=0)
    actions = ours.env_spec.action_dim
    arms: dict[str, Callable[[], float]] = {
        "Étude": partial(stepped, ours, tape(16, actions), setting.steps_16),
        "SyncVectorEnv": partial(stepped, sync, tape(8, actions), setting.steps_sync),
    }
    row = f"stepping/{setting.env}-16"
    return compared(row, interleave(arms, rounds), "Étude", "SyncVectorEnv", UNIT)


def measure(rounds: int) -> list[Row]:
    """The rows of both bodies."""
    with tempfile.TemporaryDirectory() as name:
        program = compiled(Path(name))
        native = [against_native(s, rounds, Path(name), program) for s in SETTINGS]
    return native + [against_sync(s, rounds) for s in SETTINGS]


if __name__ == "__main__":
    script(measure)
