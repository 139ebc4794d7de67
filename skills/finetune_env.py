"""Environments whose skills learn while a controller chooses among them, and the settings of that.

Shapes: N environments, O observation, B body fields that the skills read, Z skill, A action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from etude.agents.finite import check_tensors
from etude.agents.meta_config import MetaConfig, settings
from etude.agents.networks import Normaliser
from etude.agents.replay import Replay
from etude.agents.skill_critic import SkillCritic, SkillCriticConfig, Steps, Values
from etude.config import Config, Range
from etude.envs.engine import BatchedEnv
from etude.envs.registry import build, spec
from etude.envs.spec import EnvSpec
from etude.errors import UsageError
from etude.skills.controllers.base import Scaling
from etude.skills.library import SkillLibrary
from etude.skills.mlp import MLP, columns
from etude.skills.vec_env import LibraryLevel, SkillVecEnv


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """One run of fine-tuning."""

    algo: Literal["auto", "ppo", "sac", "dqn"] = "auto"
    """the controller's algorithm; auto: that of --controller, else sac (discrete skills: dqn)"""
    k: Annotated[int, Range(1)] = 25
    """environment steps a skill is held, as the controller was trained with"""
    gamma: Annotated[float, Range(0, 1, open_low=True)] = 0.99
    """discount per environment step"""
    env_steps: Annotated[int, Range(1)] = 200_000
    """environment steps of the whole run"""
    num_envs: Annotated[int, Range(1, 4096)] = 8
    """environments stepped together"""
    seed: Annotated[int, Range(0)] = 0
    """seed of networks, environments and choices"""
    warmup_steps: Annotated[int, Range(0)] = 5_000
    """environment steps in which only the skills' critics learn"""
    high_steps: Annotated[int, Range(0)] = 20_000
    """environment steps after those in which, beside them, only the controller learns"""
    updates_per_step: Annotated[float, Range(0, 64)] = 0.25
    """updates of the skills per environment step; 0 leaves them as they are"""
    replay_capacity: Annotated[int, Range(1)] = 500_000
    """environment steps kept for the skills (Skill-Critic: 500,000)"""
    low: SkillCriticConfig = field(default_factory=SkillCriticConfig)
    """the skills' policy and critics"""
    hyper: MetaConfig = field(default_factory=MetaConfig)
    """values of the controller that differ from its algorithm's preset"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algo != "auto":
            settings(self.algo, self.k, self.hyper)  # refuses what the algorithm has no use for


class WatchedEnv(BatchedEnv):
    """Environments that show every step to whoever watches.

    `watch` gets observations before and after (N, O), actions, rewards, terminated, and who was
    active (N,).
    """

    watch: Callable[..., None]

    def step(
        self, actions: np.ndarray, active: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step, as `BatchedEnv` makes it."""
        before = self._obs.copy()
        found = super().step(actions, active)
        _, reward, terminated, _, infos = found
        if active is None:
            active = np.ones(self.num_envs, bool)
        self.watch(before, infos["final_obs_array"], actions, reward, terminated, active)
        return found


class LearningLevel:
    """The skills of a library while they learn: a `LowLevel` that explores and remembers."""

    def __init__(
        self, library: SkillLibrary, env_spec: EnvSpec, scaling: Scaling, config: FinetuneConfig
    ) -> None:
        net = library.data.policy
        if net.period > 1:
            raise UsageError(
                f'skills of set "{library.set}" are plans of {net.period} steps, which look at '
                "nothing on the way: only skills that see every step can be fine-tuned."
            )
        level = LibraryLevel.for_spec(library, env_spec)
        if level.conditions:
            raise UsageError(
                f'skills of set "{library.set}" say when they may begin or when they are over, '
                "which fine-tuning would change: only skills that hold for k steps can learn."
            )
        self.library, self.config = library, config
        picked = columns(library.fields, net.input_fields)  # of the library's body observation
        assert level.columns is not None
        self._body = level.columns[picked]
        self.scaling = Normaliser(scaling.mean, scaling.std)
        self.normaliser = Normaliser(library.data.mean[picked], library.data.std[picked])
        seeds = np.random.SeedSequence(config.seed).spawn(2)
        generator = torch.Generator().manual_seed(int(seeds[0].generate_state(1)[0]))
        space = library.space
        self.agent = SkillCritic(
            net.weights,
            net.activation,
            env_spec.obs_dim,
            space.dim,
            config.k,
            config.gamma,
            config.low,
            generator,
        )
        # A row's action holds the reward behind it, its skill the steps for which it was held.
        widths = env_spec.obs_dim, env_spec.action_dim + 1, space.dim + 1
        most = config.env_steps + config.num_envs * config.k  # the run's last decision included
        self.replay = Replay(min(config.replay_capacity, most), 1, *widths, seeds[1])
        self._skill = np.zeros((config.num_envs, space.dim), np.float32)
        self._held = 0  # steps since these skills began
        self._due = 0.0  # updates, for steps that were made

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The action space of the library's skills."""
        return self.library.space.action_space()

    @property
    def period(self) -> int:
        """The skills look at every observation."""
        return 1

    def command(self, choice: np.ndarray) -> np.ndarray:
        """Skills z, which begin now."""
        self._skill, self._held = self.library.space.from_action(choice), 0
        return self._skill

    def plan(self, obs: np.ndarray, command: np.ndarray) -> np.ndarray:
        """Actions of the skills as they are now, drawn at random."""
        seen = self.normaliser(torch.as_tensor(obs[:, self._body]))
        action = self.agent.act(seen, torch.as_tensor(command))
        return action.numpy()[:, None]

    def watch(
        self,
        before: np.ndarray,
        after: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        active: np.ndarray,
    ) -> None:
        """Remember a step of the active environments."""
        acted = np.concatenate((action, reward[:, None]), 1)
        skill = np.concatenate((self._skill, np.full((len(action), 1), self._held)), 1)
        for n in np.flatnonzero(active).tolist():
            row = slice(n, n + 1)
            what = before[row], acted[row], after[row], skill[row]
            self.replay.add(*what, terminated[row], np.ones(1, bool))
        self._held += 1
        self._due += self.config.updates_per_step * int(active.sum())

    def learn(self, values: Values, move: bool) -> dict[str, float]:
        """The updates that are due; the means of their numbers.

        Raises:
            NotFiniteError: an update has a NaN or an infinity.
        """
        if self.replay.total < self.config.low.batch_size:
            self._due = 0.0
        rows = []
        while self._due >= 1:
            self._due -= 1
            found = self.agent.update(self._draw(), values, move)
            check_tensors(self.agent.updates, {"the number": found})
            rows.append(found)
        names = rows[0] if rows else ()
        return {name: float(torch.stack([r[name] for r in rows]).mean()) for name in names}

    def _draw(self) -> Steps:
        """Steps drawn uniformly, as the two networks see them."""
        drawn = self.replay.steps(self.config.low.batch_size)
        return Steps(
            obs=self.scaling(drawn.obs),
            next_obs=self.scaling(drawn.next_obs),
            body=self.normaliser(drawn.obs[:, self._body]),
            next_body=self.normaliser(drawn.next_obs[:, self._body]),
            skill=drawn.skill[:, :-1],
            step=drawn.skill[:, -1],
            action=drawn.action[:, :-1],
            reward=drawn.action[:, -1],
            terminated=drawn.terminated,
        )

    def policy(self) -> MLP:
        """The skills as they are now, without the noise."""
        return dataclasses.replace(self.library.data.policy, weights=self.agent.policy_layers())

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the run depends on, between two decisions."""
        replay = self.replay.state_dict()
        return {"agent": self.agent.checkpoint(), "replay": replay, "due": self._due}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.agent.restore(tree["agent"])
        self.replay.load_state_dict(tree["replay"])
        self._due = float(tree["due"])


class FinetuneVecEnv(SkillVecEnv):
    """`SkillVecEnv` whose low level learns, so that it belongs to its state."""

    def __init__(self, task: str, library: SkillLibrary, config: FinetuneConfig) -> None:
        self.level = LearningLevel(library, spec(task), Scaling.of(spec(task)), config)
        env = WatchedEnv(*build(task), config.num_envs)
        env.watch = self.level.watch
        super().__init__(env, self.level, config.k, config.gamma)

    @property
    def phase(self) -> Literal["critics", "controller", "both"]:
        """What may learn now."""
        config, done = self.level.config, self.env_steps
        if done < config.warmup_steps:
            return "critics"
        return "controller" if done < config.warmup_steps + config.high_steps else "both"

    def learn(self, values: Values) -> dict[str, float]:
        """The skills' updates that are due."""
        return self.level.learn(values, self.phase == "both")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "skills": self.level.state_dict()}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        super().load_state_dict(tree)
        self.level.load_state_dict(tree["skills"])
