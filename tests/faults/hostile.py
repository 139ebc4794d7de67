"""Hostile libraries: each function turns a good tiny library into one that must be refused.

`python hostile.py FOLDER` writes them all. `python hostile.py FOLDER --load` writes them, loads a
good library so that every lazy import is done, then loads them under an audit hook and a limit of
memory, and prints what happened as JSON: per case the error, seconds of the processor and events.
Unless a case is about the manifest, the manifest agrees with the files: no hash shows the damage.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from etude.skills.library import MLP, SetData, SkillLibrary, write
from etude.skills.spaces import Sphere

INDEX, SKILLS, MANIFEST = "library.json", "skills.jsonl", "MANIFEST.json"
WEIGHTS, ENCODERS = "weights.safetensors", "encoders.safetensors"
NORMALISER, GOLDEN = "normaliser.safetensors", "golden.safetensors"
MEMORY = 512 * 2**20  # bytes of address space that loading may add
SYSTEM = "os.system"
PICKLE = b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."
ENV: dict[str, Any] = {
    "id": "crab",
    "body": "crab",
    "fields": [{"name": "x", "dim": 2}, {"name": "joints", "dim": 3}],
    "task_fields": [],
    "action_dim": 3,
    "dt": 0.05,
}

Change = Callable[[Path], object]
CASES: dict[str, tuple[str, str, Change]] = {}  # name -> file and cause in the sentence, change


def good(path: Path) -> Path:
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
        policy=net(7, 8, 3, output="tanh"),
        encoders={"phi": net(2, 8, 2, inputs=("obs",), input_fields=("x",))},
        mean=np.arange(5) * 0.1,
        std=np.arange(5) + 0.5,
        skills=[{"id": i, "z": z} for i, z in enumerate(space.even(3))],
        metrics={"coverage": 12},
    )
    return write(path, sets=[data], env=ENV, provenance={"seed": 3}, name="crab")


# How a library is changed


def put(name: str, data: bytes) -> Change:
    """Replace a file and make the manifest agree."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)
        manifest = json.loads((folder / MANIFEST).read_text())
        listing = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][name] = listing
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return change


def text(name: str, old: str, new: str) -> Change:
    """Replace text in a file once."""

    def change(folder: Path) -> None:
        data = (folder / name).read_text()
        assert old in data, (name, old)
        put(name, data.replace(old, new, 1).encode("utf-8", "surrogateescape"))(folder)

    return change


def index(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Edit library.json as data."""

    def change(folder: Path) -> None:
        data = json.loads((folder / INDEX).read_text())
        edit(data)
        put(INDEX, json.dumps(data).encode())(folder)

    return change


def tensors(name: str, edit: Callable[[dict[str, Any]], object]) -> Change:
    """Edit the arrays of a file."""

    def change(folder: Path) -> None:
        arrays = {k: v.copy() for k, v in load_tensors((folder / name).read_bytes()).items()}
        edit(arrays)
        put(name, save_tensors(arrays))(folder)

    return change


def header(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Edit the header of the weights as data; the bytes of the tensors stay."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:end])
        edit(entries)
        put(WEIGHTS, framed(json.dumps(entries).encode(), data[end:]))(folder)

    return change


def framed(head: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file: length of the header, header, bytes."""
    return struct.pack("<Q", len(head) if length is None else length) + head + body


def manifest(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Edit what the manifest lists."""

    def change(folder: Path) -> None:
        data = json.loads((folder / MANIFEST).read_text())
        edit(data["files"])
        (folder / MANIFEST).write_text(json.dumps(data))

    return change


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Put something else where a file was."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def link(path: Path) -> None:
    outside = path.parent.with_suffix(".outside")
    outside.write_text("outside")
    path.symlink_to(outside)


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sparse(size: int) -> Callable[[Path], None]:
    """A file of `size` bytes that takes no space."""

    def make(path: Path) -> None:
        path.write_bytes(b'{"name": "')
        os.truncate(path, size)

    return make


def case(name: str, file: str, match: str, change: Change) -> None:
    assert name not in CASES
    CASES[name] = (file, match, change)


def policy(**entries: Any) -> Change:
    return index(lambda i: i["sets"][0]["policy"].update(entries))


def one_set(**entries: Any) -> Change:
    return index(lambda i: i["sets"][0].update(entries))


def env(**entries: Any) -> Change:
    return index(lambda i: i["env"].update(entries))


def row(line: str) -> Change:
    return put(SKILLS, line.encode() + b"\n")


def golden_bomb(folder: Path) -> None:
    """A few megabytes of observations that a wide layer turns into 13 GB."""
    n, wide = 400_000, 8192
    arrays = {f"main/{k}": np.zeros((n, w), "f4") for k, w in (("obs", 5), ("action", 3))}
    arrays["main/z"] = np.tile(np.float32([1, 0]), (n, 1))
    shapes = {"0/weight": (7, wide), "0/bias": wide, "1/weight": (wide, 3), "1/bias": 3}
    weights = {f"main/policy/{k}": np.zeros(shape, "f4") for k, shape in shapes.items()}
    put(GOLDEN, save_tensors(arrays))(folder)
    put(WEIGHTS, save_tensors(weights))(folder)
    policy(sizes=[7, wide, 3])(folder)


def field_bomb(folder: Path) -> None:
    """One wide field, read 300,000 times: 20 GB of columns."""
    wide = 8192
    arrays = {f"main/{key}": np.ones(wide + 3, "f4") for key in ("mean", "std")}
    put(NORMALISER, save_tensors(arrays))(folder)
    env(fields=[{"name": "x", "dim": wide}, {"name": "joints", "dim": 3}])(folder)
    policy(input_fields=["x"] * 300_000)(folder)


def offsets(key: str, *values: int) -> Change:
    return header(lambda h: h[key].update(data_offsets=[*values]))


FORBIDDEN = (
    *("import", "exec", "compile", "subprocess", "socket", "ctypes", "pickle", "marshal"),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove", "os.rename"),
    *("os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.putenv", "shutil"),
)
DEEP, FORTY = ("[" * n + "]" * n for n in (10_000, 40))
FIRST, BIAS = "main/policy/0/weight", "main/policy/0/bias"
NPY = np.lib.format.magic(1, 0) + b"\x10\x00{'descr': '|O'}\n"
HUGE = str(10**400)

# What is no safetensors file
case("pickle", WEIGHTS, "its header claims", put(WEIGHTS, PICKLE * 9))
case("npz", WEIGHTS, "its header claims", put(WEIGHTS, zipped({"a.npy": NPY})))
case("torch-zip", WEIGHTS, "its header claims", put(WEIGHTS, zipped({"archive/data.pkl": PICKLE})))
BOMB = zipped({"weights": b"\0" * 10**7}, zipfile.ZIP_DEFLATED)
case("zip-bomb", NORMALISER, "its header claims", put(NORMALISER, BOMB))
case("header-200-mb", WEIGHTS, "header claims 200", put(WEIGHTS, framed(b"{}", length=200 * 10**6)))
case("header-2-62", ENCODERS, "its header claims", put(ENCODERS, framed(b"{}", length=2**62)))
case("header-cut", WEIGHTS, "malformed", put(WEIGHTS, framed(b'{"main/policy/0/weight": {"dty')))
case("header-no-json", WEIGHTS, "malformed", put(WEIGHTS, framed(b"import os #")))
case("header-list", WEIGHTS, "an object is expected", put(WEIGHTS, framed(b"[1, 2]")))
case("header-deep", WEIGHTS, "recursion", put(WEIGHTS, framed(f'{{"a": {DEEP}}}'.encode())))
TWICE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2
case(
    "header-key-twice",
    WEIGHTS,
    "stands twice",
    put(WEIGHTS, framed(b"{" + TWICE[:-1] + b"}", b"0000")),
)
# Tensors that are not there
case("shape-10-12", WEIGHTS, "malformed", header(lambda h: h[FIRST].update(shape=[10**12, 1])))
case("shape-negative", WEIGHTS, "malformed", header(lambda h: h[FIRST].update(shape=[-7, -8])))
case("shape-overflow", WEIGHTS, "malformed", header(lambda h: h[FIRST].update(shape=[2**63, 2])))
case("overlap", WEIGHTS, "malformed", offsets(FIRST, 0, 224))
case("gap", WEIGHTS, "malformed", header(lambda h: h.pop(BIAS)))
case("out-of-file", WEIGHTS, "malformed", offsets(FIRST, 10**9, 10**9 + 224))
case("dtype-object", WEIGHTS, "not F32", header(lambda h: h[FIRST].update(dtype="O")))
# JSON
SEED = '"seed": 3'
case("json-pickle", INDEX, "malformed", put(INDEX, PICKLE))
case("json-key-twice", INDEX, "stands twice", text(INDEX, SEED, f'{SEED}, "seed": 4'))
case("json-not-utf-8", INDEX, "utf-8", text(INDEX, SEED, '"seed": "\udcff"'))
case("json-utf-16", INDEX, "utf-8", put(INDEX, '{"schema": "1.0"}'.encode("utf-16")))
case("json-half-character", INDEX, "surrogates", text(INDEX, SEED, '"seed": "\\ud800"'))
case("json-deep", INDEX, "recursion", text(INDEX, SEED, f'"seed": {DEEP}'))
case("json-deep-40", INDEX, "nested more than", text(INDEX, SEED, f'"seed": {FORTY}'))
case("json-huge-integer", INDEX, "digits", text(INDEX, SEED, f'"seed": {HUGE}'))
case("json-nan", INDEX, "NaN is not JSON", text(INDEX, SEED, '"seed": NaN'))
case("json-infinity", INDEX, "Infinity is not JSON", text(INDEX, SEED, '"seed": -Infinity'))
case("json-1e999", INDEX, "too large", text(INDEX, SEED, '"seed": 1e999'))
# The manifest and the folder
SOME = {"size": 1, "sha256": "0"}
for name, place in (("parent", "../x"), ("absolute", "/etc/passwd"), ("backslash", "..\\x")):
    case(f"path-{name}", MANIFEST, "lists a path", manifest(lambda m, p=place: m.update({p: SOME})))
case("manifest-code", MANIFEST, "unknown file", manifest(lambda m: m.update({"x.py": SOME})))
LONG = manifest(lambda m: m.update({"a" * 10**6: SOME}))
case("manifest-long-name", MANIFEST, "unknown file|larger", LONG)
case("manifest-1-gb-name", MANIFEST, "is larger than", instead(MANIFEST, sparse(10**9 + 20)))
case("manifest-deep", MANIFEST, "recursion", lambda f: (f / MANIFEST).write_text(DEEP))
MORE = '{"_target_": "os.system", "files": {}}'
case("manifest-more", MANIFEST, "unknown entry", lambda f: (f / MANIFEST).write_text(MORE))
case("sha-wrong", "README.md", "is damaged", manifest(lambda m: m["README.md"].update(sha256="0")))
case("size-wrong", WEIGHTS, "manifest says 7", manifest(lambda m: m[WEIGHTS].update(size=7)))
case("file-1-gb-name", INDEX, "larger than", instead(INDEX, sparse(10**9 + 20)))
case("file-missing", SKILLS, "missing from the folder", lambda f: (f / SKILLS).unlink())
case(
    "file-extra", "evil.pkl", "not in the manifest", lambda f: (f / "evil.pkl").write_bytes(PICKLE)
)
case("link-outside", "README.md", "a symbolic link", instead("README.md", link))
case("directory", WEIGHTS, "not a plain file", instead(WEIGHTS, Path.mkdir))
case("fifo", SKILLS, "not a plain file", instead(SKILLS, os.mkfifo))
# Names of code, and entries that this format does not have
case("learner", INDEX, "learner of a set", one_set(learner=SYSTEM))
case("target-policy", INDEX, "unknown entry '_target_'", policy(_target_=SYSTEM))
case("target-config", INDEX, "underscore", one_set(config={"a": [{"_target_": SYSTEM}]}))
FIELDS = [{"name": "x", "dim": 2}, {"name": "builtins.eval", "dim": 3}]
case("field-class-path", INDEX, "observation field", env(fields=FIELDS))
case("target-env", INDEX, "underscore", env(constants={"_target_": SYSTEM}))
case("target-skill", SKILLS, "underscore", row('{"set":"main","id":1,"z":[1,0],"_target_":"x"}'))
case("policy-kind", INDEX, "choose one of mlp, open_loop", policy(kind="torchscript"))
case("activation", INDEX, "unknown activation", policy(activation="__import__('os')"))
case("activation-long", INDEX, "at most 64", policy(activation="a" * 3_000_000))
case("schema-newer", INDEX, "newer etude", index(lambda i: i.update(schema="9.0")))
case("entry-missing", INDEX, "no entry 'provenance'", index(lambda i: i.pop("provenance")))
case("entry-extra", INDEX, "unknown entry 'hook'", index(lambda i: i.update(hook=SYSTEM)))
case("set-name", SKILLS, "no entry .main.", one_set(name="../main"))
case("name-terminal", INDEX, "cannot be used", index(lambda i: i.update(name="\x1b[2J")))
case("space-huge", INDEX, "whole number", one_set(space={"kind": "sphere", "dim": 10**12}))
case("fields-many", INDEX, "there may be", env(fields=[{"name": "x", "dim": 1}] * 100_000))
# Networks, skills and numbers
case("input-field-bomb", INDEX, "reads an input field twice", field_bomb)
case("golden-bomb", GOLDEN, "golden observations", golden_bomb)
case("weights-nan", WEIGHTS, "NaN", tensors(WEIGHTS, lambda t: t[FIRST].fill(np.nan)))
case("weights-inf", ENCODERS, "NaN", tensors(ENCODERS, lambda t: t["main/phi/0/bias"].fill(np.inf)))
case("weights-huge", GOLDEN, "golden", tensors(WEIGHTS, lambda t: t[FIRST].fill(3e38)))
NARROW = tensors(WEIGHTS, lambda t: t.update({FIRST: np.zeros((7, 9), "f4")}))
case("layers-do-not-fit", WEIGHTS, "layer 0 has", NARROW)
case("sizes-long", WEIGHTS, "no entry", policy(sizes=[1] * 10**6))
case("std-zero", INDEX, "must be positive", tensors(NORMALISER, lambda t: t["main/std"].fill(0)))
case("z-length", SKILLS, "no skill of", row('{"set":"main","id":1,"z":[1,0,0]}'))
case("z-infinite", SKILLS, "too large", row('{"set":"main","id":1,"z":[1e999,0]}'))
case("golden", GOLDEN, "misses", tensors(GOLDEN, lambda t: t["main/action"].__iadd__(0.1)))


def write_all(folder: Path) -> None:
    """One folder per case."""
    whole = good(folder / "good")
    for name, (_, _, change) in CASES.items():
        (folder / name).mkdir()
        for file in whole.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        change(folder / name)


def foreign(event: str, args: tuple[Any, ...], folder: Path) -> bool:
    """Whether an audit event is one that no library may cause."""
    if event == "open":  # a descriptor was opened before, by an event of its own
        path = args[0]
        return isinstance(path, str | bytes) and Path(os.fsdecode(path)).absolute().parent != folder
    return event.startswith(FORBIDDEN)


def load_all(folder: Path) -> dict[str, Any]:
    """Load every case, and the controls, under an audit hook, a limit of memory and a clock."""
    SkillLibrary.load(folder / "good").act(np.zeros(5), [1, 0])
    current: list[Any] = [None, []]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if current[0] is not None and foreign(event, args, current[0]):
            current[1].append(f"{event} {str(args)[:100]}")

    def watched(load: Callable[[Path], object], path: Path) -> dict[str, Any]:
        start = time.process_time()
        current[:] = [path, []]
        try:
            load(path)
            kind, sentence = "", ""
        except Exception as error:  # noqa: BLE001  # every kind is reported
            kind, sentence = type(error).__name__, str(error)
        events, current[0] = current[1], None
        seconds = time.process_time() - start
        return {"kind": kind, "text": sentence, "events": events, "seconds": seconds}

    sys.addaudithook(hook)
    limit_memory()
    found = {name: watched(SkillLibrary.load, folder / name) for name in ["good", *CASES]}
    found["greedy"] = watched(lambda _: bytearray(2 * MEMORY), folder)
    return {**found, "guilty": watched(guilty, folder)}


def guilty(folder: Path) -> None:
    """What the hook must see: a file outside opened, code compiled and run, a module imported."""
    (folder / "good" / INDEX).read_bytes()
    exec(compile("import this_module_is_not_there", "text", "exec"))


def limit_memory() -> None:
    """Let the process grow by `MEMORY` at most, where the system has such a limit."""
    status = Path("/proc/self/statm")
    if status.exists():
        import resource

        used = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    write_all(target)
    if "--load" in sys.argv:
        sys.stdout.write(json.dumps(load_all(target)))
