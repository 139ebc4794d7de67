"""The settings of a run of discovery, and the presets that they start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from etude.agents.sac import SAC, SACConfig
from etude.config import Config, Range, replace
from etude.envs import registry
from etude.errors import UsageError
from etude.skills import learners, presets
from etude.skills.learners.base import LearnerConfig
from etude.skills.representation import RepresentationConfig


@dataclass(frozen=True)
class LoopConfig(Config):
    """How experience is collected and used."""

    num_envs: Annotated[int, Range(1, 1024)] = 8
    """environments stepped together"""
    episode_steps: Annotated[int, Range(1)] = 200
    """length of a training episode, steps (METRA: 200)"""
    updates_per_epoch: Annotated[int, Range(1)] = 50
    """updates after each epoch of num_envs * episode_steps steps (METRA: 50 per 1600)"""
    batch_size: Annotated[int, Range(1)] = 256
    """transitions in a batch (METRA: 256)"""
    replay_capacity: Annotated[int, Range(1)] = 1_000_000
    """transitions kept (METRA: 1e6)"""
    warmup_steps: Annotated[int, Range(0)] = 3_000
    """steps collected before the first update (METRA: 10,000)"""
    hold: Annotated[int, Range(0)] = 0
    """steps after which a training skill is redrawn; 0 = held for the whole episode (LPE: for one
    plan)"""
    visited_starts: Annotated[float, Range(0, 1)] = 0.0
    """share of training episodes that start from a state reached before, uniform over cells"""
    unseen: tuple[str, ...] = ()
    """observation fields that the policy does not see, such as the place of a body whose skills are
    to be the same everywhere; the learner sees them"""
    random_steps: Annotated[int, Range(0)] = 0
    """steps at first with uniform actions, each held for `hold` steps (0: for one; LPE: at least
    for a plan)"""


@dataclass(frozen=True)
class DiscoverConfig(Config):
    """One run of skill discovery."""

    learner: str = "metra"
    """id of a method; `discover --help` lists them"""
    env: str = "half-cheetah"
    """environment to practise in"""
    preset: str = "cpu"
    """flavour of the preset the other values started from"""
    seed: Annotated[int, Range(0)] = 0
    """seed of networks, environments, skills and batches"""
    steps: Annotated[int, Range(1)] = 500_000
    """environment steps of the whole run"""
    minutes: Annotated[float, Range(0)] = 0.0
    """processor time of training after which the run ends even so, evaluation not counted, so that
    a busy machine changes nothing; on one thread an idle clock's minutes; 0 = no limit"""
    dataset: str = ""
    """folder of a dataset to learn from, with no environment step of its own: an epoch is then only
    its updates, and `steps` those that would have been collected meanwhile; what `loop` says of
    collecting is then of no account; empty = collect"""
    bonus: str = ""
    """a second learner whose signal is added to what the agent is paid, so that it explores: apt,
    rnd, disagreement, or one that rewards the same skills; empty = none"""
    bonus_weight: Annotated[float, Range(0, open_low=True)] = 0.1
    """factor on that signal, which for those three is about 1"""
    representation: Literal["none", "mrq", "mrq-all"] = "none"
    """what policy and critics see: the observation, or features that a model of the run predicts
    (in the manner of MR.Q); with mrq-all the learner sees these, too"""
    method: LearnerConfig = field(default_factory=LearnerConfig)
    """settings of the learner"""
    bonus_method: LearnerConfig = field(default_factory=LearnerConfig)
    """settings of the bonus, from its own preset"""
    encoder: RepresentationConfig = field(default_factory=RepresentationConfig)
    """settings of the representation"""
    agent: SACConfig = field(default_factory=SACConfig)
    """settings of the agent; of no account for LPE and Choreographer, which have none"""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """settings of collection and updates"""

    def __post_init__(self) -> None:
        super().__post_init__()
        epoch = self.loop.num_envs * self.loop.episode_steps
        if self.loop.replay_capacity < max(epoch, self.loop.batch_size):
            raise UsageError(
                f"replay_capacity = {self.loop.replay_capacity} is too small: it must hold one "
                f"epoch of {epoch} steps and one batch of {self.loop.batch_size}."
            )
        whole = -(-self.steps // epoch) * epoch  # the last epoch is not cut short
        if self.loop.warmup_steps > whole:
            raise UsageError(
                f"warmup_steps = {self.loop.warmup_steps} leaves no update: choose at most "
                f"{whole}, which is steps = {self.steps} in whole epochs, or raise steps."
            )
        if not self.bonus and self.bonus_weight != type(self).bonus_weight:
            raise UsageError(
                f"bonus_weight = {self.bonus_weight} weighs no bonus: name one, for example "
                "bonus = rnd, or leave it out."
            )
        if not self.bonus and self.bonus_method != LearnerConfig():
            raise UsageError(
                "settings of bonus_method are for a bonus: name one, for example bonus = rnd, "
                "or leave them out."
            )
        if self.representation == "none" and self.encoder != RepresentationConfig():
            raise UsageError(
                "settings of encoder are for a representation: choose representation = mrq, "
                "or leave them out."
            )
        if self.representation != "none" and self.agent.activation != "relu":
            raise UsageError(
                f"activation = {self.agent.activation} does not go with representation = "
                f"{self.representation}: a library holds both as one network of ReLUs; choose relu."
            )
        for name, fields in (("skill_obs", self.method.skill_obs), ("unseen", self.loop.unseen)):
            if self.learner_on_features and fields:
                raise UsageError(
                    f"{name} = {', '.join(fields)} does not go with representation = mrq-all, "
                    "whose features have no such parts: leave it empty (--method.skill-obs and "
                    "--loop.unseen with nothing behind them), or choose mrq."
                )

    @property
    def learner_on_features(self) -> bool:
        """Whether the learner, too, sees the representation's features."""
        return self.representation == "mrq-all"


def preset(learner: str, env: str, flavour: str = "cpu", bonus: str = "") -> DiscoverConfig:
    """The configuration that a learner's preset gives for an environment, and a bonus's its own."""
    base = dataclasses.replace(_plain(learner, bonus), env=registry.spec(env).id, preset=flavour)
    values = presets.load(learner, env, flavour)
    if bonus:
        values["bonus_method"] = presets.load(bonus, env, flavour).get("method", {})
    return replace(base, values)


def read_config(data: Mapping[str, Any]) -> DiscoverConfig:
    """The configuration stored by `to_dict`; raises `UsageError` for unknown or wrong values."""
    named = replace(DiscoverConfig(), {k: data[k] for k in ("learner", "bonus") if k in data})
    return replace(_plain(named.learner, named.bonus), data)


def _plain(learner: str, bonus: str) -> DiscoverConfig:
    """The defaults of a learner and a bonus, and of the agent that the learner names."""
    method = learners.get(learner)
    return DiscoverConfig(
        learner=learner,
        bonus=bonus,
        method=method.Config(),
        agent=(method.agent or SAC).Config(),
        bonus_method=learners.get(bonus).Config() if bonus else LearnerConfig(),
    )
