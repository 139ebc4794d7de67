"""Replay memory of a vector environment: packed rows, drawn with one gather per batch.

Row t * N + n is the transition of environment n in vector step t:

    obs (O) | action (A) | next_obs (O) | skill (Z) | terminated | time          float32

`next_obs` is the true successor, never the first observation after a reset. Beside the row stands
`last`, the vector step in which its episode ended (OPEN while it runs), so terminated and truncated
are kept apart: an episode ends at `last`, and only `terminated` says that it has no future. `time`
counts the steps since the skill began. Both together tell every sampler how far it may look ahead;
none crosses a reset or the ring's write head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.agents.networks import check_sizes
from etude.checkpoint import Rows, generator_state, set_generator_state
from etude.errors import CheckpointError, UsageError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

OPEN = np.iinfo(np.int32).max
ROUNDS = 8
PIECE = 2**13  # rows read from a checkpoint at a time


@dataclass(frozen=True)
class Record:
    """What the samplers return: immutable, with the names of its observation fields."""

    OBSERVATIONS: ClassVar[tuple[str, ...]] = ("obs", "next_obs")

    def normalised(self, normaliser: Callable[[Tensor], Tensor]) -> Self:
        """A copy whose observations went through `normaliser`."""
        fields = {name: getattr(self, name) for name in self.OBSERVATIONS}
        return self.replace(**{k: normaliser(v) for k, v in fields.items() if v is not None})

    def replace(self, **changes: Any) -> Self:
        """A copy with other values in the given fields."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Batch(Record):
    """Independent transitions."""

    OBSERVATIONS = ("obs", "next_obs", "future_obs")

    obs: Tensor  # (B, O)
    action: Tensor  # (B, A)
    next_obs: Tensor  # (B, O)
    skill: Tensor  # (B, Z)
    terminated: Tensor  # (B,) 1.0 where the episode ended for good, not by a time limit
    time: Tensor  # (B,) steps since the skill began
    future_obs: Tensor | None = None  # (B, O) an observation later in the same episode
    goal: Tensor | None = None  # (B, Z) the skill that would have led there, where skills are goals


@dataclass(frozen=True)
class Jumps(Record):
    """Stretches of n steps under one skill, each seen as a single transition."""

    obs: Tensor  # (B, O) before the first step
    action: Tensor  # (B, n, A)
    next_obs: Tensor  # (B, O) after the last step
    skill: Tensor  # (B, Z)
    terminated: Tensor  # (B,) 1.0 where the last step ended the episode for good
    time: Tensor  # (B,) steps since the skill began, at the first step


@dataclass(frozen=True)
class Sequences(Record):
    """Stretches of up to T steps of one episode, with the T + 1 observations around them.

    An episode shorter than T is given whole; its last observation then fills the rest.
    """

    OBSERVATIONS = ("obs",)

    obs: Tensor  # (B, T + 1, O)
    action: Tensor  # (B, T, A)
    skill: Tensor  # (B, T, Z)
    valid: Tensor  # (B, T) bool: step of the episode, not filling
    is_first: Tensor  # (B, T + 1) bool: first observation of its episode
    is_last: Tensor  # (B, T + 1) bool: last observation of its episode
    is_terminal: Tensor  # (B, T + 1) bool: last, and the episode ended for good


class Replay:
    """A ring of the newest `capacity` transitions (rounded down to whole vector steps)."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_dim: int,
        action_dim: int,
        skill_dim: int,
        seed: int | np.random.SeedSequence | None = None,
        device: str = "cpu",
    ) -> None:
        check_sizes(num_envs=num_envs, obs_dim=obs_dim, action_dim=action_dim, skill_dim=skill_dim)
        if capacity < num_envs:
            raise UsageError(
                f"replay capacity {capacity} is below one step of {num_envs} environments: "
                f"give at least {num_envs}."
            )
        self.num_envs, self.steps_kept = num_envs, capacity // num_envs
        self.capacity = self.steps_kept * num_envs
        self.widths = [obs_dim, action_dim, obs_dim, skill_dim, 1, 1]
        self.rng = np.random.default_rng(seed)
        self.total = 0  # vector steps ever added
        # Zeroed pages of NumPy take memory only once they are written.
        rows = torch.from_numpy(np.zeros((self.capacity, sum(self.widths)), np.float32))
        self._rows = rows.to(device)
        self._last = np.zeros(self.capacity, np.int32)
        self._begin = np.zeros(num_envs, np.int64)  # vector step in which the episode began
        self._time = np.zeros(num_envs, np.int64)
        self._skill = np.full((num_envs, skill_dim), np.nan, np.float32)

    def __len__(self) -> int:
        return (self.total - self._oldest) * self.num_envs

    @property
    def device(self) -> torch.device:
        """Where the transitions are, and the batches drawn from them."""
        return self._rows.device

    @property
    def nbytes(self) -> int:
        """Memory of the full ring, bytes."""
        return self._rows.nbytes + self._last.nbytes

    @property
    def _oldest(self) -> int:
        return max(0, self.total - self.steps_kept)

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        next_obs: np.ndarray,
        skill: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """Store one vector step; every argument has N rows, in the environments' order."""
        n, step = self.num_envs, self.total
        skill = np.asarray(skill, np.float32)
        parts = (obs, action, next_obs, skill)
        for part, width in zip(parts, self.widths, strict=False):
            if np.shape(part) != (n, width):
                raise UsageError(
                    f"replay got an array of shape {np.shape(part)} where {(n, width)} belongs: "
                    "give obs, action, next_obs, skill with one row per environment."
                )
        ended = np.logical_or(terminated, truncated)
        if not np.shape(terminated) == np.shape(truncated) == (n,):
            raise UsageError(f"replay needs terminated and truncated of shape ({n},).")
        self._time = np.where((skill == self._skill).all(1), self._time + 1, 0)
        block = slice((step % self.steps_kept) * n, (step % self.steps_kept + 1) * n)
        flags = (np.asarray(terminated, np.float32)[:, None], self._time[:, None])
        rows = np.concatenate((*parts, *flags), axis=1, dtype=np.float32, casting="same_kind")
        self._rows[block] = torch.from_numpy(rows).to(self.device)
        self._last[block] = OPEN
        self.total += 1
        for env in np.flatnonzero(ended).tolist():
            begin = max(int(self._begin[env]), self._oldest)
            self._last[self._row(np.arange(begin, step + 1), env)] = step
        self._begin[ended] = step + 1
        self._skill = np.where(ended[:, None], np.float32(np.nan), skill)

    def steps(self, batch: int) -> Batch:
        """Transitions drawn uniformly, with replacement."""
        self._check(batch)
        return self._batch(self.rng.integers(len(self), size=batch))

    def future(self, batch: int, gamma: float) -> Batch:
        """Transitions (s_t, a_t) with `future_obs` s_{t+d}, P(d) ~ gamma^(d-1), 1 <= d <= rest.

        The geometric law is cut at the end of the episode (or of what is stored of it) and
        rescaled, as in contrastive RL (Eysenbach et al. 2022, arXiv:2206.07568).
        """
        self._check(batch)
        if not 0.0 < gamma < 1.0:
            raise UsageError(f"gamma = {gamma} is out of range: the future needs 0 < gamma < 1.")
        rows = self.rng.integers(len(self), size=batch)
        step, env = self._place(rows)
        rest = self._end(rows) - step + 1
        mass = 1.0 - gamma**rest
        offset = np.log1p(-self.rng.random(batch) * mass) / np.log(gamma)
        ahead = np.minimum(offset.astype(np.int64), rest - 1)
        future = self._batch(self._row(step + ahead, env)).next_obs
        return self._batch(rows).replace(future_obs=future)

    def jumps(self, batch: int, n: int, aligned: bool = False) -> Jumps:
        """Stretches of `n` steps under one skill; `aligned`: only from the skill's first step."""
        self._check(batch, n)

        def complete(rows: Ints) -> Bools:
            step, env = self._place(rows)
            end = step + n - 1
            time = self._times(rows)
            # `time` restarts at every reset and change of skill, so n - 1 more means one stretch.
            same = self._times(self._row(end, env)) == time + (n - 1)
            allowed: Bools = (end < self.total) & same & ((time == 0) | (not aligned))
            return allowed

        rows = self._draw(batch, complete, f"{n} steps under one skill")
        step, env = self._place(rows)
        window = self._row(step[:, None] + np.arange(n), env[:, None])  # (B, n)
        first, last = self._batch(rows), self._batch(window[:, -1])
        action = self._batch(window.ravel()).action.reshape(batch, n, -1)
        return Jumps(first.obs, action, last.next_obs, first.skill, last.terminated, first.time)

    def sequences(self, batch: int, length: int) -> Sequences:
        """Stretches of `length` steps of one episode; shorter episodes are given whole."""
        self._check(batch, length)

        def complete(rows: Ints) -> Bools:
            step, _ = self._place(rows)
            whole = (step == self._oldest) | self._is_first(rows)
            allowed: Bools = (step + length - 1 <= self._end(rows)) | whole
            return allowed

        rows = self._draw(batch, complete, "sequences")
        step, env = self._place(rows)
        taken = np.minimum(self._end(rows) - step + 1, length)  # (B,) steps that exist
        ahead = np.minimum(np.arange(length), taken[:, None] - 1)
        window = self._row(step[:, None] + ahead, env[:, None])  # (B, T), last step repeated
        flat = self._batch(window.ravel())
        final = self._batch(window[:, -1])
        valid = self._tensor(np.arange(length) < taken[:, None])
        obs = flat.obs.reshape(batch, length, -1)
        end = final.next_obs.unsqueeze(1)  # (B, 1, O)
        is_first = np.zeros((batch, length + 1), np.bool_)
        is_first[:, 0] = self._is_first(rows)
        is_last = np.zeros_like(is_first)
        is_last[np.arange(batch), taken] = self._last[window[:, -1]] == step + taken - 1
        return Sequences(
            obs=torch.cat((torch.where(valid.unsqueeze(-1), obs, end), end), 1),
            action=flat.action.reshape(batch, length, -1),
            skill=flat.skill.reshape(batch, length, -1),
            valid=valid,
            is_first=self._tensor(is_first),
            is_last=self._tensor(is_last),
            is_terminal=self._tensor(is_last) & final.terminated.bool().unsqueeze(1),
        )

    def state_dict(self) -> dict[str, Any]:
        """Arrays, rows, counters and generator. The arrays are the live ones, as in torch."""
        return {
            "widths": self.widths,
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "total": self.total,
            "rows": Rows(self._oldest * self.num_envs, self.total * self.num_envs, self._read),
            "last": self._last[: len(self)],
            "begin": self._begin,
            "time": self._time,
            "skill": self._skill,
            "generator": generator_state(self.rng),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a replay of the same sizes."""
        for name in ("capacity", "num_envs", "widths"):
            own = getattr(self, name)
            if own != state[name]:
                raise CheckpointError(
                    f"the saved replay has {name} {state[name]}, this one {own}: "
                    "resume with the settings of the run."
                )
        self.total = int(state["total"])
        for first, rows in state["rows"].pieces(PIECE):
            places = np.arange(first, first + len(rows)) % self.capacity
            self._rows[self._tensor(places)] = self._tensor(np.ascontiguousarray(rows))
        self._last[: len(self)] = state["last"]
        self._begin, self._time, self._skill = (
            np.array(state[name]) for name in ("begin", "time", "skill")
        )
        set_generator_state(self.rng, state["generator"])

    def _read(self, begin: int, end: int) -> np.ndarray:
        """Rows of the log of all rows ever added, of those that are still there."""
        return self._gather(np.arange(begin, end) % self.capacity).cpu().numpy()

    def _check(self, batch: int, length: int = 1) -> None:
        check_sizes(batch=batch, length=length)
        if not self.total:
            raise UsageError("the replay is empty: collect steps before sampling.")

    def _batch(self, rows: Ints) -> Batch:
        gathered = self._gather(rows)
        obs, action, next_obs, skill, terminated, time = torch.split(gathered, self.widths, 1)
        return Batch(obs, action, next_obs, skill, terminated[:, 0], time[:, 0])

    def _gather(self, rows: Ints) -> Tensor:
        return self._rows.index_select(0, self._tensor(rows))

    def _times(self, rows: Ints) -> np.ndarray:
        """Steps since the skill began, of stored rows."""
        return self._rows[:, -1].index_select(0, self._tensor(rows)).cpu().numpy()

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _draw(self, batch: int, accept: Callable[[Ints], Bools], what: str) -> Ints:
        """Rows drawn uniformly among those that `accept` allows."""
        found: list[Ints] = []
        for round_ in range(ROUNDS):
            rows = self.rng.integers(len(self), size=batch << (round_ + 1))
            found.append(rows[accept(rows)])
            if sum(map(len, found)) >= batch:
                return np.concatenate(found)[:batch]
        allowed = np.arange(len(self))
        allowed = allowed[accept(allowed)]
        if not len(allowed):
            raise UsageError(f"the replay holds no {what} yet: collect more or ask for less.")
        return self.rng.choice(allowed, size=batch)

    def _row(self, step: Ints, env: Ints | int) -> Ints:
        return (step % self.steps_kept) * self.num_envs + env

    def _place(self, rows: Ints) -> tuple[Ints, Ints]:
        """Vector step and environment of stored rows."""
        slot, env = np.divmod(rows, self.num_envs)
        return self._oldest + (slot - self._oldest) % self.steps_kept, env

    def _end(self, rows: Ints) -> Ints:
        """Vector step of the last stored transition of each row's episode."""
        return np.minimum(self._last[rows], self.total - 1)

    def _is_first(self, rows: Ints) -> Bools:
        """Whether a row begins its episode; unknown, so False, where its predecessor is gone."""
        step, env = self._place(rows)
        # A predecessor that was overwritten has a `last` of at least its new step: never step - 1.
        first: Bools = (step == 0) | (self._last[self._row(step - 1, env)] == step - 1)
        return first
