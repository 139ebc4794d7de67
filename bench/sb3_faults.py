"""The faults of `docs/reliability.md` on stable-baselines3, and workers of Gymnasium.

    OMP_NUM_THREADS=1 python bench/sb3_faults.py [--only NAME] [--out FILE]

SAC on a small environment with one thread, in a temporary folder. Each row says what was done and
what came of it; nothing here is a test, so nothing fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import SAC

HALF, CASES, SETTINGS = 60, 400, {"gamma": 1.5, "tau": 7.0, "batch_size": 0, "buffer_size": -3}
WORKERS = 3


class Line(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point on a line; its reward is NaN at step `bad`."""

    observation_space: ClassVar[Any] = Box(-np.inf, np.inf, (2,), np.float32)
    action_space: ClassVar[Any] = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, bad: int = -1, slow: float = 0.0) -> None:
        self.bad, self.slow, self.steps, self.t = bad, slow, 0, 0
        self.obs = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.t, self.obs = 0, self.np_random.standard_normal(2).astype(np.float32)
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.slow)
        self.steps, self.t = self.steps + 1, self.t + 1
        self.obs = (self.obs + 0.1 * action[0]).astype(np.float32)
        reward = np.nan if self.steps == self.bad else -float(abs(self.obs[0]))
        return self.obs, reward, False, self.t >= 20, {}


def agent(env: gymnasium.Env[Any, Any] | None = None, seed: int = 0, **settings: Any) -> SAC:
    """A small agent that learns from its tenth step on."""
    given: dict[str, Any] = {"learning_starts": 10, "batch_size": 16, "buffer_size": 1000}
    layers = {"net_arch": [16, 16]}
    return SAC("MlpPolicy", env or Line(), policy_kwargs=layers, seed=seed, **(given | settings))


def weights(model: SAC) -> list[bytes]:
    """All parameters as bytes."""
    return [v.numpy().tobytes() for v in model.policy.state_dict().values()]


def resume(folder: Path) -> str:
    """60 steps, model and replay saved and loaded, 60 steps, against 120 straight ones."""
    straight, first = agent().learn(2 * HALF), agent().learn(HALF)
    first.save(folder / "model.zip")
    first.save_replay_buffer(folder / "replay.pkl")
    second = SAC.load(folder / "model.zip", env=Line())
    second.load_replay_buffer(folder / "replay.pkl")
    kept = weights(second) == weights(first)
    second.learn(HALF, reset_num_timesteps=False)
    same = weights(second) == weights(straight)
    again = weights(agent().learn(2 * HALF)) == weights(straight)
    return (
        f"{int(same)} of 1 resumed as if never stopped (weights after loading equal: {kept}; "
        f"two straight runs equal: {again})"
    )


def full(folder: Path) -> str:
    """No file may grow beyond half of what it needs, as if the disk were full there."""
    path = folder / "model.zip"
    agent().learn(HALF).save(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = agent()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, before[1]))
        model.save(path)
        raised = "nothing"
    except OSError as error:
        raised = f"OSError ({error.strerror})"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return f"the save raises {raised}; the older file then loads: {outcome(path)}"


def outcome(path: Path) -> str:
    """What loading a model does: `yes`, or the kind of the error."""
    try:
        SAC.load(path)
    except Exception as error:  # noqa: BLE001  # every kind is counted
        return f"no, {type(error).__name__}: {str(error)[:60] or 'no text'}"
    return "yes"


def damage(folder: Path) -> str:
    """Truncations and flipped bits of the zip; which errors come, and do they name the file?"""
    path, rng = folder / "model.zip", np.random.default_rng(0)
    agent().learn(HALF).save(path)
    good, found, named = path.read_bytes(), Counter[str](), 0
    for case in range(CASES):
        place = int(rng.integers(len(good)))
        flipped = bytes([good[place] ^ (1 << int(rng.integers(8)))])
        path.write_bytes(good[:place] if case % 2 else good[:place] + flipped + good[place + 1 :])
        try:
            SAC.load(path)
            found["loaded in silence"] += 1
        except Exception as error:  # noqa: BLE001  # every kind is counted
            found[type(error).__name__] += 1
            named += "model" in str(error)
    kinds = ", ".join(f"{n} x {kind}" for kind, n in found.most_common())
    return f"{CASES} cases: {kinds}; {named} errors name the file"


def not_finite(folder: Path) -> str:
    """A reward is NaN at step 50, with ten seeds."""
    later, named, where = [], Counter[str](), Counter[str]()
    for seed in range(10):
        env = Line(bad=50)
        try:
            agent(env, seed=seed).learn(1000)
        except Exception as error:  # noqa: BLE001  # whichever it is
            last = traceback.extract_tb(error.__traceback__)[-1]
            where[f"{type(error).__name__} in {Path(last.filename).parent.name}/"] += 1
            later.append(env.steps - 50)
            words = {"environment": "env", "reward": "reward", "step": "step 50"}
            named.update(name for name, word in words.items() if word in str(error).lower())
    return (
        f"{len(later)} of 10 runs stop, {min(later)} to {max(later)} steps later, with "
        f"{', '.join(where)}; {', '.join(named) or 'neither environment nor reward nor step'} named"
    )


def settings(folder: Path) -> str:
    """Settings that make no sense."""
    accepted = []
    for name, value in SETTINGS.items():
        with suppress(ValueError, TypeError, AssertionError, RuntimeError):
            agent(**{name: value})
            accepted.append(f"{name}={value}")
    return f"{len(accepted)} of {len(SETTINGS)} accepted: {', '.join(accepted) or 'none'}"


class Payload:
    """What a stranger may put into a file: a call that unpickling makes."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def code(folder: Path) -> str:
    """A model file that holds a call; it makes an empty file inside the temporary folder."""
    path, marker = folder / "model.zip", folder / "was-here"
    model = agent()
    model.stranger = Payload(marker)  # type: ignore[attr-defined]
    model.save(path)
    marker.unlink(missing_ok=True)
    with_file = outcome(path)
    return f"the call in the file was made: {marker.exists()} (and the file loads: {with_file})"


def interrupted(folder: Path) -> str:
    """SIGTERM in the middle of training."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import sb3_faults as s; "
    code += "m = s.agent(s.Line(slow=0.005)); print('ready', flush=True); "
    code += "m.learn(10**6); m.save('model.zip')"
    python = [sys.executable, "-c", code, str(Path(__file__).parent)]
    with subprocess.Popen(python, cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
    saved = (folder / "model.zip").exists()
    return f"exit status {status}, saved: {saved}"


def workers(folder: Path) -> str:
    """Gymnasium's AsyncVectorEnv with one of three workers killed; in a process of its own."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import sb3_faults as s; "
    script += "print(s.orphans())"
    python = [sys.executable, "-c", script, str(Path(__file__).parent)]
    done = subprocess.run(python, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]


def orphans() -> str:
    """What `step` and `close` do with a killed worker, and how many processes are left."""
    venv = gymnasium.vector.AsyncVectorEnv([Line] * WORKERS)
    venv.reset(seed=0)
    processes = list(venv.processes)
    os.kill(processes[1].pid or 0, signal.SIGKILL)
    processes[1].join()
    said = []
    for call in (lambda: venv.step(venv.action_space.sample()), venv.close):
        try:
            call()
            said.append("nothing")
        except Exception as error:  # noqa: BLE001  # whichever it is
            said.append(type(error).__name__)
    time.sleep(1)
    left = sum(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
    return f"step raises {said[0]}, close {said[1]}; {left} of {WORKERS} workers left"


ROWS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "resume": ("exact resume, replay saved too", resume),
    "full": ("full disk during a save over an older one", full),
    "damage": ("file cut or a bit of it flipped", damage),
    "not_finite": ("a reward is NaN", not_finite),
    "settings": ("gamma=1.5, tau=7, batch_size=0, buffer_size=-3", settings),
    "code": ("a file with a call in it is loaded", code),
    "signal": ("SIGTERM in training", interrupted),
    "workers": ("a worker of AsyncVectorEnv is killed", workers),
}


def main() -> None:
    """Print the rows, or write them as JSON."""
    parser = argparse.ArgumentParser(description="Faults of stable-baselines3.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--out", type=Path, help="write the rows here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in args.only:
        what, measure = ROWS[name]
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(Path(folder))
        print(f"{what}: {found[name]}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
