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


def test_a_checkpoint_of_the_same_name_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    for x in range(4):
        assert checkpoint.load(checkpoint.save(tmp_path, "1", {"x": x})) == {"x": x}
        assert checkpoint.load_newest(tmp_path) == {"x": x}
    assert {p.name for p in tmp_path.iterdir()} == {"1++", "1+++", "latest"}
    checkpoint.save(tmp_path, "2", {"x": 5})
    assert [p.name for p in checkpoint.whole(tmp_path)] == ["2", "1+++"]


def test_a_future_that_did_not_come_is_pruned(tmp_path: Path) -> None:
    for name in ("1", "8", "9"):
        checkpoint.save(tmp_path, name, {"x": int(name)})
    for name in ("2", "3"):  # of a run that found 8 and 9 damaged
        checkpoint.save(tmp_path, name, {"x": int(name)})
        assert checkpoint.load_newest(tmp_path) == {"x": int(name)}
    assert [p.name for p in checkpoint.whole(tmp_path)] == ["3", "2"]


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 9)
    path = checkpoint.save(tmp_path, "1", {"x": 1})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 9, this version reads 1"):
        checkpoint.load(path)


def test_without_its_pointer_the_last_name_is_the_newest(tmp_path: Path) -> None:
    assert checkpoint.whole(tmp_path / "nowhere") == []
    assert checkpoint.latest(tmp_path / "nowhere") is None
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint that can be read"):
            checkpoint.load_newest(folder)
    for i in (1, 2):
        checkpoint.save(tmp_path, f"{i}", {"x": i})
    for name in ("2", "2\n", "3", "../1", "", "\xff"):
        (tmp_path / checkpoint.LATEST).write_bytes(name.encode("latin-1"))
        assert checkpoint.latest(tmp_path) == tmp_path / "2"
    (tmp_path / checkpoint.LATEST).unlink()
    assert checkpoint.latest(tmp_path) == tmp_path / "2"
    (tmp_path / checkpoint.LATEST).write_text("1")
    assert checkpoint.load_newest(tmp_path) == {"x": 1}, "the pointer goes before the name"


def test_what_a_save_left_behind_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    for name in (".partial-0", ".partial-1", "notes", ".hidden", "rows"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    checkpoint.save(tmp_path, "1", {"x": 1})
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"1", "latest", "notes", ".hidden", "rows"}
    assert list((tmp_path / "rows").iterdir()) == [], "no checkpoint needs it"


def test_nothing_is_written_or_read_where_no_row_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, written = np.arange(20.0), {}
    checkpoint.save(tmp_path, "1", {"log": log(values)}, written)
    paths: list[Path] = []
    monkeypatch.setattr(checkpoint.disk, "write", lambda path, _: paths.append(path))
    monkeypatch.setattr(checkpoint.disk, "rename", lambda *_: None)
    unread = checkpoint.Rows(5, 20, lambda *_: pytest.fail("read"))
    checkpoint.save(tmp_path, "2", {"log": unread}, written)
    assert paths and not [p for p in paths if p.parent.name == "rows"]


def test_a_file_of_rows_that_are_all_forgotten_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 80)
    values, written = np.arange(40.0), {}
    for i, begin in enumerate((0, 9, 10)):
        path = checkpoint.save(tmp_path, f"{i}", {"log": log(values, begin)}, written)
        assert len(written["log"]) == (4 if begin < 10 else 3)
        np.testing.assert_array_equal(read(path), values[begin:])
    assert len(list((tmp_path / "rows").iterdir())) == 4, "the second still needs the first"


def test_any_part_of_the_rows_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 16)  # two numbers
    values = np.arange(9.0)
    rows = checkpoint.load(checkpoint.save(tmp_path, "1", {"log": log(values, 1)}))["log"]
    for a in range(1, 9):
        for b in range(a + 1, 10):
            np.testing.assert_array_equal(rows.read(a, b), values[a:b])
    pieces = [(first, part.tolist()) for first, part in rows.pieces(3)]
    assert pieces == [(1, [1, 2, 3]), (4, [4, 5, 6]), (7, [7, 8])]


@pytest.mark.parametrize(("width", "files"), [(0, 1), (1, 1), (2, 2), (4, 4), (8, 4)])
def test_a_row_of_any_width_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, files: int
) -> None:
    """In files of at most 32 bytes, or of one row."""
    monkeypatch.setattr(checkpoint, "PIECE", 32)
    values = np.arange(4.0 * width).reshape(4, width)
    path = checkpoint.save(tmp_path, "1", {"log": log(values)})
    np.testing.assert_array_equal(read(path), values)
    assert len(list((tmp_path / "rows").iterdir())) == files


def test_lists_hold_numbers_and_not_arrays(tmp_path: Path) -> None:
    """Which would have no place to come back to."""
    plain = {"a": [1, "x", None, {"b": [2.5, True]}], "c": (1, 2)}
    assert checkpoint.load(checkpoint.save(tmp_path, "1", plain)) == {**plain, "c": [1, 2]}
    for bad in ([np.ones(2)], [{"x": np.ones(2)}], [{"x": {"y": log(np.ones(2))}}]):
        with pytest.raises(TypeError, match="a/"):
            checkpoint.save(tmp_path, "2", {"a": bad})
    assert checkpoint.load_newest(tmp_path)["a"] == plain["a"]
    with pytest.raises(AssertionError, match="b/c"):
        checkpoint.save(tmp_path, "2", {"a": {"b/c": 1}})


def test_arrays_of_any_order_and_kind_come_back(tmp_path: Path) -> None:
    grown = torch.ones(2, requires_grad=True)
    arrays = {
        "turned": np.arange(6).reshape(2, 3).T,
        "every second": np.arange(6)[::2],
        "empty": np.zeros((0, 3), np.float32),
        "grown": grown,
        "number": np.float32(0.1),
    }
    back = checkpoint.load(checkpoint.save(tmp_path, "1", arrays))
    for name, array in arrays.items():
        wanted = grown.detach().numpy() if name == "grown" else np.asarray(array)
        np.testing.assert_array_equal(back[name], wanted)
        assert back[name].dtype == wanted.dtype and back[name].shape == wanted.shape


def test_a_small_file_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    checkpoint.write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.disk, "rename", lambda *_: pytest.fail("torn"))
        with pytest.raises(pytest.fail.Exception):
            checkpoint.write_text(path, "new")
    assert path.read_text() == "old"
    checkpoint.write_text(path, "nëw")
    assert path.read_text("utf-8") == "nëw" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_manifest_vouches_for_itself(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, "1", {"x": 1})
    file = path / checkpoint.MANIFEST
    text = file.read_text()
    other = "0" if text[-2] != "0" else "1"
    for bad in (text.replace('"format": 1', '"format":  1'), text[:-2] + other + "\n", text[:-1]):
        assert bad != text
        file.write_text(bad)
        with pytest.raises(CheckpointError, match=r"manifest.json is damaged: its SHA-256 is not"):
            checkpoint.load(path)
    file.write_text(text)
    assert checkpoint.load(path) == {"x": 1}
