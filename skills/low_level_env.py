"""Fine-tuning with any algorithm of stable-baselines3: one level learns, the other stays.

    env = LowLevelEnv(gymnasium.make("etude/AntMultiGoal-v0"), library, controller, k=25)
    model = to_sb3(library, env)                          # SAC that acts as the library does
    model.learn(100_000)

A controller that stays as it is belongs to the environment: what it chose, and for how long, stand
in the observation, and an environment step is a step of learning. Beside `SkillEnv`, where the
controller learns and the skills stay, these are the two augmented processes of Zhang and Whiteson
2019, "DAC: The Double Actor-Critic Architecture for Learning Options" (arXiv:1904.12691); taken in
turns, they approximate `etude.skills.finetune`, in which both levels share one value.

`to_sb3(library, env, z)` begins with a single skill in the plain environment: the best one is a
start that saves a flat agent its exploration (Eysenbach et al. 2019, arXiv:1802.06070).

Shapes: O observation of the environment, Z skill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from etude.errors import LibraryError, UsageError
from etude.skills.controllers.base import Controller
from etude.skills.field_maps import Env, FieldMap, action_differences
from etude.skills.library import SkillLibrary
from etude.skills.mlp import columns

if TYPE_CHECKING:
    from etude.agents.skill_critic import Algorithm

Layers = list[tuple[np.ndarray, np.ndarray]]


class LowLevelEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Primitive actions under a controller that names a skill every k steps.

    Observations are (O + Z + 1,): those of the environment, the skill, and the share of its k
    steps that is over. Rewards and ends are the environment's. Info has `skill` = {z, step}.
    """

    def __init__(
        self, env: Env, library: SkillLibrary, controller: Controller, k: int = 25
    ) -> None:
        """Wrap an environment, with its time limit.

        Args:
            env: what the skills act in.
            library: whose skills the controller names.
            controller: sees the raw observation and names the skill; stays as it is.
            k: environment steps per decision, at least 1.

        Raises:
            LibraryError: the library's skills cannot act here.
            UsageError: observations are no vectors, or k is below 1.
        """
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UsageError(f"observations must be vectors, and {space} are not: flatten them.")
        if k < 1:
            raise UsageError(f"k = {k} steps per decision: choose a whole number >= 1.")
        FieldMap.for_env(env, library)
        if lines := action_differences(env, library):
            raise LibraryError(f"library {library.name} cannot act here:{''.join(lines)}")
        self.library, self.controller, self.k = library, controller, k
        low = np.concatenate((space.low, np.full(library.space.dim, -np.inf), [0]))
        high = np.concatenate((space.high, np.full(library.space.dim, np.inf), [1]))
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self._z, self._held = np.zeros(library.space.dim, np.float32), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode, and its first decision."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.controller.reset(obs[None])
        self._decide(obs)
        return self._shown(obs), self._with_skill(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One environment step; after the k-th of a decision the controller makes the next."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._held += 1
        if self._held == self.k:
            self._decide(obs)
        return self._shown(obs), float(reward), terminated, truncated, self._with_skill(info)

    def _decide(self, obs: np.ndarray) -> None:
        self._z, self._held = self.library.space.check(self.controller.act(obs[None])[0]), 0

    def _shown(self, obs: np.ndarray) -> np.ndarray:
        return np.concatenate((obs, self._z, [self._held / self.k])).astype(np.float32)

    def _with_skill(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "skill": {"z": self._z, "step": self._held}}


def to_sb3(
    library: SkillLibrary,
    env: Env,
    z: ArrayLike | None = None,
    algo: str = "SAC",
    log_std: float = -2.0,
    **settings: Any,
) -> Algorithm:
    """An algorithm of stable-baselines3 that begins by acting as the library does.

    Its deterministic action is `library.act(observation, z)`: normaliser and skill are worked into
    the first layer, and what the skill does not look at begins with weights of zero.

    Args:
        library: the skills.
        env: what it is to learn in; without `z` a `LowLevelEnv`, which shows the skill.
        z: the one skill to begin with.
        algo: "SAC", or "TD3", which has no noise of its own.
        log_std: of SAC's noise before the squashing; a library keeps means only.
        settings: for the algorithm's constructor, such as `learning_starts`.

    Raises:
        LibraryError: the library's skills cannot act here.
        UsageError: no such algorithm, no skill of the library, or one that cannot be a start.
    """
    from etude.agents.skill_critic import actor_model  # stable-baselines3, when it is wanted

    if library.period > 1:
        raise UsageError(f"plans of {library.period} steps cannot act as a policy of every step.")
    if isinstance(env, LowLevelEnv) == (z is not None):
        raise UsageError("give z for a plain environment, and none for a LowLevelEnv.")
    layers = _on_raw(library, env, z)
    return actor_model(algo, env, layers, library.data.policy.activation, log_std, **settings)


def _on_raw(library: SkillLibrary, env: Env, z: ArrayLike | None) -> Layers:
    """The policy's layers, with the first on raw observations of `env`."""
    net, field_map = library.data.policy, _field_map(library, env)
    assert env.observation_space.shape is not None
    [width] = env.observation_space.shape
    picked = columns(library.fields, net.input_fields)
    mean, std = (v.astype(np.float64)[picked] for v in (library.data.mean, library.data.std))
    (first, bias), *rest = net.weights
    body, skill = first[: len(mean)] / std[:, None], first[len(mean) :]
    weight = np.zeros((width, first.shape[1]))
    weight[field_map.columns[picked]] = body
    shift = bias - mean @ body
    if z is None:
        weight[width - 1 - library.space.dim : width - 1] = skill
    else:
        shift = shift + library.space.check(z) @ skill
    return [(weight, shift), *rest]


def _field_map(library: SkillLibrary, env: Env) -> FieldMap:
    """Where the observation of `env` shows what the skills see."""
    found = FieldMap.for_env(env.env if isinstance(env, LowLevelEnv) else env, library)
    if found.from_simulator:
        raise UsageError(
            f"{env.unwrapped} does not show what the skills see: make one of etude's environments."
        )
    return found
