"""Checkpoints: everything a run needs to go on exactly, as safetensors and JSON, never a pickle.

A checkpoint is a folder `NAME/` with `arrays.safetensors`, `state.json` and `manifest.json`, which
has the size and the SHA-256 of every file. It is written beside its final place, synced and
renamed, so a folder under its final name is whole; the file `latest` names the newest one and the
two newest are kept. A *tree* is a nested dictionary whose leaves are arrays (NumPy or torch),
`Rows`, numbers, strings, booleans, None, or lists of all but the first two.

`Rows` only ever grow at one end and are forgotten at the other. They stand in `rows/`, beside the
checkpoints, in files that several of these share, so that each save writes only what is new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from etude.errors import CheckpointError

ARRAYS, STATE, MANIFEST, LATEST = "arrays.safetensors", "state.json", "manifest.json", "latest"
ROWS = "rows"
SEPARATOR = "/"
FORMAT = 1
KEPT = 2
PIECE = 2**20  # bytes of rows in a file, at most: a save holds some seven times as many

logger = logging.getLogger("etude")

Written = dict[str, list[dict[str, Any]]]
"""The files of each log of rows that this process has written or verified."""


@dataclass(frozen=True)
class Rows:
    """Rows begin, ..., end - 1 of a log; `read(a, b)` gives some as an array (b - a, ...)."""

    begin: int
    end: int
    read: Callable[[int, int], np.ndarray]

    def pieces(self, most: int) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order, at most `most` at a time, each with the number of the first."""
        for a in range(self.begin, self.end, most):
            yield a, self.read(a, min(a + most, self.end))


class Disk:
    """The calls that change the disk; a test puts one that fails in its place."""

    def write(self, path: Path, data: bytes) -> None:
        """Create or replace a file and flush it."""
        path.write_bytes(data)
        self.sync(path)

    def sync(self, path: Path) -> None:
        """Flush a file or a folder."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make(self, path: Path) -> None:
        """Create a folder unless it exists."""
        path.mkdir(parents=True, exist_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name; replaces a file of that name."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Delete a file or a folder with all in it; a missing one is as good."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


disk = Disk()


def save(folder: Path, name: str, tree: Mapping[str, Any], written: Written | None = None) -> Path:
    """Write `tree` as the newest checkpoint `folder/name` and prune all but the two newest.

    Where that name is taken, by a run that was resumed from it or from before it, a "+" follows:
    nothing gives way before the new one is whole. Later names are of a future that did not come.

    `written` is the memory of a process between its saves; without it all rows are written again.

    Raises:
        OSError: the disk refused; the older checkpoints are untouched.
    """
    arrays: dict[str, np.ndarray] = {}
    logs: dict[str, Rows] = {}
    state = json.dumps(_split(tree, "", arrays, logs)).encode()
    disk.make(folder)
    name = max((f"{p.name}+" for p in folder.iterdir() if p.name.rstrip("+") == name), default=name)
    final, partial = folder / name, folder / f".partial-{name}"
    disk.remove(partial)
    disk.make(partial)
    written = {} if written is None else written
    body: dict[str, Any] = {"format": FORMAT, "files": {}, "rows": {}}
    for key, rows in logs.items():
        files = _append(folder, key, rows, written)
        body["rows"][key] = {"begin": rows.begin, "end": rows.end, "files": files}
    for file, data in ((ARRAYS, to_bytes(arrays)), (STATE, state)):
        disk.write(partial / file, data)
        body["files"][file] = _facts(data)
    disk.write(partial / MANIFEST, _sealed(body))
    disk.sync(partial)
    disk.rename(partial, final)
    disk.sync(folder)
    write_text(folder / LATEST, name)
    _prune(folder, name)
    return final


def load(path: Path, written: Written | None = None) -> dict[str, Any]:
    """Read a checkpoint back as the tree that was saved (arrays are NumPy arrays).

    Raises:
        CheckpointError: the folder is missing, incomplete, of another format, or a file is damaged.
    """
    body = _manifest(path)
    for file, facts in body["files"].items():
        _verify(path / file, facts)
    tree = json.loads((path / STATE).read_text())
    for key, array in load_file(path / ARRAYS).items():
        _insert(tree, key, array)
    for key, log in body["rows"].items():
        for facts in log["files"]:
            _verify(path.parent / ROWS / facts["file"], facts)
        _insert(tree, key, Rows(log["begin"], log["end"], _reader(path.parent, log["files"])))
        if written is not None:
            written[key] = list(log["files"])
    return dict(tree)


def load_newest(folder: Path, written: Written | None = None) -> dict[str, Any]:
    """The tree of the newest checkpoint that is not damaged; a damaged one is named in a warning.

    Raises:
        CheckpointError: there is none.
    """
    candidates = whole(folder)
    newest = latest(folder)
    if newest is not None:
        candidates = [newest, *(p for p in candidates if p != newest)]
    for path in candidates:
        try:
            return load(path, written)
        except CheckpointError as error:
            logger.warning("%s Trying the one before it.", error)
    raise CheckpointError(f"{folder} has no checkpoint that can be read: start again.")


def whole(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that were written to their end, newest first."""
    found = (p for p in folder.iterdir() if _is_whole(p)) if folder.is_dir() else ()
    return sorted(found, reverse=True)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    pointer = folder / LATEST
    if pointer.is_file():
        name = pointer.read_text(errors="replace").strip()
        if name in {p.name for p in whole(folder)}:
            return folder / name
    return next(iter(whole(folder)), None)


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
    disk.write(partial, text.encode())
    disk.rename(partial, path)
    disk.sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    disk.sync(path)


def _append(folder: Path, key: str, rows: Rows, written: Written) -> list[dict[str, Any]]:
    """Write the rows that no file has yet; the facts of all files that are needed, in order."""
    files = [f for f in written.get(key, ()) if f["end"] > rows.begin]
    new = max(rows.begin, files[-1]["end"] if files else rows.begin)
    if new < rows.end:
        disk.make(folder / ROWS)
        each = max(1, PIECE // max(rows.read(new, new + 1).nbytes, 1))
        for a, array in Rows(new, rows.end, rows.read).pieces(each):
            data = to_bytes({"rows": np.ascontiguousarray(array)})
            facts = {"begin": a, "end": a + len(array), **_facts(data)}
            facts["file"] = f"{a:012d}-{facts['sha256'][:16]}.safetensors"
            disk.write(folder / ROWS / facts["file"], data)
            files.append(facts)
        disk.sync(folder / ROWS)
    written[key] = files
    return files


def _reader(folder: Path, files: list[dict[str, Any]]) -> Callable[[int, int], np.ndarray]:
    def read(a: int, b: int) -> np.ndarray:
        parts = []
        for facts in files:
            low, high = max(a, facts["begin"]), min(b, facts["end"])
            if low < high:
                with safetensors.safe_open(folder / ROWS / facts["file"], "np") as file:
                    shift = facts["begin"]
                    parts.append(file.get_slice("rows")[low - shift : high - shift])
        return np.concatenate(parts)

    return read


def _prune(folder: Path, newest: str) -> None:
    """Delete what no kept checkpoint needs."""
    kept = [path for path in whole(folder) if path.name <= newest][:KEPT]
    needed: set[str] = set()
    for path in kept:
        with contextlib.suppress(CheckpointError):  # damaged, so that it needs nothing any more
            needed |= {f["file"] for r in _manifest(path)["rows"].values() for f in r["files"]}
    for path in folder.iterdir():
        if path.name.startswith(".partial-") or (_is_whole(path) and path not in kept):
            disk.remove(path)
    for path in (folder / ROWS).iterdir() if (folder / ROWS).is_dir() else ():
        if path.name not in needed:
            disk.remove(path)


def _is_whole(path: Path) -> bool:
    return not path.name.startswith(".") and (path / MANIFEST).is_file()


def _facts(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sealed(body: Mapping[str, Any]) -> bytes:
    """The manifest's text, which ends with its own hash."""
    text = json.dumps(body, indent=1, sort_keys=True)
    return f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, verified.

    Raises:
        CheckpointError: there is none, it is damaged, or of another format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}.")
    data = file.read_bytes()
    text, _, seal = data.removesuffix(b"\n").rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != seal or not data.endswith(b"\n"):
        raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one it ends with.")
    body: dict[str, Any] = json.loads(text)
    if body["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {body['format']}, this version reads {FORMAT}: "
            "go on with the version that wrote it."
        )
    return body


def _verify(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a file whose size or hash is not the manifest's."""
    if not path.is_file() or path.stat().st_size != facts["size"]:
        raise CheckpointError(f"{path} is damaged: it has not the size in the manifest.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's.")


def _insert(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(SEPARATOR)
    for parent in parents:
        tree = tree[parent]
    tree[leaf] = value


def _split(node: Any, prefix: str, arrays: dict[str, np.ndarray], logs: dict[str, Rows]) -> Any:
    """Move the arrays and the rows of a tree aside; what is left can be written as JSON."""
    if isinstance(node, Mapping):
        rest: dict[str, Any] = {}
        for key, value in node.items():
            name = str(key)
            assert SEPARATOR not in name, name
            if hasattr(value, "__array__"):
                arrays[prefix + name] = np.asarray(_numpy(value), order="C")
            elif isinstance(value, Rows):
                logs[prefix + name] = value
            else:
                rest[name] = _split(value, f"{prefix}{name}{SEPARATOR}", arrays, logs)
        return rest
    if isinstance(node, (list, tuple)):
        inside: dict[str, Any] = {}
        items = [_split(item, prefix, inside, inside) for item in node]
        if inside:
            raise TypeError(f"{next(iter(inside))}: a list of a checkpoint cannot hold arrays")
        return items
    if isinstance(node, (bool, int, float, str)) or node is None:
        return node
    raise TypeError(f"{prefix}: a {type(node).__name__} cannot be a leaf of a checkpoint")


def _numpy(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
