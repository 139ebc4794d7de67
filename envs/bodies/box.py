"""A point in the unit box, which steps by its action and stops at the walls.

The two-dimensional world of Eysenbach et al. 2019, "Diversity is All You Need" (arXiv:1802.06070):
no mass, no speed, a step of up to 0.1 along each axis. It needs no simulator, so it brings its own
batch. Deviation: episodes start within 0.01 of the centre, and not at it exactly.

Shapes: N environments.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from etude.envs.body import Body, Mark, View
from etude.envs.spec import EnvSpec, Field

STRIDE = 0.1
"""Step along each axis under a full control."""
NOISE = 0.01
"""Half-width of the uniform start around the centre."""
RADIUS = 0.02
"""Of the drawn point."""
PAPER, EDGE, POINT = (242, 240, 230), (64, 71, 84), (217, 84, 51)
"""Colours of a picture."""


class BoxBatch:
    """N points: what the engine uses of `mujoco.batch.Batch`, in NumPy."""

    nthread = 1
    nstate = 2

    def __init__(self, num_envs: int) -> None:
        self.state = np.zeros((num_envs, self.nstate))
        self.warning = np.zeros((num_envs, int(mujoco.mjtWarning.mjNWARNING), 2), np.int32)
        self._arrays = {
            "qpos": self.state,
            "qvel": np.zeros((num_envs, 0)),
            "ctrl": np.zeros((num_envs, 2)),
        }

    def bind(self, name: str) -> np.ndarray:
        """The live array (N, …) of that name."""
        return self._arrays[name]

    def step(self, rows: np.ndarray | None, _: int) -> None:
        """Move some points, or all."""
        ids = slice(None) if rows is None else rows
        self.state[ids] = (self.state[ids] + STRIDE * self._arrays["ctrl"][ids]).clip(0, 1)

    def reset(self, ids: np.ndarray, stage: int) -> None:
        """Nothing: a start is the whole state, and the engine writes it next."""

    def forward(self, ids: np.ndarray) -> None:
        """Nothing: no field is derived."""

    def get_data(self, i: int) -> np.ndarray:
        """Where point `i` is, to draw."""
        return np.array(self.state[i])


class BoxPainter:
    """Draws the box, marks as discs and the point on top."""

    def draw(
        self, place: np.ndarray, width: int, height: int, marks: Sequence[Mark] = ()
    ) -> np.ndarray:
        """A picture (height, width, 3) uint8, y upwards."""
        side = 1.1 / min(width, height)  # of a pixel; a margin of 0.05 around the box
        x = 0.5 + side * (np.arange(width) - (width - 1) / 2)
        y = 0.5 - side * (np.arange(height)[:, None] - (height - 1) / 2)
        inside = (np.abs(x - 0.5) <= 0.5) & (np.abs(y - 0.5) <= 0.5)
        picture = np.where(inside[..., None], PAPER, EDGE).astype(np.uint8)
        discs = [(np.array(m.place), m.radius, np.array(m.colour[:3]) * 255) for m in marks]
        for (left, up, *_), radius, colour in [*discs, (place, RADIUS, np.array(POINT))]:
            picture[np.hypot(x - left, y - up) <= radius] = colour
        return picture

    def close(self) -> None:
        """Nothing to free."""


class BoxModel:
    """In place of a MuJoCo model."""

    def batch(self, num_envs: int) -> BoxBatch:
        """That many points."""
        return BoxBatch(num_envs)

    def painter(self) -> BoxPainter:
        """What draws a state."""
        return BoxPainter()


class PointBox(Body):
    """`point-box`: observes x and y in [0, 1]."""

    frame_skip = 1

    def __init__(self) -> None:
        self.spec = EnvSpec(
            id="point-box",
            body="point-box",
            fields=(Field("x", 1), Field("y", 1)),
            task_fields=(),
            action_dim=2,
            descriptor=("x", "y"),
            descriptor_unit="m",
            cell=0.05,
            dt=1.0,
            max_steps=50,
            constants={"side": 1.0, "stride": STRIDE, "start_noise": NOISE},
            # Deviation of a uniform place in the box.
            obs_mean=(0.5, 0.5),
            obs_std=(12**-0.5, 12**-0.5),
        )

    def model(self) -> BoxModel:
        """A new model, which the engine takes in place of MuJoCo's."""
        return BoxModel()

    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Near the centre."""
        return 0.5 + rng.uniform(-NOISE, NOISE, 2), np.zeros(0)

    def observe(self, view: View) -> np.ndarray:
        """The place, (n, 2)."""
        return view.qpos
