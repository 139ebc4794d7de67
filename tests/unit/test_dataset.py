"""Datasets: what was collected comes back bit by bit, or not at all; learning needs no step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from etude import checkpoint
from etude.agents.replay import Record, Replay
from etude.cli import discover as command
from etude.config import replace
from etude.envs import registry
from etude.errors import CheckpointError, DatasetError, UsageError
from etude.evaluate.monitor import Monitor
from etude.skills import dataset
from etude.skills.dataset import MANIFEST, Dataset, write
from etude.skills.discovery import DiscoverConfig, Discovery, preset
from etude.skills.spaces import Sphere

ENV = registry.spec("point-open")
SPACE = Sphere(2)
N = 3


def filled(steps: int, capacity: int = 100, seed: int = 0) -> Replay:
    """Episodes of seven steps in one environment; the others also end for good, now and then."""
    rng, replay = np.random.default_rng(seed), Replay(capacity * N, N, 4, 2, 2, seed=5)
    obs, z = rng.normal(size=(N, 4)), SPACE.sample(rng, N)
    for t in range(steps):
        after = rng.normal(size=(N, 4))
        died = (rng.random(N) < 0.1) & (np.arange(N) > 0)
        cut = np.full(N, t % 7 == 6)
        if t % 3 == 0:
            z = SPACE.sample(rng, N)
        replay.add(obs, rng.uniform(-1, 1, (N, 2)), after, z, died, cut)
        obs = np.where((died | cut)[:, None], rng.normal(size=(N, 4)), after)
    return replay


def saved(tmp_path: Path, replay: Replay) -> Path:
    return write(tmp_path / "data", replay, ENV, SPACE, {"command": "test"})


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four vector steps in a file."""
    monkeypatch.setattr(dataset, "PIECE", 4 * N * 4 * (4 + 2 + 4 + 2 + 2))


def rows(record: Record) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in vars(record).items() if v is not None}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("steps", [1, 60, 137], ids=["one", "part", "wrapped"])
def test_a_loaded_replay_draws_what_the_saved_one_does(steps: int, tmp_path: Path) -> None:
    old = filled(steps)
    found = Dataset.load(saved(tmp_path, old), ENV)
    new = found.replay(5, "cpu")
    assert len(new) == len(old) == found.steps and found.space == SPACE
    assert len(list((tmp_path / "data").glob("*.safetensors"))) == -(-min(steps, 100) // 4)
    draws: list[Callable[[Replay], Record]] = [lambda r: r.steps(64), lambda r: r.future(64, 0.9)]
    draws += [lambda r: r.sequences(64, 5)]
    if steps > 1:
        draws += [lambda r: r.jumps(64, 3), lambda r: r.jumps(64, 2, aligned=True)]
    for draw in draws:
        checkpoint.set_generator_state(new.rng, checkpoint.generator_state(old.rng))
        assert rows(draw(new)) == rows(draw(old))


def test_the_files_hold_what_the_page_says(tmp_path: Path) -> None:
    """Read with safetensors alone, against the transitions as they were added."""
    old = filled(60)
    batch = old._batch(np.arange(60 * N))
    arrays = load_file(saved(tmp_path, old) / "000000000000.safetensors")
    for key, seen in (("observation", batch.obs), ("action", batch.action), ("skill", batch.skill)):
        np.testing.assert_array_equal(arrays[key].reshape(60 * N, -1), seen.numpy())
    np.testing.assert_array_equal(arrays["time"].ravel(), batch.time.numpy())
    after = arrays["observation"].reshape(-1, 4)[N:]
    after = np.concatenate((after, np.zeros((N, 4))))
    after[arrays["next_index"]] = arrays["next_observation"]
    np.testing.assert_array_equal(after.astype(np.float32), batch.next_obs.numpy())
    assert len(arrays["next_index"]) < 60  # three quarters are not kept twice
    died, cut = arrays["terminated"], arrays["truncated"]
    np.testing.assert_array_equal(died.ravel(), batch.terminated.numpy() > 0)
    assert died.any() and cut[6].any() and not (died & cut).any()
    assert set(np.flatnonzero(cut.any(1))) == set(range(6, 60, 7))
    episode = arrays["episode"]
    same = episode[1:] == episode[:-1]
    np.testing.assert_array_equal(same, ~(died | cut)[:-1])
    assert len(np.unique(episode)) == (died | cut)[:-1].sum() + N


def test_nothing_is_overwritten_and_nothing_empty_written(tmp_path: Path) -> None:
    path = saved(tmp_path, filled(10))
    with pytest.raises(UsageError, match="never overwritten"):
        write(path, filled(10), ENV, SPACE, {})
    with pytest.raises(UsageError, match="nothing was collected"):
        write(tmp_path / "other", Replay(30, N, 4, 2, 2), ENV, SPACE, {})
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.usefixtures("small_pieces")
def test_every_damaged_byte_is_found_before_anything_is_used(tmp_path: Path) -> None:
    path = saved(tmp_path, filled(9))
    before = Dataset.load(path, ENV).id
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        step = max(1, len(data) // 40)
        for at in (*range(0, len(data), step), len(data) - 1):
            broken = bytearray(data)
            broken[at] ^= 0x04
            file.write_bytes(broken)
            message = refused(path)  # white space of the manifest may change
            assert str(path) in message or Dataset.load(path, ENV).id == before
            assert file.suffix == ".json" or str(file) in message
        for short in (b"", data[:-1], data + b"\0"):
            file.write_bytes(short)
            assert refused(path)
        file.write_bytes(data)
    assert not refused(path)


def refused(path: Path) -> str:
    """What the loader says, or nothing."""
    try:
        Dataset.load(path, ENV)
    except DatasetError as error:
        return str(error)
    return ""


def sealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as somebody would who knows how it is sealed."""
    body = json.loads((path / MANIFEST).read_text())
    del body["sha256"]
    change(body)
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps({**body, "sha256": seal}))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer": (lambda b: b.update(format=2), "format 2 is not 1"),
    "extra": (lambda b: b.update(code="x"), "unknown entry 'code'"),
    "no space": (lambda b: b.pop("space"), "no entry 'space'"),
    "wrong space": (lambda b: b["space"].update(kind="tree"), 'unknown skill space "tree"'),
    "outside": (lambda b: b["pieces"][0].update(file="../x.safetensors"), "is not the one of step"),
    "more steps": (lambda b: b.update(steps=11), "the pieces hold 10 steps, not 11"),
    "fewer envs": (lambda b: b.update(num_envs=2), "is float32"),
    "no envs": (lambda b: b.update(num_envs=0), "num_envs must be"),
    "huge": (lambda b: b["pieces"][0].update(steps=2**40), "the pieces hold"),
    "half": (lambda b: b["pieces"][0].update(steps=9.5), "whole numbers"),
    "body": (lambda b: b["env"].update(id="ant"), 'collected in "ant", and this is "point-open"'),
    "constant": (lambda b: b["env"]["constants"].update(lag=1), 'they differ in "constants"'),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_foreign_manifest_is_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, filled(10))
    change, message = CHANGES[name]
    sealed(path, change)
    assert message in refused(path)


PIECES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nan": (lambda a: a["observation"].__setitem__((3, 1, 0), np.nan), "NaN"),
    "key": (lambda a: a.pop("skill"), "no entry 'skill'"),
    "more": (lambda a: a.update(reward=np.zeros(3)), "unknown entry 'reward'"),
    "kind": (lambda a: a.update(action=a["action"].astype(np.float64)), "action is float64"),
    "shape": (lambda a: a.update(time=a["time"][:-1]), "time is int32 (9, 3)"),
    "gap": (lambda a: a.update(next_index=a["next_index"] * 0), "end of an episode is missing"),
    "far": (lambda a: a["next_index"].__setitem__(0, 10**6), "out of bounds"),
}


@pytest.mark.parametrize("name", PIECES)
def test_a_foreign_piece_is_refused_though_its_hash_is_right(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, filled(10))
    file, (change, message) = path / "000000000000.safetensors", PIECES[name]
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file)
    data = file.read_bytes()
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sealed(path, lambda body: body["pieces"][0].update(facts))
    assert message in refused(path) and str(file) in refused(path)


def test_links_missing_files_and_other_folders_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, filled(10))
    assert "has no manifest.json" in refused(tmp_path) and "--save-dataset" in refused(tmp_path)
    file = path / "000000000000.safetensors"
    file.rename(tmp_path / "elsewhere")
    assert "no plain file" in refused(path)
    file.symlink_to(tmp_path / "elsewhere")
    assert "no plain file" in refused(path)


# ---- learning from one

SMALL = {
    "steps": 640,
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


def config(**changes: Any) -> DiscoverConfig:
    return replace(replace(preset("metra", "point-open"), SMALL), changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Discovery(config(loop={"random_steps": 640, "hold": 5}))
    run.run()
    path = tmp_path_factory.mktemp("dataset") / "data"
    return write(path, run.replay, run.env_spec, run.space, {})


def test_learning_from_a_dataset_makes_updates_and_no_step(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Discovery(config(dataset=str(data)))
    monkeypatch.setattr(run.venv, "step", None)
    monkeypatch.setattr(run.venv, "reset", None)
    monitor = Monitor("point-open", 320, episodes=4)
    before = {k: v.clone() for k, v in run.agent.state_dict().items()}  # type: ignore[union-attr]
    run.run([monitor])
    assert (run.steps, run.updates, len(run.replay)) == (640, 24, 320)  # no warm-up to wait for
    after = run.agent.state_dict()  # type: ignore[union-attr]
    assert any(not torch.equal(v, before[k]) for k, v in after.items())
    assert [row["steps"] for row in monitor.history] == [320, 640]
    assert monitor.history[-1]["total_coverage"] == 0 < monitor.history[-1]["policy_coverage"]


@pytest.mark.parametrize("asked", [0, 1, 5])
def test_resuming_such_a_run_is_exact_and_needs_the_same_dataset(
    asked: int, data: Path, tmp_path: Path
) -> None:
    whole = Discovery(config(dataset=str(data)))
    whole.run()
    first, times = Discovery(config(dataset=str(data))), iter(range(asked))
    while first.epoch(stop=lambda: next(times, None) is None):
        pass
    path = checkpoint.save(tmp_path, "stopped", first.checkpoint())
    assert not (tmp_path / "rows").exists()  # the dataset has them
    second = Discovery(config(dataset=str(data)))
    second.restore(checkpoint.load(path))
    while not (second.done and second.between_epochs):
        second.epoch()
    assert second.updates == whole.updates == 24
    for k, v in second.agent.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(v, whole.agent.state_dict()[k]), k  # type: ignore[union-attr]
    other = write(tmp_path / "other", filled(40), ENV, SPACE, {})
    with pytest.raises(CheckpointError, match="another dataset"):
        Discovery(config(dataset=str(other))).restore(checkpoint.load(path))


def test_a_learner_refuses_what_other_skills_did_if_it_reads_them(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = config(dataset=str(data), method={"dim": 3})
    with pytest.raises(UsageError, match=r"learns from what its own skills did.*dim=3.*dim=2"):
        Discovery(wide)
    run = Discovery(config())
    monkeypatch.setattr(type(run.learner), "reads_skills", False)
    assert len(Discovery(wide).replay) == 320


def test_random_steps_are_uniform_actions_held_as_skills_are() -> None:
    run = Discovery(config(loop={"random_steps": 240, "hold": 5}))
    for _ in range(4):
        run.collect()
        run._begin_epoch()
    action = run.replay._batch(np.arange(320)).action.numpy().reshape(4, 4, 5, 4, 2)
    held = action[:3]  # epochs, holds, steps, environments
    assert (held == held[:, :, :1]).all() and not (action[3] == action[3, :, :1]).all()
    drawn = held[:, :, 0].ravel()
    assert len(np.unique(drawn)) == drawn.size and abs(drawn.mean()) < 0.2
    assert drawn.std() == pytest.approx(3**-0.5, abs=0.1) and abs(drawn).max() <= 1
    free = Discovery(config(loop={"random_steps": 80, "hold": 0}))
    free.collect()
    each = free.replay._batch(np.arange(80)).action.numpy()
    assert len(np.unique(each)) == each.size


def test_the_command_saves_a_dataset_and_learns_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etude.cli.evaluate.report", lambda *_: "")  # pictures, for seconds
    words = "metra --env point-open --steps 320 --loop.num-envs 4 --loop.episode-steps 20 "
    words += "--loop.warmup-steps 80 --agent.hidden 8 --eval-every 0 --save-minutes 0"
    one, two, kept = (tmp_path / name for name in ("one", "two", "kept"))
    begin = [*words.split(), "--out", str(one)]
    with pytest.raises(UsageError, match="leave out --save-dataset"):
        command.main([*begin, "--save-dataset", str(kept), "--dataset", str(kept)])
    with pytest.raises(UsageError, match="never overwritten"):
        command.main([*begin, "--save-dataset", str(tmp_path)])
    assert not one.exists()
    assert command.main([*begin, "--save-dataset", str(kept)]) == 0
    assert f"dataset      {kept}" in capsys.readouterr().out
    assert command.main([*words.split(), "--out", str(two), "--dataset", str(kept)]) == 0
    made = json.loads((two / "library" / "library.json").read_text())["provenance"]
    found = Dataset.load(kept, ENV)
    assert made["dataset"] == {"id": found.id, "transitions": 320}
    assert "--save-dataset" in json.loads((kept / MANIFEST).read_text())["provenance"]["command"]
