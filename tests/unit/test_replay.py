"""Replay against a naive list of transitions that knows where every episode and skill begins."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude import checkpoint
from etude.agents.replay import Replay
from etude.errors import CheckpointError, UsageError


@dataclass
class Seen:
    """One transition as the naive memory keeps it."""

    step: int
    env: int
    episode: int
    stretch: int  # counts the skills held by this environment
    time: int
    skill: float
    terminated: bool
    truncated: bool


class World:
    """Feeds a replay with random episodes and keeps the naive list beside it."""

    def __init__(self, replay: Replay, seed: int, p_end: float = 0.08, p_skill: float = 0.1):
        self.replay, self.rng = replay, np.random.default_rng(seed)
        self.p_end, self.p_skill = p_end, p_skill
        self.seen: list[list[Seen]] = [[] for _ in range(replay.num_envs)]

    def step(self) -> None:
        n, t = self.replay.num_envs, len(self.seen[0])
        ends = self.rng.random((2, n)) < self.p_end
        for env in range(n):
            self.seen[env].append(self._next(env, t, bool(ends[0, env]), bool(ends[1, env])))
        now = [column[-1] for column in self.seen]
        obs = np.array([[s.step, s.env] for s in now], np.float32)
        skill = np.array([[s.skill] for s in now], np.float32)
        self.replay.add(obs, obs[:, :1] + 0.25, obs + 0.5, skill, *ends)

    def _next(self, env: int, t: int, terminated: bool, truncated: bool) -> Seen:
        if not self.seen[env]:
            return Seen(t, env, 0, 0, 0, 0.5, terminated, truncated)
        last = self.seen[env][-1]
        over = last.terminated or last.truncated
        change = self.rng.random() < self.p_skill
        skill = last.skill + 1 if change else last.skill  # often the same skill after a reset
        stretch = last.stretch + (over or change)
        time = 0 if over or change else last.time + 1
        return Seen(t, env, last.episode + over, stretch, time, skill, terminated, truncated)

    def kept(self) -> list[Seen]:
        first = max(0, len(self.seen[0]) - self.replay.steps_kept)
        return [s for column in self.seen for s in column[first:]]

    def at(self, obs: torch.Tensor) -> Seen:
        """The transition that starts at an observation."""
        step, env = obs.tolist()
        return self.seen[int(env)][int(step)]

    def until(self, obs: torch.Tensor) -> Seen:
        """The transition that leads to an observation."""
        return self.at(obs - 0.5)


def key(s: Seen) -> tuple[int, int]:
    return s.step, s.env


def check_steps(world: World) -> None:
    batch = world.replay.steps(64)
    kept = {key(s) for s in world.kept()}
    for i in range(64):
        s = world.at(batch.obs[i])
        assert key(s) in kept
        assert world.until(batch.next_obs[i]) is s
        assert batch.action[i].item() == s.step + 0.25
        assert (batch.skill[i].item(), batch.time[i].item()) == (s.skill, s.time)
        assert bool(batch.terminated[i]) == s.terminated


def check_future(world: World) -> None:
    batch = world.replay.future(64, 0.8)
    assert batch.future_obs is not None
    for i in range(64):
        s, later = world.at(batch.obs[i]), world.until(batch.future_obs[i])
        assert (later.env, later.episode) == (s.env, s.episode)
        assert s.step <= later.step < len(world.seen[0])


def possible_jumps(world: World, n: int, aligned: bool) -> set[tuple[int, int]]:
    kept = {key(s) for s in world.kept()}
    return {
        key(s)
        for s in world.kept()
        if (s.step + n - 1, s.env) in kept
        and world.seen[s.env][s.step + n - 1].stretch == s.stretch
        and (s.time == 0 or not aligned)
    }


def check_jumps(world: World, n: int, aligned: bool) -> None:
    possible = possible_jumps(world, n, aligned)
    if not possible:
        with pytest.raises(UsageError, match=f"{n} steps under one skill"):
            world.replay.jumps(4, n, aligned)
        return
    jumps = world.replay.jumps(256, n, aligned)
    for i in range(256):
        s, end = world.at(jumps.obs[i]), world.until(jumps.next_obs[i])
        assert key(s) in possible
        assert key(end) == (s.step + n - 1, s.env)
        assert jumps.action[i, :, 0].tolist() == [s.step + j + 0.25 for j in range(n)]
        assert (jumps.skill[i].item(), jumps.time[i].item()) == (s.skill, s.time)
        assert bool(jumps.terminated[i]) == end.terminated


def check_sequences(world: World, length: int) -> None:
    oldest = world.kept()[0].step
    sequences = world.replay.sequences(64, length)
    for i in range(64):
        taken = int(sequences.valid[i].sum())
        assert sequences.valid[i, :taken].all()
        first = world.at(sequences.obs[i, 0])
        part = world.seen[first.env][first.step : first.step + taken]
        assert oldest <= first.step
        assert {s.episode for s in part} == {first.episode}
        assert sequences.skill[i, :taken, 0].tolist() == [s.skill for s in part]
        assert sequences.action[i, :taken, 0].tolist() == [s.step + 0.25 for s in part]
        steps = [float(s.step) for s in part] + [part[-1].step + 0.5] * (length + 1 - taken)
        assert sequences.obs[i, :, 0].tolist() == steps
        ended, terminal = part[-1].terminated or part[-1].truncated, part[-1].terminated
        starts = first.step == 0 or world.seen[first.env][first.step - 1].episode < first.episode
        if taken < length:
            assert starts or first.step == oldest, "a short sequence is a whole episode"
            assert ended or part[-1].step == len(world.seen[0]) - 1
        known = starts and (first.step == 0 or first.step > oldest)
        flags = [sequences.is_first[i], sequences.is_last[i], sequences.is_terminal[i]]
        assert [f.nonzero().ravel().tolist() for f in flags] == [
            [0] if known else [],
            [taken] if ended else [],
            [taken] if terminal else [],
        ]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10**6), envs=st.integers(1, 3), kept=st.integers(1, 40))
def test_samplers_agree_with_a_naive_list(seed: int, envs: int, kept: int) -> None:
    """Before and after the ring is full: contents, ends of episodes and skills, the write head."""
    world = World(Replay(kept * envs + envs // 2, envs, 2, 1, 1, seed), seed)
    for _ in range(5):
        for _ in range(1 + seed % 17):
            world.step()
        assert len(world.replay) == len(world.kept())
        check_steps(world)
        check_future(world)
        for n in (1, 4):
            check_jumps(world, n, aligned=False)
            check_jumps(world, n, aligned=True)
        for length in (1, 6, 50):
            check_sequences(world, length)


def filled(seed: int = 3, steps: int = 70, capacity: int = 120) -> World:
    world = World(Replay(capacity, 3, 2, 1, 1, seed), seed)
    for _ in range(steps):
        world.step()
    return world


def counts(obs: torch.Tensor) -> dict[tuple[int, int], int]:
    rows, number = np.unique(obs.numpy().astype(int), axis=0, return_counts=True)
    return {(int(r[0]), int(r[1])): int(n) for r, n in zip(rows, number, strict=True)}


def assert_uniform(found: dict[tuple[int, int], int], possible: set[tuple[int, int]]) -> None:
    """Every possible start is drawn, none else, and equally often to five standard deviations."""
    assert set(found) == possible
    expected = sum(found.values()) / len(possible)
    assert max(abs(n - expected) for n in found.values()) < 5 * np.sqrt(expected)


def test_steps_are_uniform_over_everything_kept() -> None:
    world = filled()
    assert_uniform(counts(world.replay.steps(40_000).obs), {key(s) for s in world.kept()})


@pytest.mark.parametrize("aligned", [False, True])
def test_jumps_are_uniform_over_all_whole_stretches(aligned: bool) -> None:
    world, n = filled(), 3
    possible = possible_jumps(world, n, aligned)
    assert_uniform(counts(world.replay.jumps(40_000, n, aligned).obs), possible)


def test_rare_jumps_are_found_by_enumeration() -> None:
    """One admissible start among 20,000 rows: too rare for the random search of a small batch."""
    replay = Replay(20_000, 1, 1, 1, 1, 0)
    no, x = np.zeros(1, bool), np.zeros((1, 1), np.float32)
    for t in range(20_000):
        replay.add(x + t, x, x + t + 0.5, x, no, no)
    jumps = replay.jumps(4, 20_000)
    assert jumps.obs.ravel().tolist() == [0.0] * 4
    assert jumps.next_obs.ravel().tolist() == [19_999.5] * 4


def test_sequences_are_uniform_over_windows_and_short_episodes() -> None:
    world, length = filled(), 8
    kept = world.kept()
    oldest = kept[0].step
    ends: dict[tuple[int, int], int] = {}
    begins: dict[tuple[int, int], int] = {}
    for s in kept:
        ends[s.env, s.episode] = s.step
        begins.setdefault((s.env, s.episode), s.step)
    possible = {
        key(s)
        for s in kept
        if ends[s.env, s.episode] - s.step + 1 >= length or begins[s.env, s.episode] == s.step
    }
    assert oldest > 0
    assert_uniform(counts(world.replay.sequences(40_000, length).obs[:, 0]), possible)


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_future_offsets_are_geometric_cut_at_the_end(gamma: float) -> None:
    """P(d) = gamma^(d-1) / sum, over the d that the episode still has, at every distance to it."""
    rest, replay = 12, Replay(12, 1, 1, 1, 1, 0)
    x, no = np.zeros((1, 1), np.float32), np.zeros(1, bool)
    for t in range(rest):
        replay.add(x + t, x, x + t + 1, x, no, no | (t == rest - 1))
    batch = replay.future(120_000, gamma)
    assert batch.future_obs is not None
    start = batch.obs.numpy().ravel().astype(int)
    offset = (batch.future_obs - batch.obs).numpy().ravel().astype(int)
    for t in (0, 7, 10, 11):
        d = np.arange(1, rest - t + 1)
        expected = gamma ** (d - 1.0) / (gamma ** (d - 1.0)).sum()
        drawn = np.bincount(offset[start == t], minlength=rest + 1)[1 : rest - t + 1]
        assert drawn.sum() == (start == t).sum()
        np.testing.assert_allclose(drawn / drawn.sum(), expected, atol=0.02)


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.1, float("nan")])
def test_future_refuses_a_discount_without_a_law(gamma: float) -> None:
    with pytest.raises(UsageError, match="0 < gamma < 1"):
        filled().replay.future(4, gamma)


def test_terminated_and_truncated_stay_apart() -> None:
    """Both end the episode for every sampler; only terminated is reported as the end for good."""
    replay = Replay(10, 2, 1, 1, 1, 0)
    x, yes, no = np.zeros((2, 1), np.float32), np.array([True, False]), np.zeros(2, bool)
    replay.add(x, x, x, x, no, no)
    replay.add(x + 1, x, x, x, yes, ~yes)  # environment 0 terminates, 1 runs out of time
    replay.add(x + 2, x + np.array([[5], [6]]), x, x, no, no)
    batch = replay.steps(200)
    assert set(zip(batch.obs.ravel().tolist(), batch.terminated.tolist(), strict=True)) == {
        (0.0, 0.0),
        (1.0, 1.0),
        (1.0, 0.0),
        (2.0, 0.0),
    }
    sequences = replay.sequences(200, 2)
    whole = sequences.valid.all(1)
    assert sequences.is_last[whole, 2].all()
    assert sequences.is_terminal[whole, 2].unique().tolist() == [False, True]


def test_time_restarts_at_a_reset_even_when_the_skill_stays() -> None:
    replay = Replay(10, 1, 1, 1, 2, 0)
    x, no = np.zeros((1, 1), np.float32), np.zeros(1, bool)
    skills = [[0, 1], [0, 1], [1, 0], [1, 0], [1, 0]]
    for t, skill in enumerate(skills):
        replay.add(x + t, x, x, np.array([skill]), no, no | (t == 3))
    batch = replay.steps(100)
    times = dict(zip(batch.obs.ravel().tolist(), batch.time.tolist(), strict=True))
    assert times == {0.0: 0.0, 1.0: 1.0, 2.0: 0.0, 3.0: 1.0, 4.0: 0.0}


def test_state_round_trip_continues_identically(tmp_path: Path) -> None:
    """Through a checkpoint on disk, in the middle of episodes and after the ring has wrapped."""
    world = filled()
    saved = checkpoint.save(tmp_path, "a", world.replay.state_dict())
    copied = Replay(120, 3, 2, 1, 1, seed=99)
    copied.load_state_dict(checkpoint.load(saved))
    twin = copy.deepcopy(world)
    twin.replay = copied
    for _ in range(30):
        for a, b in (
            (world.replay.steps(8), twin.replay.steps(8)),
            (world.replay.future(8, 0.9), twin.replay.future(8, 0.9)),
            (world.replay.jumps(8, 2), twin.replay.jumps(8, 2)),
            (world.replay.sequences(8, 5), twin.replay.sequences(8, 5)),
        ):
            assert type(a) is type(b)
            for name, value in vars(a).items():
                other = getattr(b, name)
                assert (value is None and other is None) or torch.equal(value, other)
        for each in (world, twin):
            each.step()
            check_sequences(each, 5)


@pytest.mark.parametrize("sizes", [(60, 3, 2, 1, 1), (120, 2, 2, 1, 1), (120, 3, 1, 1, 1)])
def test_state_of_other_sizes_is_refused(sizes: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(CheckpointError, match="the saved replay has"):
        Replay(*sizes).load_state_dict(filled().replay.state_dict())


def test_seed_decides_the_draws() -> None:
    worlds = [filled(), filled(), filled()]
    worlds[2].replay.rng = np.random.default_rng(77)
    first, again, other = (w.replay.steps(32).obs for w in worlds)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_do_not_share_memory_with_the_ring() -> None:
    world = filled()
    batch = world.replay.steps(16)
    before = batch.obs.clone()
    for _ in range(60):
        world.step()
    assert torch.equal(batch.obs, before)


def test_a_million_ant_transitions_fit() -> None:
    replay = Replay(1_000_000, 8, obs_dim=29, action_dim=8, skill_dim=2)
    assert replay.capacity == 1_000_000
    assert replay.nbytes == 1_000_000 * (4 * 70 + 4) <= 320e6


@pytest.mark.parametrize("kind", ["steps", "future", "jumps", "sequences"])
def test_normalised_maps_every_observation_and_nothing_else(kind: str) -> None:
    r = filled().replay
    record = {
        "steps": lambda: r.steps(4),
        "future": lambda: r.future(4, 0.5),
        "jumps": lambda: r.jumps(4, 2),
        "sequences": lambda: r.sequences(4, 3),
    }[kind]()
    mapped = record.normalised(lambda x: 3 * x + 1)
    for name, value in vars(record).items():
        if value is None:
            assert getattr(mapped, name) is None
        else:
            expected = 3 * value + 1 if "obs" in name else value
            assert torch.equal(getattr(mapped, name), expected), name


def test_replace_leaves_the_batch_alone() -> None:
    batch = filled().replay.steps(4)
    changed = batch.replace(skill=batch.skill + 1)
    assert not torch.equal(changed.skill, batch.skill)
    assert changed.obs is batch.obs


@pytest.mark.parametrize("name", ["num_envs", "obs_dim", "action_dim", "skill_dim"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes = {"num_envs": 2, "obs_dim": 2, "action_dim": 1, "skill_dim": 1} | {name: 0}
    with pytest.raises(UsageError, match=f"{name} = 0"):
        Replay(10, **sizes)


def test_capacity_below_one_vector_step_is_refused() -> None:
    with pytest.raises(UsageError, match="give at least 8"):
        Replay(7, 8, 1, 1, 1)


def test_empty_replay_and_bad_requests_are_refused() -> None:
    empty = Replay(10, 1, 1, 1, 1)
    for sample in (lambda: empty.steps(1), lambda: empty.sequences(1, 2)):
        with pytest.raises(UsageError, match="empty"):
            sample()
    r = filled().replay
    for sample in (lambda: r.steps(0), lambda: r.jumps(1, 0), lambda: r.sequences(1, 0)):
        with pytest.raises(UsageError, match="too small"):
            sample()


@pytest.mark.parametrize("wrong", range(6))
def test_arrays_of_the_wrong_shape_are_refused(wrong: int) -> None:
    """Also those that NumPy would broadcast silently."""
    shapes = [(2, 3), (2, 1), (2, 3), (2, 2), (2,), (2,)]
    shapes[wrong] = (1, *shapes[wrong][1:])
    replay = Replay(10, 2, 3, 1, 2)
    with pytest.raises(UsageError, match="shape"):
        replay.add(*(np.zeros(shape, np.float32) for shape in shapes))
    assert len(replay) == 0
