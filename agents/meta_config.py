"""Presets of the algorithms that choose skills, as data, tuned for few decisions.

A million environment steps are 40,000 decisions of 25 steps, so rollouts and networks are small and
every decision is learnt from often. With k = 1 there are as many decisions as steps, and values
close to stable-baselines3's own take over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from gymnasium import spaces

from etude.config import Config, Range, replace
from etude.errors import UsageError, unknown


@dataclass(frozen=True)
class MetaConfig(Config):
    """Settings of an algorithm over skills; None takes the preset of the algorithm."""

    hidden: tuple[Annotated[int, Range(1)], ...] | None = None
    """widths of the hidden layers, of actor and critic each"""
    learning_rate: Annotated[float, Range(0, 1, open_low=True)] | None = None
    """step size of Adam"""
    batch_size: Annotated[int, Range(2)] | None = None
    """decisions in a batch; PPO takes the largest divisor of a rollout up to this"""
    ent_coef: Annotated[float, Range(0, open_low=True)] | None = None
    """PPO: weight of the entropy; SAC: temperature to start from, it tunes itself"""
    rollout: Annotated[int, Range(2)] | None = None
    """PPO: decisions, of all environments together, between two updates"""
    epochs: Annotated[int, Range(1)] | None = None
    """PPO: passes over each rollout"""
    gae_lambda: Annotated[float, Range(0, 1)] | None = None
    """PPO: decay of the advantage estimate, per decision"""
    updates_per_decision: Annotated[float, Range(0, open_low=True)] | None = None
    """SAC, DQN: gradient steps per decision, of whichever environment"""
    learning_starts: Annotated[int, Range(0)] | None = None
    """SAC, DQN: random decisions before the first update"""
    buffer_size: Annotated[int, Range(1)] | None = None
    """SAC, DQN: decisions kept"""
    tau: Annotated[float, Range(0, 1, open_low=True)] | None = None
    """SAC: share of the critic that its target takes over with every update"""
    target_period: Annotated[int, Range(1)] | None = None
    """DQN: decisions between two copies of the network into its target"""
    exploration: Annotated[float, Range(0, 1)] | None = None
    """DQN: share of training over which random choices fall from 1 to `exploration_final`"""
    exploration_final: Annotated[float, Range(0, 1)] | None = None
    """DQN: share of random choices left"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer_size and self.buffer_size < max(self.batch_size or 0, 1):
            raise UsageError(
                f"buffer_size = {self.buffer_size} is too small: it must hold one batch of "
                f"{self.batch_size} decisions."
            )


PRESETS: dict[str, MetaConfig] = {
    "ppo": MetaConfig(
        hidden=(64, 64),
        learning_rate=1e-3,  # few decisions: a far goal is found some dozen times, not thousands
        batch_size=128,
        ent_coef=0.001,  # METRA's 0.01 outweighs a reward that is found once in a hundred episodes
        rollout=512,
        epochs=10,
        gae_lambda=0.95,
    ),
    "sac": MetaConfig(
        hidden=(128, 128),
        learning_rate=3e-4,
        batch_size=256,
        ent_coef=0.1,
        updates_per_decision=1.0,
        learning_starts=200,
        buffer_size=200_000,
        tau=0.005,
    ),
    "dqn": MetaConfig(
        hidden=(128, 128),
        learning_rate=5e-4,
        batch_size=256,
        updates_per_decision=1.0,
        learning_starts=200,
        buffer_size=200_000,
        target_period=500,
        exploration=0.3,
        exploration_final=0.05,
    ),
}

MASKABLE = "maskable-ppo"  # of sb3-contrib, an extra
PRESETS[MASKABLE] = PRESETS["ppo"]

ON_POLICY = ("ppo", MASKABLE)

PRIMITIVE: dict[str, MetaConfig] = {
    "ppo": MetaConfig(learning_rate=3e-4, rollout=2048),
    "sac": MetaConfig(
        hidden=(256, 256),
        updates_per_decision=1 / 8,
        learning_starts=10_000,
        buffer_size=1_000_000,
    ),
}
"""What differs where every step is a decision (k = 1), of which there are then many; after SB3."""


def settings(algo: str, k: int, hyper: MetaConfig | None = None) -> MetaConfig:
    """The preset of `algo` for decisions of k steps, with the values that `hyper` names.

    Raises:
        UsageError: an unknown algorithm, or a value that it has no use for.
    """
    if algo not in PRESETS:
        raise unknown("algorithm", algo, PRESETS)
    preset = replace(PRESETS[algo], _named(PRIMITIVE.get(algo)) if k == 1 else {})
    given = _named(hyper)
    for name in given:
        if getattr(preset, name) is None:
            raise UsageError(f"{algo} has no use for {name}: it takes {', '.join(_named(preset))}.")
    return replace(preset, given)


def rollout_shape(chosen: MetaConfig, num_envs: int) -> tuple[int, int]:
    """PPO's steps per environment between two updates, and its batch, which divides them all."""
    assert chosen.rollout is not None
    assert chosen.batch_size is not None
    n_steps = max(2, -(-chosen.rollout // num_envs))
    size = n_steps * num_envs
    return n_steps, max(b for b in range(1, chosen.batch_size + 1) if size % b == 0)


def gradient_steps(chosen: MetaConfig, num_envs: int) -> int:
    """Updates of SAC and DQN after one decision in every environment."""
    assert chosen.updates_per_decision is not None
    return max(1, round(chosen.updates_per_decision * num_envs))


def update_ratio(algo: str, k: int, num_envs: int, hyper: MetaConfig | None = None) -> float:
    """Gradient steps per decision of whichever environment, once an algorithm learns.

    Raises:
        UsageError: an unknown algorithm, or a value that it has no use for.
    """
    chosen = settings(algo, k, hyper)
    if algo in ON_POLICY:
        assert chosen.epochs is not None
        return chosen.epochs / rollout_shape(chosen, num_envs)[1]
    return gradient_steps(chosen, num_envs) / num_envs


def check_choices(algo: str, space: spaces.Space[Any], every_step: bool = False) -> None:
    """Raise UsageError unless `algo` can choose from `space`, and learn from every step."""
    if algo == "sac" and not isinstance(space, spaces.Box):
        raise UsageError("SAC cannot choose among discrete skills: take algo ppo or dqn.")
    if algo == "dqn" and isinstance(space, spaces.MultiDiscrete):
        raise UsageError("DQN chooses a skill alone, not its duration: take algo ppo.")
    if algo == "dqn" and not isinstance(space, spaces.Discrete):
        raise UsageError("DQN chooses among discrete skills only: take algo ppo or sac.")
    if algo == MASKABLE and isinstance(space, spaces.Box):
        raise UsageError("masks are for discrete skills: take algo ppo or sac.")
    if every_step and algo in ON_POLICY:
        raise UsageError(
            f"{algo} learns from its own decisions alone: every_step is for sac and dqn."
        )


def _named(hyper: MetaConfig | None) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in vars(hyper or MetaConfig()).items() if value is not None}
