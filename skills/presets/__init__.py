"""Presets are data: `<learner>.toml` with a table per flavour (`cpu`, `paper`) and environment.

`[cpu.default]` holds for every environment, `[cpu.half-cheetah]` is laid over it. A table holds
settings of `DiscoverConfig`: its own, and those of its parts `method`, `agent` and `loop`. One with
`like = "half-cheetah"` is laid over that environment's.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from etude.errors import unknown


def load(learner: str, env: str, flavour: str) -> dict[str, Any]:
    """The settings of one preset, environment over default; `UsageError` for an unknown flavour."""
    table = _read(learner) or {"cpu": {}}
    if flavour not in table:
        raise unknown(f"preset of {learner}", flavour, table)
    blocks = table[flavour]
    return _overlay(blocks.get("default", {}), _block(blocks, env) if env in blocks else {})


def names(learner: str) -> dict[str, tuple[str, ...]]:
    """Flavours of a learner's presets and the environments each is tuned for."""
    return {
        flavour: tuple(k for k in blocks if k != "default")
        for flavour, blocks in _read(learner).items()
    }


def _read(learner: str) -> dict[str, Any]:
    """The whole file, named as the learner's; empty if there is none."""
    file = resources.files(__package__) / f"{learner.replace('-', '_')}.toml"
    return tomllib.loads(file.read_text()) if file.is_file() else {}


def _block(blocks: dict[str, Any], env: str) -> dict[str, Any]:
    """The settings of an environment, over those of the one that it is `like`."""
    own = dict(blocks[env])
    like = own.pop("like", "")
    return _overlay(_block(blocks, like), own) if like else own


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _overlay(base[key], value) if both else value
    return merged
