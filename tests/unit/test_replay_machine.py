"""The replay in any order of calls, against a list of everything that was ever added to it.

`ETUDE_EXAMPLES` sets how many random sequences of calls are tried, which then differ from run to
run; without it they are few, and the same each time.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from etude import checkpoint
from etude.agents import replay as replay_module
from etude.agents.replay import Batch, Replay
from etude.errors import UsageError

EXAMPLES = int(os.environ.get("ETUDE_EXAMPLES", "15"))
DRAWS = 400  # enough for the normal law that five standard deviations suppose
CLOSELY = 30  # of them are compared entry by entry
GAMMAS = st.sampled_from([0.2, 0.9, 0.999])
PERIODS = st.sampled_from([0, 1, 2, 3, 7])  # 0: never


@dataclass(frozen=True)
class Row:
    """A transition; its number, which no other has, is what it observes."""

    number: int
    step: int
    env: int
    begin: int  # step in which its episode began
    time: int
    skill: int
    terminated: bool
    ended: bool


@dataclass
class Memory:
    """What was added, environment by environment."""

    rows: list[list[Row]]
    steps_kept: int

    @property
    def total(self) -> int:
        return len(self.rows[0])

    @property
    def oldest(self) -> int:
        return max(0, self.total - self.steps_kept)

    def kept(self) -> list[Row]:
        return [row for column in self.rows for row in column[self.oldest :]]

    def find(self, number: float) -> Row:
        """The transition of an observation, which must still be there."""
        n = len(self.rows)
        row = self.rows[int(number) % n][int(number) // n]
        assert row.number == number and row.step >= self.oldest
        return row

    def episode(self, row: Row) -> list[Row]:
        """A row and what came after it in the same episode."""
        after = self.rows[row.env][row.step :]
        return [*itertools.takewhile(lambda other: other.begin == row.begin, after)]

    def copied(self) -> Memory:
        return Memory([[*column] for column in self.rows], self.steps_kept)

    def has_jump(self, row: Row, n: int, aligned: bool) -> bool:
        ahead = self.episode(row)[:n]
        whole = [r.time for r in ahead] == list(range(row.time, row.time + n))
        return whole and (row.time == 0 or not aligned)

    def has_sequence(self, row: Row, length: int) -> bool:
        return len(self.episode(row)) >= length or row.step in (self.oldest, row.begin)


def near(hits: float, expected: float, variance: float) -> None:
    """Within five standard deviations, where they say anything."""
    assert variance < 25 or abs(hits - expected) <= 5 * variance**0.5


class Machine(RuleBasedStateMachine):
    """A replay and its memory; the rules are what one can do to them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.saved: tuple[Path, Memory] | None = None
        self.written: checkpoint.Written = {}
        self.names = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(
        n=st.integers(1, 3), kept=st.integers(1, 30), spare=st.integers(0, 2), seed=st.integers(0)
    )
    def start(self, n: int, kept: int, spare: int, seed: int) -> None:
        self.sizes = (kept * n + min(spare, n - 1), n, 1, 1, 1)
        self.replay = Replay(*self.sizes, seed=seed)
        self.memory = Memory([[] for _ in range(n)], kept)

    @invariant()
    def has_what_is_kept(self) -> None:
        assert len(self.replay) == len(self.memory.kept()) <= self.replay.capacity

    # ---- adding

    @rule(count=st.integers(1, 12), over=PERIODS, limit=PERIODS, skill=PERIODS, shift=st.integers())
    def add(self, count: int, over: int, limit: int, skill: int, shift: int) -> None:
        """Episodes end, time runs out and skills change every so many steps, in turn."""
        for _ in range(count):
            now = self.memory.total + shift
            for env, column in enumerate(self.memory.rows):
                due = [bool(p) and (now + env) % p == 0 for p in (over, limit, skill)]
                column.append(self._next(env, column, *due))
            rows = [column[-1] for column in self.memory.rows]
            number = np.array([[r.number] for r in rows], np.float32)
            held = np.array([[r.skill] for r in rows], np.float32)
            terminated = np.array([r.terminated for r in rows])
            truncated = np.array([r.ended for r in rows]) & ~terminated
            self.replay.add(number, -number, number + 0.5, held, terminated, truncated)

    def _next(
        self, env: int, column: list[Row], terminated: bool, truncated: bool, changes: bool
    ) -> Row:
        step = len(column)
        last = column[-1] if column else Row(-1, -1, env, 0, -1, 0, False, True)
        skill = last.skill + changes
        fresh = last.ended or changes
        return Row(
            number=step * len(self.memory.rows) + env,
            step=step,
            env=env,
            begin=step if last.ended else last.begin,
            time=0 if fresh else last.time + 1,
            skill=skill,
            terminated=terminated,
            ended=terminated or truncated,
        )

    # ---- sampling

    def rows(self, batch: Batch) -> list[Row]:
        """The transitions of a batch, each of which must be one that was added."""
        rows = [self.memory.find(number) for number in batch.obs[:, 0].tolist()]
        numbers = torch.tensor([[float(r.number)] for r in rows])
        assert torch.equal(batch.action, -numbers) and torch.equal(batch.next_obs, numbers + 0.5)
        assert batch.skill[:, 0].tolist() == [r.skill for r in rows]
        assert batch.time.tolist() == [r.time for r in rows]
        assert batch.terminated.tolist() == [r.terminated for r in rows]
        return rows

    def uniform(self, drawn: list[float], possible: list[Row]) -> None:
        """Every second of the possible starts has half of the draws, and nothing else has any."""
        numbers = [row.number for row in possible]
        assert set(drawn) <= set(numbers)
        half = set(numbers[::2])
        share = len(half) / len(numbers)
        near(sum(x in half for x in drawn), DRAWS * share, DRAWS * share * (1 - share))

    @precondition(lambda self: self.memory.total)
    @rule()
    def steps(self) -> None:
        batch = self.replay.steps(DRAWS)
        self.rows(batch)
        self.uniform(batch.obs[:, 0].tolist(), self.memory.kept())

    @precondition(lambda self: self.memory.total)
    @rule(gamma=GAMMAS)
    def future(self, gamma: float) -> None:
        batch = self.replay.future(DRAWS, gamma)
        assert batch.future_obs is not None
        hits = expected = variance = 0.0
        rests = {row: self.memory.episode(row) for row in self.memory.kept()}
        for row, ahead in zip(self.rows(batch), batch.future_obs[:, 0].tolist(), strict=True):
            rest = rests[row]
            later = self.memory.find(ahead - 0.5)
            assert later in rest, "beyond a reset, or the newest step"
            p = (1 - gamma) / (1 - gamma ** len(rest))
            hits += later is row
            expected, variance = expected + p, variance + p * (1 - p)
        near(hits, expected, variance)

    @precondition(lambda self: self.memory.total)
    @rule(n=st.integers(1, 6), aligned=st.booleans())
    def jumps(self, n: int, aligned: bool) -> None:
        how = {"aligned": True} if aligned else {}
        possible = [r for r in self.memory.kept() if self.memory.has_jump(r, n, aligned)]
        if not possible:
            with pytest.raises(UsageError, match=f"no {n} steps under one skill yet"):
                self.replay.jumps(DRAWS, n, **how)
            return
        jumps = self.replay.jumps(DRAWS, n, **how)
        self.uniform(jumps.obs[:, 0].tolist(), possible)
        for i, number in enumerate(jumps.obs[:CLOSELY, 0].tolist()):
            part = self.memory.episode(self.memory.find(number))[:n]
            assert jumps.action[i, :, 0].tolist() == [-r.number for r in part]
            assert jumps.next_obs[i].item() == part[-1].number + 0.5
            assert {r.skill for r in part} == {int(jumps.skill[i])}
            assert jumps.time[i] == part[0].time and jumps.terminated[i] == part[-1].terminated

    @precondition(lambda self: self.memory.total)
    @rule(length=st.integers(1, 9))
    def sequences(self, length: int) -> None:
        found = self.replay.sequences(DRAWS, length)
        possible = [r for r in self.memory.kept() if self.memory.has_sequence(r, length)]
        self.uniform(found.obs[:, 0, 0].tolist(), possible)
        for i, number in enumerate(found.obs[:CLOSELY, 0, 0].tolist()):
            part = self.memory.episode(self.memory.find(number))[:length]
            end, filling = part[-1], length - len(part)
            numbers = [float(r.number) for r in part]
            assert found.obs[i, :, 0].tolist() == [*numbers, *[end.number + 0.5] * (filling + 1)]
            assert found.action[i, : len(part), 0].tolist() == [-x for x in numbers]
            assert found.skill[i, : len(part), 0].tolist() == [r.skill for r in part]
            assert found.valid[i].tolist() == [True] * len(part) + [False] * filling
            known = part[0].step == part[0].begin and (part[0].step > self.memory.oldest)
            first = known or part[0].step == 0
            assert found.is_first[i].tolist() == [first] + [False] * length
            for flags, value in ((found.is_last, end.ended), (found.is_terminal, end.terminated)):
                assert flags[i].nonzero()[:, 0].tolist() == [len(part)] * value

    @precondition(lambda self: self.memory.total)
    @rule(length=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
    def again(self, length: int, seed: int) -> None:
        """Its own generator decides all, and no other."""
        before = checkpoint.generator_state(self.replay.rng)
        drawn = []
        for _ in range(2):
            torch.manual_seed(seed)
            checkpoint.set_generator_state(self.replay.rng, before)
            r = self.replay
            drawn.append([r.steps(5).obs, r.future(5, 0.9).future_obs, r.sequences(5, length).obs])
            seed //= 2
        assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
        assert checkpoint.generator_state(self.replay.rng) != before

    # ---- saving

    @rule()
    def save(self) -> None:
        self.names += 1
        tree = self.replay.state_dict()
        path = checkpoint.save(self.folder, f"{self.names:06d}", tree, self.written)
        self.saved = path, self.memory.copied()

    @precondition(lambda self: self.saved)
    @rule(forget=st.booleans())
    def load(self, forget: bool) -> None:
        """A new process, which goes on from the last save; perhaps the old one has written more."""
        assert self.saved is not None
        path, memory = self.saved
        self.written = {}
        tree = checkpoint.load(path, None if forget else self.written)
        before = tree["generator"]
        self.replay = Replay(*self.sizes, seed=1)
        self.replay.load_state_dict(tree)
        assert checkpoint.generator_state(self.replay.rng) == before
        self.memory = memory.copied()


def run(monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    """Rows are written and read in small pieces, so that there are several."""
    monkeypatch.setattr(checkpoint, "PIECE", 300)
    monkeypatch.setattr(replay_module, "PIECE", 7)
    often = settings(
        max_examples=examples, derandomize="ETUDE_EXAMPLES" not in os.environ, database=None
    )
    run_state_machine_as_test(Machine, settings=often)  # type: ignore[no-untyped-call]


def test_any_order_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, EXAMPLES)


@pytest.mark.slow
def test_many_orders_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, max(EXAMPLES, 500))
