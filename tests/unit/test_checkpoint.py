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


def test_an_object_is_not_a_leaf(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a/b"):
        checkpoint.save(tmp_path, "x", {"a": {"b": object()}})


def log(values: np.ndarray, begin: int = 0) -> checkpoint.Rows:
    """Rows `begin` to the end of what has been logged."""
    return checkpoint.Rows(begin, len(values), lambda a, b: values[a:b])


def read(path: Path) -> np.ndarray:
    rows = checkpoint.load(path)["log"]
    return rows.read(rows.begin, rows.end)


def test_each_save_writes_only_the_new_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 80)  # 10 rows of 8 bytes
    values, written = np.arange(100.0), {}
    first = checkpoint.save(tmp_path, "1", {"log": log(values[:35])}, written)
    before = {p.name for p in (tmp_path / "rows").iterdir()}
    assert len(before) == 4
    second = checkpoint.save(tmp_path, "2", {"log": log(values[:50], 12)}, written)
    new = {p.name for p in (tmp_path / "rows").iterdir()} - before
    assert len(new) == 2, "rows 35 to 49"
    np.testing.assert_array_equal(read(first), values[:35])
    np.testing.assert_array_equal(read(second), values[12:50])
    resumed: checkpoint.Written = {}
    checkpoint.load(second, resumed)
    third = checkpoint.save(tmp_path, "3", {"log": log(values, 31)}, resumed)
    np.testing.assert_array_equal(read(third), values[31:])
    assert not any(p.name.startswith("000000000000") for p in (tmp_path / "rows").iterdir()), (
        "rows that no kept checkpoint needs are deleted"
    )
    np.testing.assert_array_equal(read(second), values[12:50])


def test_rows_of_another_process_are_not_trusted(tmp_path: Path) -> None:
    """Without the memory of what was written, everything is written anew."""
    checkpoint.save(tmp_path, "1", {"log": log(np.zeros(9))})
    path = checkpoint.save(tmp_path, "2", {"log": log(np.ones(9))})
    np.testing.assert_array_equal(read(path), np.ones(9))
    np.testing.assert_array_equal(read(tmp_path / "1"), np.zeros(9))


def test_damaged_rows_are_refused_by_name(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, "1", {"log": log(np.arange(9.0))})
    [file] = (tmp_path / "rows").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=file.name):
        checkpoint.load(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=file.name):
        checkpoint.load(path)


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path, "1", {"x": 1})
    newest = checkpoint.save(tmp_path, "2", {"x": 2})
    assert checkpoint.load_newest(tmp_path)["x"] == 2 and not caplog.records
    (newest / checkpoint.STATE).write_text("{}")
    assert checkpoint.load_newest(tmp_path)["x"] == 1
    assert checkpoint.STATE in caplog.text and "before it" in caplog.text
    (tmp_path / "1" / checkpoint.STATE).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint that can be read"):
        checkpoint.load_newest(tmp_path)


def test_a_checkpoint_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "1", {"x": 1})
    assert checkpoint.load(checkpoint.save(tmp_path, "1", {"x": 2})) == {"x": 2}
    assert {p.name for p in tmp_path.iterdir()} == {"1", "latest"}


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 9)
    path = checkpoint.save(tmp_path, "1", {"x": 1})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 9, this version reads 1"):
        checkpoint.load(path)
