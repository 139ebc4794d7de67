"""Pictures of one simulation, and a clear sentence where this process cannot draw."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import mujoco
import numpy as np

from etude.envs.body import Mark
from etude.errors import UsageError

WINDOWLESS = ("egl", "osmesa")
THICKNESS = 0.002
"""Half the height of a drawn mark, m."""


class Painter:
    """Draws states of one model; the OpenGL context is made by the first picture."""

    def __init__(self, model: mujoco.MjModel, camera: str | None) -> None:
        """Take the model, and the name of its camera (None: a free one that sees everything)."""
        self._model = model
        self._camera: str | int = -1 if camera is None else camera
        self._renderer: mujoco.Renderer | None = None

    def draw(
        self, data: mujoco.MjData, width: int, height: int, marks: Sequence[Mark] = ()
    ) -> np.ndarray:
        """A picture (height, width, 3) uint8, with marks lying in it.

        Raises:
            UsageError: this process has no OpenGL platform.
        """
        brush = self._renderer
        if brush is None or (brush.width, brush.height) != (width, height):
            self.close()
            self._renderer = brush = _renderer(self._model, width, height)
        mujoco.mj_forward(self._model, data)
        brush.update_scene(data, self._camera)
        for mark in marks:
            _lay(brush.scene, mark)
        picture: np.ndarray = brush.render()
        return picture

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _lay(scene: mujoco.MjvScene, mark: Mark) -> None:
    mujoco.mjv_initGeom(
        scene.geoms[scene.ngeom],
        mujoco.mjtGeom.mjGEOM_CYLINDER,
        np.array([mark.radius, THICKNESS, 0]),
        np.array(mark.place),
        np.eye(3).ravel(),
        np.array(mark.colour, np.float32),
    )
    scene.ngeom += 1


def _renderer(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    platform = os.environ.get("MUJOCO_GL", "").lower().strip()
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not screen and platform not in WINDOWLESS:
        # MuJoCo would try a window here, and can abort the process when it gets none
        raise _cannot_draw("there is no screen")
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    try:
        return mujoco.Renderer(model, height, width)
    except (mujoco.FatalError, RuntimeError, ImportError, AttributeError) as error:
        raise _cannot_draw(str(error)) from error


def _cannot_draw(reason: str) -> UsageError:
    return UsageError(
        f"cannot draw without an OpenGL platform ({reason}): set MUJOCO_GL=egl (or osmesa) before "
        "Python starts, and install it, for example with `apt-get install libegl1`."
    )
