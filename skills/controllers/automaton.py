"""Tasks in logic, solved without training by skills whose effects are known.

A task is a finite automaton over events: propositions that become true, such as "at the mail room".
`sequence` (these in order, never those) and `regex` make one. It is planned in advance over what
each skill is known to bring about: an `Effect` is the word of events that a skill causes, its cost
in steps, how likely it is and, if that matters, the latest events before it. Value iteration on
pairs (state q of the automaton, latest events h) finds the best way to acceptance,

    V(q, h) = min_z  - T log  sum over effects of z that begin after h of
                              share exp(-(steps + V(delta(q, events), h with the events)) / T),

which is the fewest steps where every effect is sure, and else the likeliest to be done within
about T steps, the length of an episode. A skill that would pass through what is forbidden is left
out where it would spoil the task, and only there. `effects.measure` finds out what skills bring
about. After Skill Machines (Nangue Tasse et al. 2024, "Skill Machines: Temporal Logic Skill
Composition in Reinforcement Learning", arXiv:2205.12532).

Deviations: skills come from a library with measured effects, where the paper learns a value
function for each goal of each primitive and composes them by minimum and maximum; tasks are regular
expressions and not linear temporal logic; costs are counted, which the paper's planner ignores.

Shapes: N environments, O observation, Z skill, Q states of an automaton, L letters, H histories (of
the latest events), W ways (skills after certain events).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.envs.spec import EnvSpec
from etude.errors import UsageError, unknown
from etude.skills.controllers.goal_direction import Heading
from etude.skills.library import SkillLibrary
from etude.skills.predicates import predicate

EFFECTS = "effects"  # key of a library's row
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FIRST = 0xE000  # letters for automata-lib: code points that mean nothing else
START = ""  # the last event before the first
NOWHERE = -1  # the number of a history that no known effect leads to
History = tuple[str, ...]
"""The latest events, `START` before the first."""
Way = np.ndarray | Heading
"""A skill z (Z,) that is held, or a place that is headed for."""
ROUNDS = 1000  # of value iteration at most; without loops it needs as many as a plan has skills


@dataclass(frozen=True, eq=False)
class TaskAutomaton:
    """A complete deterministic automaton over events; events it does not know change nothing."""

    letters: tuple[str, ...]
    table: np.ndarray
    """next state of each state and letter, (Q, L)"""
    accepting: np.ndarray
    """(Q,) bool"""
    start: int = 0

    @classmethod
    def sequence(cls, goals: Sequence[str], avoid: Sequence[str] = ()) -> TaskAutomaton:
        """Events in this order, whatever else happens, but never one of `avoid` before the last.

        Raises:
            UsageError: no goals, or a goal that is to be avoided.
        """
        if not goals or {*goals} & {*avoid}:
            raise UsageError(
                f"goals {[*goals]}, avoiding {[*avoid]}: give goals, none of them to be avoided."
            )
        letters = tuple(dict.fromkeys([*goals, *avoid]))
        last, trap = len(goals), len(goals) + 1
        table = np.tile(np.arange(trap + 1)[:, None], (1, len(letters)))
        for q, goal in enumerate(goals):
            table[q, letters.index(goal)] = q + 1
            table[q, [letters.index(name) for name in avoid]] = trap
        return cls(letters, table, np.arange(trap + 1) == last)

    @classmethod
    def regex(cls, pattern: str, letters: Sequence[str] = ()) -> TaskAutomaton:
        """The words of a regular expression over names of events, such as "coffee (mail | tea)+".

        Args:
            pattern: names, separated where needed by spaces; `|`, `*`, `+`, `?`, `()`, and `.` for
                any event.
            letters: further events that count, though the pattern does not name them.

        Raises:
            UsageError: automata-lib is not installed, or the pattern is not well formed.
        """
        try:
            from automata.base.exceptions import RegexException
            from automata.fa.dfa import DFA
            from automata.fa.nfa import NFA
        except ModuleNotFoundError as missing:
            raise UsageError(
                "regular expressions need automata-lib: pip install 'etude-rl[logic]'."
            ) from missing
        names = tuple(dict.fromkeys([*NAME.findall(pattern), *letters]))
        code = {name: chr(FIRST + i) for i, name in enumerate(names)}
        rest = NAME.sub("", pattern)
        if not names or (strange := {*rest} - {*"|*+?(). "}):
            what = f"the characters {sorted(strange)}" if names else "no event"
            raise UsageError(f'the pattern "{pattern}" has {what}: use names and | * + ? ( ) .')
        text = NAME.sub(lambda found: code[found[0]], pattern).replace(" ", "")
        try:
            nfa = NFA.from_regex(text, input_symbols={*code.values()})
        except RegexException as error:
            raise UsageError(f'the pattern "{pattern}" is not well formed: {error}') from None
        made = DFA.from_nfa(nfa).to_complete()
        index = {state: q for q, state in enumerate(sorted(made.states, key=str))}
        table = np.zeros((len(index), len(names)), np.int64)
        for state, q in index.items():
            table[q] = [index[made.transitions[state][code[name]]] for name in names]
        accepting = np.array([state in made.final_states for state in index])
        return cls(names, table, accepting, index[made.initial_state])

    def read(self, state: int, events: Sequence[str]) -> int:
        """The state after further events."""
        for name in events:
            if name in self.letters:
                state = int(self.table[state, self.letters.index(name)])
        return state

    def accepts(self, events: Sequence[str]) -> bool:
        """Whether the task is done after these events from the start."""
        return bool(self.accepting[self.read(self.start, events)])

    @property
    def dead(self) -> np.ndarray:
        """States (Q,) from which no events lead to acceptance."""
        alive = self.accepting.copy()
        for _ in range(len(alive)):
            alive |= alive[self.table].any(axis=1)
        return np.asarray(~alive)


@dataclass(frozen=True, eq=False)
class Effect:
    """What a skill is known to bring about."""

    skill: Way
    events: tuple[str, ...]
    """what becomes true, in this order"""
    steps: float = 1.0
    """what it costs, environment steps"""
    begins: str | None = None
    """the event before it, "" at the start of an episode, or the latest events, "a b" for first a,
    then b; None: wherever it begins"""
    share: float = 1.0
    """how often that is so; several effects of a skill that begin alike are its possible ones"""
    within: float = np.inf
    """after so many steps it has not come about, and another skill is tried"""

    @classmethod
    def of(cls, library: SkillLibrary) -> list[Effect]:
        """Those in the rows of a library: `effects` = [{"events": [...], "steps": 12}, …].

        Raises:
            UsageError: no row has any, or one is not of this form.
        """
        found = []
        for row in library.skills:
            for data in row.get(EFFECTS, ()):
                keys = {"events", "steps", "begins", "share", "within"}
                if not isinstance(data, dict) or not {"events"} <= data.keys() <= keys:
                    raise UsageError(
                        f"effect {data!r:.80} of skill {row['id']}: give events, and steps, "
                        "begins, share and within if they are known."
                    )
                rest = {**data, "events": tuple(data["events"])}
                found.append(cls(np.asarray(row["z"], np.float32), **rest))
        if not found:
            raise UsageError(
                f'no skill of library {library.name} has known "{EFFECTS}": measure them and write '
                "them into the rows."
            )
        return found


class AutomatonController:
    """Carries out a task with skills of known effects, in each environment by itself.

    It is asked at every step (k = 1), so as to miss no event; events at the same step are read in
    the order of their labels.
    """

    def __init__(
        self,
        task: TaskAutomaton,
        effects: Sequence[Effect],
        labels: Mapping[str, Any],
        env_spec: EnvSpec,
    ) -> None:
        """Plan the task.

        Args:
            task: the automaton.
            effects: what skills bring about; `Effect.of(library)`.
            labels: for every event, the predicate (data) whose becoming true is the event.
            env_spec: the environment, whose fields the predicates name.

        Raises:
            UsageError: an event of the task has no label, or the task cannot be done so.
        """
        for name in task.letters:
            if name not in labels:
                raise unknown("event without a label", name, labels)
        widths = {field.name: field.dim for field in env_spec.fields}
        self.labels = {name: predicate(data, widths) for name, data in labels.items()}
        """The predicate of every event."""
        self.task, self._patience = task, float(env_spec.max_steps)
        self._ways = self._grouped(effects)
        self._histories = self._reached()
        self._limits = np.array([max(e.within for e in way) for way in self._ways])
        self.values, self._costs = self._solve()
        """steps to acceptance, (Q, H), more where that is unsure; infinite where there is no way"""
        if np.isinf(self.values[task.start, 0]):
            raise UsageError(
                "no sequence of known effects does this task: add skills, or the effects of skills."
            )

    def _grouped(self, effects: Sequence[Effect]) -> list[tuple[Effect, ...]]:
        """What may come of each skill, begun after each event."""
        ways: dict[tuple[Any, str | None], list[Effect]] = {}
        for effect in effects:
            skill = effect.skill
            key = skill if isinstance(skill, Heading) else skill.tobytes()
            ways.setdefault((key, effect.begins), []).append(effect)
        for (_, begins), own in ways.items():
            shares = [effect.share for effect in own]
            if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
                raise UsageError(
                    f"effects of one skill that begin after {begins!r} have the shares {shares}: "
                    "give shares above 0 that add up to 1 at most."
                )
        return [tuple(own) for own in ways.values()]

    def _reached(self) -> dict[History, int]:
        """The histories that effects lead to, with their numbers; the start has 0."""
        told = [way[0].begins for way in self._ways]
        self._memory = max(
            len(begins.split(" ")) for begins in [*told, START] if begins is not None
        )
        found: dict[History, int] = {(START,): 0}
        todo = [*found]
        while todo:
            history = todo.pop()
            for way in self._ways:
                for effect in way if _follows(way[0].begins, history) else ():
                    after = self._after(history, effect.events)
                    if after not in found:
                        found[after] = len(found)
                        todo.append(after)
        return found

    def _after(self, history: History, events: Sequence[str]) -> History:
        """A history with further events, of which only the latest are remembered."""
        known = [name for name in events if name in self.labels]
        return (*history, *known)[-self._memory :]

    def _solve(self) -> tuple[np.ndarray, np.ndarray]:
        """Values (Q, H), and those of taking each way next, (W, Q, H)."""
        shape = len(self.task.table), len(self._histories)
        values = np.full(shape, np.inf)
        values[self.task.accepting] = 0
        costs = np.full((len(self._ways), *shape), np.inf)
        states = [np.array([self._states(e) for e in way]) for way in self._ways]  # (effects, Q)
        possible = [
            (i, way, h, [self._histories[self._after(history, e.events)] for e in way])
            for i, way in enumerate(self._ways)
            for history, h in self._histories.items()
            if _follows(way[0].begins, history)
        ]
        for _ in range(ROUNDS):
            before = values.copy()
            for i, way, h, after in possible:
                costs[i, :, h] = self._cost(way, before[states[i], np.array(after)[:, None]])
            costs[:, self.task.accepting] = np.inf  # nothing is left to do
            values = np.where(self.task.accepting[:, None], 0, costs.min(0))
            if np.allclose(before, values, rtol=0, atol=1e-9):
                break
        return values, costs

    def _states(self, effect: Effect) -> list[int]:
        return [self.task.read(q, effect.events) for q in range(len(self.task.table))]

    def _cost(self, way: Sequence[Effect], values: np.ndarray) -> np.ndarray:
        """Values (Q,) of a way whose effects are followed by `values`, (effects, Q)."""
        share, steps = (np.array([[getattr(e, key)] for e in way]) for key in ("share", "steps"))
        logs = np.log(share) - (steps + values) / self._patience
        return np.asarray(-self._patience * np.logaddexp.reduce(logs, axis=0))

    def reset(self, obs: np.ndarray) -> None:
        """The task begins; what is true already is no event."""
        self.state = np.full(len(obs), self.task.start)
        """of the automaton, (N,)"""
        self._history: list[History] = [(START,)] * len(obs)
        self._true = {name: label(obs) for name, label in self.labels.items()}
        self._way, self._since = np.zeros((2, len(obs)), np.int64)
        self._failed = np.zeros((len(self._ways), len(obs)), bool)  # since the last event

    @property
    def done(self) -> np.ndarray:
        """Where the task is done, (N,)."""
        return np.asarray(self.task.accepting[self.state])

    @property
    def failed(self) -> np.ndarray:
        """Where it cannot be done any more, (N,)."""
        return np.asarray(self.task.dead[self.state])

    @property
    def begins(self) -> list[str]:
        """The latest events of each environment, as effects name them."""
        return [" ".join(history) for history in self._history]

    def ends(self, obs: np.ndarray) -> np.ndarray:
        """Where the task would be done if the episode's last observations were these, (N,)."""
        state = self.state.copy()
        for name, new in self._events(obs).items():
            for i in np.flatnonzero(new & ~self.task.accepting[state]).tolist():
                state[i] = self.task.read(int(state[i]), [name])
        return np.asarray(self.task.accepting[state])

    def _events(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        """Where each label has become true, (N,)."""
        return {name: label(obs) & ~self._true[name] for name, label in self.labels.items()}

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) of the plan; what is done or lost keeps its latest one.

        A way whose effects have not come about in time is given up for the next best, until there
        is an event or none is left.
        """
        for name, new in self._events(obs).items():
            for i in np.flatnonzero(new & ~self.done).tolist():
                self.state[i] = self.task.read(int(self.state[i]), [name])
                self._history[i] = self._after(self._history[i], [name])
                self._since[i], self._failed[:, i] = 0, False
            self._true[name] = self.labels[name](obs)
        late = self._since > self._limits[self._way]
        self._failed[self._way[late], np.flatnonzero(late)] = True
        known = self._next()
        self._failed &= ~(self._failed | np.isinf(known)).all(0)
        costs = np.where(self._failed, np.inf, known)
        best = np.where(np.isinf(costs.min(0)), self._way, costs.argmin(0))
        self._since = np.where(best == self._way, self._since, 0) + 1
        self._way = best
        return self._skills(obs)

    def _next(self) -> np.ndarray:
        """Values of taking each way now, (W, N)."""
        here = np.array([self._histories.get(history, NOWHERE) for history in self._history])
        found = self._costs[:, self.state, here]
        return np.where(here == NOWHERE, np.inf, found)

    def _skills(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) of the ways that are being taken."""
        taken = np.unique(self._way).tolist()
        rows = [np.flatnonzero(self._way == i) for i in taken]
        skills = [self._ways[i][0].skill for i in taken]
        parts = [skills_of(skill, obs[own]) for skill, own in zip(skills, rows, strict=True)]
        return np.concatenate(parts)[np.argsort(np.concatenate(rows))]


def _follows(begins: str | None, history: History) -> bool:
    """Whether what begins so may begin after a history."""
    if begins is None:
        return True
    words = tuple(begins.split(" "))
    return history[-len(words) :] == words


def skills_of(way: Way, obs: np.ndarray) -> np.ndarray:
    """The skills (n, Z) of a way at observations (n, O)."""
    return way(obs) if isinstance(way, Heading) else np.tile(way, (len(obs), 1)).astype(np.float32)
