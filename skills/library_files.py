"""The library on disk, format 1.0: JSON and safetensors, every byte under a manifest, no code.

    library.json            what it is: environment, provenance, parents, and per set the learner,
                            its settings, the skill space and the architectures
    skills.jsonl            one line per skill: its set, id, z and whatever is known of it
    weights.safetensors     SET/policy/LAYER/{weight,bias}, float32
    encoders.safetensors    SET/ENCODER/LAYER/{weight,bias}
    normaliser.safetensors  SET/{mean,std}: frozen, of the raw body observation
    golden.safetensors      SET/{obs,z,action}: what the policy must answer, to 1e-5
    README.md               a card for people
    MANIFEST.json           size and SHA-256 of each file above; its own hash is the library's id

Reading trusts nothing. `verify` compares names, sizes and hashes before anything is parsed; each
file is read once and parsed from those bytes; nothing in it names a class, a module or a path.
The hashes guard against damage, not against an author: what is read is checked as data all the
same, so that a hostile library can at worst act badly in the simulator.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from etude.checkpoint import sync
from etude.errors import LibraryError, UsageError
from etude.skills.library_card import card
from etude.skills.library_data import POLICY, Contents, SetData, body_fields
from etude.skills.library_json import only, parse, printable, reading, word
from etude.skills.mlp import ACTIVATIONS, MLP, OUTPUTS
from etude.skills.spaces import Array, SkillSpace

SCHEMA = (1, 2)  # 1.1: policies of kind "open_loop"; 1.2: encoders of kind "dynamics"
INDEX, SKILLS, CARD, MANIFEST = "library.json", "skills.jsonl", "README.md", "MANIFEST.json"
WEIGHTS, ENCODERS = "weights.safetensors", "encoders.safetensors"
NORMALISER, GOLDEN = "normaliser.safetensors", "golden.safetensors"
MEBIBYTE = 2**20
LIMITS = {  # bytes
    INDEX: 4 * MEBIBYTE,
    SKILLS: 64 * MEBIBYTE,
    WEIGHTS: 512 * MEBIBYTE,
    ENCODERS: 512 * MEBIBYTE,
    NORMALISER: 16 * MEBIBYTE,
    GOLDEN: 64 * MEBIBYTE,
    CARD: 4 * MEBIBYTE,
    MANIFEST: MEBIBYTE,
}
LISTED = frozenset(LIMITS) - {MANIFEST}
MAX_HEADER = MEBIBYTE  # bytes of JSON at the start of a safetensors file
GOLDEN_ROWS, GOLDEN_SEED, GOLDEN_TOLERANCE = 32, 0, 1e-5
MAX_GOLDEN_ROWS = 1024  # few bytes of observations may make a wide network need much memory
INDEX_ENTRIES = {"schema", "name", "env", "sets", "provenance", "parents"}
SET_ENTRIES = {"name", "learner", "config", "space", POLICY, "encoders", "metrics"}
NET_ENTRIES = {"kind", "sizes", "activation", "output", "inputs", "input_fields"}
KINDS = {"mlp": set[str](), "open_loop": {"knots", "hold"}, "dynamics": {"output_fields"}}
"""Kinds of networks, and the entries that each has beside those of all."""

Tensors = dict[str, Array]


def write(path: Path, contents: Contents) -> Path:
    """Write a library as the new folder `path`: beside it first, read back, then renamed.

    Raises:
        UsageError: `path` exists; a library is never overwritten.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists, and a library is never overwritten: choose another path.")
    files = _encode(contents)
    listing = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    }
    files[MANIFEST] = _json({"files": listing})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            (partial / name).write_bytes(data)
            sync(partial / name)
        sync(partial)
        read(partial)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(path.parent)
    return path


def read(folder: Path, allow_newer: bool = False) -> Contents:
    """Verify a library, then parse it and check its golden actions.

    Raises:
        LibraryError: anything is missing, damaged, foreign or newer than this version.
    """
    files, digest = verify(folder)
    with reading(folder / INDEX):
        index = parse(files[INDEX])
        if not _check_schema(index, allow_newer):
            _check_entries(index)
        heads = {head["name"]: head for head in index["sets"]}
        if len(heads) < len(index["sets"]):
            raise ValueError("two sets have one name")
    with reading(folder / SKILLS):
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in heads}
        for line in files[SKILLS].splitlines():
            row = parse(line)
            rows[row.pop("set")].append(row)
    tensors = {
        name: _tensors(folder / name, files[name])
        for name in (WEIGHTS, ENCODERS, NORMALISER, GOLDEN)
    }
    sets = [_set(folder, head, rows[name], tensors) for name, head in heads.items()]
    with reading(folder / INDEX):
        known = {key: index[key] for key in ("name", "env", "provenance", "parents")}
        contents = Contents(sets=sets, id=digest, **known)
    for data in sets:
        _check_golden(folder / GOLDEN, contents, data, tensors[GOLDEN])
    for name, rest in tensors.items():
        if rest:
            raise LibraryError(f"{folder / name}: unknown tensor {sorted(rest)[0]}.")
    return contents


def verify(folder: Path) -> tuple[dict[str, bytes], str]:
    """The bytes of every file, all as the manifest says, and the SHA-256 of the manifest.

    Raises:
        LibraryError: a file is missing, unlisted, a link, too large, or not what was written.
    """
    present = _regular_files(folder)
    if MANIFEST not in present:
        raise LibraryError(f"{folder} is no skill library: it has no {MANIFEST}.")
    manifest = _bytes(folder / MANIFEST, LIMITS[MANIFEST])
    with reading(folder / MANIFEST):
        expected = _listing(manifest)
    for name in expected:
        if name not in LISTED:
            kind = "a path" if {"/", "\\"} & set(name) or name == ".." else "an unknown file"
            raise LibraryError(
                f"{folder / MANIFEST} lists {kind}, {name!r:.80}: not a library of ours."
            )
    for name in sorted(LISTED):
        if name not in expected or name not in present:
            where = "the manifest" if name in present else "the folder"
            raise LibraryError(f"{folder / name} is missing from {where}: get the library again.")
    if extra := sorted(present - LISTED - {MANIFEST}):
        raise LibraryError(f"{folder / printable(extra[0])} is not in the manifest: remove it.")
    files: dict[str, bytes] = {}
    for name, (size, digest) in expected.items():
        data = _bytes(folder / name, LIMITS[name], size)
        if hashlib.sha256(data).hexdigest() != digest:
            raise LibraryError(f"{folder / name} is damaged: its SHA-256 is not the manifest's.")
        files[name] = data
    return files, hashlib.sha256(manifest).hexdigest()


def _listing(manifest: bytes) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file that a manifest names."""
    index = parse(manifest)
    only("the manifest", index, {"files"})
    if b"\n" in manifest and not manifest.endswith(b"\n"):
        raise ValueError("its last line is cut off")
    listing = {}
    for name, file in index["files"].items():
        only("a file", file, {"size", "sha256"})
        size, digest = file["size"], file["sha256"]
        if type(size) is not int or not isinstance(digest, str):
            raise TypeError("a size must be a whole number, a SHA-256 a text")
        listing[name] = (size, digest)
    return listing


def _regular_files(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise LibraryError(f"{folder} is no folder.")
    names = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
                what = "a symbolic link" if entry.is_symlink() else "not a plain file"
                name = printable(entry.name)
                raise LibraryError(f"{folder / name} is {what}: a library has none.")
            names.add(entry.name)
    return names


def _bytes(path: Path, limit: int, size: int | None = None) -> bytes:
    """Read a plain file of at most `limit` bytes, never through a link, never more than that.

    A file that is too large, or not of the expected `size`, is refused before it is read.
    """
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe must not block
    try:
        descriptor = os.open(path, os.O_RDONLY | flags)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise LibraryError(f"{path} is not a plain file.")
            if status.st_size > limit:
                raise LibraryError(f"{path} is larger than the {limit} bytes that are read.")
            data = b"" if size not in (None, status.st_size) else file.read(status.st_size)
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror}.") from error
    if size not in (None, status.st_size):
        raise LibraryError(f"{path} has {status.st_size} bytes, the manifest says {size}.")
    return data


def _check_schema(index: Mapping[str, Any], allow_newer: bool) -> bool:
    """Whether the format is a newer one that may hold entries unknown to this version."""
    major, minor = (int(part) for part in str(index["schema"]).split("."))
    if major != SCHEMA[0] or (minor > SCHEMA[1] and not allow_newer):
        ours = ".".join(map(str, SCHEMA))
        raise UsageError(
            f"format {major}.{minor} cannot be read by this version, which reads {ours}: "
            f"{'install a newer etude' if (major, minor) > SCHEMA else 'write it again'}."
        )
    return minor > SCHEMA[1]


def _check_entries(index: Mapping[str, Any]) -> None:
    """Raise ValueError for an entry that the format does not have: it would be passed over."""
    only("the library", index, INDEX_ENTRIES)
    for head in index["sets"]:
        only("a set", head, SET_ENTRIES)
        only("a skill space", head["space"], {"kind", "dim"})
        for net in (head[POLICY], *head["encoders"].values()):
            only("a network", net, NET_ENTRIES | KINDS.get(str(net["kind"]), set()))


def _tensors(path: Path, data: bytes) -> Tensors:
    """The float32 arrays of a safetensors file; the header is bounded before it is parsed."""
    with reading(path):
        length = int.from_bytes(data[:8], "little")
        if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
            raise ValueError(f"its header claims {length} bytes")
        for name, entry in parse(data[8 : 8 + length]).items():
            if name != "__metadata__" and entry["dtype"] != "F32":
                raise ValueError(f"tensor {name} is {entry['dtype']}, not F32")
        tensors: Tensors = load_tensors(data)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise LibraryError(f"{path}: tensor {name} has NaN or infinite entries.")
    return tensors


def _set(
    folder: Path,
    head: Mapping[str, Any],
    rows: list[dict[str, Any]],
    tensors: Mapping[str, Tensors],
) -> SetData:
    """Build one set, taking its tensors out of `tensors`."""
    with reading(folder / INDEX):
        name, encoders = str(head["name"]), dict(head["encoders"])
        space = SkillSpace.from_json(head["space"])
        about = {key: head[key] for key in ("learner", "config", "metrics")}
        specs = {POLICY: head[POLICY], **encoders}
        for key, spec in specs.items():
            _check_net(f"{name}/{key}", spec)
    nets = {}
    for key, spec in specs.items():
        file = WEIGHTS if key == POLICY else ENCODERS
        with reading(folder / file):
            nets[key] = _mlp(spec, tensors[file], f"{name}/{key}")
    with reading(folder / NORMALISER):
        mean, std = (tensors[NORMALISER].pop(f"{name}/{key}") for key in ("mean", "std"))
    policy = nets.pop(POLICY)
    with reading(folder / INDEX):
        data = SetData(
            name=name, space=space, policy=policy, encoders=nets, mean=mean, std=std, skills=[],
            **about,
        )  # fmt: skip
    with reading(folder / SKILLS):
        return dataclasses.replace(data, skills=rows)


def _check_net(prefix: str, spec: Mapping[str, Any]) -> None:
    """Raise ValueError unless the words of an architecture are short, known and distinct."""
    acting = prefix.endswith(f"/{POLICY}")
    word(f"the kind of {prefix}", spec["kind"], {*KINDS} - ({"dynamics"} if acting else set()))
    word("activation", spec["activation"], {*ACTIVATIONS})
    word("output", spec["output"], {*OUTPUTS})
    for what, named in (("reads an input", "input_fields"), ("predicts a", "output_fields")):
        chosen = [word(f"a field of {prefix}", field) for field in spec.get(named) or ()]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"{prefix} {what} field twice")


def _mlp(spec: Mapping[str, Any], tensors: Tensors, prefix: str) -> MLP:
    sizes, chosen = list(spec["sizes"]), spec["input_fields"]
    layers = [
        (tensors.pop(f"{prefix}/{i}/weight"), tensors.pop(f"{prefix}/{i}/bias"))
        for i in range(len(sizes) - 1)
    ]
    net = MLP(
        layers,
        activation=spec["activation"],
        output=spec["output"],
        inputs=tuple(spec["inputs"]),
        input_fields=None if chosen is None else tuple(chosen),
        **{key: spec[key] for key in set().union(*KINDS.values()) & spec.keys()},
    )
    if net.to_json()["kind"] != spec["kind"]:
        raise ValueError(f'{prefix} plans {net.period} steps, which kind "{spec["kind"]}" does not')
    if list(net.sizes) != sizes:
        raise ValueError(f"{prefix} has widths {list(net.sizes)}, {INDEX} says {sizes}")
    return net


def _check_golden(path: Path, contents: Contents, data: SetData, golden: Tensors) -> None:
    """Compare the policy's actions with those stored when the library was written."""
    with reading(path):
        obs, z, expected = (golden.pop(f"{data.name}/{key}") for key in ("obs", "z", "action"))
        if not 1 <= len(obs) <= MAX_GOLDEN_ROWS:
            raise ValueError(f"{len(obs)} golden observations, 1 to {MAX_GOLDEN_ROWS} are read")
        policy = data.on_raw(data.policy, body_fields(contents.env))
        with np.errstate(all="ignore"):
            actions = policy(obs, data.space.check(z))
        if actions.shape != expected.shape:
            raise ValueError(f"golden actions of shape {expected.shape}, not {actions.shape}")
    error = float(np.abs(actions - expected).max(initial=0))
    if not error <= GOLDEN_TOLERANCE:
        raise LibraryError(
            f'{path}: the policy of set "{data.name}" misses its golden actions by {error:.2g} '
            f"(at most {GOLDEN_TOLERANCE:g} is accepted): this is not the policy that was saved."
        )


def _encode(contents: Contents) -> dict[str, bytes]:
    """Every file but the manifest."""
    tensors: dict[str, Tensors] = {WEIGHTS: {}, ENCODERS: {}, NORMALISER: {}, GOLDEN: {}}
    heads = []
    for data in contents.sets:
        nets = {POLICY: data.policy, **data.encoders}
        for key, net in nets.items():
            file = tensors[WEIGHTS if key == POLICY else ENCODERS]
            for i, (weight, bias) in enumerate(net.weights):
                file[f"{data.name}/{key}/{i}/weight"] = weight
                file[f"{data.name}/{key}/{i}/bias"] = bias
        tensors[NORMALISER] |= {f"{data.name}/mean": data.mean, f"{data.name}/std": data.std}
        tensors[GOLDEN] |= _golden(contents, data)
        heads.append(_head(data))
    index = {
        "schema": _schema(contents),
        **{f.name: getattr(contents, f.name) for f in dataclasses.fields(contents)},
        "sets": heads,
    }
    del index["id"]
    rows = [{"set": data.name, **row} for data in contents.sets for row in data.skills]
    return {
        INDEX: _json(index),
        SKILLS: "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode(),
        CARD: card(contents).encode(),
        **{name: save_tensors(arrays) for name, arrays in tensors.items()},
    }


def _schema(contents: Contents) -> str:
    """The oldest format that has what these contents need."""
    nets = [net for data in contents.sets for net in (data.policy, *data.encoders.values())]
    minors = {"mlp": 0, "open_loop": 1, "dynamics": 2}
    return f"{SCHEMA[0]}.{max(minors[net.to_json()['kind']] for net in nets)}"


def _head(data: SetData) -> dict[str, Any]:
    return {
        "name": data.name,
        "learner": data.learner,
        "config": data.config,
        "space": data.space.to_json(),
        POLICY: data.policy.to_json(),
        "encoders": {key: net.to_json() for key, net in data.encoders.items()},
        "metrics": data.metrics,
    }


def _golden(contents: Contents, data: SetData) -> Tensors:
    """Observations around the normaliser's mean, skills of the prior, and the policy's answers."""
    rng = np.random.default_rng(GOLDEN_SEED)
    noise = rng.standard_normal((GOLDEN_ROWS, len(data.mean)), np.float32)
    obs, z = data.mean + data.std * noise, data.space.sample(rng, GOLDEN_ROWS)
    action = data.on_raw(data.policy, body_fields(contents.env))(obs, z)
    return {f"{data.name}/{key}": a for key, a in (("obs", obs), ("z", z), ("action", action))}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
