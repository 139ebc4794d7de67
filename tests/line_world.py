"""A line of cells as a Gymnasium environment, and libraries with a policy of one layer for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from etude.skills.library import write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import SkillSpace

GOAL = 23
LINE_SPEC: dict[str, Any] = {
    "id": "line-goal",
    "body": "line",
    "fields": [{"name": "goal", "dim": 1}, {"name": "x", "dim": 1}],
    "task_fields": ["goal"],
    "action_dim": 1,
    "dt": 0.1,
    "constants": {"length": 23, "goal": 23},
    "changes": ["goal region"],
    "xml_sha256": "0",
}


class Line(gymnasium.Env[np.ndarray, np.ndarray]):
    """Cells 0 to 23, one step left or right; reward 1 and the end at 23."""

    observation_space = spaces.Box(0, GOAL, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    class Spec(dict[str, Any]):
        def to_json(self) -> dict[str, Any]:
            return json.loads(json.dumps(self))

    def __init__(self, **change: Any) -> None:
        self.env_spec = self.Spec({**LINE_SPEC, **change})
        self.x = 0

    def observe(self) -> np.ndarray:
        return np.array([GOAL, self.x], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = (options or {}).get("x", 0)
        return self.observe(), {"x": self.x}

    def step(self, action: np.ndarray) -> Any:
        assert action.shape == (1,) and abs(action[0]) > 0.9
        self.x = int(np.clip(self.x + np.sign(action[0]), 0, GOAL))
        done = self.x == GOAL
        return self.observe(), float(done), done, False, {"x": self.x, "success": done}


class Costly(Line):
    """Every step pays its number within the episode."""

    def reset(self, **options: Any) -> Any:
        self.steps = 0
        return super().reset(**options)

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        obs, _, done, cut, info = super().step(action)
        return obs, float(self.steps), done, cut, info


def one_layer(space: SkillSpace, obs_dim: int, action_dim: int, scale: float = 20.0) -> MLP:
    """Actions that depend on z alone: the first entries of z, squashed."""
    weight = np.zeros((obs_dim + space.dim, action_dim))
    weight[obs_dim:] = scale * np.resize([1.0, -1.0], (space.dim, 1))
    return MLP([(weight, np.zeros(action_dim))], output="tanh")


def library_at(path: Path, env: dict[str, Any], space: SkillSpace, scale: float = 20.0) -> Path:
    dims = [f["dim"] for f in env["fields"] if f["name"] not in env["task_fields"]]
    policy = one_layer(space, sum(dims), env["action_dim"], scale)
    data = SetData(
        "main", "none", {}, space, policy, {}, np.zeros(sum(dims)), np.ones(sum(dims)), []
    )
    return write(path, sets=[data], env=env, provenance={}, name="tested")


def make_line(limit: int = 100) -> TimeLimit:
    return TimeLimit(Line(), limit)
