"""Environments: batched MuJoCo bodies, downstream tasks on them, and their Gymnasium names.

Importing this package registers the names and nothing else: MuJoCo is imported by the first
environment that is made.
"""

import gymnasium

_CHANGED = (*(f"gravity-{n}" for n in (25, 50, 200, 500)), *(f"actuator-{n}" for n in (0, 30, 60)))
LIMITS = {
    "ant": 200,
    "ant-gear-30": 200,
    "half-cheetah": 200,
    "walker2d": 500,
    "reacher": 50,
    "pusher": 50,
    "line-24": 60,
    "four-rooms": 100,
    "point-box": 50,
    "point-open": 200,
    "point-maze-u": 300,
    "point-maze-large": 600,
    "line-option": 60,
    "four-rooms-option": 100,
    "point-nav": 50,
    "point-open-goal": 200,
    "point-maze-u-goal": 300,
    "point-maze-large-goal": 600,
    "half-cheetah-goal": 200,
    "half-cheetah-hurdle-metra": 200,
    "half-cheetah-hurdle-psd": 300,
    "half-cheetah-hurdle-diayn": 1000,
    "ant-multi-goal": 200,
    "ant-multi-goal-leg-60": 200,
    "ant-waypoints": 1000,
    "ant-waypoints-gear-30": 1000,
    "ant-maze-u": 700,
    "ant-maze-large": 1000,
    "reacher-sequence": 150,
    "push-sparse": 50,
    "half-cheetah-run": 1000,
    "reacher-dense": 50,
    **{f"{body}-{change}": 200 for body in ("ant", "half-cheetah") for change in _CHANGED},
}
"""Our id -> the time limit of an episode in steps."""

GYMNASIUM_IDS = {
    "etude/" + "".join(word.capitalize() for word in env_id.split("-")) + "-v0": (env_id, limit)
    for env_id, limit in LIMITS.items()
}
"""Gymnasium's name, such as "etude/HalfCheetahGoal-v0" -> our id and the time limit."""


def register() -> None:
    """Make every environment known to `gymnasium.make` and `gymnasium.make_vec`."""
    for name, (env_id, max_steps) in GYMNASIUM_IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="etude.envs.single:SingleEnv",
                vector_entry_point="etude.envs.single:make_batched",
                max_episode_steps=max_steps,
                kwargs={"env_id": env_id},
            )


register()
