"""Checkpoints: exact trees, whole folders, refusals of damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from etude import checkpoint
from etude.errors import CheckpointError


def tree() -> dict[str, object]:
    return {
        "weights": {"w": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3.0)},
        "bytes": np.arange(5, dtype=np.uint8),
        "counters": {"steps": 2**60 + 1, "share": 0.1, "name": "x", "none": None, "list": [1, 2]},
        "rng": checkpoint.generator_state(np.random.default_rng(3)),
    }


def test_a_tree_comes_back_exactly(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, "000001", tree())
    back = checkpoint.load(path)
    assert back["counters"] == tree()["counters"]
    np.testing.assert_array_equal(back["weights"]["w"], np.arange(6.0).reshape(2, 3))
    assert back["weights"]["step"].shape == () and back["bytes"].dtype == np.uint8
    one, two = np.random.default_rng(3), np.random.default_rng(9)
    checkpoint.set_generator_state(two, back["rng"])
    np.testing.assert_array_equal(one.random(4), two.random(4))


def test_the_two_newest_are_kept_and_latest_points_to_the_newest(tmp_path: Path) -> None:
    for i in range(4):
        checkpoint.save(tmp_path, f"{i:06d}", tree())
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["000002", "000003"]
    assert checkpoint.latest(tmp_path) == tmp_path / "000003"


@pytest.mark.parametrize("file", [checkpoint.ARRAYS, checkpoint.STATE])
def test_a_flipped_byte_is_refused_by_name(tmp_path: Path, file: str) -> None:
    path = checkpoint.save(tmp_path, "a", tree())
    data = bytearray((path / file).read_bytes())
    data[len(data) // 2] ^= 1
    (path / file).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=file):
        checkpoint.load(path)


def test_a_folder_without_manifest_does_not_exist(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "000001", tree())
    half = checkpoint.save(tmp_path, "000002", tree())
    (half / checkpoint.MANIFEST).unlink()
    assert checkpoint.latest(tmp_path) == tmp_path / "000001"
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(half)


def test_a_failed_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, "000001", tree())

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, "000002", tree())
    assert checkpoint.latest(tmp_path) == tmp_path / "000001"


def test_an_object_is_not_a_leaf(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a/b"):
        checkpoint.save(tmp_path, "x", {"a": {"b": object()}})
