"""Batched evaluation on the real engine, against one environment stepped by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from etude.envs import registry
from etude.errors import LibraryError, UsageError
from etude.evaluate import metrics, monitor, rollouts
from etude.evaluate.monitor import Monitor
from etude.evaluate.rollouts import rollout_skills, rollout_task
from etude.logger import Logger
from etude.skills.library import SkillLibrary
from etude.skills.library_data import Contents, SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Discrete, Sphere
from etude.skills.vec_env import PrimitiveLevel


@dataclass
class Compass:
    """A fake with skills: z is the direction to walk in."""

    space: Sphere = field(default_factory=lambda: Sphere(2))
    widths: set[int] = field(default_factory=set)

    period = 1

    def plan(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
        self.widths.add(obs.shape[-1])
        return z[:, None]


class Stand:
    """A controller that stands still."""

    def reset(self, obs: np.ndarray) -> None:
        pass

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 2))


def library_for(env_id: str) -> SkillLibrary:
    spec = registry.spec(env_id)
    rng = np.random.default_rng(0)
    net = MLP(
        [(np.zeros((spec.body_dim + 2, spec.action_dim)), np.zeros(spec.action_dim))],
        output="tanh",
    ).fresh(rng)
    mean, std = np.zeros(spec.body_dim), np.ones(spec.body_dim)
    data = SetData("fake", "fake", {}, Sphere(2), net, {}, mean, std, [])
    return SkillLibrary(Contents("fake", spec.to_json(), [data]))


def test_skills_walk_where_they_point():
    z = Sphere(2).even(8)
    made = rollout_skills(Compass(), "point-open", z=z, steps=20)
    assert made.paths.shape == (8, 21, 2)
    assert made.obs.shape == (8, 21, 4)
    shift = made.paths[:, -1] - made.paths[:, 0]
    np.testing.assert_allclose(shift / np.linalg.norm(shift, axis=1)[:, None], z, atol=1e-3)
    np.testing.assert_allclose(made.obs[..., :2], made.paths, atol=1e-6)
    assert made.lengths.tolist() == [20] * 8


def test_a_rollout_equals_single_environments_with_the_same_seeds():
    made = rollout_skills(Compass(), "point-maze-u", episodes=5, steps=12, seed=7)
    z = Sphere(2).sample(np.random.default_rng(7), 5)  # the published draw: from the prior
    np.testing.assert_array_equal(made.skills, z)
    for i in range(5):
        alone = registry.make_vec("point-maze-u", 1)
        alone.reset(seed=7 + i)
        path = [alone.descriptor()[0]]
        for _ in range(12):
            alone.step(z[i : i + 1])
            path.append(alone.descriptor()[0])
        np.testing.assert_array_equal(made.paths[i], path)


def test_discrete_skills_are_as_even_as_possible():
    z = rollouts.published_skills(Discrete(16), 48, np.random.default_rng(0))
    assert z.sum(0).tolist() == [3] * 16


def test_skills_see_the_body_and_not_the_task():
    compass = Compass()
    rollout_skills(compass, "point-maze-u-goal", episodes=3, steps=4)
    assert compass.widths == {4}


def test_an_episode_that_ends_early_stays_where_it_ended():
    # towards the goal of the U maze from next to it: the task ends, the other one goes on
    venv = registry.make_vec("point-maze-u-goal", 2)
    venv.reset(seed=0)
    goal = venv.env_spec.constants["goal"]
    state = venv.get_state()

    class Near(Compass):
        def plan(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
            if not self.widths:
                found = np.flatnonzero(np.isclose(state[0], venv.descriptor()[0, 0]))[0]
                state[0, found : found + 2] = goal
                venv.set_state(state)
            return super().plan(obs, z)

    made = rollout_skills(Near(), venv, z=np.array([[1.0, 0.0]] * 2), steps=15)
    assert made.lengths.tolist() == [1, 15]
    assert made.paths.shape == (2, 16, 2)
    np.testing.assert_allclose(made.paths[0, 1:], np.tile(made.paths[0, 1], (15, 1)))
    np.testing.assert_allclose(made.paths[0, 1], goal, atol=0.2)
    assert made.paths[1, -1, 0] - made.paths[1, 1, 0] > 0.3


def test_a_library_of_another_body_is_refused():
    with pytest.raises(LibraryError, match='move the body "point-open"'):
        rollout_skills(library_for("point-open"), "point-maze-u", episodes=2)
    made = rollout_skills(library_for("point-maze-u"), "point-maze-u-goal", episodes=2, steps=3)
    assert made.paths.shape == (2, 4, 2)


def test_one_skill_per_environment():
    venv = registry.make_vec("point-open", 3)
    with pytest.raises(UsageError, match="2 skills for 3 environments"):
        rollout_skills(Compass(), venv, z=Sphere(2).even(2))


@dataclass
class Guide:
    """A controller that knows the way through the U maze, at a pace that depends on the start."""

    asked: list[np.ndarray] = field(default_factory=list)
    pace: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def reset(self, obs: np.ndarray) -> None:
        self.asked.clear()
        self.pace = 0.4 + 5 * np.abs(obs[:, :1] + 1)  # starts lie within 0.1 m of (-1, 1)

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.asked.append(obs.copy())
        x, y = obs[:, 0], obs[:, 1]
        conditions = [(y > 0) & (x < 0.9), y > -0.9]
        targets = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        way = targets[np.select(conditions, [0, 1], 2)] - obs[:, :2]
        return self.pace * way / np.linalg.norm(way, axis=1, keepdims=True)


def test_a_controller_that_knows_the_way_succeeds():
    guide = Guide()
    made = rollout_task("point-maze-u-goal", PrimitiveLevel(2), guide, 4, episodes=6)
    assert guide.asked[0].shape == (6, 6)  # raw and whole: x, y, velocities, goal
    assert made.success is not None
    assert made.success.all()
    assert made.success_rate == 1.0
    np.testing.assert_array_equal(made.returns, 1.0)
    assert (made.lengths < 200).all()
    assert made.paths.shape == (6, made.lengths.max() + 1, 2)
    goal = registry.spec("point-maze-u-goal").constants["goal"]
    assert (np.abs(made.paths[:, -1] - goal) <= 0.25).all()
    assert made.commands.shape[1] == len(guide.asked)


def test_waiting_episodes_take_no_part():
    """Against single environments stepped by hand, whose lengths differ."""
    made = rollout_task("point-maze-u-goal", PrimitiveLevel(2), Guide(), 3, episodes=8, seed=3)
    assert len(set(made.lengths.tolist())) > 1
    for i in range(8):
        alone, guide = registry.make_vec("point-maze-u-goal", 1), Guide()
        obs, _ = alone.reset(seed=3 + i)
        guide.reset(obs)
        steps, total, done = 0, 0.0, False
        while not done:
            if steps % 3 == 0:
                command = guide.act(obs)
            obs, reward, terminated, truncated, infos = alone.step(command)
            steps, total = steps + 1, total + float(reward[0])
            done = bool(terminated[0] or truncated[0])
        assert (made.lengths[i], made.returns[i]) == (steps, total)
        np.testing.assert_array_equal(made.paths[i, steps], infos["descriptor"][0])
        decisions = len(guide.asked)
        assert np.isfinite(made.commands[i, :decisions]).all()
        assert np.isnan(made.commands[i, decisions:]).all()


def test_a_controller_that_stands_still_runs_into_the_time_limit():
    made = rollout_task("point-maze-u-goal", PrimitiveLevel(2), Stand(), 25)
    assert made.success_rate == 0.0
    assert made.lengths.tolist() == [300] * 50
    assert made.commands.shape == (50, 12, 2)
    with pytest.raises(UsageError, match="k = 0"):
        rollout_task("point-maze-u-goal", PrimitiveLevel(2), Stand(), 0)


def test_a_body_without_a_task_has_no_success():
    made = rollout_task("point-open", PrimitiveLevel(2), Stand(), 50, episodes=2)
    assert made.success is None
    assert made.success_rate is None


# ---- the monitor


@dataclass
class FakeRun:
    """What a monitor sees of a run: one more epoch of 2 x 5 steps per call."""

    total: int = 40
    steps: int = 0
    updates: int = 0
    seconds: float = 0.0
    collected: np.ndarray = field(default_factory=lambda: np.zeros((2, 6, 2)))
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.steps >= self.total

    def snapshot(self) -> Compass:
        return Compass()

    def epoch(self) -> FakeRun:
        self.collected = np.arange(12.0).reshape(2, 6, 1) * np.ones(2) + 100 * self.steps
        self.steps, self.updates, self.seconds = self.steps + 10, self.updates + 3, 1.5 + self.steps
        return self


@dataclass
class FakeLogger:
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    figures: list[tuple[int, str]] = field(default_factory=list)
    rows: int = 0

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.numbers[step] = dict(values)

    def figure(self, step: int, tag: str, figure: object) -> None:
        self.figures.append((step, tag))


def watch(watcher: Monitor, run: FakeRun, epochs: int) -> None:
    for _ in range(epochs):
        watcher.on_epoch(run.epoch())


def test_the_monitor_evaluates_when_it_is_time(tmp_path):
    logger = FakeLogger()
    watcher = Monitor("point-open", 20, logger, tmp_path, episodes=4)
    watch(watcher, FakeRun(), 4)
    assert [row["steps"] for row in watcher.history] == [20, 40]
    assert set(watcher.history[0]) == set(monitor.COLUMNS)
    made = rollout_skills(Compass(), "point-open", episodes=4)
    row = watcher.history[-1]
    assert row["policy_coverage"] == metrics.coverage(made.paths, 0.5)
    assert row["displacement"] == pytest.approx(metrics.displacement(made.paths).mean())
    assert row["total_coverage"] == 4 * 10  # pre-step places of four epochs, all different cells
    assert (row["updates"], row["seconds"]) == (12, 31.5)
    assert list(logger.numbers) == [20, 40]
    assert set(logger.numbers[20]) == {f"skill/{key}" for key in monitor.COLUMNS[3:]}
    assert logger.figures == [(20, "skill/trajectories"), (40, "skill/trajectories")]
    assert monitor.read_history(tmp_path / monitor.FILE) == [
        {key: pytest.approx(value) for key, value in row.items()} for row in watcher.history
    ]
    assert watcher.last() == {key: row[key] for key in monitor.COLUMNS[3:]}
    assert watcher.summary().startswith(f"coverage {row['policy_coverage']:.0f} cells, ")


def test_the_last_epoch_is_always_evaluated():
    watcher = Monitor("point-open", 1000, episodes=2)
    run = FakeRun(total=20)
    watch(watcher, run, 1)
    assert (watcher.history, watcher.last(), watcher.summary()) == ([], {}, "")
    watch(watcher, run, 1)
    assert [row["steps"] for row in watcher.history] == [20]


def test_a_resumed_run_goes_on_with_its_history(tmp_path):
    first = Monitor("point-open", 10, None, tmp_path, episodes=2)
    run = FakeRun(total=1000)
    watch(first, run, 2)
    tree = first.checkpoint()
    watch(first, run, 1)
    again = Monitor("point-open", 10, None, tmp_path, episodes=2)
    again.restore(tree)
    watch(again, FakeRun(1000, 20), 1)  # from the checkpoint at 20 steps, not from the end at 30
    assert [row["steps"] for row in again.history] == [10, 20, 30]
    assert again.history[-1]["total_coverage"] == first.history[-1]["total_coverage"] == 30


def test_an_evaluation_that_was_cut_off_is_made_again(tmp_path):
    """Killed between the table of evaluations and the metrics: both have it once in the end."""
    log = Logger(tmp_path)
    log.scalars(10, {"train/loss": 1.0})
    first, run = Monitor("point-open", 10, log, tmp_path, episodes=2), FakeRun(total=1000).epoch()
    first.count(run)
    tree = first.checkpoint()
    log.scalars = lambda *_: pytest.fail("cut off")
    with pytest.raises(pytest.fail.Exception):
        first.evaluate(run)
    log.close()
    assert len(monitor.read_history(tmp_path / monitor.FILE)) == 1

    log = Logger(tmp_path, 10, tree["logged"])
    again = Monitor("point-open", 10, log, tmp_path, episodes=2)
    again.restore(tree)
    assert again.due(run)
    again.evaluate(run)
    again.restore(again.checkpoint())
    assert not again.due(run), "this one was whole"
    log.close()
    assert len(monitor.read_history(tmp_path / monitor.FILE)) == 1
    keys = [line.split(",")[2] for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert keys.count("skill/displacement") == keys.count("train/loss") == 1


def test_the_monitor_refuses_nonsense(tmp_path):
    with pytest.raises(UsageError, match="every_steps = 0"):
        Monitor("point-open", 0)
    (tmp_path / monitor.FILE).write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no table of evaluations"):
        Monitor("point-open", 1, None, tmp_path)
