"""A Stable-Baselines3 SAC or TD3 policy as a library of one skill, read as weights only.

SB3's own loader unpickles the entry `data` of the zip, which can run any code. Here that entry is
never opened: of the zip only `policy.pth` is read, by the unpickler of torch that builds nothing
but tensors (`weights_only`, sound from torch 2.10 on), and what it holds is checked as data.

The weights do not tell which activation stands between them; SB3's default for SAC and TD3 is
ReLU. They do not hold the statistics of a `VecNormalize` either: a policy that was trained behind
one acts wrongly without it. Actions are those of `model.predict(deterministic=True)`, scaled to
[-1, 1] as the environment takes them.

PPO is refused: it clips a linear output, and the format knows policies that end in tanh.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.envs import registry
from etude.errors import UsageError
from etude.skills.library import SetData, write
from etude.skills.mlp import MAX_LAYERS, MAX_WIDTH, MLP
from etude.skills.spaces import Array, Discrete

LEARNER = "imported"
MIN_TORCH = (2, 10)
POLICY = "policy.pth"
MAX_POLICY = 512 * 2**20  # bytes of policy.pth, and of the tensors in it
MAX_ENTRIES = 1024  # of a zip
ENTRIES = re.compile(r"data|[A-Za-z0-9_.]+[.]pth|_stable_baselines3_version|system_info[.]txt")
RECORDS = re.compile(r"[A-Za-z0-9_-]+/([A-Za-z0-9_.]+|data/[0-9]+|[.]data/[A-Za-z0-9_]+)")
ACTOR = re.compile(r"actor[.](?:(latent_pi|mu)[.])?(?:([0-9]+|mu|log_std)[.])(weight|bias)")
UNREADABLE = (
    zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, NotImplementedError, RuntimeError, OverflowError, AssertionError, struct.error,
)  # fmt: skip  # what files of the wrong shape make zipfile and torch raise

Layers = list[tuple[Array, Array]]


@dataclass(frozen=True)
class Actor:
    """The policy found in a zip."""

    algorithm: str
    """"sac" or "td3"."""
    layers: Layers
    """(W (in, out), b (out,)) from the observation to the action before tanh."""
    sha256: str
    """Of `policy.pth`."""


def import_sb3(
    source: Path,
    env: str,
    out: Path,
    *,
    activation: str = "relu",
    skill_dim: int = 0,
    name: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a library at `out` whose policy is the one in an SB3 zip.

    Args:
        source: the zip that `model.save` wrote.
        env: id of the environment it was trained in; gives names to its observation.
        out: folder to create.
        activation: between the layers, "relu" or "tanh".
        skill_dim: 0 for a policy of the observation alone, which becomes the one skill of
            `Discrete(1)`; n for a policy that reads, after the observation, which of n skills to
            follow, as a one-hot vector.
        name: the library's name; ENV-ALGORITHM if empty.
        provenance: what made it; file and hash are added.

    Raises:
        UsageError: `out` exists, or the zip holds no such policy of the environment's sizes.
    """
    spec = registry.spec(env)
    if skill_dim < 0:
        raise UsageError(f"skill_dim = {skill_dim}: choose 0 (no skill input) or more.")
    actor = read(source)
    found = (len(actor.layers[0][0]), len(actor.layers[-1][1]))
    if found != (spec.body_dim + skill_dim, spec.action_dim):
        skill = f" and {skill_dim} skills" if skill_dim else ""
        raise UsageError(
            f"{source}: its policy reads {found[0]} values and gives {found[1]} actions, but the "
            f"body of {env} has {spec.body_dim} values{skill} and {spec.action_dim} actions: "
            "name the environment it was trained in with --env."
        )
    return write(
        out,
        sets=[_set(actor, activation, spec.body_dim, skill_dim)],
        env=spec.to_json(),
        provenance={
            **(provenance or {}),
            "imported_from": source.name,
            "policy_sha256": actor.sha256,
        },
        name=name or f"{env}-{actor.algorithm}",
    )


def _set(actor: Actor, activation: str, body_dim: int, skill_dim: int) -> SetData:
    """The policy as a set, behind a normaliser that changes nothing."""
    space = Discrete(max(skill_dim, 1))
    return SetData(
        name=LEARNER,
        learner=LEARNER,
        config={"algorithm": actor.algorithm, "activation": activation},
        space=space,
        policy=MLP(actor.layers, activation, "tanh", ("obs", "z") if skill_dim else ("obs",)),
        encoders={},
        mean=np.zeros(body_dim, np.float32),
        std=np.ones(body_dim, np.float32),
        skills=[{"id": i, "name": f"skill-{i}", "z": z} for i, z in enumerate(np.eye(space.dim))],
    )


def read(source: Path) -> Actor:
    """The deterministic policy in an SB3 zip; runs nothing of what the zip holds.

    Raises:
        UsageError: no such file, no zip of SB3, or a policy that is no SAC or TD3 MLP.
    """
    _check_torch()
    data = _policy_bytes(source)
    try:
        _check_records(data)
        state = _load(data)
        algorithm, layers = _actor(state)
    except UNREADABLE as error:
        raise UsageError(f"{source}: {POLICY} cannot be imported: {str(error)[:300]}.") from error
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    return Actor(algorithm, layers, hashlib.sha256(data).hexdigest())


def _check_torch() -> None:
    from importlib.metadata import version

    found = version("torch")
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < MIN_TORCH:
        least = ".".join(map(str, MIN_TORCH))
        raise UsageError(
            f"torch {found} reads weights with an unpickler that could run code: "
            f"install torch {least} or newer to import a policy."
        )


def _policy_bytes(source: Path) -> bytes:
    """`policy.pth` out of the zip, whose names and sizes are checked; nothing else is opened."""
    if not source.is_file():
        raise UsageError(f"{source} is no file: name the zip that SB3's `model.save` wrote.")
    try:
        with zipfile.ZipFile(source) as archive:
            for entry in _entries(archive, ENTRIES):
                if entry.filename == POLICY:
                    return archive.read(entry)
    except UNREADABLE as error:
        raise UsageError(f"{source} is no zip of SB3: {str(error)[:300]}.") from error
    raise UsageError(f"{source} is no zip of SB3: it has no {POLICY}.")


def _entries(archive: zipfile.ZipFile, names: re.Pattern[str]) -> list[zipfile.ZipInfo]:
    """What a zip holds; ValueError for a foreign name, one that stands twice, or a large size."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"it has {len(entries)} entries, at most {MAX_ENTRIES} are read")
    if len({e.filename for e in entries}) < len(entries):
        raise ValueError("two of its entries have one name")
    for entry in entries:
        if not names.fullmatch(entry.filename):
            raise ValueError(f"its entry {entry.filename!r:.80} is none that SB3 or torch writes")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(
                f"its entry {entry.filename} is compressed or encrypted, as SB3 writes none"
            )
        if entry.filename == POLICY and entry.file_size > MAX_POLICY:
            raise ValueError(f"{POLICY} has {entry.file_size} bytes, at most {MAX_POLICY} are read")
    return entries


def _check_records(data: bytes) -> None:
    """Refuse a `policy.pth` that is no plain zip of torch, or larger inside than outside."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in _entries(archive, RECORDS))
    if size > len(data):
        raise ValueError(f"its records claim {size} bytes")


def _load(data: bytes) -> Mapping[str, Any]:
    """The state dict, by the unpickler of torch that builds nothing but tensors."""
    import torch

    refused = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]
    try:
        state = torch.load(  # noqa: TID251
            io.BytesIO(data), map_location="cpu", weights_only=True
        )
    except refused as error:
        raise ValueError(
            f"it holds more than weights: {str(error).splitlines()[0][:150]}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise TypeError("it is no state dict")
    return state


def _actor(state: Mapping[str, Any]) -> tuple[str, Layers]:
    """Algorithm and layers of the actor of a state dict."""
    if "action_net.weight" in state:
        raise UsageError(
            "this is a PPO or A2C policy, which clips a linear output; a library's policies end "
            "in tanh: import a SAC or TD3 policy, or train one."
        )
    keys = [key for key in state if key.startswith("actor.")]
    if not keys:
        raise UsageError("its policy has no actor: import a SAC or TD3 policy.")
    if unknown := [key for key in keys if not ACTOR.fullmatch(key)]:
        raise UsageError(
            f"its actor has {unknown[0]!r:.80}, which is no part of a plain MLP: import a policy "
            "made by MlpPolicy, without gSDE, convolutions or normalisation layers."
        )
    if "actor.mu.weight" in state:
        hidden = [f"actor.latent_pi.{i}" for i in _indices(keys, "actor.latent_pi.")]
        return "sac", _layers(state, [*hidden, "actor.mu"])
    return "td3", _layers(state, [f"actor.mu.{i}" for i in _indices(keys, "actor.mu.")])


def _indices(keys: list[str], prefix: str) -> list[int]:
    """Places of the linear layers of an `nn.Sequential`: 0, 2, 4 …, an activation after each."""
    tails = [key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)]
    found = sorted({int(tail) for tail in tails})
    if found != list(range(0, 2 * len(found), 2)):
        raise UsageError(
            f"the layers of its actor stand at {found[:20]}, not at 0, 2, 4 …: it has other layers "
            "beside linear ones, and only a plain MLP can be imported."
        )
    return found


def _layers(state: Mapping[str, Any], names: list[str]) -> Layers:
    """(W, b) of the named linear layers; torch keeps W as (out, in)."""
    if not 1 <= len(names) <= MAX_LAYERS:
        raise UsageError(f"its actor has {len(names)} layers, 1 to {MAX_LAYERS} can be imported.")
    return [
        (np.ascontiguousarray(_array(state, f"{n}.weight", 2).T), _array(state, f"{n}.bias", 1))
        for n in names
    ]


def _array(state: Mapping[str, Any], key: str, ndim: int) -> Array:
    """A float32 tensor as an array, after its shape was bounded: its strides may be a lie."""
    import torch

    tensor = state[key]
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
        raise TypeError(f"{key} is no plain tensor")
    if tensor.dtype is not torch.float32 or tensor.device.type != "cpu" or tensor.ndim != ndim:
        raise TypeError(f"{key} is {tensor.dtype} with {tensor.ndim} axes, not float32 with {ndim}")
    if max(tensor.shape) > MAX_WIDTH or min(tensor.shape) < 1:
        raise ValueError(f"{key} is {tuple(tensor.shape)}: widths go from 1 to {MAX_WIDTH}")
    array: Array = np.array(tensor.detach().numpy(), np.float32)
    return array
