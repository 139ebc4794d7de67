"""Composing skills in imagination: what each would lead to is known before it is tried.

A library with the encoder `outcome` predicts the state that a skill leads to in k steps. Then a new
task need only be met once: until the first reward skills are drawn at random and held for long, as
in Choreographer (Mazzaglia et al. 2023, arXiv:2211.13350: "reward smoothing"); from then on every
skill is tried in imagination from every place that was seen, over and over,

    V(i) = max_z [ r(i') + gamma^k (1 - d(i')) V(i') ],      i' = the place nearest to outcome(i, z)

and the skill is chosen that leads to most; where z was really tried in i, i' is where it led to the
last time. Places are states further than `spacing` from each other
in the fields that skills are told apart by, r and d the mean reward and share of ends of what was
visited nearest to each: the reward is taken to be one of places, and of one task.

Deviations from Choreographer, which learns a categorical policy over codes and a critic on imagined
latent states: value iteration on the places seen, exact for what was predicted, without a network,
a learning rate or torch; skills stay as they are; they are held for k steps and not for one.

Shapes: N environments, P places, K skills, O body observation, C coordinates of a place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from etude.config import Config, Range
from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.envs.spec import EnvSpec
from etude.errors import UsageError
from etude.skills.acting import Acting
from etude.skills.library import SkillLibrary
from etude.skills.mlp import columns
from etude.skills.spaces import Discrete

OUTCOME = "outcome"  # name of the encoder
CHUNK = 4096
UNKNOWN = -1
NOTHING = 1e-9  # value of a place from which no reward can be imagined


@dataclass(frozen=True)
class ImaginationConfig(Config):
    """Settings of composing in imagination."""

    gamma: Annotated[float, Range(0, 1, open_high=True)] = 0.99
    """discount per environment step"""
    spacing: Annotated[float, Range(0, open_low=True)] = 0.1
    """distance between places, in units of the normaliser"""
    places: Annotated[int, Range(1, 100_000)] = 2000
    """most places that are kept"""
    hold: Annotated[int, Range(1)] = 125
    """steps for which a random skill is held (Choreographer: 125)"""
    explore: Annotated[float, Range(0, 1)] = 0.1
    """share of decisions that are random while the task is learnt, once there was a reward"""
    every: Annotated[int, Range(1)] = 1000
    """environment steps after which all skills are imagined anew"""


class ImaginationController:
    """Chooses among discrete skills by imagined return; `remember` and `imagine` teach it the task.

    Raises:
        UsageError: the library predicts no outcomes, or its skills are not discrete.
    """

    def __init__(
        self,
        library: SkillLibrary,
        env_spec: EnvSpec,
        seed: int = 0,
        config: ImaginationConfig | None = None,
    ) -> None:
        if OUTCOME not in library.encoders or not isinstance(library.space, Discrete):
            raise UsageError(
                f'set "{library.set}" of library {library.name} cannot be composed in imagination: '
                f'it needs the encoder "{OUTCOME}" and discrete skills, as choreographer has them.'
            )
        made = library.data.config["method"]
        self.k = int(made["imagination"]["horizon"])
        """Steps that outcomes lie ahead, and that skills are to be held."""
        self.config = config or ImaginationConfig()
        self.exploring = False
        """Whether decisions may be random, because the task is still being learnt."""
        self._rng = np.random.default_rng(seed)
        self._library, self._body = library, env_spec.body_dim
        self._columns = columns(library.fields, made["skill_obs"] or None)
        self._skills = np.eye(library.space.dim, dtype=np.float32)
        self._held = np.zeros((0, library.space.dim), np.float32)
        self._left = np.zeros(0, int)  # decisions for which a random skill goes on
        self._obs = np.zeros((0, self._body), np.float32)  # (P, O) raw, of each place
        self._sums = np.zeros((0, 3))  # (P, 3) of visits, rewards and ends
        self._value = np.zeros(0)  # (P,)
        self._tried = np.zeros((0, len(self._skills)), int)  # (P, K) where it led, or UNKNOWN

    def judged(self) -> ImaginationController:
        """What is known now, to be judged in other environments: it explores nothing."""
        other = copy.copy(self)
        other.exploring, other._rng = False, np.random.default_rng(0)
        return other

    def reset(self, obs: np.ndarray) -> None:
        """Begin episodes."""
        self._held = np.zeros((len(obs), len(self._skills)), np.float32)
        self._left = np.zeros(len(obs), int)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, K) to hold for k steps."""
        body = obs[:, : self._body]
        known = np.zeros(len(obs), bool)
        chosen = self._held.copy()
        if self._value.max(initial=0) > NOTHING:
            returns = self.returns(body)  # (N, K)
            chosen = self._skills[returns.argmax(-1)]
            known = returns.max(-1) > NOTHING
            known &= (self._rng.random(len(obs)) >= self.config.explore) | (not self.exploring)
        fresh = self._library.sample(self._rng, len(obs))
        going = (self._left > 0)[:, None]
        self._held = np.where(known[:, None], chosen, np.where(going, self._held, fresh))
        whole = max(1, self.config.hold // self.k) if not known.any() else 1
        self._left = np.where(known, 0, np.where(going[:, 0], self._left - 1, whole - 1))
        return self._held

    def returns(self, body: np.ndarray) -> np.ndarray:
        """The imagined return (n, K) of each skill from raw body observations (n, O)."""
        return self._worth(self._leads(body))

    def remember(self, obs: np.ndarray, reward: np.ndarray, ended: np.ndarray) -> None:
        """Take in what steps led to: observations (N, O), rewards (N,), ends for good (N,)."""
        body = obs[:, : self._body]
        at, distance = self._nearest(self._place(body)), np.full(len(body), np.inf)
        if len(self._obs):
            distance = np.linalg.norm(self._place(body) - self._place(self._obs)[at], axis=-1)
        for i in np.flatnonzero(distance > self.config.spacing):
            if len(self._obs) < self.config.places:
                at[i] = len(self._obs)
                self._obs = np.concatenate((self._obs, body[i : i + 1]))
                self._sums = np.concatenate((self._sums, np.zeros((1, 3))))
                unknown = np.full((1, len(self._skills)), UNKNOWN)
                self._tried = np.concatenate((self._tried, unknown))
        np.add.at(self._sums, at, np.stack((np.ones(len(body)), reward, ended), -1))

    def correct(self, obs: np.ndarray, z: np.ndarray, after: np.ndarray) -> None:
        """Take in where skills (N, K) really led: from observations (N, O), after k steps."""
        begin, end = (self._nearest(self._place(x[:, : self._body])) for x in (obs, after))
        self._tried[begin, z.argmax(-1)] = end

    def imagine(self) -> None:
        """Try every skill in every place, until the places' values no longer change."""
        self._value = np.zeros(len(self._obs))
        if self._sums[:, 1].max(initial=0) <= 0:
            return  # there was no reward yet
        chunks = np.array_split(self._obs, -(-len(self._obs) // 64))
        leads = np.concatenate([self._leads(chunk) for chunk in chunks])  # (P, K)
        while True:
            value = self._worth(leads).max(-1)
            done = np.abs(value - self._value).max() < 1e-6
            self._value = value
            if done:
                return

    def _worth(self, leads: np.ndarray) -> np.ndarray:
        """What it is worth to be led to places (…), given as their numbers."""
        visits, rewards, ends = self._sums.T
        value = np.zeros(len(self._obs))
        value[: len(self._value)] = self._value  # places that were found since have none
        mean = rewards / visits + self.config.gamma**self.k * (1 - ends / visits) * value
        return np.asarray(mean[leads])

    def _leads(self, body: np.ndarray) -> np.ndarray:
        """Numbers (n, K) of the places that every skill leads to from body observations (n, O)."""
        tried = self._tried[self._nearest(self._place(body))]
        return np.where(tried == UNKNOWN, self._nearest(self._ahead(body)), tried)

    def _place(self, body: np.ndarray) -> np.ndarray:
        """Coordinates (…, C) of raw body observations (…, O)."""
        data = self._library.data
        return np.asarray(((body - data.mean) / data.std)[..., self._columns])

    def _ahead(self, body: np.ndarray) -> np.ndarray:
        """Places (n, K, C) that every skill leads to from raw body observations (n, O)."""
        n, skills = len(body), len(self._skills)
        obs, z = np.repeat(body, skills, 0), np.tile(self._skills, (n, 1))
        change = self._library.encoders[OUTCOME](obs, z)[:, self._columns]
        return np.asarray((self._place(obs) + change).reshape(n, skills, -1))

    def _nearest(self, place: np.ndarray) -> np.ndarray:
        """Numbers (…) of the places nearest to coordinates (…, C)."""
        flat, known = place.reshape(-1, place.shape[-1]), self._place(self._obs)
        if not len(known) or not len(flat):
            return np.zeros(place.shape[:-1], int)
        size = (known**2).sum(-1)
        near = [
            (size - 2 * part @ known.T).argmin(-1)
            for part in np.array_split(flat, -(-len(flat) // CHUNK))
        ]
        return np.concatenate(near).reshape(place.shape[:-1])


def adapt(
    controller: ImaginationController,
    library: SkillLibrary,
    task: str,
    steps: int,
    *,
    num_envs: int = 4,
    seed: int = 0,
    watch: Callable[[int], bool] = lambda steps: False,
) -> int | None:
    """Teach a controller a task; returns the environment steps until the first reward, or None.

    Args:
        controller: made for the task; explores meanwhile.
        library: its skills.
        task: id of the environment.
        steps: environment steps, of all environments together.
        num_envs: environments stepped together.
        seed: of the environments.
        watch: called with the steps so far whenever skills were imagined anew; true ends it.
    """
    venv = registry.make_vec(task, num_envs, seed=seed)
    obs, _ = venv.reset()
    controller.reset(obs)
    controller.exploring = True
    first, done, imagined = None, 0, 0
    try:
        while done < steps:
            obs, paid = _decide(controller, library, venv, obs)
            done += num_envs * controller.k
            if first is None and paid:
                first, imagined = done, -controller.config.every
            if done - imagined >= controller.config.every:
                controller.imagine()
                imagined = done
                if watch(done):
                    break
    finally:
        controller.exploring = False
        venv.close()
    return first


def _decide(
    controller: ImaginationController, library: SkillLibrary, venv: BatchedEnv, obs: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Hold what the controller chooses for k steps, and let it remember; whether that was paid."""
    z, acting, body = controller.act(obs), Acting(library), venv.env_spec.body_dim
    before, after, paid = obs.copy(), obs.copy(), False
    everyone = np.ones(len(obs), bool)
    going, whole = everyone.copy(), everyone.copy()  # not ended, and not cut off by a time limit
    for i in range(controller.k):
        obs, reward, terminated, truncated, infos = venv.step(acting(i, obs[:, :body], z, everyone))
        final = infos["final_obs_array"]
        controller.remember(final, reward, terminated)
        after[going] = final[going]
        whole &= ~(going & truncated & ~terminated)
        going &= ~(terminated | truncated)
        paid |= bool((reward > 0).any())
    controller.correct(before[whole], z[whole], after[whole])
    return obs, paid
