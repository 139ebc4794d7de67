"""Datasets: what a run has collected, as files that another run learns from.

    python train.py discover metra --env ant --save-dataset data/ant      # collect and keep
    python train.py discover choreographer --env ant --dataset data/ant   # learn, without a step

A dataset is a folder with `manifest.json` and pieces `FIRST.safetensors`, each with the transitions
of S steps of N environments:

    observation (S, N, O)   action (S, N, A)   skill (S, N, Z)     float32, observations raw
    terminated (S, N)       truncated (S, N)                       bool, how the episode ended
    episode (S, N)          time (S, N)                            int32, steps with this skill
    next_index (K,)         next_observation (K, O)                where it is no stored observation

The observation after a step is the one of the next step in the same environment, save for the K
entries S * N that `next_index` lists: the ends of episodes and of the piece. The manifest has the
environment's spec, the normaliser, the skill space, provenance, the size and the SHA-256 of every
piece, and its own hash. Reading runs no code, and uses nothing that was not verified first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from etude.agents.replay import OPEN, Replay
from etude.checkpoint import Rows, disk, generator_state
from etude.envs.spec import EnvSpec
from etude.errors import DatasetError, UsageError
from etude.skills.library_json import MALFORMED, only, parse, printable
from etude.skills.spaces import SkillSpace

FORMAT, MANIFEST, SEAL = 1, "manifest.json", "sha256"
PIECE = 2**22
"""Bytes of transitions in a file, about."""
LARGEST = 2**28
"""Bytes of a file, at most, that are read into memory."""
FLOATS = ("observation", "action", "skill")
FLAGS = {"terminated": np.bool_, "truncated": np.bool_, "episode": np.int32, "time": np.int32}
ENTRIES = {"format", "env", "normaliser", "space", "num_envs", "first_step", "steps", "pieces"}
PIECE_ENTRIES = {"file", "steps", "size", SEAL}

Arrays = dict[str, np.ndarray]


def check_new(path: Path) -> None:
    """Raise UsageError if there is something at `path`: a dataset is never overwritten."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists, and a dataset is never overwritten: name another folder.")


def write(
    path: Path, replay: Replay, env: EnvSpec, space: SkillSpace, provenance: Mapping[str, Any]
) -> Path:
    """Write all transitions of `replay` as the new folder `path`, a piece at a time.

    Raises:
        UsageError: `path` exists, or nothing was collected.
    """
    check_new(path)
    n, total = replay.num_envs, replay.total
    first = total - len(replay) // n
    if first == total:
        raise UsageError(f"nothing was collected yet that {path} could hold: make some steps.")
    partial = path.with_name(f".{path.name}.partial")
    disk.remove(partial)
    disk.make(partial)
    pieces: list[dict[str, Any]] = []
    for begin, arrays in _pieces(replay, first):
        data, file = to_bytes(arrays), f"{begin:012d}.safetensors"
        disk.write(partial / file, data)
        facts = {"steps": len(arrays["time"]), "size": len(data), SEAL: _hash(data)}
        pieces.append({"file": file, **facts})
    body = {
        "format": FORMAT,
        "env": env.to_json(),
        "normaliser": {"mean": env.obs_mean, "std": env.obs_std},
        "space": space.to_json(),
        "num_envs": n,
        "first_step": first,
        "steps": total - first,
        "pieces": pieces,
        "provenance": dict(provenance),
    }
    disk.write(partial / MANIFEST, json.dumps({**body, SEAL: _seal(body)}, indent=1).encode())
    disk.sync(partial)
    disk.rename(partial, path)
    disk.sync(path.parent)
    return path


def _pieces(replay: Replay, first: int) -> Iterator[tuple[int, Arrays]]:
    """The arrays of each piece, and the step of the run that it begins with."""
    state, n = replay.state_dict(), replay.num_envs
    rows, last = state["rows"], state["last"].reshape(-1, n)
    cuts = np.cumsum(replay.widths)[:-1].tolist()
    each = max(1, PIECE // (4 * n * sum(replay.widths)))
    episode, count = np.arange(n, dtype=np.int32), n
    for begin in range(first, replay.total, each):
        step = np.arange(begin, min(begin + each, replay.total))
        block = rows.read(begin * n, (begin + len(step)) * n).reshape(len(step), n, -1)
        parts = np.split(block, cuts, axis=-1)
        obs, action, after, skill, terminated, time = parts
        ended = last[step % len(last)] == step[:, None]  # (S, N)
        episodes = np.empty(ended.shape, np.int32)
        for s, ends in enumerate(ended):
            episodes[s] = episode
            episode = np.where(ends, count + np.cumsum(ends) - 1, episode).astype(np.int32)
            count += int(ends.sum())
        apart = ended.copy()
        apart[-1] = True
        bits = after[:-1].view(np.int32) != obs[1:].view(np.int32)
        apart[:-1] |= bits.any(-1)
        died = terminated[..., 0] > 0
        arrays = {
            "observation": np.ascontiguousarray(obs),
            "action": np.ascontiguousarray(action),
            "skill": np.ascontiguousarray(skill),
            "terminated": died,
            "truncated": ended & ~died,
            "episode": episodes,
            "time": time[..., 0].astype(np.int32),
            "next_index": np.flatnonzero(apart).astype(np.int32),
            "next_observation": after[apart],
        }
        yield begin, arrays


@dataclass(frozen=True)
class Dataset:
    """A verified dataset."""

    path: Path
    id: str
    """SHA-256 of what the manifest says, and so of everything"""
    space: SkillSpace
    """of the skills that acted"""
    env: EnvSpec
    body: Mapping[str, Any]
    """the manifest"""

    @classmethod
    def load(cls, path: Path, env: EnvSpec) -> Self:
        """Verify the dataset at `path`, every file of it, for learning in `env`.

        Raises:
            DatasetError: there is none, it is damaged or no dataset of ours, or it was collected in
                another environment.
        """
        if not (path / MANIFEST).is_file():
            raise DatasetError(
                f"{path} is no dataset: it has no {MANIFEST}. `discover … --save-dataset {path}` "
                "makes one."
            )
        with _reading(path / MANIFEST):
            body = parse(_bytes(path / MANIFEST))
            seal = body.pop(SEAL, "")
            if body.get("format") != FORMAT:
                raise ValueError(f"format {body.get('format')!r} is not {FORMAT}, which is read")
            if seal != _seal(body):
                raise ValueError("its SHA-256 is not the one it ends with")
            only("the manifest", body, ENTRIES | {"provenance"})
            space = SkillSpace.from_json(body["space"])
            _check_env(path, body["env"], env)
            _check_pieces(body)
        found = cls(path, seal, space, env, body)
        for index in range(len(body["pieces"])):
            found.piece(index)
        return found

    @property
    def steps(self) -> int:
        """Transitions."""
        return int(self.body["steps"] * self.body["num_envs"])

    def replay(self, seed: int, device: str) -> Replay:
        """A replay with the dataset's transitions, which draws as the one that was saved."""
        n, first, steps = (self.body[key] for key in ("num_envs", "first_step", "steps"))
        sizes = self.env.obs_dim, self.env.action_dim, self.space.dim
        replay = Replay(steps * n, n, *sizes, seed, device)
        begins = np.cumsum([first, *(piece["steps"] for piece in self.body["pieces"])])
        block = lru_cache(maxsize=1)(self._block)

        def read(a: int, b: int) -> np.ndarray:
            parts = []
            for index, low in enumerate(begins[:-1] * n):
                high = begins[index + 1] * n
                if max(a, low) < min(b, high):
                    parts.append(block(index)[max(a - low, 0) : b - low])
            return np.concatenate(parts)

        replay.load_state_dict(
            {
                **replay.state_dict(),
                "total": first + steps,
                "rows": Rows(first * n, (first + steps) * n, read),
                "last": self._last(first, steps).ravel(),
                "generator": generator_state(replay.rng),
            }
        )
        return replay

    def piece(self, index: int) -> Arrays:
        """The arrays of a piece.

        Raises:
            DatasetError: it is damaged.
        """
        facts, path = self.body["pieces"][index], self.path / self.body["pieces"][index]["file"]
        with _reading(path):
            data = _bytes(path, facts["size"])
            if _hash(data) != facts[SEAL]:
                raise ValueError("its SHA-256 is not the manifest's")
            arrays: Arrays = from_bytes(data)
            self._check(arrays, facts["steps"])
        return arrays

    def _check(self, arrays: Arrays, steps: int) -> None:
        """Raise ValueError unless the arrays are what a piece of so many steps has."""
        n, obs = self.body["num_envs"], self.env.obs_dim
        sizes = zip(FLOATS, (obs, self.env.action_dim, self.space.dim), strict=True)
        shapes: dict[str, tuple[tuple[int, ...], Any]]
        shapes = {key: ((steps, n, width), np.float32) for key, width in sizes}
        shapes |= {key: ((steps, n), kind) for key, kind in FLAGS.items()}
        entries = arrays["next_index"].shape
        shapes |= {"next_index": (entries, np.int32)}
        shapes |= {"next_observation": ((*entries, obs), np.float32)}
        only("a piece", arrays, {*shapes})
        for key, (shape, kind) in shapes.items():
            if arrays[key].shape != shape or arrays[key].dtype != kind:
                raise ValueError(f"{key} is {arrays[key].dtype} {arrays[key].shape}, not {shape}")
            if kind == np.float32 and not np.isfinite(arrays[key]).all():
                raise ValueError(f"{key} has NaN or infinite entries")
        apart = np.zeros(steps * n, np.bool_)
        apart[arrays["next_index"]] = True
        ended = arrays["terminated"] | arrays["truncated"]
        if len(entries) != 1 or not (apart[ended.ravel()].all() and apart[-n:].all()):
            raise ValueError("an observation after the end of an episode is missing")

    def _block(self, index: int) -> np.ndarray:
        """The rows of a piece as a replay has them."""
        arrays = self.piece(index)
        obs = arrays["observation"]
        after = np.concatenate((obs[1:], obs[:1]))  # the last are all listed
        flat = after.reshape(-1, obs.shape[-1])
        flat[arrays["next_index"]] = arrays["next_observation"]
        flags = (arrays["terminated"][..., None], arrays["time"][..., None])
        parts = (obs, arrays["action"], after, arrays["skill"], *flags)
        rows = np.concatenate(parts, -1, dtype=np.float32, casting="unsafe")
        return np.asarray(rows.reshape(-1, rows.shape[-1]))

    def _last(self, first: int, steps: int) -> np.ndarray:
        """The step in which each transition's episode ended, (steps, N) in the ring's order."""
        flags = [self.piece(i) for i in range(len(self.body["pieces"]))]
        ended = np.concatenate([f["terminated"] | f["truncated"] for f in flags])
        step = np.arange(first, first + steps, dtype=np.int32)
        ends = np.where(ended, step[:, None], np.int32(OPEN))
        last = np.minimum.accumulate(ends[::-1])[::-1]
        return np.roll(last, first % steps, axis=0)


def _check_env(path: Path, known: Any, env: EnvSpec) -> None:
    """Raise DatasetError if the spec `known` is not that of `env`."""
    here = env.to_json()
    if differing := [key for key in here if known.get(key) != here[key]] or known.keys() - here:
        name, key = printable(known.get("id")), sorted(differing)[0]
        raise DatasetError(
            f'dataset {path} was collected in "{name}", and this is "{env.id}": they differ in '
            f'"{key}". Choose a dataset of this environment.'
        )


def _check_pieces(body: Mapping[str, Any]) -> None:
    """Raise ValueError unless the manifest's pieces follow one another and are of usual size."""
    for key in ("num_envs", "steps"):
        if type(body[key]) is not int or body[key] < 1:
            raise ValueError(f"{key} must be a whole number of at least 1")
    if type(body["first_step"]) is not int or body["first_step"] < 0:
        raise ValueError("first_step must be a whole number of at least 0")
    at = body["first_step"]
    for piece in body["pieces"]:
        only("a piece", piece, PIECE_ENTRIES)
        if piece["file"] != f"{at:012d}.safetensors":
            raise ValueError(f"piece {printable(piece['file'])} is not the one of step {at}")
        if not (type(piece["size"]) is type(piece["steps"]) is int and piece["steps"] > 0):
            raise ValueError("size and steps of a piece must be whole numbers")
        at += piece["steps"]
    if at != body["first_step"] + body["steps"] or at >= OPEN:
        raise ValueError(f"the pieces hold {at - body['first_step']} steps, not {body['steps']}")


def _bytes(path: Path, size: int | None = None) -> bytes:
    """A plain file of at most LARGEST bytes, or of exactly `size`."""
    if path.is_symlink() or not path.is_file():
        raise ValueError("it is missing, or no plain file")
    there = path.stat().st_size
    if there > LARGEST or size not in (None, there):
        raise ValueError(f"it has {there} bytes, the manifest says {size}")
    return path.read_bytes()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _seal(body: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is set."""
    return _hash(json.dumps(body, sort_keys=True).encode())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file becomes one sentence that names it."""
    try:
        yield
    except KeyError as error:
        raise DatasetError(f"{path} is malformed: it has no entry {printable(error)}.") from error
    except (*MALFORMED, UsageError, OSError, IndexError) as error:
        raise DatasetError(f"{path} is damaged: {printable(error)}.") from error
