"""SAC updates per second: `etude.agents.sac` against stable-baselines3.

Both learn from 10,000 random transitions with 37 inputs (Étude: 29 of observation and 8 of skill),
8 actions, 2 x 256 ReLU units, two critics, a learned temperature and batches of 256, drawn anew for
each update.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from rounds import Row, compared, interleave, script
from stable_baselines3 import SAC as Theirs
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure

from etude.agents.replay import Replay
from etude.agents.sac import SAC, SACConfig

OBS, SKILL, ACTION = 29, 8, 8
BATCH, HIDDEN, STORED = 256, (256, 256), 10_000
ENVS = 8
UPDATES = 100  # in a reading
UNIT = "updates/s"


class Spaces(gymnasium.Env[np.ndarray, np.ndarray]):
    """The spaces that stable-baselines3 builds its networks for; it is never stepped."""

    observation_space = Box(-np.inf, np.inf, (OBS + SKILL,), np.float32)
    action_space = Box(-1.0, 1.0, (ACTION,), np.float32)


def ours() -> Callable[[], float]:
    """Updates per second of Étude's agent."""
    rng = np.random.default_rng(0)
    replay = Replay(STORED, ENVS, OBS, ACTION, SKILL, seed=0)
    never = np.zeros(ENVS, bool)
    for _ in range(STORED // ENVS):
        obs, after = rng.standard_normal((2, ENVS, OBS), np.float32).clip(-1, 1)
        action = rng.uniform(-1, 1, (ENVS, ACTION)).astype(np.float32)
        skill = rng.standard_normal((ENVS, SKILL), np.float32).clip(-1, 1)
        replay.add(obs, action, after, skill, never, never)
    generator = torch.Generator().manual_seed(0)
    agent = SAC(OBS, ACTION, SKILL, SACConfig(hidden=HIDDEN), generator=generator)
    weights = torch.ones(BATCH, 1)

    def read() -> float:
        start = time.perf_counter()
        for _ in range(UPDATES):
            batch = replay.steps(BATCH)
            agent.update(batch, batch.obs[:, :1], weights)
        return UPDATES / (time.perf_counter() - start)

    return read


def theirs() -> Callable[[], float]:
    """Updates per second of stable-baselines3's agent."""
    rng = np.random.default_rng(0)
    agent = Theirs(
        "MlpPolicy",
        Spaces(),
        policy_kwargs={"net_arch": [*HIDDEN]},
        batch_size=BATCH,
        buffer_size=STORED,
        ent_coef="auto",
        seed=0,
        device="cpu",
    )
    agent.set_logger(configure(None, []))
    buffer = agent.replay_buffer
    assert isinstance(buffer, ReplayBuffer)
    infos: list[dict[str, Any]] = [{}]
    for _ in range(STORED):
        obs, after = rng.standard_normal((2, 1, OBS + SKILL), np.float32).clip(-1, 1)
        action = rng.uniform(-1, 1, (1, ACTION)).astype(np.float32)
        buffer.add(obs, after, action, obs[:, 0], np.zeros(1), infos)

    def read() -> float:
        start = time.perf_counter()
        agent.train(gradient_steps=UPDATES, batch_size=BATCH)
        return UPDATES / (time.perf_counter() - start)

    return read


def measure(rounds: int, threads: int) -> list[Row]:
    """The row of a number of threads."""
    torch.set_num_threads(threads)
    readings = interleave({"Étude": ours(), "stable-baselines3": theirs()}, rounds)
    row = f"updates/{threads}-thread{'s' if threads > 1 else ''}"
    return [compared(row, readings, "Étude", "stable-baselines3", UNIT)]


if __name__ == "__main__":
    script(partial(measure, threads=torch.get_num_threads()))
