"""Declared differences between a task's model and its body's: geoms, gravity, torque.

Skills made on the body may act in a task that says what it changed; a difference that is not said
is refused. What is changed is data, so the words that declare it can be made from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import mujoco

from etude.envs.maps import Map

ABOVE = "above"
"""Name of the camera that looks down on the whole ground."""
NAMED = 4
"""Joints that are named one by one in a declaration."""
WALL = (0.25, 0.28, 0.33, 1.0)
"""Colour of walls, as in the point mazes."""


@dataclass(frozen=True)
class Geom:
    """A box or a sphere that stands still."""

    kind: str
    """"box" or "sphere"."""
    place: tuple[float, float, float]
    """Its centre, m."""
    size: tuple[float, float, float]
    """Half its edges; of a sphere, the first is the radius; m."""
    colour: tuple[float, float, float, float] = WALL
    """Red, green, blue, opacity."""
    solid: bool = True
    """False: it is only seen."""


@dataclass(frozen=True)
class Change:
    """What a task changes about the model of its body; by default nothing."""

    geoms: tuple[Geom, ...] = ()
    """What is added to the world."""
    things: str = ""
    """What the added geoms are, such as "walls"."""
    gravity: float = 1.0
    """Factor on gravity."""
    torque: tuple[tuple[str, float], ...] = ()
    """Factors on the torque of joints, by name; joints that are not named keep theirs."""
    above: float = 0.0
    """Height of a camera over the origin that looks down, m; 0: the body's own camera."""

    @property
    def declared(self) -> tuple[str, ...]:
        """One phrase for each kind of change; the first word is that of the constant it changes."""
        said = []
        if self.geoms:
            said.append(f"geoms: {len(self.geoms)} {self.things}")
        if self.gravity != 1:
            said.append(f"gravity x {self.gravity:g}")
        factors: dict[float, list[str]] = {}
        for joint, factor in self.torque:
            factors.setdefault(factor, []).append(joint)
        for factor, joints in factors.items():
            named = ", ".join(joints) if len(joints) <= NAMED else f"{len(joints)} joints"
            said.append(f"gear x {factor:g} of {named}")
        return tuple(said)

    def apply(self, description: mujoco.MjSpec) -> None:
        """Change a model before it is compiled."""
        kinds = {"box": mujoco.mjtGeom.mjGEOM_BOX, "sphere": mujoco.mjtGeom.mjGEOM_SPHERE}
        for geom in self.geoms:
            description.worldbody.add_geom(
                type=kinds[geom.kind],
                pos=geom.place,
                size=geom.size,
                rgba=geom.colour,
                contype=0,  # robots collide with what has an affinity, as the floor does
                conaffinity=int(geom.solid),
            )
        description.option.gravity *= self.gravity
        factors = dict(self.torque)
        for motor in description.actuators:
            motor.gear[0] *= factors.pop(motor.target, 1.0)
        assert not factors, f"no actuator drives {', '.join(factors)}"
        if self.above:
            description.worldbody.add_camera(name=ABOVE, pos=(0, 0, self.above))

    def fingerprint(self, source: bytes) -> str:
        """SHA-256 of the body's XML and of the geoms that are added to it."""
        added = [dataclasses.asdict(geom) for geom in self.geoms]
        text = json.dumps(added, sort_keys=True).encode() if added else b""
        return hashlib.sha256(source + text).hexdigest()


NONE = Change()
"""The body as it is."""


def walls(maze: Map, height: float) -> Change:
    """The walls of a map, seen from above.

    Args:
        maze: the map, in metres.
        height: of the walls, m.
    """
    boxes = tuple(
        Geom(
            "box",
            ((x0 + x1) / 2, (y0 + y1) / 2, height / 2),
            ((x1 - x0) / 2, (y1 - y0) / 2, height / 2),
        )
        for x0, y0, x1, y1 in maze.walls()
    )
    return Change(boxes, "walls", above=1.3 * max(maze.size))
