"""The arms of a comparison, and `run_trial`, which runs one of them with one seed.

A result of skills alone says nothing: holding any action for long explores better, and a flat agent
with the steps that the library cost may do as well. So each arm isolates one explanation. All get
the same environment steps and are judged on the same 50 episodes, which training never sees.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from etude.agents.meta_state import Keeper
from etude.config import to_dict
from etude.envs import registry
from etude.errors import UsageError, unknown
from etude.evaluate.metrics import effective_skills
from etude.evaluate.rollouts import TASK_EPISODES, rollout_task
from etude.skills.compose import Algo, ComposeConfig, Trained, compose, flat
from etude.skills.controllers.base import Controller
from etude.skills.controllers.best_skill import select
from etude.skills.controllers.goal_direction import GoalDirectionController
from etude.skills.controllers.planner import PlannerController
from etude.skills.controllers.random import RandomController
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Discrete
from etude.skills.vec_env import LibraryLevel, LowLevel, PrimitiveLevel

SELECTION_SEED = 20_000  # of the episodes that pick the best skill; apart from those that judge it
CANDIDATES, SELECTION_EPISODES = 16, 20


@dataclass(frozen=True)
class TrialSpec:
    """One arm with one seed: everything its result depends on, as plain picklable data."""

    arm: str
    task: str
    library: str
    """folder of the library, or its name in the zoo"""
    set: str
    """which of its sets acts"""
    library_id: str
    """SHA-256 of the library"""
    pretraining_steps: int
    """environment steps that the library cost"""
    config: ComposeConfig
    """budget, seed, k and algorithm of the arms with skills"""
    flat_algo: Literal["ppo", "sac"]
    """algorithm of the arms without skills"""
    episodes: int = TASK_EPISODES
    """evaluation episodes"""

    @property
    def key(self) -> str:
        """Short readable name, different for different trials."""
        data = {**vars(self), "config": to_dict(self.config)}
        del data["library"]  # where it lies does not matter, its id says what it is
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        return f"{self.arm}-s{self.config.seed}-{digest[:10]}"


@dataclass(frozen=True)
class Found:
    """A low level and the controller of it that is to be judged, and what finding it cost."""

    level: LowLevel
    controller: Controller
    k: int
    algo: str = ""
    env_steps: int = 0
    decisions: int = 0
    first_success: int | None = None
    curve: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Arm:
    """One explanation to test."""

    about: str
    find: Callable[[TrialSpec, SkillLibrary, Keeper | None], Found]
    """of a spec, its library and what keeps the training of an arm that learns"""
    seeded: bool = True
    """whether the result depends on the seed"""
    own_library: bool = False
    """whether its skills are those of another library, which a plan has to name"""


def run_trial(spec: TrialSpec, *, keeper: Keeper | None = None) -> dict[str, Any]:
    """Train one arm with one seed, judge it, and return its row (`curve` holds its learning).

    Args:
        spec: the arm, the seed and all else.
        keeper: saves, stops and continues the training of an arm that learns.

    Raises:
        EtudeError: the arm is not possible with this library, task or algorithm.
        Stopped: the keeper said so; the training is saved.
    """
    if spec.arm not in ARMS:
        raise unknown("arm", spec.arm, ARMS)
    start = time.perf_counter()
    library = SkillLibrary.load(spec.library, spec.set)
    found = ARMS[spec.arm].find(spec, library, keeper)
    made = rollout_task(spec.task, found.level, found.controller, found.k, episodes=spec.episodes)
    used = found.level.library if isinstance(found.level, LibraryLevel) else None
    return {
        "trial": spec.key,
        "task": spec.task,
        "arm": spec.arm,
        "seed": spec.config.seed,
        "success_rate": made.success_rate,
        "solved": solved(made.success),
        "return_mean": float(made.returns.mean()),
        "steps_mean": float(made.lengths.mean()),
        "episodes": spec.episodes,
        "env_steps": found.env_steps,
        "pretraining_steps": spec.pretraining_steps if used and used.id else 0,
        "first_success": found.first_success,
        "decisions": found.decisions,
        "algo": found.algo,
        "k": found.k,
        "effective_skills": effective_skills(made.commands) if used else None,
        "library": (used.id[:12] or "untrained") if used else "none",
        "seconds": round(time.perf_counter() - start, 2),
        "curve": found.curve,
    }


def solved(success: np.ndarray | None) -> str:
    """A digit for each episode (M,), 1 where it ended in success; "" where nothing says so."""
    return "" if success is None else "".join("01"[int(one)] for one in success)


@dataclass(frozen=True)
class Plain:
    """A controller that does not look: commands (N, C) come from `draw(N)`."""

    draw: Callable[[int], np.ndarray]

    def reset(self, obs: np.ndarray) -> None:
        """Nothing is remembered between decisions."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The next commands."""
        return self.draw(len(obs))


def _trained(trained: Trained) -> Found:
    stats, config = trained.stats, trained.config
    points = tuple(
        {"env_steps": p.env_steps, "success": p.success, "episode_return": p.episode_return}
        for p in stats.curve
    )
    return Found(
        trained.level,
        trained.controller,
        config.k,
        config.algo,
        stats.env_steps,
        stats.decisions,
        stats.first_success,
        points,
    )


def _hierarchical(spec: TrialSpec, library: SkillLibrary, keeper: Keeper | None) -> Found:
    return _trained(compose(library, spec.task, spec.config, keeper=keeper))


def _untrained(spec: TrialSpec, library: SkillLibrary, keeper: Keeper | None) -> Found:
    return _hierarchical(spec, library.untrained(spec.config.seed), keeper)


def _flat(
    spec: TrialSpec,
    library: SkillLibrary,
    keeper: Keeper | None,
    k: int = 1,
    extra: int = 0,
    algo: Algo | None = None,
) -> Found:
    # `hyper` is left out: it was chosen for the arms with skills
    given = spec.config
    config = ComposeConfig(
        algo=algo or spec.flat_algo,
        k=k,
        gamma=given.gamma,
        env_steps=given.env_steps + extra,
        num_envs=given.num_envs,
        seed=given.seed,
        smdp=given.smdp,
    )
    return _trained(flat(spec.task, config, keeper=keeper))


def _flat_ppo(spec: TrialSpec, library: SkillLibrary, keeper: Keeper | None) -> Found:
    return _flat(spec, library, keeper, algo="ppo")


def _flat_sac(spec: TrialSpec, library: SkillLibrary, keeper: Keeper | None) -> Found:
    return _flat(spec, library, keeper, algo="sac")


def _flat_long(spec: TrialSpec, library: SkillLibrary, keeper: Keeper | None) -> Found:
    return _flat(spec, library, keeper, extra=spec.pretraining_steps)


def _action_repeat(spec: TrialSpec, library: SkillLibrary, keeper: Keeper | None) -> Found:
    return _flat(spec, library, keeper, k=spec.config.k)


def _level(spec: TrialSpec, library: SkillLibrary) -> LibraryLevel:
    return LibraryLevel(library, fallback=spec.config.fallback)


def _random_skill(spec: TrialSpec, library: SkillLibrary, _: Keeper | None) -> Found:
    controller = RandomController(library, registry.spec(spec.task), spec.config.seed)
    return Found(_level(spec, library), controller, spec.config.k)


def _random_action(spec: TrialSpec, library: SkillLibrary, _: Keeper | None) -> Found:
    width = registry.spec(spec.task).action_dim
    rng = np.random.default_rng(spec.config.seed)
    draw = Plain(lambda n: rng.uniform(-1, 1, (n, width)).astype(np.float32))
    return Found(PrimitiveLevel(width), draw, spec.config.k)


def _zero_shot(spec: TrialSpec, library: SkillLibrary, _: Keeper | None) -> Found:
    controller = GoalDirectionController(library, registry.spec(spec.task))
    return Found(_level(spec, library), controller, 1)


def _planner(spec: TrialSpec, library: SkillLibrary, _: Keeper | None) -> Found:
    k = spec.config.k
    controller = PlannerController(library, registry.spec(spec.task), k, spec.config.seed)
    return Found(_level(spec, library), controller, k)


def _best_skill(spec: TrialSpec, library: SkillLibrary, _: Keeper | None) -> Found:
    """Successive episodes for each candidate within the budget; the best mean return wins."""
    space, level, k = library.space, _level(spec, library), spec.config.k
    skills = space.even(space.n if isinstance(space, Discrete) else CANDIDATES)
    longest = len(skills) * registry.spec(spec.task).max_steps
    episodes = min(SELECTION_EPISODES, spec.config.env_steps // longest)
    if not episodes:
        raise UsageError(
            f"{spec.config.env_steps} steps do not pay for one episode of each of {len(skills)} "
            f"skills: give env_steps = {longest} or more."
        )
    seed = SELECTION_SEED + 1000 * spec.config.seed
    cost = 0

    def judge(controller: Controller) -> float:
        nonlocal cost
        made = rollout_task(spec.task, level, controller, k, episodes=episodes, seed=seed)
        cost += int(made.lengths.sum())
        return float(made.returns.mean())

    best = select(skills, judge).controller
    return Found(level, best, k, "selection", cost)


ARMS = {
    "hierarchical": Arm("learns which skill of the library to hold for k steps", _hierarchical),
    "flat": Arm("learns single actions, without skills", _flat),
    "flat-ppo": Arm("as flat, by PPO whatever the arms with skills use", _flat_ppo),
    "flat-sac": Arm("as flat, by SAC whatever the arms with skills use", _flat_sac),
    "flat-long": Arm("as flat, with the library's pretraining steps on top", _flat_long),
    "action-repeat": Arm("learns actions held for k steps, without skills", _action_repeat),
    "untrained": Arm("as hierarchical, on the library with random weights", _untrained),
    "random-skill": Arm("holds random skills of the library for k steps", _random_skill),
    "random-action": Arm("holds random actions for k steps", _random_action),
    "best-skill": Arm("holds the one skill that does best in trial episodes", _best_skill),
    "zero-shot": Arm(
        "points at the goal in the library's features at every step; no learning, no seed",
        _zero_shot,
        seeded=False,
    ),
    "planner": Arm(
        "plans skills to hold for k steps with the dynamics of the library; no learning", _planner
    ),
    "oracle": Arm(
        "as hierarchical, on a library whose directions were made by hand",
        _hierarchical,
        own_library=True,
    ),
    "oracle-zero-shot": Arm(
        "as zero-shot, on that library", _zero_shot, seeded=False, own_library=True
    ),
    "diayn": Arm("as hierarchical, on a library of DIAYN", _hierarchical, own_library=True),
}
COMMON = tuple(name for name, arm in ARMS.items() if not arm.own_library)
"""The arms that one library is enough for."""
