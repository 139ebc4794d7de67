"""Every learner found in the folder keeps the contract, runs in the loop, resumes and exports."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stopped import stopped
from torch import Tensor

from etude import checkpoint
from etude.agents.kernels import FlatAdam, Stack, Trace
from etude.agents.replay import Batch, Record, Replay
from etude.config import replace, to_dict
from etude.errors import LibraryError, UsageError
from etude.skills import learners, presets
from etude.skills.discovery import DiscoverConfig, Discovery, preset, read_config
from etude.skills.env import SkillEnv
from etude.skills.export import export
from etude.skills.learners.base import Learner, Spec
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Discrete

FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}
SMALL = {
    "steps": 480,
    "agent": {"hidden": [16, 16]},
    "loop": {
        "num_envs": 4,
        "episode_steps": 20,
        "updates_per_epoch": 3,
        "batch_size": 32,
        "warmup_steps": 80,
        "replay_capacity": 320,
    },
}
UNSAVED = {"choreographer", "lpe"}
"""answer goals by a world model or by trying plans, which a library's networks cannot"""

every_learner = pytest.mark.parametrize("name", learners.ids())


def build(name: str) -> Learner:
    torch.manual_seed(0)
    method = learners.get(name)
    return method(Spec(FIELDS, 4, 2), method.Config())


def a_batch(learner: Learner, n: int = 12) -> Batch:
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    parts = (obs, np.zeros((n, 2), np.float32), next_obs, learner.space.sample(rng, n))
    return Batch(*map(torch.from_numpy, parts), torch.zeros(n), torch.zeros(n))


def small(name: str, **settings: object) -> DiscoverConfig:
    return replace(replace(preset(name, "point-open"), SMALL), settings)


def drawn(learner: Learner, n: int = 12) -> Record:
    """What the learner's `update` takes, from a replay of two random episodes."""
    rng, (obs, action) = np.random.default_rng(0), (4, 2)
    replay = Replay(80, 2, obs, action, learner.space.dim, seed=0)
    z = np.zeros((2, learner.space.dim), np.float32)
    for t in range(40):
        z = learner.resample(z, t, rng, 0)
        now, after = rng.normal(size=(2, 2, obs)).astype(np.float32)
        acted = rng.uniform(-1, 1, (2, action)).astype(np.float32)
        replay.add(now, acted, after, z, np.zeros(2, bool), np.full(2, t == 39))
    return learner.draw(replay, n)


@every_learner
def test_update_moves_weights_and_returns_detached_scalars(name: str) -> None:
    learner = build(name)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    metrics = learner.update(drawn(learner))
    assert metrics and all(k.startswith("skill/") for k in metrics)
    assert all(v.shape == () and not v.requires_grad for v in metrics.values())
    moved = any(not torch.equal(v, before[k]) for k, v in learner.state_dict().items())
    assert moved or not before, "a method without weights has nothing to move"


@every_learner
def test_signal_has_the_declared_width_and_no_gradient(name: str) -> None:
    learner = build(name)
    batch = a_batch(learner)
    signal, weights = learner.signal(batch), learner.task_vector(batch.skill)
    assert signal.shape == weights.shape == (12, learner.signal_dim)
    assert signal.dtype == torch.float32 and torch.isfinite(signal).all()
    assert not signal.requires_grad


@every_learner
def test_skill_obs_chooses_what_the_representation_sees(name: str) -> None:
    torch.manual_seed(0)
    method = learners.get(name)
    learner = method(Spec(FIELDS, 4, 2), method.Config(skill_obs=("place",)))
    batch = a_batch(learner)
    elsewhere = batch.next_obs.clone()
    elsewhere[:, 2:] += 1
    same = learner.signal(batch.replace(next_obs=elsewhere))
    torch.testing.assert_close(same, learner.signal(batch))
    moved = batch.obs.clone()
    elsewhere[:, 0], moved[:, 0] = 2 * elsewhere[:, 0] + 1, moved[:, 0] + 2
    moved_batch = batch.replace(obs=moved, next_obs=elsewhere)
    assert not torch.allclose(learner.signal(moved_batch), same)
    with pytest.raises(UsageError, match='observation field "plce": did you mean "place"'):
        method(Spec(FIELDS, 4, 2), method.Config(skill_obs=("plce",)))


@every_learner
def test_skills_are_redrawn_at_episode_start_and_every_hold_steps(name: str) -> None:
    learner, rng = build(name), np.random.default_rng(0)
    z = learner.space.sample(rng, 64)
    assert learner.resample(z, 3, rng, 0) is z and learner.resample(z, 3, rng, 5) is z
    if learner.space == Discrete(1):  # there is no other one
        return
    assert not np.array_equal(learner.resample(z, 0, rng, 0), z)
    assert not np.array_equal(learner.resample(z, 10, rng, 5), z)


@every_learner
@pytest.mark.parametrize("flavour", ["cpu", "paper"])
def test_presets_are_valid_for_every_environment_they_name(name: str, flavour: str) -> None:
    assert flavour in presets.names(name)
    for env in (*presets.names(name)[flavour], "point-open"):
        config = preset(name, env, flavour)
        assert read_config(json.loads(json.dumps(to_dict(config)))) == config


@every_learner
def test_a_run_makes_updates_and_a_library_that_acts_as_the_agent(
    name: str, tmp_path: Path
) -> None:
    run = Discovery(small(name))
    acting = run.agent or run.learner
    start = {k: v.clone() for k, v in acting.state_dict().items()}
    run.run()
    assert run.steps == 480 and run.updates == 18
    assert any(not torch.equal(v, start[k]) for k, v in acting.state_dict().items())
    assert run.metrics["time/fps"] > 0 and np.isfinite([*run.metrics.values()]).all()
    assert ("skill/reward" in run.metrics) == (run.agent is not None)
    library = SkillLibrary.load(export(run, tmp_path / "library", {"command": "test"}, {}))
    obs, _ = run.venv.reset()
    z = run.space.sample(np.random.default_rng(0), len(obs))
    np.testing.assert_allclose(library.plan(obs, z), run.snapshot().plan(obs, z), atol=1e-5)
    assert library.learner == name and library.space == run.space


@every_learner
def test_its_skills_are_the_actions_of_an_environment(name: str, tmp_path: Path) -> None:
    """Two options, the second cut off: what the skill does by hand, and the same bits again."""
    path = export(Discovery(small(name)), tmp_path / "library", {"command": "test"}, {})
    bare = gymnasium.make("etude/PointOpen-v0", max_episode_steps=24)
    env, library = SkillEnv(bare, path, k=15), SkillLibrary.load(path)
    env.action_space.seed(0)
    choice, seen = env.action_space.sample(), []
    for _ in range(2):
        shown, ends = [env.reset(seed=3)[0]], []
        for _ in range(2):
            obs, _, _, _, info = env.step(choice)
            shown.append(obs)
            ends.append((info["skill"]["duration"], info["skill"]["ended_by"]))
        assert ends == [(15, "k"), (9, "truncated")]
        assert all(env.observation_space.contains(x) and np.isfinite(x).all() for x in shown)
        seen.append([x.tobytes() for x in shown])
    assert seen[0] == seen[1] and seen[0][0] != env.reset(seed=4)[0].tobytes()
    skill, (obs, _) = library.policy(library.space.from_action(choice)), bare.reset(seed=3)
    for _ in range(15):
        obs, *_ = bare.step(skill.act(obs))
    assert obs.tobytes() == seen[0][1]


@every_learner
def test_a_library_answers_goals_as_its_learner_does(name: str, tmp_path: Path) -> None:
    """Raw goals, as the learner answers normalised ones; or it says that it cannot."""
    run = Discovery(small(name))
    rng = np.random.default_rng(0)
    run.normaliser.mean.copy_(torch.from_numpy(rng.normal(size=4)))
    run.normaliser.std.copy_(torch.from_numpy(rng.uniform(0.5, 2, 4)))
    library = SkillLibrary.load(export(run, tmp_path / "library", {"command": "test"}, {}))
    obs, goal = rng.normal(size=(2, 64, 4)).astype(np.float32) * 2
    seen, there = (run.normaliser(torch.from_numpy(x)) for x in (obs, goal))
    expected = run.learner.goal_skill(seen, there)
    if expected is None or name in UNSAVED:
        with pytest.raises(LibraryError, match='no encoder "phi"'):
            library.goal_skill(obs, goal)
    else:
        np.testing.assert_allclose(library.goal_skill(obs, goal), expected, atol=1e-5)
        np.testing.assert_allclose(library.goal_skill(obs[0], goal[0]), expected[0], atol=1e-5)
    with contextlib.suppress(LibraryError):
        phi = run.learner.encode(seen)
        found = library.encode(obs)
        assert phi is not None
        np.testing.assert_allclose(found, phi.detach(), atol=1e-5)


@every_learner
def test_every_tensor_of_an_update_is_where_the_batch_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's `meta` device, which computes shapes and refuses to mix with the CPU."""
    for optimiser in (torch.optim.Adam, torch.optim.AdamW, FlatAdam):  # have no kernel for it
        monkeypatch.setattr(optimiser, "step", lambda _: None)

    def shaped(_: Stack, trace: Trace, grad: Tensor, member: Tensor, width: int) -> Tensor:
        assert member.device == grad.device == trace[0].inputs.device
        return grad.new_empty(len(grad), width)

    monkeypatch.setattr(Stack, "input_gradient", shaped)  # shapes that depend on values
    # parameters must stay the objects that optimisers know, as on the way to a GPU
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    run = Discovery(small(name))
    run.collect()
    for module in (run.learner, run.agent):
        if module is not None:
            module.to("meta")

    def on_meta(record: Record) -> Any:
        return record.replace(**{k: v.to("meta") for k, v in vars(record).items() if v is not None})

    metrics = run.learner.update(on_meta(run.learner.draw(run.replay, 16)))
    batch = run.learner.relabel(on_meta(run.replay.steps(16)), run.rng)
    signal, weights = run.learner.signal(batch), run.learner.task_vector(batch.skill)
    if run.agent is not None:
        metrics |= run.agent.update(batch, signal, weights)
    run.learner.goal_skill(batch.obs, batch.next_obs)
    assert {v.device.type for v in (signal, weights, *metrics.values())} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_learner
def test_a_run_on_a_gpu_makes_the_same_updates(name: str, tmp_path: Path) -> None:
    """The same draws, so the same run up to rounding; its library acts on the CPU."""
    runs = [Discovery(small(name), device) for device in ("cpu", "cuda")]
    for run in runs:
        run.collect()
        run.learn()
    paths = [export(run, tmp_path / str(i), {"command": "test"}, {}) for i, run in enumerate(runs)]
    one, other = (SkillLibrary.load(path).data.policy for path in paths)
    for (w, b), (w2, b2) in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(w, w2, atol=1e-3)
        np.testing.assert_allclose(b, b2, atol=1e-3)
    second = Discovery(small(name), "cuda")
    path = checkpoint.save(tmp_path / "checkpoints", "1", runs[1].checkpoint())
    second.restore(checkpoint.load(path))


@every_learner
@pytest.mark.parametrize("visited", [0.0, 0.5])
@pytest.mark.parametrize("asked", [0, 7, 44, 46], ids=["start", "episode", "updates", "between"])
def test_resume_is_bit_equal_to_a_run_that_never_stopped(
    name: str, asked: int, visited: float, tmp_path: Path
) -> None:
    """Stopped the `asked`-th time it might: within episodes, between updates, between epochs."""
    config = small(name, loop={"visited_starts": visited, "hold": 10})
    whole, rows = Discovery(config), []
    while not whole.done:
        whole.epoch()
        rows.append(untimed(whole.metrics))

    second = stopped(Discovery(config), asked + 1, tmp_path)
    seen = []
    while not (second.done and second.between_epochs):
        second.epoch()
        seen.append(untimed(second.metrics))
    assert seen == rows[-len(seen) :]
    assert _leaves(second.checkpoint()) == _leaves(whole.checkpoint())


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if not k.startswith("time/")}


def _leaves(tree: object, prefix: str = "") -> dict[str, object]:
    """Every leaf of a tree but the clock, arrays as bytes."""
    if isinstance(tree, dict):
        return {
            k: v
            for name, node in tree.items()
            for k, v in _leaves(node, f"{prefix}/{name}").items()
            if not k.endswith("/seconds")
        }
    if isinstance(tree, checkpoint.Rows):
        return {prefix: tree.read(tree.begin, tree.end).tobytes()}
    return {prefix: np.asarray(tree).tobytes() if hasattr(tree, "__array__") else tree}


def test_an_unknown_learner_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='unknown learner "mtra": did you mean "metra"'):
        learners.get("mtra")
    with pytest.raises(UsageError, match="unknown preset of metra"):
        preset("metra", "ant", "gpu")


def test_a_replay_that_cannot_hold_an_epoch_is_refused() -> None:
    with pytest.raises(UsageError, match="replay_capacity = 50 is too small"):
        small("metra", loop={"replay_capacity": 50})


def test_minutes_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends when its time is up; waiting is not counted."""
    run = Discovery(small("metra", minutes=1.0, steps=4800))
    asked: list[None] = []
    began = time.perf_counter()
    run.epoch(lambda: bool(asked.append(time.sleep(0.01))))
    assert 0 < run.seconds < time.perf_counter() - began - 0.01 * len(asked)
    now = iter(range(0, 10**6, 25))
    monkeypatch.setattr("etude.skills.discovery.time.process_time", lambda: next(now))
    run.seconds = 0.0
    run.run()
    assert run.done and 60 <= run.seconds < 100 and run.steps < run.config.steps


def test_a_seed_fixes_the_initial_weights_and_another_changes_them() -> None:
    first, same, other = (Discovery(small("metra", seed=s)) for s in (1, 1, 2))
    one, two, three = (_leaves(d.learner.checkpoint()) for d in (first, same, other))
    assert one == two and one != three


def test_visited_starts_begin_where_training_has_been() -> None:
    run = Discovery(small("metra", loop={"visited_starts": 1.0}))
    run.epoch()
    assert len(run.starts) > 1
    run.collect()
    origins = {tuple(np.round(p, 3)) for p in run.collected[:, 0]}
    home = run.venv.reset()[1]["descriptor"]
    spread = np.abs(np.array(list(origins)) - home[0]).max()
    never = Discovery(small("metra"))
    never.epoch()
    never.collect()
    assert spread > np.abs(never.collected[:, 0] - home[0]).max()
