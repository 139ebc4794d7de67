"""The exact state of a training run in stable-baselines3, and when it is saved.

SB3 calls `on_rollout_start` where nothing is half done: PPO before each rollout, SAC and DQN before
each decision, once the updates of the one before it are through. `state_dict` is taken there, and a
run that is restored there goes on bit for bit. A PPO run that is stopped within a rollout is saved
as it was at the rollout's beginning, environments and generators included, and acts the rollout out
again when it goes on. Nothing is pickled, unlike in SB3's own zip.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.random import get_state, set_state
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch.optim import Optimizer

from etude import checkpoint
from etude.agents.kernels import moments, set_moments
from etude.agents.smdp import NUMBERS, SMDPReplayBuffer
from etude.errors import CheckpointError, Stopped

COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining")
DQN_COUNTERS = (*COUNTERS, "_n_calls", "exploration_rate")

logger = logging.getLogger("etude")


class Stateful(Protocol):
    """Has a state that a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """The state as a tree."""

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Go on from such a tree."""


def state_dict(model: BaseAlgorithm) -> dict[str, Any]:
    """Everything that the rest of `learn` depends on, as a tree of live arrays.

    The environments must have `state_dict` and `load_state_dict`, as `SkillVecEnv` has.
    """
    assert model.ep_info_buffer is not None
    assert model.ep_success_buffer is not None
    env: Any = model.env
    tree = {
        "weights": model.policy.state_dict(),
        "optimisers": {name: moments(o) for name, o in _optimisers(model).items()},
        "counters": {name: getattr(model, name) for name in _counters(model)},
        "last": {"obs": model._last_obs, "starts": model._last_episode_starts},
        "episodes": [[info["r"], info["l"]] for info in model.ep_info_buffer],
        "successes": [bool(success) for success in model.ep_success_buffer],
        "recorded": _recorded(model),
        "generators": {
            "torch": torch.get_rng_state(),
            "numpy": get_state(legacy=False),  # noqa: NPY002  # SB3 draws from the global one
            "actions": checkpoint.generator_state(model.action_space.np_random),
        },
        "env": env.state_dict(),
    }
    if isinstance(model, SAC):
        assert model.log_ent_coef is not None
        tree["log_ent_coef"] = model.log_ent_coef.detach()
    if not isinstance(model, OnPolicyAlgorithm):
        tree["replay"] = _replay(model).state_dict()
    return tree


def load_state_dict(model: BaseAlgorithm, tree: Mapping[str, Any], source: str) -> None:
    """Go on from `state_dict` in a model that was built alike, with its logger set.

    Raises:
        CheckpointError: it was of another algorithm or other sizes; says it came from `source`.
    """
    fill(model.policy, tree["weights"], source)
    for name, optimiser in _optimisers(model).items():
        set_moments(optimiser, tree["optimisers"][name])
    for name in _counters(model):
        setattr(model, name, tree["counters"][name])
    model._last_obs = np.array(tree["last"]["obs"])
    model._last_episode_starts = np.array(tree["last"]["starts"])
    episodes = ({"r": r, "l": length} for r, length in tree["episodes"])
    model.ep_info_buffer = deque(episodes, model._stats_window_size)
    model.ep_success_buffer = deque(tree["successes"], model._stats_window_size)
    if isinstance(model, SAC):
        assert model.log_ent_coef is not None
        model.log_ent_coef.data.copy_(torch.as_tensor(tree["log_ent_coef"]))
    if not isinstance(model, OnPolicyAlgorithm):
        _replay(model).load_state_dict(tree["replay"])
    for key, value, excluded in tree["recorded"]:
        model.logger.record(key, value, tuple(excluded))
    env: Any = model.env
    env.load_state_dict(tree["env"])
    generators = tree["generators"]
    torch.set_rng_state(torch.as_tensor(generators["torch"]))
    set_state(generators["numpy"])  # noqa: NPY002
    checkpoint.set_generator_state(model.action_space.np_random, generators["actions"])


def fill(policy: BasePolicy, weights: Mapping[str, np.ndarray], source: str) -> None:
    """Copy saved weights into a policy.

    Raises:
        CheckpointError: they have other shapes; says that they came from `source`.
    """
    have = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    if have != {name: value.shape for name, value in weights.items()}:
        raise CheckpointError(
            f"{source} was trained for other observations or skills: load it with the task and the "
            f"library it was made with."
        )
    policy.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})


def _optimisers(model: BaseAlgorithm) -> dict[str, Optimizer]:
    if isinstance(model, SAC):
        assert model.ent_coef_optimizer is not None
        actor, critic = model.actor.optimizer, model.critic.optimizer
        return {"actor": actor, "critic": critic, "entropy": model.ent_coef_optimizer}
    return {"policy": model.policy.optimizer}


def _counters(model: BaseAlgorithm) -> tuple[str, ...]:
    return DQN_COUNTERS if isinstance(model, DQN) else COUNTERS


def _replay(model: BaseAlgorithm) -> SMDPReplayBuffer:
    assert isinstance(model, SAC | DQN)
    assert isinstance(model.replay_buffer, SMDPReplayBuffer)
    return model.replay_buffer


def _recorded(model: BaseAlgorithm) -> list[list[Any]]:
    """The numbers that SB3 has recorded and not written yet: key, value, excluded formats."""
    found = model.logger
    return [
        [key, float(value), list(found.name_to_excluded[key])]
        for key, value in found.name_to_value.items()
        if isinstance(value, NUMBERS)
    ]


class Keeper:
    """Where a training run is saved, how often, and from where it goes on."""

    def __init__(
        self, folder: Path, minutes: float = 5.0, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Read the newest checkpoint in `folder`, if there is one.

        Args:
            folder: of the checkpoints of this run alone.
            minutes: between two of them; 0 = only when stopped.
            stop: whether the run is to save itself and raise `Stopped`; asked at every decision.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        self.folder, self.stop = folder, stop
        self.about: Mapping[str, Any] = {}
        """What the run is; saved with it."""
        self.tree: Mapping[str, Any] | None = None
        """What the run goes on from; None: it is new."""
        self.env_steps: int | None = None
        """Environment steps of the newest checkpoint."""
        self._written: checkpoint.Written = {}
        self._minutes, self._last = minutes, time.monotonic()
        if checkpoint.latest(folder) is not None:
            self.tree = checkpoint.load_newest(folder, self._written)
            self.env_steps = int(self.tree["counter"]["env_steps"])

    def due(self) -> bool:
        """Whether the newest checkpoint is older than it may be."""
        return bool(self._minutes) and time.monotonic() - self._last > 60 * self._minutes

    def save(self, tree: Mapping[str, Any]) -> None:
        """Write a checkpoint; a disk that refuses is a warning, and the older ones stay."""
        steps = int(tree["counter"]["env_steps"])
        try:
            checkpoint.save(
                self.folder, f"{steps:012d}", {"about": self.about, **tree}, self._written
            )
        except OSError as error:
            logger.warning("no checkpoint was written (%s); older ones are untouched.", error)
        else:
            self.env_steps = steps
        self._last = time.monotonic()


class Saver(BaseCallback):
    """Saves a run where nothing is half done: when it is due, and when it is to stop."""

    def __init__(self, keeper: Keeper, parts: Mapping[str, Stateful]) -> None:
        """Save and restore `parts` along with the model; one of them is the `counter` of steps."""
        super().__init__()
        self._keeper, self._parts = keeper, parts
        self._beginning: dict[str, Any] = {}  # of PPO's rollout

    def restore(self, model: BaseAlgorithm) -> bool:
        """Go on from the keeper's checkpoint; False if there is none."""
        tree = self._keeper.tree
        if tree is None:
            return False
        load_state_dict(model, tree["model"], str(self._keeper.folder))
        for name, part in self._parts.items():
            part.load_state_dict(tree[name])
        return True

    def _on_rollout_start(self) -> None:
        stop = self._keeper.stop()
        if isinstance(self.model, OnPolicyAlgorithm):
            self._beginning = copy.deepcopy(self._tree())
        if stop or self._keeper.due():
            self._keeper.save(self._tree())
        if stop:
            raise Stopped

    def _on_step(self) -> bool:
        if self._beginning and self._keeper.stop():
            self._keeper.save(self._beginning)
            raise Stopped
        return True

    def _tree(self) -> dict[str, Any]:
        tree = {name: part.state_dict() for name, part in self._parts.items()}
        return {**tree, "model": state_dict(self.model)}
