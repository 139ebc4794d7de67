"""Episodes for measuring: skills on their body, and controllers on their task, all at once.

Every episode has an environment of its own in one `BatchedEnv` and a fixed seed, so that two
policies meet the same starts and goals. An episode that ends early waits for the others.

Shapes: M episodes, T steps, D descriptor, O observation, Z skill, C command, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.envs.spec import EnvSpec
from etude.errors import LibraryError, Stopped, UsageError, unknown
from etude.skills.acting import Acting, Planner
from etude.skills.controllers.base import Controller
from etude.skills.durations import Timed
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Discrete, SkillSpace

if TYPE_CHECKING:
    from etude.skills.vec_env import LowLevel

EPISODES, STEPS = 48, 200
"""Evaluation of skills (METRA's released code)."""
TASK_EPISODES, TASK_SEED = 50, 10_000
"""Evaluation of controllers: episodes with seeds 10,000 to 10,049, which training never sees."""


class Skills(Planner, Protocol):
    """Something with skills to act out: a `SkillLibrary`, or a run's `Snapshot`."""

    @property
    def space(self) -> SkillSpace:
        """The skills."""


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Episodes of skills; after an early end, the last place and state are repeated."""

    env_spec: EnvSpec
    skills: np.ndarray
    """z of each episode, (M, Z)"""
    paths: np.ndarray
    """descriptors from the start to the end, (M, T+1, D)"""
    obs: np.ndarray
    """raw body observations, (M, T+1, O)"""
    lengths: np.ndarray
    """steps of each episode, (M,)"""


@dataclass(frozen=True, eq=False)
class TaskRollouts:
    """Episodes of a controller on a task."""

    env_spec: EnvSpec
    k: int
    """steps for which a command is held"""
    success: np.ndarray | None
    """whether the task was solved at the end, (M,); None where the task has no such notion"""
    returns: np.ndarray
    """undiscounted sum of the task's rewards, (M,)"""
    lengths: np.ndarray
    """steps of each episode, (M,)"""
    paths: np.ndarray
    """descriptors from the start to the end, then the end repeated, (M, T+1, D)"""
    commands: np.ndarray
    """skill or action of every decision, NaN once the episode is over, (M, ceil(T/k), C)"""

    @property
    def success_rate(self) -> float | None:
        """Share of episodes with success."""
        return None if self.success is None else float(self.success.mean())


def published_skills(space: SkillSpace, n: int, rng: np.random.Generator) -> np.ndarray:
    """Skills (n, Z) to evaluate as METRA does: discrete ones as evenly as possible, else p(z)."""
    return space.even(n) if isinstance(space, Discrete) else space.sample(rng, n)


def check_body(skills: Skills, spec: EnvSpec) -> None:
    """Raise LibraryError where a library's skills belong to another body than that of `spec`."""
    if isinstance(skills, SkillLibrary) and skills.env["body"] != spec.body:
        raise LibraryError(
            f'the skills of {skills.name} move the body "{skills.env["body"]}", and "{spec.id}" '
            f'has the body "{spec.body}": choose an environment with the same body.'
        )


def library_for(task: str, name: str) -> SkillLibrary:
    """The library of that name, folder or run folder, whose skills are to be used on a task.

    Raises:
        LibraryError: it is broken, or its skills belong to another body.
        UsageError: no such task, or no such library.
    """
    if task not in registry.tasks():
        raise unknown("task", task, registry.tasks())
    library = SkillLibrary.load(name)
    check_body(library, registry.spec(task))
    return library


def rollout_skills(
    skills: Skills,
    env: str | BatchedEnv,
    *,
    z: np.ndarray | None = None,
    episodes: int = EPISODES,
    steps: int = STEPS,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Rollouts:
    """Act out one skill per episode, deterministically.

    Args:
        skills: a library or a snapshot.
        env: id of the environment, or a vector with an environment for each episode.
        z: the skills (M, Z); None takes `published_skills`, drawn with `seed`.
        episodes: how many, where neither `z` nor a vector says so.
        steps: length of an episode, unless the environment ends it earlier.
        seed: episode i starts as environment `seed + i` does.
        stop: asked before each step.

    Raises:
        LibraryError: the skills belong to another body.
        Stopped: `stop()` was true.
        UsageError: no such environment, or not one skill per episode.
    """
    if isinstance(env, str):
        count = episodes if z is None else len(z)
        venv = registry.make_vec(env, count, max_steps=steps)
        try:
            return rollout_skills(skills, venv, z=z, steps=steps, seed=seed, stop=stop)
        finally:
            venv.close()
    check_body(skills, env.env_spec)
    if z is None:
        z = published_skills(skills.space, env.num_envs, np.random.default_rng(seed))
    if len(z) != env.num_envs:
        raise UsageError(f"{len(z)} skills for {env.num_envs} environments: give one each.")
    return _act_out(skills, env, z, steps, seed, stop)


def _act_out(
    skills: Skills,
    env: BatchedEnv,
    z: np.ndarray,
    steps: int,
    seed: int,
    stop: Callable[[], bool],
) -> Rollouts:
    """One skill in every environment until its episode ends, or for `steps`."""
    spec, n, body = env.env_spec, env.num_envs, slice(env.env_spec.body_dim)
    obs, _ = env.reset(seed=seed)
    seen = np.empty((n, steps + 1, spec.body_dim), np.float32)
    paths = np.empty((n, steps + 1, len(spec.descriptor)))
    seen[:, 0], paths[:, 0] = obs[:, body], env.descriptor()
    lengths, active, acting = np.zeros(n, np.int64), np.ones(n, dtype=bool), Acting(skills)
    for t in range(steps):
        if stop():
            raise Stopped
        action = acting(t, obs[:, body], z, active)
        obs, _, terminated, truncated, infos = env.step(action, active)
        now, final = active[:, None], infos["final_obs_array"][:, body]
        seen[:, t + 1] = np.where(now, final, seen[:, t])
        paths[:, t + 1] = np.where(now, infos["descriptor"], paths[:, t])
        lengths += active
        active = active & ~(terminated | truncated)
        if not active.any():
            break
    end = int(lengths.max()) + 1
    return Rollouts(spec, z, paths[:, :end], seen[:, :end], lengths)


def rollout_task(
    task: str,
    level: LowLevel,
    controller: Controller,
    k: int,
    *,
    episodes: int = TASK_EPISODES,
    seed: int = TASK_SEED,
) -> TaskRollouts:
    """Let a controller choose a command every k steps until its episode ends.

    A controller that says for how long (`Timed`) is obeyed, a skill ends where the library says
    so, and the others then wait: all choose together.

    Args:
        task: id of the environment.
        level: what turns commands into actions: a library's skills, or nothing.
        controller: chooses commands from raw observations, task fields included.
        k: steps for which a command is held; 1 asks at every step.
        episodes: how many.
        seed: episode i is environment `seed + i`.

    Raises:
        LibraryError: the skills belong to another body.
        UsageError: no such task, or k below 1.
    """
    from etude.skills.vec_env import LibraryLevel  # and SB3 with it, only where there is a task

    if k < 1:
        raise UsageError(f"k = {k}: choose 1 or more steps per decision.")
    if isinstance(level, LibraryLevel):
        check_body(level.library, registry.spec(task))
    venv = registry.make_vec(task, episodes)
    try:
        return _Episode(venv, level, controller, k, seed).run()
    finally:
        venv.close()


class _Episode:
    """One episode in every environment of a vector, with its records."""

    def __init__(
        self, venv: BatchedEnv, level: LowLevel, controller: Controller, k: int, seed: int
    ) -> None:
        self.venv, self.acting, self.controller, self.k = venv, Acting(level), controller, k
        self.level = level
        spec, n = venv.env_spec, venv.num_envs
        self.body = spec.body_dim
        self.obs, _ = venv.reset(seed=seed)
        controller.reset(self.obs)
        self.active = np.ones(n, dtype=bool)
        self.returns, self.lengths = np.zeros(n), np.zeros(n, np.int64)
        self.success: np.ndarray | None = None
        self.path = [venv.descriptor()]
        self.commands: list[np.ndarray] = []

    def run(self) -> TaskRollouts:
        """Decide and act until every episode has ended."""
        while self.active.any():
            self.decide()
        paths, commands = np.stack(self.path, axis=1), np.stack(self.commands, axis=1)
        spec = self.venv.env_spec
        return TaskRollouts(spec, self.k, self.success, self.returns, self.lengths, paths, commands)

    def decide(self) -> None:
        """One decision in every episode that goes on."""
        controller, conditions = self.controller, getattr(self.level, "conditions", None)
        command = np.asarray(controller.act(self.obs), np.float32)
        if conditions:
            command = conditions.begin(self.seen(), command)
        self.commands.append(np.where(self.active[:, None], command, np.nan))
        given = controller.steps if isinstance(controller, Timed) else None
        steps = np.full(len(command), self.k) if given is None else given
        going_on = self.active.copy()
        for i in range(int(steps.max())):
            going_on = going_on & self.active & (i < steps)
            if not going_on.any():
                break
            self.step(i, command, going_on)
            if conditions:
                going_on = going_on & ~conditions.over(self.seen(), command)

    def seen(self) -> np.ndarray:
        """Body observations as the library's predicates take them."""
        level: Any = self.level
        return np.asarray(level.seen(self.obs[:, : self.body]))

    def step(self, i: int, command: np.ndarray, now: np.ndarray) -> None:
        """Step i of a decision, in the episodes (N,) where it goes on."""
        action = self.acting(i, self.obs[:, : self.body], command, now)
        self.obs, reward, terminated, truncated, infos = self.venv.step(action, now)
        self.returns += reward
        self.lengths += now
        self.path.append(np.where(now[:, None], infos["descriptor"], self.path[-1]))
        ended = now & (terminated | truncated)
        if "is_success" in infos:
            before = np.zeros(len(now), dtype=bool) if self.success is None else self.success
            self.success = np.where(ended, infos["is_success"], before)
        self.active = self.active & ~ended
