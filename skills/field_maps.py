"""How an environment shows a library the body observation it was trained on.

A library names its fields, so it does not depend on where they stand in an observation. In the
project's own environments each field is found by name. Gymnasium's Ant-v5, HalfCheetah-v5 and
Walker2d-v5 are known too, with any of their options: their body observation is read from the
simulator (qpos, then qvel), because by default their observations leave the position out.

An environment that is not what the skills were made for is refused with a list of differences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from etude.errors import LibraryError
from etude.skills.library_data import differences
from etude.skills.mlp import columns, describe_fields

if TYPE_CHECKING:
    from etude.skills.library import SkillLibrary

Env = gymnasium.Env[Any, Any]

GYMNASIUM = {  # classes whose qpos and qvel are the fields of one of our bodies, in order
    "gymnasium.envs.mujoco.ant_v5.AntEnv": "ant",
    "gymnasium.envs.mujoco.half_cheetah_v5.HalfCheetahEnv": "half-cheetah",
    "gymnasium.envs.mujoco.walker2d_v5.Walker2dEnv": "walker2d",
}


@dataclass(frozen=True, eq=False)
class FieldMap:
    """Picks a library's body observation out of what an environment shows."""

    columns: NDArray[np.intp]
    """Entries to take, in the library's order."""
    from_simulator: bool = False
    """Take them from the simulator's (qpos, qvel) and not from the observation."""

    @classmethod
    def for_env(cls, env: Env, library: SkillLibrary) -> FieldMap:
        """The map for a Gymnasium environment.

        Raises:
            LibraryError: the environment is unknown, or differs from what the skills need.
        """
        found = environment_spec(env)
        from_simulator = not hasattr(env.unwrapped, "env_spec")
        lines = differences(library.env, found) + action_differences(env, library)
        if not from_simulator:
            lines += _observation_differences(env, found)
        registered = env.unwrapped.spec
        _refuse(lines, library, registered.id if registered else str(found["id"]))
        return cls(_columns(found, library), from_simulator)

    @classmethod
    def for_spec(cls, spec: Mapping[str, Any], library: SkillLibrary) -> FieldMap:
        """The map for an environment of ours, given as `EnvSpec.to_json` writes it."""
        _refuse(differences(library.env, spec), library, str(spec["id"]))
        return cls(_columns(spec, library))

    def __call__(self, obs: Any, info: Mapping[str, Any], unwrapped: Any) -> NDArray[Any]:
        """The raw body observation (B, O) of an observation (B, …)."""
        if self.from_simulator:
            obs = np.concatenate((unwrapped.data.qpos, unwrapped.data.qvel))
        return np.asarray(obs[..., self.columns])


def environment_spec(env: Env) -> dict[str, Any]:
    """What an environment is, as `EnvSpec.to_json` writes it.

    Raises:
        LibraryError: it is neither one of ours nor one of Gymnasium's that are built in.
    """
    unwrapped: Any = env.unwrapped
    if hasattr(unwrapped, "env_spec"):
        return dict(unwrapped.env_spec.to_json())
    kind = f"{type(unwrapped).__module__}.{type(unwrapped).__qualname__}"
    if kind not in GYMNASIUM:
        raise LibraryError(
            f"{kind} does not name its observation fields: use an environment of etude, "
            "Gymnasium's Ant-v5, HalfCheetah-v5 or Walker2d-v5, or pass "
            "field_map=function(obs, info, unwrapped) -> raw body observation."
        )
    from etude.envs.registry import spec  # needs mujoco, which such an environment has imported

    model = unwrapped.model
    own = spec(GYMNASIUM[kind]).to_json()
    mechanics = {
        "frame_skip": unwrapped.frame_skip,
        "timestep": model.opt.timestep,
        "gear": model.actuator_gear[:, 0].tolist(),
        "gravity": -float(model.opt.gravity[2]),
    }
    return {
        **own,
        "action_dim": model.nu,
        "dt": unwrapped.dt,
        "xml_sha256": hashlib.sha256(Path(unwrapped.fullpath).read_bytes()).hexdigest(),
        "constants": mechanics,
    }


def action_differences(env: Env, library: SkillLibrary) -> list[str]:
    """A line unless the environment takes the library's actions as they are."""
    space, dim = env.action_space, int(library.env["action_dim"])
    if isinstance(space, spaces.Box) and space == spaces.Box(-1, 1, (dim,), space.dtype.type):
        return []
    return [f"\n  actions: skills give {dim} values in [-1, 1], the environment takes {space}"]


def _observation_differences(env: Env, spec: Mapping[str, Any]) -> list[str]:
    """Lines for what stands between the environment's raw observation and its reader."""
    lines = []
    width = sum(f["dim"] for f in spec["fields"])
    if env.observation_space.shape != (width,):
        lines.append(
            f"\n  observation: {width} raw values are needed, found {env.observation_space}"
        )
    layer: Env = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.ObservationWrapper):
            lines.append(f"\n  observation: {type(layer).__name__} changes it; wrap SkillEnv in it")
        layer = layer.env
    return lines


def _columns(spec: Mapping[str, Any], library: SkillLibrary) -> NDArray[np.intp]:
    fields = {f["name"]: f["dim"] for f in spec["fields"]}
    return np.arange(sum(fields.values()))[columns(fields, tuple(library.fields))]


def _refuse(lines: list[str], library: SkillLibrary, env: str) -> None:
    if lines:
        raise LibraryError(
            f"library {library.name} cannot act in {env}, which differs from what its skills were "
            f"made for:{''.join(lines)}\nThey need {library.env['body']} with the fields "
            f"{describe_fields(library.fields)}."
        )
