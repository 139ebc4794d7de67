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
    from etude.skills.finetune import FinetuneConfig, finetune
    from etude.skills.library import SkillLibrary
    from etude.skills.low_level_env import LowLevelEnv, to_sb3
    from etude.skills.vec_env import SkillVecEnv

_HOMES = {
    "ComposeConfig": "etude.skills.compose",
    "Discovery": "etude.skills.discovery",
    "FinetuneConfig": "etude.skills.finetune",
    "LowLevelEnv": "etude.skills.low_level_env",
    "SMDPReplayBuffer": "etude.agents.smdp",
    "SMDPRolloutBuffer": "etude.agents.smdp",
    "SkillEnv": "etude.skills.env",
    "SkillLibrary": "etude.skills.library",
    "SkillVecEnv": "etude.skills.vec_env",
    "compose": "etude.skills.compose",
    "export": "etude.skills.export",
    "finetune": "etude.skills.finetune",
    "make_vec": "etude.envs.registry",
    "preset": "etude.skills.discovery",
    "to_sb3": "etude.skills.low_level_env",
}

__all__ = [
    "ComposeConfig",
    "Discovery",
    "FinetuneConfig",
    "LowLevelEnv",
    "SMDPReplayBuffer",
    "SMDPRolloutBuffer",
    "SkillEnv",
    "SkillLibrary",
    "SkillVecEnv",
    "compose",
    "export",
    "finetune",
    "make_vec",
    "preset",
    "to_sb3",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("etude-rl")
    if name not in _HOMES:
        raise AttributeError(f"module 'etude' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
