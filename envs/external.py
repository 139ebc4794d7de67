"""Tasks of gymnasium-robotics and OGBench, in the form that everything here expects.

    from etude.envs import external

    env = external.make("AntMaze_UMaze-v5")  # pip install 'etude-rl[robotics]'
    env = external.make("antmaze-large-v0")  # pip install 'etude-rl[ogbench]'

Observations are flat and named, arrival pays 1 and ends the episode, a seed fixes everything; see
`etude.envs.suites.adapter`. Nothing of a suite is imported before one of its tasks is asked for.
`docs/external.md` tells what runs and every constant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from etude.errors import UsageError


@dataclass(frozen=True)
class Suite:
    """One package with tasks."""

    extra: str
    """What to install: `etude-rl[extra]`."""
    package: str
    """Name to import."""
    module: str
    """Where its adapter stands."""
    pythons: str = ""
    """Versions of Python that it is limited to, in words."""
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Regular expression for "id entry-point" -> why such a task cannot be used."""

    def load(self) -> Any:
        """The adapter's module; importing it registers the tasks with Gymnasium.

        Raises:
            UsageError: the package is not installed.
        """
        try:
            return import_module(self.module)
        except ModuleNotFoundError as missing:
            raise UsageError(
                f"tasks of {self.package} need {missing.name}, which is not installed: "
                f"pip install 'etude-rl[{self.extra}]'{self.pythons}."
            ) from missing

    def ids(self) -> list[str]:
        """Names of the tasks that can be used, in the order of registration."""
        self.load()
        own = (name for name in gymnasium.registry if self._is_own(name))
        return [name for name in own if not self._why_not(name)]

    def check(self, env_id: str) -> None:
        """Raise UsageError unless this is a task that can be used."""
        known = self.ids()
        if env_id in known:
            return
        if env_id in gymnasium.registry and self._is_own(env_id):
            raise UsageError(f'"{env_id}" of {self.package} {self._why_not(env_id)}.')
        near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.5)
        raise UsageError(
            f'{self.package} has no task "{env_id}": '
            f"{'the nearest are' if near else 'there are'} {', '.join(near or known[:3])}; "
            f'etude.envs.external.ids("{self.extra}") names all {len(known)}.'
        )

    def _is_own(self, env_id: str) -> bool:
        return str(gymnasium.registry[env_id].entry_point).startswith(self.package + ".")

    def _why_not(self, env_id: str) -> str:
        text = f"{env_id} {gymnasium.registry[env_id].entry_point}"
        return next((why for what, why in self.refused.items() if re.search(what, text)), "")


SUITES = {
    "robotics": Suite(
        "robotics",
        "gymnasium_robotics",
        "etude.envs.suites.robotics",
        refused={
            r"MujocoPy|envs\.mujoco\.": "needs mujoco_py, which nobody keeps up: ask for the "
            "newest version of the task",
            r"^AntMaze_\w+-v[34] ": "is an old version: ask for -v5, whose robot is that of Ant-v5",
            r"^\w+Dense-|^AdroitHand(?!\w+Sparse)": "pays for more than arriving: ask for the "
            "one with a sparse reward",
        },
    ),
    "ogbench": Suite(
        "ogbench",
        "ogbench",
        "etude.envs.suites.ogbench",
        pythons=" (Python 3.11 or 3.12)",
        refused={
            r"^visual-": "shows pictures, which have no named fields: leave visual- out",
            r"^powderworld-": "shows pictures and takes numbers for actions, which skills do not",
            r"^humanoidmaze-teleport-": "does not start in OGBench 1.2.2: the XML of its robot "
            "lacks the material of the teleports",
        },
    ),
}
"""Name of the extra -> suite."""


def suite_of(env_id: str) -> Suite:
    """The suite that a name belongs to: OGBench's begin with a small letter, the others do not."""
    return SUITES["ogbench" if env_id[:1].islower() else "robotics"]


def ids(extra: str) -> list[str]:
    """The tasks of a suite that can be made here.

    Args:
        extra: "robotics" or "ogbench".

    Raises:
        UsageError: there is no such suite, or it is not installed.
    """
    if extra not in SUITES:
        raise UsageError(f'unknown suite "{extra}": choose {" or ".join(SUITES)}.')
    return SUITES[extra].ids()


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
        entry_point="etude.envs.suites.adapter:ExternalEnv",
        max_episode_steps=max_episode_steps or gymnasium.spec(env_id).max_episode_steps,
        kwargs={"env_id": env_id, **options},
    )
    return gymnasium.make(spec, render_mode=render_mode)
