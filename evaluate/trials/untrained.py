"""Controllers that need no training: each made ready for a task and judged on the fixed episodes.

Some need nothing but the library; others look at the world first, without learning: `env_steps` is
what that took, and belongs into every comparison.

Shapes: B samples, O body observation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.envs import registry
from etude.errors import UsageError, unknown
from etude.evaluate.arms import ARMS, Found, TrialSpec
from etude.evaluate.rollouts import rollout_task
from etude.skills.acting import Acting
from etude.skills.controllers.automaton import TaskAutomaton
from etude.skills.controllers.effects import Measuring
from etude.skills.controllers.practice import practise
from etude.skills.controllers.programmatic import ProgrammaticController
from etude.skills.controllers.random import RandomController
from etude.skills.controllers.reward_regression import RewardRegressionController
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel

SAMPLES, ENVS = 20_000, 16
SEED = 40_000
"""Seeds from here on start what is looked at; neither training nor evaluation uses them."""


@dataclass(frozen=True)
class Given:
    """What a controller may be given beside a trial."""

    logic: str = ""
    """a regular expression over the task's events; "": the task's own sequence"""
    program: Path | None = None
    """rules, as `ProgrammaticController.save` writes them; None: the library's rows"""


@dataclass(frozen=True)
class Controller:
    """One way to do without training."""

    about: str
    make: Callable[[TrialSpec, SkillLibrary, Given], Found]


def judge(spec: TrialSpec, given: Given | None = None) -> dict[str, Any]:
    """Make the controller `spec.arm` ready, judge it, and return its row.

    Raises:
        EtudeError: it is not possible with this library or task.
        UsageError: there is no such controller.
    """
    if spec.arm not in CONTROLLERS:
        raise unknown("controller without training", spec.arm, CONTROLLERS)
    library = SkillLibrary.load(spec.library, spec.set)
    found = CONTROLLERS[spec.arm].make(spec, library, given or Given())
    made = rollout_task(spec.task, found.level, found.controller, found.k, episodes=spec.episodes)
    return {
        "task": spec.task,
        "controller": spec.arm,
        "library": library.name,
        "library_id": library.id[:12],
        "seed": spec.config.seed,
        "success_rate": made.success_rate,
        "return_mean": float(made.returns.mean()),
        "steps_mean": float(made.lengths.mean()),
        "episodes": spec.episodes,
        "env_steps": found.env_steps,
        "pretraining_steps": spec.pretraining_steps,
    }


def _arm(name: str) -> Controller:
    """An arm of comparisons, which is the same thing."""
    return Controller(
        ARMS[name].about, lambda spec, library, _: ARMS[name].find(spec, library, None)
    )


def _level(spec: TrialSpec, library: SkillLibrary) -> LibraryLevel:
    return LibraryLevel.for_spec(library, registry.spec(spec.task), spec.config.fallback)


def _automaton(spec: TrialSpec, library: SkillLibrary, given: Given) -> Found:
    constants = registry.spec(spec.task).constants
    labels = constants.get("labels")
    if labels is None:
        known = [name for name in registry.tasks() if "labels" in registry.spec(name).constants]
        raise UsageError(
            f'"{spec.task}" has no constant "labels" that would tell events: choose one of '
            f"{', '.join(known)}."
        )
    if given.logic:
        task = TaskAutomaton.regex(given.logic, tuple(labels))
    else:
        task = TaskAutomaton.sequence(constants["sequence"], constants["never"])
    how = Measuring(seed=SEED + 1000 * spec.config.seed)
    made = practise(library, spec.task, task, labels, how=how)
    level = _level(spec, library)
    return Found(level, made.controller, 1, "automaton", made.env_steps)


def _regression(spec: TrialSpec, library: SkillLibrary, given: Given) -> Found:
    steps = min(SAMPLES, spec.config.env_steps)
    samples = _samples(spec, library, steps)
    controller = RewardRegressionController(library, *samples)
    cost = len(samples[2])
    return Found(_level(spec, library), controller, spec.config.k, "regression", cost)


def _samples(
    spec: TrialSpec, library: SkillLibrary, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Body observations (B, O), the next ones and rewards (B,), under random skills held for k."""
    env = registry.make_vec(spec.task, ENVS)
    obs, _ = env.reset(seed=SEED + 1000 * spec.config.seed)
    random = RandomController(library, env.env_spec, spec.config.seed)
    acting, body = Acting(_level(spec, library)), env.env_spec.body_dim
    rows, everyone, z = [], np.ones(ENVS, bool), random.act(obs)
    for t in range(max(1, steps // ENVS)):
        if t % spec.config.k == 0:
            z = random.act(obs)
        action = acting(t % spec.config.k, obs[:, :body], z, everyone)
        after, reward, _, _, infos = env.step(action)
        rows.append((obs[:, :body], infos["final_obs_array"][:, :body], reward))
        obs = after
    env.close()
    before, then, paid = (np.concatenate(part) for part in zip(*rows, strict=True))
    return before, then, paid


def _programmatic(spec: TrialSpec, library: SkillLibrary, given: Given) -> Found:
    controller = ProgrammaticController(library, registry.spec(spec.task), given.program)
    return Found(_level(spec, library), controller, spec.config.k)


CONTROLLERS = {
    **{name: _arm(name) for name in ("zero-shot", "random-skill", "best-skill", "planner")},
    "reward-regression": Controller(
        "holds the skill along which the reward of random skills grows", _regression
    ),
    "automaton": Controller(
        "does a task in logic with skills whose effects are measured first", _automaton
    ),
    "programmatic": Controller("follows a program of rules, or the library's rows", _programmatic),
}
