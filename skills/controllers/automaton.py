"""Tasks in logic, solved without training by skills whose effects are known.

A task is a finite automaton over events: propositions that become true, such as "at the mail room".
`sequence` (these in order, never those) and `regex` make one. It is planned in advance over what
each skill is known to bring about: an `Effect` is the word of events that a skill causes, its cost
in steps and, if that matters, the last event before it. Value iteration on pairs (state of the
automaton, last event) finds the cheapest way to acceptance,

    V(q, l) = min over effects that begin in l of  steps + V(delta(q, events), last of events),

so a skill that would pass through what is forbidden is left out where it would spoil the task, and
only there. After Skill Machines (Nangue Tasse et al. 2024, "Skill Machines: Temporal Logic Skill
Composition in Reinforcement Learning", arXiv:2205.12532).

Deviations: skills come from a library with measured effects, where the paper learns a value
function for each goal of each primitive and composes them by minimum and maximum; tasks are regular
expressions and not linear temporal logic; costs are counted, which the paper's planner ignores.

Shapes: N environments, O observation, Z skill, Q states of an automaton, L letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.envs.spec import EnvSpec
from etude.errors import UsageError, unknown
from etude.skills.library import SkillLibrary
from etude.skills.predicates import predicate

EFFECTS = "effects"  # key of a library's row
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FIRST = 0xE000  # letters for automata-lib: code points that mean nothing else
START = ""  # the last event before the first


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

    skill: np.ndarray
    """z, (Z,)"""
    events: tuple[str, ...]
    """what becomes true, in this order"""
    steps: float = 1.0
    """what it costs, environment steps"""
    begins: str | None = None
    """last event before it, "" at the start of an episode; None: wherever it begins"""

    @classmethod
    def of(cls, library: SkillLibrary) -> list[Effect]:
        """Those in the rows of a library: `effects` = [{"events": [...], "steps": 12}, …].

        Raises:
            UsageError: no row has any, or one is not of this form.
        """
        found = []
        for row in library.skills:
            for data in row.get(EFFECTS, ()):
                keys = {"events", "steps", "begins"}
                if not isinstance(data, dict) or not {"events"} <= data.keys() <= keys:
                    raise UsageError(
                        f"effect {data!r:.80} of skill {row['id']}: give events, and steps and "
                        "begins if they are known."
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
        self._labels = {name: predicate(data, widths) for name, data in labels.items()}
        self.task, self.effects = task, [*effects]
        self._lasts = (START, *self._labels)
        self.values, self._plan = self._solve()
        """steps to acceptance, (Q, last events); infinite where there is no way"""
        if np.isinf(self.values[task.start, 0]):
            raise UsageError(
                "no sequence of known effects does this task: add skills, or the effects of skills."
            )

    def _solve(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and the effect to take next, (Q, last events), by value iteration."""
        shape = len(self.task.table), len(self._lasts)
        values = np.where(self.task.accepting[:, None], 0.0, np.full(shape, np.inf))
        plan = np.full(shape, -1)
        for _ in range(values.size):
            before = values.copy()
            for i, effect in enumerate(self.effects):
                events = [name for name in effect.events if name in self._labels]
                for q, last in np.ndindex(shape):
                    if self.task.accepting[q] or effect.begins not in (None, self._lasts[last]):
                        continue
                    after = self._lasts.index(events[-1]) if events else last
                    cost = effect.steps + before[self.task.read(q, events), after]
                    if cost < values[q, last]:
                        values[q, last], plan[q, last] = cost, i
            if np.array_equal(before, values):
                break
        return values, plan

    def reset(self, obs: np.ndarray) -> None:
        """The task begins; what is true already is no event."""
        self.state = np.full(len(obs), self.task.start)
        """of the automaton, (N,)"""
        self._last = np.zeros(len(obs), np.int64)
        self._true = {name: label(obs) for name, label in self._labels.items()}
        self._skills = np.zeros((len(obs), len(self.effects[0].skill)), np.float32)

    @property
    def done(self) -> np.ndarray:
        """Where the task is done, (N,)."""
        return np.asarray(self.task.accepting[self.state])

    @property
    def failed(self) -> np.ndarray:
        """Where it cannot be done any more, (N,)."""
        return np.asarray(self.task.dead[self.state])

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) of the plan; what is done or lost keeps its latest one."""
        for name, label in self._labels.items():
            now = label(obs)
            for i in np.flatnonzero(now & ~self._true[name] & ~self.done).tolist():
                self.state[i] = self.task.read(int(self.state[i]), [name])
                self._last[i] = self._lasts.index(name)
            self._true[name] = now
        for i, choice in enumerate(self._plan[self.state, self._last].tolist()):
            if choice >= 0:
                self._skills[i] = self.effects[choice].skill
        return self._skills.copy()
