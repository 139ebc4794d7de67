"""Practice for a task in logic, without its reward: plan, carry out, look again, and keep the best.

Effects are measured from postures that a plan may never come to. So a plan is carried out in a few
episodes, effects are measured again, half from where those episodes have been and half from where
they were measured before, and a new plan is made. The events alone tell which plan did best.
The new half is what dataset aggregation is for policies (Ross, Gordon and Bagnell 2011, "A
Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning").

Shapes: M tries, O observation, S engine state, Z skill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.envs import registry
from etude.errors import UsageError
from etude.skills.acting import Acting
from etude.skills.controllers.automaton import AutomatonController, Effect, TaskAutomaton
from etude.skills.controllers.effects import Measured, Measuring, Tries, measure
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel

ROUNDS, EPISODES = 4, 64


@dataclass(frozen=True, eq=False)
class Practised:
    """A controller, and what it cost."""

    controller: AutomatonController
    share: float
    """of the practice episodes in which it did the task"""
    env_steps: int


def practise(
    library: SkillLibrary,
    task: str,
    automaton: TaskAutomaton,
    labels: Mapping[str, Any],
    *,
    rounds: int = ROUNDS,
    episodes: int = EPISODES,
    how: Measuring | None = None,
) -> Practised:
    """The best plan for a task in logic, of one for each round.

    Args:
        library: the skills.
        task: id of the environment; its rewards are not looked at.
        automaton: what is to be done.
        labels: for every event, the predicate (data) whose becoming true is the event.
        rounds: plans to carry out, unless one always does the task.
        episodes: in which a plan is carried out.
        how: settings of `measure`, whose seed is that of practice too; None: the defaults.

    Raises:
        LibraryError: the skills belong to another body.
        UsageError: nothing that was met leads to the end of the task, or a number is below 1.
    """
    if min(rounds, episodes) < 1:
        raise UsageError(f"{rounds} rounds of {episodes} episodes: give 1 or more of each.")
    how, spec = how or Measuring(), registry.spec(task)
    found, level = measure(library, task, labels, how), LibraryLevel.for_spec(library, spec)
    rng = np.random.default_rng([how.seed, 1])
    effects, cost, plans = found.effects, found.env_steps, list[Practised]()
    for n in range(rounds):
        controller = AutomatonController(automaton, effects, labels, spec)
        share, met, spent = _carry_out(
            controller, level, task, episodes, how.seed + (n + 1) * episodes
        )
        cost += spent
        plans.append(Practised(controller, share, cost))
        if n + 1 == rounds or share == 1:
            break
        for begins, pool in met.items():
            begin = pool[rng.integers(len(pool), size=how.tries)]
            if begins in found.states:
                begin[::2] = found.states[begins][::2]
            found.states[begins] = begin
            again, spent = _again(found, controller, level, task, begins, how)
            effects = [effect for effect in effects if effect.begins != begins] + again
            cost += spent
    best = max(plans, key=lambda plan: plan.share)
    return Practised(best.controller, best.share, cost)


def _again(
    found: Measured,
    controller: AutomatonController,
    level: LibraryLevel,
    task: str,
    begins: str,
    how: Measuring,
) -> tuple[list[Effect], int]:
    """The effects after some events, measured from the states that now stand for them."""
    begin = found.states[begins]
    env = registry.make_vec(task, len(found.ways) * len(begin), max_steps=0)
    env.reset(seed=0)
    tried = Tries(env, level, controller.labels, found.ways, begins)
    cost = tried.run(begin, how.steps)
    env.close()
    return tried.effects(), cost


def _carry_out(
    controller: AutomatonController, level: LibraryLevel, task: str, episodes: int, seed: int
) -> tuple[float, dict[str, np.ndarray], int]:
    """The share of episodes with the task done; states (n, S) after each history; their steps."""
    env = registry.make_vec(task, episodes)
    obs, _ = env.reset(seed=seed)
    controller.reset(obs)
    acting, active, body = Acting(level), np.ones(episodes, bool), env.env_spec.body_dim
    met: dict[str, list[np.ndarray]] = {}
    before, done, cost, t = [""] * episodes, np.zeros(episodes, bool), 0, 0
    while active.any():
        z, state = controller.act(obs), env.get_state()
        for i in np.flatnonzero(active).tolist():
            if t == 0 or controller.begins[i] != before[i]:
                met.setdefault(controller.begins[i], []).append(state[i])
        before = controller.begins
        action = acting(t, obs[:, :body], z, active)
        obs, _, terminated, truncated, infos = env.step(action, active)
        over = active & (terminated | truncated)
        done |= over & controller.ends(infos["final_obs_array"])
        cost, t, active = cost + int(active.sum()), t + 1, active & ~over
    env.close()
    return float(done.mean()), {name: np.stack(own) for name, own in met.items()}, cost
