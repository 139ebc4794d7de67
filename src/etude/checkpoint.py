"""Checkpoints: everything a run needs to go on exactly, as safetensors and JSON, never a pickle.

A checkpoint is a folder `NAME/` with `arrays.safetensors`, `state.json` and `manifest.json`. It is
written beside its final place, synced and renamed, so a folder under its final name is whole; the
file `latest` names the newest one and the two newest are kept. A *tree* is a nested dictionary
whose leaves are arrays (NumPy or torch), numbers, strings, booleans, None, or lists of those.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from etude.errors import CheckpointError

ARRAYS, STATE, MANIFEST, LATEST = "arrays.safetensors", "state.json", "manifest.json", "latest"
SEPARATOR = "/"
KEPT = 2


def save(folder: Path, name: str, tree: Mapping[str, Any]) -> Path:
    """Write `tree` as the newest checkpoint `folder/name` and prune all but the two newest.

    Raises:
        OSError: the disk refused; the older checkpoints are untouched.
    """
    arrays: dict[str, np.ndarray] = {}
    state = _split(tree, "", arrays)
    folder.mkdir(parents=True, exist_ok=True)
    final, partial = folder / name, folder / f".partial-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(arrays, partial / ARRAYS)
    (partial / STATE).write_text(json.dumps(state))
    manifest = {file: _digest(partial / file) for file in (ARRAYS, STATE)}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in partial.iterdir():
        sync(path)
    sync(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    write_text(folder / LATEST, name)
    for old in sorted(p for p in folder.iterdir() if _is_whole(p))[:-KEPT]:
        shutil.rmtree(old)
    return final


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint back as the tree that was saved (arrays are NumPy arrays).

    Raises:
        CheckpointError: the folder is missing, incomplete, or a file's hash is wrong.
    """
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}.")
    for file, digest in json.loads((path / MANIFEST).read_text()).items():
        if not (path / file).is_file() or _digest(path / file) != digest:
            raise CheckpointError(f"{path / file} is damaged: its SHA-256 is not the manifest's.")
    tree = json.loads((path / STATE).read_text())
    for key, array in load_file(path / ARRAYS).items():
        *parents, leaf = key.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = array
    return dict(tree)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    pointer = folder / LATEST
    if pointer.is_file() and _is_whole(folder / pointer.read_text().strip()):
        return folder / pointer.read_text().strip()
    whole = sorted(p for p in folder.iterdir() if _is_whole(p)) if folder.is_dir() else []
    return whole[-1] if whole else None


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """The exact state of a NumPy generator; its integers stay integers."""
    state = generator.bit_generator.state
    return {**state, "state": {k: str(v) for k, v in state["state"].items()}}


def set_generator_state(generator: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put a generator into a state read by `generator_state`."""
    numbers = {key: int(value) for key, value in state["state"].items()}
    generator.bit_generator.state = {**state, "state": numbers}


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole: written beside it, synced, renamed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_whole(path: Path) -> bool:
    return not path.name.startswith(".") and (path / MANIFEST).is_file()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split(node: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    """Move the arrays of a tree into `arrays`; what is left can be written as JSON."""
    if isinstance(node, Mapping):
        rest = {}
        for key, value in node.items():
            name = str(key)
            assert SEPARATOR not in name, name
            if hasattr(value, "__array__"):
                arrays[prefix + name] = np.asarray(_numpy(value), order="C")
            else:
                rest[name] = _split(value, f"{prefix}{name}{SEPARATOR}", arrays)
        return rest
    if isinstance(node, (list, tuple)):
        return [_split(item, prefix, arrays) for item in node]
    if isinstance(node, (bool, int, float, str)) or node is None:
        return node
    raise TypeError(f"{prefix}: a {type(node).__name__} cannot be a leaf of a checkpoint")


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
