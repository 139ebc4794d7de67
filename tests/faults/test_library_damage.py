"""Libraries that are damaged, forged or foreign: each is refused with a sentence that says why."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from etude.errors import LibraryError
from etude.skills import library_files
from etude.skills.library import MLP, SetData, SkillLibrary, write
from etude.skills.spaces import Sphere

ENV: dict[str, Any] = {
    "id": "crab",
    "body": "crab",
    "fields": [{"name": "x", "dim": 2}, {"name": "joints", "dim": 3}, {"name": "goal", "dim": 1}],
    "task_fields": ["goal"],
    "action_dim": 3,
    "dt": 0.05,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound library: five values observed, three actions, skills on a circle, phi of x."""
    rng, space = np.random.default_rng(0), Sphere(2)

    def net(*sizes: int, **kwargs: Any) -> MLP:
        shapes = zip(sizes, sizes[1:], strict=False)
        return MLP([(rng.standard_normal(s), rng.standard_normal(s[1])) for s in shapes], **kwargs)

    data = SetData(
        name="main",
        learner="metra",
        config={"lr": 1e-4},
        space=space,
        policy=net(7, 16, 16, 3, output="tanh"),
        encoders={"phi": net(2, 8, 2, inputs=("obs",), input_fields=("x",))},
        mean=np.arange(5) * 0.1,
        std=np.arange(5) + 0.5,
        skills=[{"id": i, "z": z} for i, z in enumerate(space.even(4))],
        metrics={"coverage": 12},
    )
    return write(tmp_path / "lib", sets=[data], env=ENV, provenance={"seed": 3}, name="crab")


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest agree: damage that a hash cannot show."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / "library.json").read_text())
    change(index)
    rewrite(folder, "library.json", json.dumps(index).encode())


def edit_tensors(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = {k: v.copy() for k, v in load_tensors((folder / name).read_bytes()).items()}
    change(tensors)
    rewrite(folder, name, save_tensors(tensors))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(LibraryError, match=match) as caught:
        SkillLibrary.load(folder)
    assert str(folder) in str(caught.value)


def test_missing_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()
    refused(folder, "no MANIFEST.json")


def test_every_file_is_needed(folder: Path) -> None:
    for name in library_files.LISTED:
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        refused(folder, f"{name} is missing from the folder")
        (folder / name).write_bytes(data)
    SkillLibrary.load(folder)


def test_every_file_is_covered(folder: Path) -> None:
    """One flipped bit anywhere is seen, and before any file is parsed."""
    for name in library_files.LISTED:
        data = (folder / name).read_bytes()
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        (folder / name).write_bytes(flipped)
        refused(folder, f"{name} is damaged")
        (folder / name).write_bytes(data)


def test_nothing_is_parsed_before_it_is_verified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "README.md").write_text("changed")
    monkeypatch.setattr(library_files, "_tensors", lambda *_: pytest.fail("tensors were parsed"))
    monkeypatch.setattr(library_files, "_check_schema", lambda *_: pytest.fail("JSON was parsed"))
    refused(folder, "README.md has 7 bytes")


def test_truncated_and_grown_files(folder: Path) -> None:
    data = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(data[:100])
    refused(folder, "weights.safetensors has 100 bytes")
    (folder / "weights.safetensors").write_bytes(data + b"x")
    refused(folder, "weights.safetensors has")


def test_oversize(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(library_files.LIMITS, "weights.safetensors", 50)
    refused(folder, "weights.safetensors is larger than the 50 bytes")


def test_extra_files(folder: Path) -> None:
    (folder / "evil.pkl").write_bytes(b"")
    refused(folder, "evil.pkl is not in the manifest")
    (folder / "evil.pkl").unlink()
    (folder / "more").mkdir()
    refused(folder, "more is not a plain file")


def test_links(folder: Path) -> None:
    data = folder / "README.md"
    data.rename(folder.parent / "elsewhere")
    data.symlink_to(folder.parent / "elsewhere")
    refused(folder, "README.md is a symbolic link")
    data.unlink()
    os.mkfifo(data)
    refused(folder, "README.md is not a plain file")


@pytest.mark.parametrize("name", ["../x", "a/b", "C:\\x", "/etc/passwd", ".."])
def test_paths_in_the_manifest(folder: Path, name: str) -> None:
    rewrite_manifest(folder, lambda files: files.update({name: files["README.md"]}))
    refused(folder, "lists a path")


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    change(manifest["files"])
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def test_unknown_and_unlisted_names_in_the_manifest(folder: Path) -> None:
    rewrite_manifest(folder, lambda files: files.update({"x.py": files["README.md"]}))
    refused(folder, "an unknown file")
    rewrite_manifest(folder, lambda files: (files.pop("x.py"), files.pop("README.md")))
    refused(folder, "README.md is missing from the manifest")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"files": 3}', '{"files": {"README.md": {}}}', "[" * 100_000, "\x00",
     '{"files": {"README.md": {"size": 1e999, "sha256": ""}}}', '{"files": NaN}'],
)  # fmt: skip
def test_malformed_manifest(folder: Path, text: str) -> None:
    (folder / "MANIFEST.json").write_text(text)
    refused(folder, "MANIFEST.json")


@pytest.mark.parametrize(
    ("schema", "match"),
    [("2.0", "newer etude"), ("0.9", "write it again"), ("1.7", "newer etude"), ("x", "malformed")],
)
def test_schema(folder: Path, schema: str, match: str) -> None:
    edit_index(folder, lambda index: index.update(schema=schema))
    refused(folder, match)


def test_newer_minor_format_on_request(folder: Path) -> None:
    edit_index(folder, lambda index: index.update(schema="1.7", addition=1))
    SkillLibrary.load(folder, allow_newer=True)
    edit_index(folder, lambda index: index.update(schema="2.0"))
    with pytest.raises(LibraryError, match="format 2.0"):
        SkillLibrary.load(folder, allow_newer=True)


SET_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"space": {"kind": "spher", "dim": 2}}, "unknown skill space"),
    ({"space": {"kind": "sphere", "dim": 10**12}}, "whole number"),
    ({"space": {"kind": "sphere", "dim": 3}}, "no skill of"),
    ({"space": 3}, "malformed"),
    ({"name": "../x"}, "no entry 'main'"),
    ({"encoders": {}}, "unknown tensor"),
    ({"encoders": {"phi": {}}}, "no entry 'kind'"),
    ({"config": 3}, "must be a dict"),
]


@pytest.mark.parametrize(("change", "match"), SET_CHANGES)
def test_hostile_sets(folder: Path, change: dict[str, Any], match: str) -> None:
    edit_index(folder, lambda index: index["sets"][0].update(change))
    refused(folder, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "os.system"}, "choose one of mlp, open_loop"),
        ({"sizes": [7, 16, 17, 3]}, "widths"),
        ({"sizes": [7, 16, 3]}, "layer 1|unknown tensor|widths|does not"),
        ({"sizes": 3}, "malformed"),
        ({"activation": "eval"}, "unknown activation"),
        ({"output": "linear"}, "tanh outputs"),
        ({"inputs": ["obs"]}, "input width 7"),
        ({"inputs": ["z", "obs"]}, "network inputs"),
        ({"input_fields": ["goal"]}, "unknown observation field"),
        ({"input_fields": ["joints"]}, "input width 7"),
    ],
)
def test_policies_that_are_not_the_weights(
    folder: Path, change: dict[str, Any], match: str
) -> None:
    edit_index(folder, lambda index: index["sets"][0]["policy"].update(change))
    refused(folder, match)


@pytest.mark.parametrize("key", ["name", "env", "sets", "provenance", "parents", "schema"])
def test_missing_entries(folder: Path, key: str) -> None:
    edit_index(folder, lambda index: index.pop(key))
    refused(folder, f"library.json has no entry '{key}'")


@pytest.mark.parametrize(
    "change",
    [{"fields": 3}, {"fields": [{"name": "x", "dim": -2}]}, {"action_dim": "3"}, {"dt": None},
     {"body": 1}, {"constants": 3}, {"fields": [{"name": "x", "dim": 10**15}]}],
)  # fmt: skip
def test_malformed_environment(folder: Path, change: dict[str, Any]) -> None:
    edit_index(folder, lambda index: index["env"].update(change))
    refused(folder, "library.json")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"set": "none", "id": 1, "z": [1, 0]}', "no entry 'none'"),
        ('{"set": "main", "id": 1, "z": [NaN, 0]}', "NaN is not JSON"),
        ('{"set": "main", "id": 1, "z": [1, 0, 0]}', "no skill of"),
        ('{"set": "main", "id": true, "z": [1, 0]}', "whole numbers"),
        ('{"set": "main", "id": 1, "z": "ab"}', "skills.jsonl"),
        ("[]", "an object is expected"),
    ],
)
def test_malformed_skills(folder: Path, line: str, match: str) -> None:
    rewrite(folder, "skills.jsonl", line.encode())
    refused(folder, match)


def test_weights_that_are_not_finite(folder: Path) -> None:
    key = "main/policy/1/weight"
    edit_tensors(folder, "weights.safetensors", lambda t: t[key].fill(np.nan))
    refused(folder, f"weights.safetensors: tensor {key} has NaN")


def test_missing_normaliser(folder: Path) -> None:
    edit_tensors(folder, "normaliser.safetensors", lambda t: t.pop("main/std"))
    refused(folder, "normaliser.safetensors has no entry 'main/std'")


def test_missing_and_unknown_weights(folder: Path) -> None:
    edit_tensors(folder, "weights.safetensors", lambda t: t.update(other=np.zeros(1, "f4")))
    refused(folder, "unknown tensor other")
    edit_tensors(folder, "weights.safetensors", lambda t: t.pop("main/policy/1/bias"))
    refused(folder, "weights.safetensors has no entry 'main/policy/1/bias'")


def test_golden_actions(folder: Path) -> None:
    """A policy that differs a little from the one that was saved is noticed."""
    edit_tensors(folder, "normaliser.safetensors", lambda t: t["main/mean"].__iadd__(1e-3))
    refused(folder, "misses its golden actions")


def test_golden_of_another_shape(folder: Path) -> None:
    edit_tensors(folder, "golden.safetensors", lambda t: t.update({"main/action": t["main/obs"]}))
    refused(folder, "golden.safetensors")
    empty = {f"main/{k}": np.zeros((0, n), "f4") for k, n in (("obs", 5), ("z", 2), ("action", 3))}
    rewrite(folder, "golden.safetensors", save_tensors(empty))
    refused(folder, "golden.safetensors")


def test_only_float32(folder: Path) -> None:
    edit_tensors(folder, "weights.safetensors", lambda t: t.update(x=np.zeros(1, np.float64)))
    refused(folder, "tensor x is F64")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 4) + b"{]}}",
     struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 0), b"\x80\x04cos\nsystem\n" * 20],
)  # fmt: skip
def test_hostile_tensor_files(folder: Path, data: bytes) -> None:
    rewrite(folder, "weights.safetensors", data)
    refused(folder, "weights.safetensors")


def test_tensor_that_reaches_out_of_its_file(folder: Path) -> None:
    header = b'{"main/policy/0/weight":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}'
    rewrite(folder, "weights.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 8)
    refused(folder, "weights.safetensors is malformed")


def loads_or_is_refused(folder: Path) -> bool:
    try:
        SkillLibrary.load(folder)
    except LibraryError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(library_files.LISTED | {"MANIFEST.json"}))
def test_random_bytes_are_refused_or_harmless(folder: Path, name: str) -> None:
    """Damage under a manifest that agrees with it never gets past as another kind of error."""
    rng, whole = np.random.default_rng(0), (folder / name).read_bytes()
    manifest = (folder / "MANIFEST.json").read_bytes()
    refusals = 0
    for _ in range(100):
        data = bytearray(whole)
        for place in rng.integers(min(len(data), 400), size=rng.integers(1, 4)):
            data[place] = rng.integers(256)
        if name == "MANIFEST.json":
            (folder / name).write_bytes(data)
        else:
            (folder / "MANIFEST.json").write_bytes(manifest)
            rewrite(folder, name, bytes(data))
        refusals += not loads_or_is_refused(folder)
    assert name == "README.md" or refusals > 10


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    inner = [pair for k in keys if isinstance(tree[k], dict | list) for pair in nodes(tree[k])]
    return [(tree, k) for k in keys] + inner


@pytest.mark.parametrize("value", [None, -1, 10**20, 1e308, "x", "../../x", [], {}, [[1]], True])
def test_any_entry_of_another_kind_is_refused_or_harmless(folder: Path, value: Any) -> None:
    text = (folder / "library.json").read_text()
    refusals = 0
    for i in range(len(nodes(json.loads(text)))):
        index = json.loads(text)
        container, key = nodes(index)[i]
        container[key] = value
        rewrite(folder, "library.json", json.dumps(index).encode())
        refusals += not loads_or_is_refused(folder)
    assert refusals > 30
