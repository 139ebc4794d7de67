"""What the batched engine asks of a body (a mechanism) and of a task (goals, rewards, an ending).

Bodies and tasks are stateless descriptions: every method works on rows of many simulations at once
and keeps nothing, so that whatever changes from step to step lives in the engine, where it can be
saved, restored and copied.

Shapes: n rows of the call, A action, G task fields, D descriptor, S task state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.envs.spec import EnvSpec


@dataclass(frozen=True)
class Mark:
    """A disc that is only seen, such as the place of a goal."""

    place: tuple[float, float, float]
    """Its centre, m."""
    radius: float
    """m."""
    colour: tuple[float, float, float, float] = (1.0, 0.83, 0.23, 0.6)
    """Red, green, blue, opacity."""


@dataclass(frozen=True)
class View:
    """Rows of the simulator, float64; treat them as read-only."""

    qpos: np.ndarray  # (n, nq)
    qvel: np.ndarray  # (n, nv)
    extra: Mapping[str, np.ndarray]  # the derived fields that the body names in `outputs`, (n, …)

    def only(self, which: slice | np.ndarray) -> View:
        """Some rows, for reading: copies, or this view where all are asked for by a slice."""
        return self if isinstance(which, slice) else self.rows(which)

    def rows(self, which: slice | np.ndarray) -> View:
        """A copy of some rows."""
        extra = {name: np.array(values[which]) for name, values in self.extra.items()}
        return View(np.array(self.qpos[which]), np.array(self.qvel[which]), extra)


class Body(ABC):
    """A mechanism with actuators in [-1, 1] and named sensors."""

    spec: EnvSpec
    frame_skip: int
    """Simulator steps per environment step."""
    outputs: tuple[str, ...] = ()
    """Derived MjData fields to show in `View.extra`, as they stand after `mj_step`."""
    camera: str | None = None
    """Name of the model's camera to render from; None: a free camera that sees the whole model."""
    persistent_from: int | None = None
    """Number of environments from which one MjData per simulation is the faster choice."""

    @abstractmethod
    def model(self) -> Any:
        """A new `mujoco.MjModel` of the mechanism, or a table that brings its own batch."""

    @abstractmethod
    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a start for one simulation: qpos (nq,) and qvel (nv,)."""

    @abstractmethod
    def observe(self, view: View) -> np.ndarray:
        """The body fields, (n, body_dim)."""

    def control(self, action: np.ndarray) -> np.ndarray:
        """Actuator controls (n, nu) of clipped actions (n, A)."""
        return action

    def descriptor(self, view: View) -> np.ndarray:
        """What coverage is measured in, (n, D)."""
        return view.qpos[:, : len(self.spec.descriptor)]

    def reward(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        """The body's own dense reward, (n,); zero where it has none."""
        return np.zeros(len(action))

    def terminated(self, view: View) -> np.ndarray:
        """Whether the body's episode has come to an end of its own, (n,) bool."""
        return np.zeros(len(view.qpos), dtype=bool)


class Task(ABC):
    """Goals on top of a body: extra fields, a (sparse) reward and perhaps an ending.

    A task's reward takes the place of the body's. A task that wants more than the state tells, such
    as the body's own reward, adds it in `dense`.
    """

    spec: EnvSpec
    body: Body
    state_dim: int
    """Floats per environment that the engine keeps for the task and saves with the state."""
    has_success: bool = True
    """Whether there is something to succeed in; else infos do not speak of it."""

    @abstractmethod
    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Begin one episode: the start (moved or as given) and the task state (S,)."""

    @abstractmethod
    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The task fields, (n, G), of task states (n, S)."""

    @abstractmethod
    def step(
        self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Advance the task states (n, S) in place after a step of the body.

        Returns:
            Reward (n,), terminated (n,) bool, success (n,) bool.
        """

    def dense(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        """Reward beside that of `step`, for the way there: (n,), by default nothing."""
        return np.zeros(len(action))

    def marks(self, state: np.ndarray) -> list[Mark]:
        """What a picture shows of one task state (S,), by default nothing."""
        return []
