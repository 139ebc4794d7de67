"""The networks of a run, untrained: a learner, its agent, and what may stand beside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.agents.sac import SAC
from etude.errors import UsageError
from etude.skills import learners
from etude.skills.bonus import Bonus
from etude.skills.discover_config import DiscoverConfig
from etude.skills.learners.base import Learner, Spec
from etude.skills.representation import Representation


class Networks(NamedTuple):
    """All that learns in a run."""

    learner: Learner
    agent: SAC | None
    bonus: Bonus | None
    representation: Representation | None


def networks(config: DiscoverConfig, spec: Spec, seed: int, device: torch.device) -> Networks:
    """Networks with weights drawn from `seed`, on the run's device.

    Learner and agent start alike with a bonus and without.

    Raises:
        UsageError: the learner can have no such bonus, or no representation.
    """
    agent: SAC | None = None
    bonus: Bonus | None = None
    representation: Representation | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = learners.get(config.learner)(_learner_spec(config, spec), config.method)
        learner.offline = bool(config.dataset)
        obs_dim, width = spec.obs_dim, learner.signal_dim
        if config.bonus:
            second = learners.get(config.bonus)(spec, config.bonus_method)
            second.offline = learner.offline
            bonus = Bonus(second, config.bonus_weight, learner).to(device)
            width = bonus.width
        if config.representation != "none":
            if learner.agent is None or not learner.agent.rewarded:
                raise UsageError(
                    f"{config.learner} has no agent that learns from a signal, which representation"
                    f" = {config.representation} predicts: leave --representation out."
                )
            if config.learner_on_features and not _plain(learner):
                raise UsageError(
                    f"{config.learner} learns a model of the body for its library, which features "
                    "are not: choose representation = mrq."
                )
            sizes = obs_dim, spec.action_dim, learner.space.dim, width
            representation = Representation(*sizes, config.encoder).to(device)
            obs_dim = config.encoder.width
        if learner.agent is not None:
            agent = learner.agent(
                obs_dim,
                spec.action_dim,
                learner.space.dim,
                config.agent,
                signal_dim=width,
                entropy_in_target=learner.entropy_in_target,
                generator=torch.Generator().manual_seed(seed),
            ).to(device)
    return Networks(learner.to(device), agent, bonus, representation)


def _learner_spec(config: DiscoverConfig, spec: Spec) -> Spec:
    """What the learner is told of the environment, or of the features in its place."""
    if not config.learner_on_features:
        return spec
    width = config.encoder.width
    return Spec({"features": slice(0, width)}, width, spec.action_dim)


def _plain(learner: Learner) -> bool:
    """Whether all that the learner gives a library reads observations and nothing else."""
    return all(isinstance(net, nn.Sequential) for net in learner.export().values())


def visible(config: DiscoverConfig, spec: Spec, device: torch.device) -> Tensor | None:
    """1 where the agent sees an entry (O,) of the observation, else 0; None where it sees all.

    Raises:
        UsageError: there is no such field, or no agent that could be kept from seeing it.
    """
    unseen = config.loop.unseen
    if not unseen:
        return None
    if learners.get(config.learner).agent is None:
        raise UsageError(
            f"unseen = {', '.join(unseen)} is for what an agent sees, and {config.learner} has "
            "none: leave it out, or take another learner."
        )
    seen = torch.ones(spec.obs_dim, device=device)
    seen[spec.columns(unseen)] = 0
    return seen
