"""The loop that every learner runs in: collect, learn, hand a library over.

One epoch is one episode in each environment, then `updates_per_epoch` updates; each update takes
a fresh batch, moves the learner, computes the signal with it, and moves the agent. Learning
from a dataset leaves the updates alone. A run may be stopped after any step or update, and goes on
from its checkpoint exactly.

Shapes: N environments, T steps of an episode, O observation, Z skill, D descriptor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from etude import checkpoint
from etude.agents.finite import check_observations, check_tensors
from etude.agents.networks import Normaliser, available
from etude.agents.replay import Batch, Record, Replay
from etude.envs import registry
from etude.errors import CheckpointError, NotFiniteError, UsageError
from etude.skills.acting import Snapshot
from etude.skills.bonus import Bonus
from etude.skills.dataset import Dataset
from etude.skills.discover_config import DiscoverConfig, LoopConfig, preset, read_config
from etude.skills.learners.base import Spec
from etude.skills.networks import networks, visible
from etude.skills.representation import Representation, transitions
from etude.skills.spaces import SkillSpace
from etude.skills.visited_starts import VisitedStarts

__all__ = ["Callback", "DiscoverConfig", "Discovery", "LoopConfig", "preset", "read_config"]


class Callback(Protocol):
    """Something that watches a run."""

    def on_epoch(self, discovery: Discovery) -> None:
        """Called after every epoch."""


class Discovery:
    """A run of skill discovery; `run()` it, then `snapshot()` or `etude.skills.export` it."""

    def __init__(self, config: DiscoverConfig, device: str = "cpu") -> None:
        """Set up a run; replay, networks and updates are on `device`, physics on the CPU.

        Raises:
            DatasetError: the dataset to learn from is damaged, or of another environment.
            UsageError: the environment has no normaliser, there is no such device, or the learner
                cannot learn from that dataset.
        """
        self.config, self.device = config, available(device)
        loop = config.loop
        streams = np.random.SeedSequence(config.seed).spawn(5)
        net_seed, env_seed, replay_seed = (int(s.generate_state(1)[0]) for s in streams[:3])
        self.rng = np.random.default_rng(streams[3])
        self.venv = registry.make_vec(
            config.env, loop.num_envs, seed=env_seed, max_steps=loop.episode_steps
        )
        self.env_spec = self.venv.env_spec
        if self.env_spec.obs_mean is None or self.env_spec.obs_std is None:
            raise UsageError(
                f'environment "{config.env}" names no normaliser: give its spec obs_mean.'
            )
        self.normaliser = Normaliser(self.env_spec.obs_mean, self.env_spec.obs_std).to(self.device)
        self._fields = self.env_spec.slices()
        spec = Spec(self._fields, self.env_spec.obs_dim, self.env_spec.action_dim)
        self.learner, self.agent, self.bonus, self.representation = networks(
            config, spec, net_seed, self.device
        )
        self.visible = visible(config, spec, self.device)
        self._learnt = self._parameters()
        if loop.hold % self.period:
            raise UsageError(
                f"hold = {loop.hold} breaks off plans of {self.period} steps: choose a multiple."
            )
        self.dataset = self._dataset()
        if self.dataset is None:
            sizes = spec.obs_dim, spec.action_dim, self.space.dim
            self.replay = Replay(loop.replay_capacity, loop.num_envs, *sizes, replay_seed, device)
        else:
            self.replay = self.dataset.replay(replay_seed, device)
        self.starts = VisitedStarts(self.env_spec.cell, np.random.default_rng(streams[4]))
        self.steps = self.updates = 0
        self.seconds = 0.0
        self.metrics: dict[str, float] = {}
        episodes = 0 if self.dataset else loop.num_envs
        self.collected = np.zeros((episodes, loop.episode_steps + 1, len(self.env_spec.descriptor)))
        self._obs = np.zeros((loop.num_envs, spec.obs_dim), np.float32)
        self._z = np.zeros((loop.num_envs, self.space.dim), np.float32)
        self._plan = np.zeros((loop.num_envs, self.period, spec.action_dim), np.float32)
        self._sums: dict[str, Tensor] = {}  # of the metrics of the epoch's updates
        self._begin_epoch()

    def _dataset(self) -> Dataset | None:
        """What the run learns from instead of collecting, if that is what it does."""
        if not self.config.dataset:
            return None
        dataset = Dataset.load(Path(self.config.dataset), self.env_spec)
        if self.learner.reads_skills and dataset.space != self.space:
            raise UsageError(
                f"{self.config.learner} learns from what its own skills did, {self.space}, and "
                f"dataset {dataset.path} has {dataset.space}: give one of such skills."
            )
        return dataset

    @property
    def space(self) -> SkillSpace:
        """The space of this run's skills."""
        return self.learner.space

    @property
    def done(self) -> bool:
        """Whether the run has all its steps, or its time is up."""
        limit = 60 * self.config.minutes or float("inf")
        return self.steps >= self.config.steps or self.seconds >= limit

    @property
    def between_epochs(self) -> bool:
        """Whether no epoch is unfinished."""
        return self._t == 0

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Epochs until the configured number of steps; a callback may raise to stop the run."""
        while not self.done:
            self.epoch()
            for callback in callbacks:
                callback.on_epoch(self)

    def epoch(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """One episode in every environment, then the updates; sets `metrics`.

        `stop` is asked before each step and each update. Returns whether the epoch is complete; one
        that was stopped goes on where it was at the next call, also in a run that was restored.
        """
        start, worked = time.perf_counter(), time.process_time()
        complete = self.collect(stop) and self.learn(stop)
        self.seconds += time.process_time() - worked  # whatever else the machine does meanwhile
        self._epoch_seconds += time.perf_counter() - start
        if complete:
            count = self.config.loop.num_envs * self.config.loop.episode_steps
            self.metrics = {k: float(v) / self._u for k, v in sorted(self._sums.items())}
            self.metrics["time/fps"] = count / self._epoch_seconds
            self._begin_epoch()
        return complete

    def _begin_epoch(self) -> None:
        self._t = self._u = 0  # steps and updates of this epoch so far
        self._epoch_seconds = 0.0
        self._sums = {}

    def collect(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """What is left of `episode_steps` steps in every environment, into the replay."""
        loop = self.config.loop
        if self.dataset and not self._t:
            self._t = loop.episode_steps
            self.steps += loop.num_envs * loop.episode_steps
        while self._t < loop.episode_steps:
            if stop():
                return False
            if not self._t:
                self._obs = self.reset()
                check_observations(self._obs, self.steps // loop.num_envs, self._fields)
                self.collected[:, 0] = self.venv.descriptor()
            self._z = self.learner.resample(self._z, self._t, self.rng, loop.hold)
            action = self._act()
            obs, _, terminated, truncated, info = self.venv.step(action)
            final = info["final_obs_array"]  # before any autoreset
            check_observations(final, self.steps // loop.num_envs, self._fields)
            self.replay.add(self._obs, action, final, self._z, terminated, truncated)
            self._t += 1
            self.steps += loop.num_envs
            self.collected[:, self._t] = info["descriptor"]
            if loop.visited_starts and not truncated.all():
                self.starts.add(self.venv.descriptor(), self.venv.get_state())
            self._obs = obs
        return True

    @property
    def period(self) -> int:
        """Steps that the skills plan ahead."""
        return self.learner.period

    def _act(self) -> np.ndarray:
        """Actions (N, A) of this step; a new plan where the last one is used up."""
        at, loop = self._t % self.period, self.config.loop
        if self.steps < loop.random_steps:
            if self._t % max(loop.hold, self.period) == 0:
                drawn = self.rng.uniform(-1, 1, (loop.num_envs, 1, self.env_spec.action_dim))
                self._plan = drawn.astype(np.float32).repeat(self.period, 1)
        elif at == 0:
            self._plan = self.plan(self._obs, self._z)
        return self._plan[:, at]

    def plan(self, obs: np.ndarray, z: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """Actions (N, period, A) of skills (N, Z) in raw observations (N, O)."""
        seen = self.normaliser(torch.as_tensor(obs, dtype=torch.float32).to(self.device))
        skills = torch.as_tensor(z, dtype=torch.float32).to(self.device)
        if self.agent is None:
            ahead = self.learner.plan(seen, skills, deterministic)
        else:
            seen = self._shown(seen)
            if self.representation:
                seen = self.representation.encode(seen)
            ahead = self.agent.act(seen, skills, deterministic).unsqueeze(1)
        return np.asarray(ahead.cpu().numpy())

    def _shown(self, obs: Tensor) -> Tensor:
        """Observations (..., O) with 0 in what the policy does not see."""
        return obs if self.visible is None else obs * self.visible

    def reset(self) -> np.ndarray:
        """Fresh episodes: from the start, or a share of them from states reached before."""
        obs, _ = self.venv.reset()
        chosen = self.rng.random(self.venv.num_envs) < self.config.loop.visited_starts
        if chosen.any() and len(self.starts):
            states = self.starts.sample(self.venv.num_envs)
            obs, _ = self.venv.reset(options={"mask": chosen, "state": states})
        return obs

    def learn(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """What is left of the epoch's updates, once the warm-up is over."""
        loop = self.config.loop
        ready = self.dataset is not None or self.steps >= loop.warmup_steps
        while ready and self._u < loop.updates_per_epoch:
            if stop():
                return False
            for key, value in self._update().items():
                self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._u += 1
            self.updates += 1
        return True

    def _update(self) -> dict[str, Tensor]:
        """A fresh batch for the learner, then its signal for the agent; returns the metrics."""
        size = self.config.loop.batch_size
        drawn = self.learner.draw(self.replay, size).normalised(self.normaliser)
        if self.agent is None:
            learned = self.learner.update(drawn)
            self._check(drawn, learned)
            return learned
        assert isinstance(drawn, Batch), "an agent learns from transitions"
        learned = self.learner.update(self._for_learner(drawn))
        if self.bonus:
            own = self.bonus.learner.draw(self.replay, size).normalised(self.normaliser)
            learned |= self.bonus.update(own)
        if self.representation:
            learned |= self._represent(self.representation)
        batch, for_learner = self._relabelled(drawn)
        signal, weights, rewards = self._paid(batch, for_learner)
        seen = batch.replace(obs=self._shown(batch.obs), next_obs=self._shown(batch.next_obs))
        if self.representation:
            seen = self.representation.encoded(seen)
        acted = self.agent.update(seen, signal, weights)
        effects = {
            "the signal": {"to the agent": signal},
            "the agent's loss": acted,
            "the agent's gradient of": self.agent.gradients(),
        }
        self._check(drawn, learned, effects)
        return {**learned, **acted, **rewards}

    def _for_learner(self, batch: Batch) -> Batch:
        """What the learner sees of it: the observations, or features of them."""
        if self.representation and self.config.learner_on_features:
            return batch.normalised(self.representation.encode)
        return batch

    def _relabelled(self, batch: Batch) -> tuple[Batch, Batch]:
        """The batch with skills and goals to learn from, and the same as the learner sees it."""
        for_learner = self.learner.relabel(self._for_learner(batch), self.rng)
        return batch.replace(skill=for_learner.skill, goal=for_learner.goal), for_learner

    def _paid(self, batch: Batch, for_learner: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Signal and weights (B, K) with the bonus in them, and the mean of each reward.

        The batch is as the bonus sees it, and `for_learner` the same as the learner does.
        """
        signal = self.learner.signal(for_learner)
        weights = self.learner.task_vector(batch.skill)
        rewards = {"skill/reward": (signal * weights).sum(-1).mean()}
        if self.bonus:
            signal, weights, added = self.bonus.add(batch, signal, weights)
            rewards["bonus/reward"] = added.mean()
        return signal, weights, rewards

    def _represent(self, representation: Representation) -> dict[str, Tensor]:
        """An update of what the agent sees; returns its metrics."""
        drawn = representation.draw(self.replay).normalised(self.normaliser)
        batch, for_learner = self._relabelled(transitions(drawn))
        skill = batch.skill.unflatten(0, drawn.valid.shape)
        shown = drawn.replace(obs=self._shown(drawn.obs), skill=skill)
        return representation.update(shown, self._paid(batch, for_learner)[0])

    def _check(
        self,
        drawn: Record,
        learned: Mapping[str, Tensor],
        effects: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Refuse an update with anything that is not finite; causes stand before effects."""
        gradients = {k: p.grad for k, p in self._learnt.items() if p.grad is not None}
        groups = {
            "the learner's loss": learned,
            "the learner's gradient of": gradients,
            **(effects or {}),
        }
        try:
            check_tensors(self.updates, groups)
        except NotFiniteError as error:
            kept = {k: v for k, v in vars(drawn).items() if v is not None}
            error.evidence = {"batch": kept, "learner": self.learner.checkpoint()}
            raise

    def snapshot(self) -> Snapshot:
        """The present skills as a policy to evaluate."""
        return Snapshot(self)

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as a tree."""
        return {
            "counters": {"steps": self.steps, "updates": self.updates, "seconds": self.seconds},
            "epoch": {
                "t": self._t,
                "u": self._u,
                "seconds": self._epoch_seconds,
                "obs": self._obs,
                "z": self._z,
                "plan": self._plan,
                "collected": self.collected,
                "sums": {k.replace("/", "."): v for k, v in self._sums.items()},
            },
            "rng": checkpoint.generator_state(self.rng),
            "learner": self.learner.checkpoint(),
            "agent": self.agent.checkpoint() if self.agent else {},
            **{name: part.checkpoint() for name, part in self._beside().items()},
            "replay": self._replay_state(),
            "starts": self.starts.checkpoint(),
            "env": self.venv.state_dict(),
        }

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Weights that learn, but the agent's, by the names that errors give them."""
        found = dict(self.learner.named_parameters())
        for name, part in self._beside().items():
            found |= {f"{name}.{k}": weight for k, weight in part.named_parameters()}
        return found

    def _beside(self) -> dict[str, Bonus | Representation]:
        """What learns beside learner and agent."""
        both = {"bonus": self.bonus, "representation": self.representation}
        return {name: part for name, part in both.items() if part is not None}

    def _replay_state(self) -> dict[str, Any]:
        """The replay as a tree; of a dataset only its identity, and the generator."""
        if self.dataset is None:
            return self.replay.state_dict()
        state = checkpoint.generator_state(self.replay.rng)
        return {"dataset": self.dataset.id, "generator": state}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go on from a tree made by `checkpoint`."""
        self.steps, self.updates = tree["counters"]["steps"], tree["counters"]["updates"]
        self.seconds = tree["counters"]["seconds"]
        epoch = tree["epoch"]
        self._t, self._u, self._epoch_seconds = epoch["t"], epoch["u"], epoch["seconds"]
        self._obs, self._z = np.array(epoch["obs"]), np.array(epoch["z"])
        self._plan = np.array(epoch["plan"])
        self.collected = np.array(epoch["collected"])
        sums = {k.replace(".", "/"): v for k, v in epoch["sums"].items()}
        self._sums = {k: torch.as_tensor(v).to(self.device) for k, v in sums.items()}
        checkpoint.set_generator_state(self.rng, tree["rng"])
        self.learner.restore(tree["learner"])
        if self.agent:
            self.agent.restore(tree["agent"])
        for name, part in self._beside().items():
            part.restore(tree[name])
        if self.dataset is None:
            self.replay.load_state_dict(tree["replay"])
        elif tree["replay"]["dataset"] == self.dataset.id:
            checkpoint.set_generator_state(self.replay.rng, tree["replay"]["generator"])
        else:
            raise CheckpointError(
                f"the run began with another dataset than {self.dataset.path} holds now: "
                "put that one back."
            )
        self.starts.restore(tree["starts"])
        self.venv.load_state_dict(tree["env"])
