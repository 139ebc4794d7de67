"""Environments: batched MuJoCo bodies, downstream tasks on them, and their Gymnasium names.

Importing this package registers the names and nothing else: MuJoCo is imported by the first
environment that is made.
"""

import gymnasium

GYMNASIUM_IDS = {
    "etude/Ant-v0": ("ant", 200),
    "etude/HalfCheetah-v0": ("half-cheetah", 200),
    "etude/PointOpen-v0": ("point-open", 200),
    "etude/PointMazeU-v0": ("point-maze-u", 300),
    "etude/PointMazeLarge-v0": ("point-maze-large", 600),
    "etude/PointOpenGoal-v0": ("point-open-goal", 200),
    "etude/PointMazeUGoal-v0": ("point-maze-u-goal", 300),
    "etude/PointMazeLargeGoal-v0": ("point-maze-large-goal", 600),
    "etude/HalfCheetahGoal-v0": ("half-cheetah-goal", 200),
    "etude/AntMultiGoal-v0": ("ant-multi-goal", 200),
}
"""Gymnasium's name -> our id and the time limit of an episode in steps."""


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
