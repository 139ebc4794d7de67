"""The library's files at their limits: the largest that is read, and the smallest that is not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from etude.errors import LibraryError, UsageError
from etude.skills import library_files
from etude.skills.library import MLP, SetData, SkillLibrary, write
from etude.skills.spaces import Sphere

MEBIBYTE = 2**20
ONE = np.ones(1, np.float32)
SIZES = {
    "library.json": 4 * MEBIBYTE,
    "skills.jsonl": 64 * MEBIBYTE,
    "weights.safetensors": 512 * MEBIBYTE,
    "encoders.safetensors": 512 * MEBIBYTE,
    "normaliser.safetensors": 16 * MEBIBYTE,
    "golden.safetensors": 64 * MEBIBYTE,
    "README.md": 4 * MEBIBYTE,
    "MANIFEST.json": MEBIBYTE,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two values observed, one action, skills on a circle."""
    rng = np.random.default_rng(0)
    layer = rng.standard_normal((4, 1)), rng.standard_normal(1)
    data = SetData(
        name="main",
        learner="metra",
        config={},
        space=Sphere(2),
        policy=MLP([layer], output="tanh"),
        encoders={},
        mean=np.zeros(2),
        std=np.ones(2),
        skills=[{"id": 0, "z": [1, 0]}],
    )
    fields = [{"name": "x", "dim": 2}]
    env = {"id": "crab", "body": "crab", "fields": fields, "action_dim": 1, "dt": 0.05}
    return write(tmp_path / "lib", sets=[data], env=env, provenance={}, name="crab")


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest agree."""
    (folder / name).write_bytes(data)
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(folder, lambda files: files.update({name: facts}))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    change(manifest["files"])
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def edit_tensors(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = {k: v.copy() for k, v in load_tensors((folder / name).read_bytes()).items()}
    change(tensors)
    rewrite(folder, name, save_tensors(tensors))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / "library.json").read_text())
    change(index)
    rewrite(folder, "library.json", json.dumps(index).encode())


def refused(folder: Path, match: str) -> None:
    with pytest.raises(LibraryError, match=match):
        SkillLibrary.load(folder)


@pytest.mark.parametrize("name", SIZES)
def test_each_file_has_its_limit(folder: Path, name: str) -> None:
    """Sparse files: nothing is as large as it says, and nothing of it is read."""
    os.truncate(folder / name, SIZES[name])
    manifest = name == "MANIFEST.json"
    refused(folder, "malformed" if manifest else f"has {SIZES[name]} bytes, the manifest says")
    os.truncate(folder / name, SIZES[name] + 1)
    refused(folder, f"{name} is larger than the {SIZES[name]} bytes that are read")


@pytest.mark.parametrize(("rows", "read"), [(0, False), (1, True), (1024, True), (1025, False)])
def test_golden_rows(folder: Path, rows: int, read: bool) -> None:
    def resize(tensors: dict[str, Any]) -> None:
        for key, array in tensors.items():
            tensors[key] = np.tile(array, (33, 1))[:rows]

    edit_tensors(folder, "golden.safetensors", resize)
    if read:
        SkillLibrary.load(folder)
    else:
        refused(folder, f"{rows} golden observations, 1 to 1024 are read")


@pytest.mark.parametrize(("error", "read"), [(0.9e-5, True), (1.1e-5, False), (-1.1e-5, False)])
def test_golden_actions_may_differ_by_rounding(folder: Path, error: float, read: bool) -> None:
    def shift(tensors: dict[str, Any]) -> None:
        small = np.abs(tensors["main/action"]).argmin()  # where float32 is exact enough
        tensors["main/action"].ravel()[small] += error

    edit_tensors(folder, "golden.safetensors", shift)
    if read:
        SkillLibrary.load(folder)
    else:
        refused(folder, "misses its golden actions by 1.1e-05")


def test_golden_rows_are_drawn_around_the_mean(folder: Path) -> None:
    golden = load_tensors((folder / "golden.safetensors").read_bytes())
    obs, z = golden["main/obs"], golden["main/z"]
    assert obs.shape == (32, 2) and 0.6 < obs.std() < 1.4 and abs(obs.mean()) < 0.5
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    whole = SkillLibrary.load(folder)
    np.testing.assert_allclose(whole.act(obs, z), golden["main/action"], atol=1e-6)


def framed(head: bytes, length: int | None = None) -> bytes:
    return (len(head) if length is None else length).to_bytes(8, "little") + head


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (framed(b""), "header claims 0 bytes"),
        (framed(b"{"), "header claims 1 bytes"),
        (framed(b"{}", 3), "header claims 3 bytes"),
        (framed(b"{" + b" " * (MEBIBYTE - 1) + b"}"), f"header claims {MEBIBYTE + 1} bytes"),
        (b"\x00", "header claims 0 bytes"),
    ],
)
def test_the_header_of_tensors_is_bounded(folder: Path, data: bytes, match: str) -> None:
    rewrite(folder, "encoders.safetensors", data)
    refused(folder, f"encoders.safetensors is malformed: its {match}")


@pytest.mark.parametrize("size", [2, MEBIBYTE])
def test_headers_within_the_bounds_are_read(folder: Path, size: int) -> None:
    rewrite(folder, "encoders.safetensors", framed(b"{" + b" " * (size - 2) + b"}"))
    SkillLibrary.load(folder)


def test_a_library_is_named_once_and_its_parts_too(folder: Path) -> None:
    edit_index(folder, lambda index: index["sets"].append(index["sets"][0]))
    refused(folder, "two sets have one name")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda index: index.update(more=1), "the library has an unknown entry 'more'"),
        (lambda index: index["sets"][0].update(more=1), "a set has an unknown entry"),
        (lambda index: index["sets"][0]["space"].update(more=1), "a skill space has an unknown"),
        (lambda index: index["sets"][0]["policy"].update(more=1), "a network has an unknown"),
    ],
)
def test_what_this_format_does_not_know_is_not_passed_over(
    folder: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    edit_index(folder, change)
    refused(folder, match)
    edit_index(folder, lambda index: index.update(schema="1.3"))
    SkillLibrary.load(folder, allow_newer=True)


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        (
            "1.3",
            "format 1.3 cannot be read by this version, which reads 1.2: install a newer etude",
        ),
        ("0.0", "reads 1.2: write it again"),
        ("0.9", "reads 1.2: write it again"),
        ("2.0", "install a newer etude"),
        ("1.0.0", "malformed"),
    ],
)
def test_formats(folder: Path, schema: str, match: str) -> None:
    edit_index(folder, lambda index: index.update(schema=schema))
    refused(folder, match)


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"size": 1.0, "sha256": ""}, "a size must be a whole number"),
        ({"size": True, "sha256": ""}, "a size must be a whole number"),
        ({"size": 1, "sha256": 3}, "a size must be a whole number, a SHA-256 a text"),
        ({"size": 1, "sha256": "", "more": 1}, "a file has an unknown entry"),
    ],
)
def test_each_entry_of_the_manifest(folder: Path, facts: dict[str, Any], match: str) -> None:
    edit_manifest(folder, lambda files: files.update({"README.md": facts}))
    refused(folder, match)


def test_the_manifest_is_whole_or_of_one_line(folder: Path) -> None:
    text = (folder / "MANIFEST.json").read_text()
    assert text.endswith("}\n")
    (folder / "MANIFEST.json").write_text(text[:-1])
    refused(folder, "its last line is cut off")
    (folder / "MANIFEST.json").write_text(json.dumps(json.loads(text)))
    SkillLibrary.load(folder)
    more = {**json.loads(text), "more": 1}
    (folder / "MANIFEST.json").write_text(json.dumps(more))
    refused(folder, "the manifest has an unknown entry 'more'")


@pytest.mark.parametrize(
    ("name", "what"),
    [("a/b", "a path"), ("a\\b", "a path"), ("..", "a path"), ("x.py", "an unknown file")],
)
def test_what_the_manifest_lists_is_ours(folder: Path, name: str, what: str) -> None:
    edit_manifest(folder, lambda files: files.update({name: {"size": 0, "sha256": ""}}))
    refused(folder, f"lists {what}, ")


def test_a_folder_of_plain_files(folder: Path, tmp_path: Path) -> None:
    (folder / "notes").mkdir()
    refused(folder, "notes is not a plain file: a library has none")
    (folder / "notes").rmdir()
    os.mkfifo(folder / "notes")
    refused(folder, "notes is not a plain file")
    (folder / "notes").unlink()
    (folder / "notes").symlink_to(folder / "README.md")
    refused(folder, "notes is a symbolic link")
    with pytest.raises(LibraryError, match="is no folder"):
        library_files.read(tmp_path / "nowhere")


def test_a_file_that_turns_into_something_else_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the reading."""
    names = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(library_files, "_regular_files", lambda _: names)
    data = (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    refused(folder, r"README.md cannot be read: No such file")
    os.mkfifo(folder / "README.md")
    refused(folder, "README.md is not a plain file")
    (folder / "README.md").unlink()
    (folder.parent / "elsewhere").write_bytes(data)
    (folder / "README.md").symlink_to(folder.parent / "elsewhere")
    refused(folder, "README.md cannot be read")


def test_a_link_without_an_end_is_not_overwritten(folder: Path) -> None:
    contents = library_files.read(folder)
    link = folder.parent / "link"
    link.symlink_to(folder.parent / "nowhere")
    with pytest.raises(UsageError, match="never overwritten"):
        library_files.write(link, contents)
    deep = folder.parent / "a" / "b" / "lib"
    assert library_files.write(deep, contents) == deep and SkillLibrary.load(deep).name == "crab"


def test_reading_and_writing_again_changes_nothing(folder: Path) -> None:
    again = library_files.write(folder.parent / "again", library_files.read(folder))
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in again.iterdir()} == set(SIZES) == set(library_files.LIMITS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "m" * 65}, "must be a text of at most 64"),
        ({"input_fields": ["x", "x"]}, "reads an input field twice"),
        ({"sizes": [4, 2]}, "has widths"),
    ],
)
def test_each_entry_of_a_network(folder: Path, change: dict[str, Any], match: str) -> None:
    edit_index(folder, lambda index: index["sets"][0]["policy"].update(change))
    refused(folder, match)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weights", "normaliser", "golden"])
def test_every_tensor_is_finite(folder: Path, name: str, bad: float) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        next(iter(tensors.values())).ravel()[-1] = bad

    edit_tensors(folder, f"{name}.safetensors", spoil)
    refused(folder, "NaN or infinite entries")


def test_a_tensor_nobody_asked_for_is_refused(folder: Path) -> None:
    for name in ("weights", "encoders", "normaliser", "golden"):
        data = (folder / f"{name}.safetensors").read_bytes()
        edit_tensors(folder, f"{name}.safetensors", lambda t: t.update(b=ONE, a=ONE))
        refused(folder, f"{name}.safetensors: unknown tensor a")
        rewrite(folder, f"{name}.safetensors", data)
