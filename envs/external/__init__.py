"""Tasks of gymnasium-robotics and OGBench, in the form that everything here expects.

    from etude.envs import external

    env = external.make("AntMaze_UMaze-v5")  # pip install 'etude-rl[robotics]'
    env = external.make("antmaze-large-v0")  # pip install 'etude-rl[ogbench]'
    skill_env = etude.SkillEnv(env, "ant-metra", k=25)

Observations are flat and named, arrival pays 1 and ends the episode, a seed fixes everything; see
`etude.envs.external.adapter`. Nothing of either suite is imported before it is asked for.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from etude.envs.external.suites import ids, suite_of

__all__ = ["ids", "make"]


def make(
    env_id: str,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    **options: Any,
) -> gymnasium.Env[Any, Any]:
    """A task of another suite, with its time limit.

    Args:
        env_id: the suite's own name, such as "FetchReach-v4" or "antmaze-large-v0".
        max_episode_steps: time limit in steps; None: the suite's own.
        render_mode: "rgb_array" lets `render` draw; None: it draws nothing.
        options: what the suite's environment takes, such as `maze_map`.

    Raises:
        UsageError: the suite is not installed, or has no such task that can be used here.
    """
    suite = suite_of(env_id)
    suite.check(env_id)
    spec = EnvSpec(
        id=f"external/{env_id}",
        entry_point="etude.envs.external.adapter:ExternalEnv",
        max_episode_steps=max_episode_steps or gymnasium.spec(env_id).max_episode_steps,
        kwargs={"env_id": env_id, **options},
    )
    return gymnasium.make(spec, render_mode=render_mode)
