"""Pictures that explain themselves: where skills lead, how arms compare, how learning went.

Every function returns a matplotlib `Figure` that no global state knows of (pyplot is not used), so
pictures can be drawn in any thread and need not be closed. Titles say what is shown, axes carry
units. Colours: Okabe and Ito's palette and cividis, which most colour-blind people can tell apart;
directions, which no such palette can hold, also differ in lightness and keep their place in a ring.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from etude.envs import maps
from etude.envs.spec import EnvSpec
from etude.evaluate.metrics import coverage
from etude.evaluate.rollouts import Rollouts, TaskRollouts
from etude.evaluate.statistics import iqm, summarise
from etude.skills.spaces import Discrete, SkillSpace

Curve = tuple[np.ndarray, np.ndarray]
"""Environment steps and values of one seed."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A2B")
INK, MUTED, GRID, WALL, GOAL = "#1b1f24", "#5f6673", "#e5e7eb", "#c3c9d2", "#ffd43b"
DPI = 100
TONES = 8  # pixel values are rounded to multiples of this: a third of the bytes, no visible loss
WIDTH = 7.2  # inches
LISTED = 20  # discrete skills that get a colour of their own and a line in the legend
MARGIN = 0.55  # how much of the outer walls is left out of the picture, m


def save(figure: Figure, path: Path) -> Path:
    """Write a small PNG; equal pictures are equal files."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba()).astype(np.int16)
    rounded = (pixels + TONES // 2) // TONES * TONES
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, rounded.clip(0, 255).astype(np.uint8), metadata={"Software": None})
    return path


# ---- skills


def skill_colours(z: np.ndarray, space: SkillSpace) -> np.ndarray:
    """A colour (M, 3) for each skill (M, Z): by number, or by the angle of (z1, z2)."""
    z = np.asarray(z)
    if isinstance(space, Discrete):
        number = z.argmax(-1)
        if space.n <= LISTED:
            table = np.array(mpl.colormaps["tab20"].colors)  # type: ignore[attr-defined]
            return np.asarray(np.concatenate([table[::2], table[1::2]])[number])
        return _hue(2 * np.pi * number / space.n)
    second = z[:, 1] if z.shape[1] > 1 else np.zeros(len(z))
    return _hue(np.arctan2(second, z[:, 0]))


def trajectories(rollouts: Rollouts, space: SkillSpace, title: str = "") -> Figure:
    """Paths coloured by skill: seen from above over the walls, or over time on a line."""
    spec, paths = rollouts.env_spec, rollouts.paths
    colours = skill_colours(rollouts.skills, space)
    covered = coverage(paths, spec.cell)
    flat = len(spec.descriptor) == 1
    figure, ax = _figure(
        title or f"Where the skills of {spec.id} lead",
        f"{len(paths)} episodes of {int(rollouts.lengths.max())} steps, one skill each, from the "
        f"ring to the dot. Together they cover {covered} cells of {_cell(spec)}.",
        _height(spec),
    )
    if flat:
        time = np.arange(paths.shape[1]) * spec.dt
        lines = np.stack(np.broadcast_arrays(time, paths[..., 0]), axis=-1)
        ax.set_xlabel("time (s)")
        ax.set_ylabel(f"{spec.descriptor[0]} ({spec.descriptor_unit})")
        ax.grid(color=GRID)
    else:
        lines = paths[..., :2]
        _ground(ax, spec)
    _lines(ax, lines, colours)
    _legend(ax, space)
    return figure


def journeys(rollouts: TaskRollouts, space: SkillSpace | None = None, title: str = "") -> Figure:
    """Episodes of a controller on a task in the plane, coloured by the skill in use.

    Args:
        rollouts: of a controller; descriptors with two coordinates or more.
        space: the skills; None for primitive actions, coloured by direction.
        title: of the picture.
    """
    spec, k = rollouts.env_spec, rollouts.k
    rate = rollouts.success_rate
    solved = "" if rate is None else f" {rate:.0%} of them succeed."
    what = "action" if space is None else "skill"
    figure, ax = _figure(
        title or f"A controller on {spec.id}",
        f"{len(rollouts.paths)} episodes from the ring to the dot; the colour is the {what} in "
        f"use, chosen every {'step' if k == 1 else f'{k} steps'}.{solved}",
        _height(spec),
    )
    _ground(ax, spec)
    goal, half = spec.constants.get("goal"), spec.constants.get("goal_half_width")
    if goal is not None and half is not None:
        corner = (goal[0] - half, goal[1] - half)
        ax.add_patch(Rectangle(corner, 2 * half, 2 * half, color=GOAL, zorder=0.5))
        ax.annotate("goal", (goal[0], corner[1]), ha="center", va="top", fontsize=8, color=INK)
    for at in range(rollouts.commands.shape[1]):
        command = rollouts.commands[:, at]
        used = ~np.isnan(command).any(axis=-1)
        part = rollouts.paths[used, at * k : at * k + k + 1, :2]
        if space is None:
            colours = _hue(np.arctan2(command[used, 1], command[used, 0]))
        else:
            colours = skill_colours(command[used], space)
        ax.add_collection(LineCollection(list(part), colors=colours, linewidths=1.1, alpha=0.75))
    _ends(ax, rollouts.paths[..., :2], INK)
    ax.autoscale_view()
    _legend(ax, space)
    return figure


def occupancy(rollouts: Rollouts, title: str = "") -> Figure:
    """How many episodes visit each cell; on a line, where along it each episode's time goes."""
    spec = rollouts.env_spec
    if len(spec.descriptor) == 1:
        return _strips(rollouts, title)
    index = np.floor(rollouts.paths[..., :2] / spec.cell).astype(int)
    visits: dict[tuple[int, int], int] = {}
    for episode in index:
        for place in {(x, y) for x, y in episode.tolist()}:
            visits[place] = visits.get(place, 0) + 1
    places = np.array(list(visits))
    low, high = places.min(0), places.max(0) + 1
    counts = np.full(high - low, np.nan)
    counts[tuple((places - low).T)] = list(visits.values())
    figure, ax = _figure(
        title or f"Where the skills of {spec.id} have been",
        f"{len(visits)} cells of {_cell(spec)}, visited by {len(index)} episodes of one skill each.",
        _height(spec),
    )
    _ground(ax, spec)
    edges = _levels(int(np.nanmax(counts)))
    image = ax.imshow(
        counts.T,
        origin="lower",
        extent=tuple(np.array([low[0], high[0], low[1], high[1]]) * spec.cell),
        cmap="cividis_r",
        norm=BoundaryNorm(edges, 256),
    )
    bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02)
    bar.set_ticks((edges[1:] + edges[:-1]) / 2, labels=_spans(edges))
    _quiet(bar, "episodes that visit the cell")
    return figure


def _strips(rollouts: Rollouts, title: str) -> Figure:
    """One row per episode over the cells of a line, ordered by where it ends."""
    spec = rollouts.env_spec
    index = np.floor(rollouts.paths[..., 0] / spec.cell).astype(int)
    low, high = int(index.min()), int(index.max()) + 1
    share = np.stack([np.bincount(row - low, minlength=high - low) for row in index])
    share = share[np.argsort(rollouts.paths[:, -1, 0], kind="stable")] / index.shape[1]
    figure, ax = _figure(
        title or f"Where the skills of {spec.id} have been",
        f"A row per episode of one skill, ordered by where it ends. Together they visit "
        f"{len(np.unique(index))} cells of {_cell(spec)}.",
        _height(spec),
    )
    image = ax.imshow(
        np.where(share > 0, share, np.nan),
        origin="lower",
        extent=(low * spec.cell, high * spec.cell, 0, len(share)),
        aspect="auto",
        cmap="cividis_r",
        vmin=0,
    )
    ax.set_xlabel(f"{spec.descriptor[0]} ({spec.descriptor_unit})")
    ax.set_ylabel("episode")
    bar = figure.colorbar(image, ax=ax, pad=0.02, format=PercentFormatter(1, decimals=0))
    _quiet(bar, "share of the episode's time")
    return figure


# ---- seeds


def learning_curves(
    curves: Mapping[str, Sequence[Curve]],
    ylabel: str,
    title: str,
    *,
    share: bool = False,
    note: str = "",
) -> Figure:
    """Values over environment steps: a thin line per seed, a thick one for their IQM.

    Args:
        curves: seeds of each arm.
        ylabel: what the values are, with unit.
        title: of the picture.
        share: the values are shares, shown in percent from 0 to 100.
        note: a sentence for the line under the title.
    """
    seeds = sorted({len(c) for c in curves.values()})
    several = seeds != [1]
    count = "-".join(map(str, sorted({seeds[0], seeds[-1]})))
    text = f"Thin lines: {count} seeds each; thick: their interquartile mean." if several else ""
    figure, ax = _figure(title, f"{text} {note}".strip())
    for i, (name, runs) in enumerate(curves.items()):
        colour, style = PALETTE[i % len(PALETTE)], ("-", "--", "-.")[i // len(PALETTE) % 3]
        for steps, values in runs if several else ():
            ax.plot(steps, values, style, color=colour, linewidth=0.8, alpha=0.35)
        grid, middle = _together(runs)
        ax.plot(grid, middle, style, color=colour, linewidth=2.2, label=name)
    ax.set_xlabel("environment steps")
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if share:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(color=GRID)
    ax.margins(x=0.01)
    if len(curves) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    return figure


def arms(
    values: Mapping[str, Sequence[float]], xlabel: str, title: str, *, share: bool = False
) -> Figure:
    """One bar per arm at the IQM of its seeds, with its 95% interval and a point per seed.

    Args:
        values: one value per seed of each arm; the first arm stands out.
        xlabel: what the values are, with unit.
        title: of the picture.
        share: the values are shares, shown in percent from 0 to 100.
    """
    figure, ax = _figure(
        title,
        "Bar: interquartile mean; line: its 95% bootstrap interval; points: seeds.",
        1.5 + 0.38 * len(values),
    )
    spread = np.random.default_rng(0)
    for row, seeds in enumerate(values.values()):
        found = summarise(seeds)
        ax.barh(row, found.iqm, height=0.62, color="#b3bdc9" if row else PALETTE[0])
        ax.plot([found.low, found.high], [row, row], color=INK, linewidth=1.4)
        jitter = row + spread.uniform(-0.16, 0.16, len(seeds))
        ax.scatter(seeds, jitter, s=20, color="white", edgecolor=INK, linewidth=0.8, zorder=3)
        number = f"{found.iqm:.0%}" if share else f"{found.iqm:.3g}"
        ax.annotate(
            f"{number}  ({found.n} seed{'s' if found.n > 1 else ''})",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=MUTED if row else INK,
        )
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    ax.axvline(0, color=INK, linewidth=0.8)
    if share:
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x", color=GRID)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def _together(runs: Sequence[Curve], points: int = 200) -> Curve:
    """The IQM of several curves on a common grid, over the steps that all of them cover."""
    low = max(float(steps[0]) for steps, _ in runs)
    high = min(float(steps[-1]) for steps, _ in runs)
    grid = np.linspace(low, max(low, high), points)
    values = np.stack([np.interp(grid, steps, values) for steps, values in runs], axis=-1)
    return grid, iqm(values)


# ---- parts


def _figure(title: str, note: str, height: float = 4.4) -> tuple[Figure, Axes]:
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


def _height(spec: EnvSpec) -> float:
    """Inches that suit the shape of the ground."""
    walls = _map(spec)
    if len(spec.descriptor) == 1:
        return 4.4
    return 5.4 if walls is None else 1.3 + 5.2 * walls.size[1] / walls.size[0]


def _cell(spec: EnvSpec) -> str:
    return " x ".join([f"{spec.cell:g}"] * len(spec.descriptor)) + f" {spec.descriptor_unit}"


def _ground(ax: Axes, spec: EnvSpec) -> None:
    """Axes with equal scales, and the walls if the environment has a map."""
    ax.set_aspect("equal", adjustable="datalim")
    for axis, name in zip((ax.xaxis, ax.yaxis), spec.descriptor, strict=False):
        axis.set_label_text(f"{name} ({spec.descriptor_unit})")
        axis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=3))
    walls = _map(spec)
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


def _map(spec: EnvSpec) -> maps.Map | None:
    """The map an environment was built from, if this version still has that very map."""
    known = (m for m in vars(maps).values() if isinstance(m, maps.Map))
    return next((m for m in known if m.sha256 == spec.constants.get("map_sha256")), None)


def _lines(ax: Axes, lines: np.ndarray, colours: np.ndarray) -> None:
    """Lines (M, T+1, 2) from a ring to dots."""
    ax.add_collection(LineCollection(list(lines), colors=colours, linewidths=1.3, alpha=0.8))
    _ends(ax, lines, colours)
    ax.autoscale_view()


def _ends(ax: Axes, lines: np.ndarray, colours: np.ndarray | str) -> None:
    ax.scatter(*lines[:, -1].T, s=14, c=colours, edgecolor="white", linewidth=0.4, zorder=3)
    start = lines[:, 0].mean(axis=0)
    ax.scatter(*start, s=60, facecolor="none", edgecolor=INK, linewidth=1.4, zorder=4)


def _quiet(bar: Colorbar, label: str) -> None:
    """A colour bar that does not shout."""
    bar.set_label(label, color=INK, fontsize=9)
    bar.ax.tick_params(length=0, labelsize=8.5)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _legend(ax: Axes, space: SkillSpace | None) -> None:
    """Beside the axes: the number of each discrete skill, or the ring of directions."""
    if isinstance(space, Discrete):
        if space.n > LISTED:
            return
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
    ring = ax.inset_axes((1.03, 0.72, 0.2, 0.26))
    angle = np.linspace(0, 2 * np.pi, 181)
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    wedges = np.stack([0.62 * rim, rim], axis=1)
    ring.add_collection(LineCollection(list(wedges), colors=_hue(angle), linewidths=3))
    name, what = ("a", "action") if space is None else ("z", "skill")
    for axis, place in ((1, (1.35, 0.0)), (2, (0.0, 1.35))):
        ring.text(*place, f"${name}_{axis}$", ha="center", va="center", fontsize=9)
    ring.text(0, 0, what, ha="center", va="center", fontsize=7, color=MUTED)
    ring.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    ring.set_axis_off()


def _levels(top: int) -> np.ndarray:
    """Edges of classes of counts: 1, 2, 3, … up to eight, else 1, 2-3, 4-7, 8-15, …"""
    if top <= 8:
        return np.arange(1, top + 2)
    return np.append(2 ** np.arange(int(np.log2(top)) + 1), top + 1)


def _spans(edges: np.ndarray) -> list[str]:
    pairs = zip(edges[:-1], edges[1:] - 1, strict=True)
    return [f"{low}" if low == high else f"{low}-{high}" for low, high in pairs]


def _hue(angle: np.ndarray) -> np.ndarray:
    """Colours (…, 3) around the hue circle of OKLab; lightness swings with the angle, too."""
    light, chroma = 0.66 + 0.11 * np.sin(angle), 0.145
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
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
