"""What skills bring about, found out by trying them.

A way is a skill that is held, or a place that is headed for with another skill at every step. Each
is tried from the starts of episodes until an event happens, then each from where that event left
the body, and so on, until there is nothing new to try from. Rewards are not looked at, so what is
measured once serves every task over these events; `automaton` plans with it.

An effect depends on the posture in which it begins, of which the latest events say only so much.
The share of the tries that ended alike says how much. After some events a try begins in a state in
which the surest way to them left the body. A plan may come to them otherwise: `practice.practise`.

Shapes: W ways, M tries of each, N = W M environments, O observation, S engine state, Z skill,
D descriptor.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from etude.config import Config, Range
from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.skills.acting import Acting
from etude.skills.controllers.automaton import START, Effect, History, Way, skills_of
from etude.skills.controllers.goal_direction import Heading
from etude.skills.library import SkillLibrary
from etude.skills.library_goals import GOAL, PHI
from etude.skills.predicates import Predicate, predicate
from etude.skills.vec_env import LibraryLevel

SEED = 30_000
"""Seeds from here on start the tries; neither training nor evaluation uses them."""


@dataclass(frozen=True)
class Measuring(Config):
    """How effects are measured."""

    held: Annotated[int, Range(1)] = 24
    """skills that are held, spread evenly over their space"""
    places: Annotated[int, Range(0)] = 64
    """at least so many places to head for, on a grid over those that held skills lead to; none
    where the library has neither "phi" nor "goal": its ways would be skills that are held"""
    tries: Annotated[int, Range(1)] = 32
    """of each way after each event"""
    steps: Annotated[int, Range(1)] = 50
    """for which a way is tried at most"""
    memory: Annotated[int, Range(1)] = 2
    """how many of the latest events an effect may depend on"""
    seed: Annotated[int, Range(0)] = SEED
    """of the starts and of the draw of states"""


@dataclass(frozen=True, eq=False)
class Measured:
    """Effects, and what it cost to know them."""

    effects: list[Effect]
    env_steps: int
    ways: list[Way]
    """what was tried"""
    states: dict[str, np.ndarray]
    """engine states (M, S) that tries began in, for each `begins`"""


def measure(
    library: SkillLibrary, task: str, labels: Mapping[str, Any], how: Measuring | None = None
) -> Measured:
    """The effects of a library's skills: the next event after each, whatever was before it.

    An event that is still the latest one is none: to leave a place and come back changes nothing.

    Args:
        library: the skills.
        task: id of the environment; only its observations and ends of episodes are used.
        labels: for every event, the predicate (data) whose becoming true is the event.
        how: settings; None: the defaults.

    Raises:
        LibraryError: the skills belong to another body.
        UsageError: a label is no predicate.
    """
    how, spec = how or Measuring(), registry.spec(task)
    widths = {field.name: field.dim for field in spec.fields}
    known = {name: predicate(data, widths) for name, data in labels.items()}
    skills: list[Way] = [*np.unique(library.space.even(how.held), axis=0)]
    level, cost = LibraryLevel.for_spec(library, spec), 0
    if how.places and {GOAL, PHI} & library.encoders.keys():
        more, cost = _headings(level, task, skills, how)
        skills += more
    rng = np.random.default_rng(how.seed)
    env = registry.make_vec(task, len(skills) * how.tries, max_steps=0)
    env.reset(seed=how.seed)
    todo: dict[History, np.ndarray] = {(START,): env.get_state()[: how.tries]}
    met, found, states = {*todo}, list[Effect](), dict[str, np.ndarray]()
    while todo:
        history, begin = todo.popitem()
        tried = Tries(env, level, known, skills, " ".join(history))
        states[tried.begins] = begin
        cost += tried.run(begin, how.steps)
        found += tried.effects()
        for word, pool in tried.arrivals().items():
            after = (*history, *word)[-how.memory :]
            if after not in met:
                met.add(after)
                todo[after] = pool[rng.integers(len(pool), size=how.tries)]
    env.close()
    return Measured(found, cost, skills, states)


def _headings(
    level: LibraryLevel, task: str, skills: Sequence[Way], how: Measuring
) -> tuple[list[Way], int]:
    """Places on a grid over the box that held skills lead through, and the steps to know it."""
    env = registry.make_vec(task, len(skills), max_steps=0)
    env.reset(seed=how.seed)
    tried = Tries(env, level, {}, skills, START)
    cost = tried.run(env.get_state()[:1], how.steps)
    env.close()
    met = np.concatenate(tried.path)  # (T W, D)
    count = int(np.ceil(how.places ** (1 / met.shape[1])))
    sides = [np.linspace(*ends, count) for ends in zip(met.min(0), met.max(0), strict=True)]
    spec = env.env_spec
    return [Heading(level.library, spec, place) for place in itertools.product(*sides)], cost


class Tries:
    """The ways after the events `begins` (as in `Effect`), in equally many environments each."""

    def __init__(
        self,
        env: BatchedEnv,
        level: LibraryLevel,
        labels: Mapping[str, Predicate],
        ways: Sequence[Way],
        begins: str,
    ) -> None:
        self.env, self.level, self.labels, self.ways = env, level, labels, ways
        self.begins, self.tries = begins, env.num_envs // len(ways)
        self.words: list[tuple[str, ...]] = [()] * env.num_envs
        """the events of the step at which a try ended, in the order of their labels"""
        self.steps = np.zeros(env.num_envs)
        """that each try took, (N,)"""
        self.path: list[np.ndarray] = []
        """descriptors (N, D) of every step"""
        self.states: dict[int, np.ndarray] = {}
        """engine states (S,) in which tries met their event, where the episode goes on"""

    def run(self, begin: np.ndarray, steps: int) -> int:
        """Try each way from states (M, S); returns the environment steps that it took."""
        obs = self.env.set_state(np.tile(begin, (len(self.ways), 1)))
        body = self.env.env_spec.body_dim
        acting, true = Acting(self.level), self._true(obs)
        active = np.ones(len(obs), bool)
        for t in range(steps):
            action = acting(t, obs[:, :body], self._skills(obs), active)
            self.steps += active
            obs, _, terminated, truncated, infos = self.env.step(action, active)
            over, now = terminated | truncated, self._true(infos["final_obs_array"])
            self.path.append(infos["descriptor"])
            new = now & ~true & active
            if (last := self.begins.split(" ")[-1]) in self.labels:
                new[[*self.labels].index(last)] = False
            self._note(new, over)
            true, active = now, active & ~over & ~new.any(0)
            if not active.any():
                break
        return int(self.steps.sum())

    def _true(self, obs: np.ndarray) -> np.ndarray:
        """Which labels hold at observations (N, O), (L, N)."""
        held = [label(obs) for label in self.labels.values()]
        return np.array(held, bool).reshape(len(held), len(obs))

    def _skills(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) of the ways at observations (N, O)."""
        parts = np.split(obs, len(self.ways))
        return np.concatenate([skills_of(w, own) for w, own in zip(self.ways, parts, strict=True)])

    def _note(self, new: np.ndarray, over: np.ndarray) -> None:
        """Keep the events (L, N) of a step, and the states of episodes that are not over (N,)."""
        if not new.any():
            return
        names, state = np.array([*self.labels]), self.env.get_state()
        for i in np.flatnonzero(new.any(0)).tolist():
            self.words[i] = tuple(names[new[:, i]].tolist())
            if not over[i]:
                self.states[i] = state[i]

    def effects(self) -> list[Effect]:
        """What came of each way, with its share of the tries and its mean number of steps."""
        found = []
        for w, way in enumerate(self.ways):
            rows = range(w * self.tries, (w + 1) * self.tries)
            for word, count in Counter(self.words[row] for row in rows).items():
                own = [self.steps[row] for row in rows if self.words[row] == word]
                if word:
                    share, mean = count / self.tries, float(np.mean(own))
                    found.append(Effect(way, word, mean, self.begins, share, max(own)))
        return found

    def arrivals(self) -> dict[History, np.ndarray]:
        """States (n, S) in which a try met these events, of the way that does so most often."""
        rows: dict[History, dict[int, list[int]]] = {}
        for row in sorted(self.states):
            rows.setdefault(self.words[row], {}).setdefault(row // self.tries, []).append(row)
        surest = {word: max(own.values(), key=len) for word, own in rows.items()}
        return {word: np.stack([self.states[i] for i in own]) for word, own in surest.items()}
