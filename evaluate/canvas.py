"""The look of every picture: titles that say what is shown, walls, colours, legends, small files.

Figures are made without pyplot, so no global state knows of them: they can be drawn in any thread
and need not be closed. Colours are Okabe and Ito's palette and cividis, which most colour-blind
people can tell apart; directions, which no such palette can hold, also differ in lightness and keep
their place in a ring.
"""

from __future__ import annotations

import textwrap
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from etude.envs import maps
from etude.envs.spec import EnvSpec
from etude.skills.spaces import Discrete, SkillSpace

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A2B")
INK, MUTED, GRID, WALL, GOAL = "#1b1f24", "#5f6673", "#e5e7eb", "#c0c0c0", "#ffd43b"
DPI = 100
TONES = (8, 16, 32)  # pixel values are rounded to multiples of these: it saves half of the bytes
LIMIT = 150_000  # bytes of a file; the next coarser rounding is taken above
WIDTH = 7.2  # inches
LISTED = 20  # discrete skills that get a colour of their own and a line in the legend
MARGIN = 0.55  # how much of the outer walls is left out of the picture, m


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG of at most `LIMIT` bytes where rounding colours allows it; equal pictures are
    equal files."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba()).astype(np.int16)
    for tones in TONES:
        rounded = ((pixels + tones // 2) // tones * tones).clip(0, 255).astype(np.uint8)
        file = BytesIO()
        # None leaves the entry out; matplotlib's stub allows texts only
        imsave(file, rounded, metadata={"Software": None})  # type: ignore[dict-item]
        if file.tell() <= LIMIT:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    return path


def blank(title: str, note: str, height: float = 4.4) -> tuple[Figure, Axes]:
    """An empty picture with a title, and a line under it that says what is shown."""
    lines = textwrap.wrap(note, 112)
    head = 0.42 + 0.17 * len(lines)  # inches
    engine = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - head / height))
    figure = Figure((WIDTH, height), DPI, facecolor="white", layout=engine)
    FigureCanvasAgg(figure)
    top = 1 - 0.1 / height
    figure.text(0.012, top, title, va="top", fontsize=12.5, fontweight="bold", color=INK)
    under = top - 0.27 / height
    figure.text(0.012, under, "\n".join(lines), va="top", fontsize=8.5, color=MUTED)
    ax = figure.add_subplot()
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    return figure, ax


def height(spec: EnvSpec) -> float:
    """Inches that suit the shape of the ground."""
    walls = map_of(spec)
    if len(spec.descriptor) == 1:
        return 4.4
    return 5.4 if walls is None else 1.3 + 5.2 * walls.size[1] / walls.size[0]


def cell_size(spec: EnvSpec) -> str:
    """The size of a coverage cell, with its unit."""
    return " x ".join([f"{spec.cell:g}"] * len(spec.descriptor)) + f" {spec.descriptor_unit}"


def ground(ax: Axes, spec: EnvSpec) -> None:
    """Axes with equal scales, and the walls if the environment has a map."""
    ax.set_aspect("equal", adjustable="datalim")
    for axis, name in zip((ax.xaxis, ax.yaxis), spec.descriptor, strict=False):
        axis.set_label_text(f"{name} ({spec.descriptor_unit})")
        axis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=3))
    walls = map_of(spec)
    if walls is None:
        ax.grid(color=GRID)
        return
    x, y = (side / 2 - MARGIN for side in walls.size)
    ax.set_aspect("equal", adjustable="box")
    ax.set(xlim=(-x, x), ylim=(-y, y))
    ax.spines[:].set_visible(False)
    boxes = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in walls.walls()]
    ax.add_collection(PatchCollection(boxes, color=WALL, linewidth=0.6), autolim=False)
    ax.set_autoscale_on(False)


def map_of(spec: EnvSpec) -> maps.Map | None:
    """The map an environment was built from, if this version still has that very map."""
    known = (m for m in vars(maps).values() if isinstance(m, maps.Map))
    return next((m for m in known if m.sha256 == spec.constants.get("map_sha256")), None)


def paths(ax: Axes, lines: np.ndarray, colours: np.ndarray) -> None:
    """Lines (M, T+1, 2) from a ring to dots."""
    ax.add_collection(LineCollection(list(lines), colors=colours, linewidths=1.3, alpha=0.8))
    ends(ax, lines, colours)
    ax.autoscale_view()


def ends(ax: Axes, lines: np.ndarray, colours: np.ndarray | str) -> None:
    """A ring at the mean start and a dot at the end of each line (M, T+1, 2)."""
    start, end = lines[:, 0].mean(axis=0), lines[:, -1]
    ax.scatter(end[:, 0], end[:, 1], 14, colours, edgecolor="white", linewidth=0.4, zorder=3)
    ax.scatter(start[0], start[1], 60, facecolor="none", edgecolor=INK, linewidth=1.4, zorder=4)


def legend(ax: Axes, space: SkillSpace | None) -> None:
    """Beside the axes: the number of each discrete skill, or the ring of directions."""
    if isinstance(space, Discrete) and space.n <= LISTED:
        colours = skill_colours(np.eye(space.n), space)
        ax.legend(
            [Line2D([], [], color=colour, linewidth=3) for colour in colours],
            [str(i) for i in range(space.n)],
            title="skill",
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            fontsize=8,
            ncols=1 + (space.n > 10),
        )
        return
    if space is not None and space.dim == 1:
        _scale(ax.inset_axes((1.03, 0.66, 0.1, 0.32)), space)
        return
    ring = ax.inset_axes((1.03, 0.72, 0.2, 0.26))
    angle = np.linspace(0, 2 * np.pi, 181)
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    wedges = np.stack([0.62 * rim, rim], axis=1)
    ring.add_collection(LineCollection(list(wedges), colors=hue(angle), linewidths=3))
    names = ("$a_1$", "$a_2$") if space is None else ("$z_1$", "$z_2$")
    if isinstance(space, Discrete):
        names = ("0", str(space.n // 4))
    for name, place in zip(names, ((1.35, 0.0), (0.0, 1.35)), strict=True):
        ring.text(*place, name, ha="center", va="center", fontsize=9)
    what = "action" if space is None else "skill"
    ring.text(0, 0, what, ha="center", va="center", fontsize=7, color=MUTED)
    ring.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    ring.set_axis_off()


def _scale(ax: Axes, space: SkillSpace) -> None:
    """The colours of skills of one number, from -1 to 1."""
    z = np.linspace(-1, 1, 181)
    steps = np.stack([np.stack([x, z], axis=-1) for x in (np.zeros(181), np.ones(181))], axis=1)
    colours = skill_colours(z[:, None], space)
    ax.add_collection(LineCollection(list(steps), colors=colours, linewidths=2))
    ax.set(xlim=(0, 1), ylim=(-1, 1), xticks=[], yticks=[-1, 0, 1])
    ax.text(0.5, 1.1, "skill $z$", ha="center", fontsize=8, color=MUTED)
    ax.yaxis.tick_right()
    ax.tick_params(length=0, labelsize=8.5)
    for side in ax.spines.values():
        side.set_visible(False)


def quiet(bar: Colorbar, label: str) -> None:
    """A colour bar that does not shout."""
    bar.set_label(label, color=INK, fontsize=9)
    bar.ax.tick_params(length=0, labelsize=8.5)
    bar.minorticks_off()
    bar.outline.set_visible(False)


def skill_colours(z: np.ndarray, space: SkillSpace) -> np.ndarray:
    """A colour (M, 3) for each skill (M, Z): by number, by size, or by the angle of (z1, z2)."""
    z = np.asarray(z)
    if isinstance(space, Discrete):
        number = z.argmax(-1)
        if space.n <= LISTED:
            table = np.array(mpl.colormaps["tab20"].colors)  # type: ignore[attr-defined]
            return np.asarray(np.concatenate([table[::2], table[1::2]])[number])
        return hue(2 * np.pi * number / space.n)
    if space.dim == 1:
        return hue(np.pi / 2 * (1 - z[:, 0].clip(-1, 1)))  # half of the circle
    return hue(np.arctan2(z[:, 1], z[:, 0]))


def hue(angle: np.ndarray) -> np.ndarray:
    """Colours (…, 3) around the hue circle of OKLab; lightness swings with the angle, too."""
    light, chroma = 0.66 + 0.11 * np.sin(angle), 0.125
    a, b = chroma * np.cos(angle), chroma * np.sin(angle)
    cone = np.stack(
        [
            light + 0.3963377774 * a + 0.2158037573 * b,
            light - 0.1055613458 * a - 0.0638541728 * b,
            light - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cone**3 @ to_rgb.T, 0, 1)
    return np.asarray(
        np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    )
