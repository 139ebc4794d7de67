"""A controller written down as data: which skill begins where, and when it is over.

The program is a list of rules in order of priority, JSON like the rows of a library:

    [{"skill": 3, "initiation": {"field": "z", "below": 0.3}, "termination": {...}}, ...]

A skill is held until its `termination` is true (without one: for one decision); then the first rule
whose `initiation` is true begins (without one: always). Predicates (`etude.skills.predicates`) name
fields of the body or of the task. Without a program the library's own rows are one, so that what
was written there with `predicates.annotate` acts wherever the library goes.

This is the hand-written end of the options framework (Sutton, Precup and Singh 1999). Shapes:
N environments, O observation, Z skill, R rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etude.envs.spec import EnvSpec
from etude.errors import UsageError, unknown
from etude.skills.library import SkillLibrary
from etude.skills.predicates import BEGINS, ENDS, predicate

NONE = -1
KEYS = ("skill", BEGINS, ENDS)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rules = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no program: {error}") from None
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise UsageError(f"{path} is no program: give a list of rules.")
    return rules


class ProgrammaticController:
    """Follows a program, separately in every environment; ask it at every step, or every k."""

    def __init__(
        self,
        library: SkillLibrary,
        env_spec: EnvSpec,
        program: Sequence[Mapping[str, Any]] | str | Path | None = None,
    ) -> None:
        """Read a program.

        Args:
            library: the skills, with a row each.
            env_spec: the environment whose observations it will see.
            program: rules, or a file that `save` wrote; None: the library's rows.

        Raises:
            UsageError: no rules, an unknown skill, key or field, or something that is no predicate.
        """
        rows = {row["id"]: row for row in library.skills}
        if program is None:
            kept = (BEGINS, ENDS)
            program = [
                {"skill": i} | {k: row[k] for k in kept if k in row} for i, row in rows.items()
            ]
        elif isinstance(program, str | Path):
            program = _read(Path(program))
        if not program:
            raise UsageError("an empty program: give one rule or more.")
        widths = {field.name: field.dim for field in env_spec.fields}
        for rule in program:
            for key in rule:
                if key not in KEYS:
                    raise unknown("key of a rule", str(key), KEYS)
            if rule.get("skill") not in rows:
                raise unknown("skill id of a rule", str(rule.get("skill")), map(str, rows))
        self.program = [dict(rule) for rule in program]
        """The rules, as plain data."""
        self._z = np.array([rows[rule["skill"]]["z"] for rule in program], np.float32)
        self._begins = [predicate(rule.get(BEGINS, True), widths) for rule in program]
        self._ends = [predicate(rule.get(ENDS, True), widths) for rule in program]
        self._rule = np.zeros(0, np.int64)

    def save(self, path: str | Path) -> Path:
        """Write the program as JSON."""
        Path(path).write_text(json.dumps(self.program, indent=1) + "\n", "utf-8")
        return Path(path)

    def reset(self, obs: np.ndarray) -> None:
        """No rule is at work."""
        self._rule = np.full(len(obs), NONE)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) of the rules at work.

        Raises:
            UsageError: no rule may begin somewhere.
        """
        for i, over in enumerate(self._ends):
            if (mine := self._rule == i).any():
                self._rule[mine & over(obs)] = NONE
        for i, begins in enumerate(self._begins):
            if not (free := self._rule == NONE).any():
                break
            self._rule[free & begins(obs)] = i
        if (lost := self._rule == NONE).any():
            raise UsageError(
                f"no rule may begin in environment {int(lost.argmax())}: end the program with a "
                f"rule that has no `{BEGINS}`."
            )
        return np.asarray(self._z[self._rule])
