"""Étude: discover skills without a reward, keep them in a library, compose them on sparse tasks.

Public names are loaded when they are first used, so `import etude` costs next to nothing and a
library loads and acts without torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etude.agents.smdp import SMDPReplayBuffer, SMDPRolloutBuffer
    from etude.envs.registry import make_vec
    from etude.skills.compose import ComposeConfig, compose
    from etude.skills.discovery import Discovery, preset
    from etude.skills.env import SkillEnv
    from etude.skills.export import export
    from etude.skills.library import SkillLibrary
    from etude.skills.vec_env import SkillVecEnv

_HOMES = {
    "ComposeConfig": "etude.skills.compose",
    "Discovery": "etude.skills.discovery",
    "SMDPReplayBuffer": "etude.agents.smdp",
    "SMDPRolloutBuffer": "etude.agents.smdp",
    "SkillEnv": "etude.skills.env",
    "SkillLibrary": "etude.skills.library",
    "SkillVecEnv": "etude.skills.vec_env",
    "compose": "etude.skills.compose",
    "export": "etude.skills.export",
    "make_vec": "etude.envs.registry",
    "preset": "etude.skills.discovery",
}

__all__ = [
    "ComposeConfig",
    "Discovery",
    "SMDPReplayBuffer",
    "SMDPRolloutBuffer",
    "SkillEnv",
    "SkillLibrary",
    "SkillVecEnv",
    "compose",
    "export",
    "make_vec",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("etude-rl")
    if name not in _HOMES:
        raise AttributeError(f"module 'etude' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
