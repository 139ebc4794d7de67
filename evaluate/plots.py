"""Pictures that explain themselves: where skills lead, how arms compare, how learning went.

Each function returns a matplotlib `Figure` for TensorBoard or for `etude.evaluate.canvas.save`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, PercentFormatter

from etude.evaluate import canvas
from etude.evaluate.canvas import GOAL, GRID, INK, MUTED, PALETTE
from etude.evaluate.metrics import coverage
from etude.evaluate.rollouts import Rollouts, TaskRollouts
from etude.evaluate.statistics import iqm, summarise
from etude.skills.spaces import SkillSpace

Curve = tuple[np.ndarray, np.ndarray]
"""Environment steps and values of one seed."""
STEPS = "environment steps"
Place = tuple[int, int]
"""A cell of the plane."""
Extent = tuple[float, float, float, float]
"""Left, right, bottom and top of an image."""


def trajectories(rollouts: Rollouts, space: SkillSpace, title: str = "") -> Figure:
    """Paths coloured by skill: seen from above over the walls, or over time on a line."""
    spec, paths = rollouts.env_spec, rollouts.paths
    colours = canvas.skill_colours(rollouts.skills, space)
    covered = coverage(paths, spec.cell)
    flat = len(spec.descriptor) == 1
    figure, ax = canvas.blank(
        title or f"Where the skills of {spec.id} lead",
        f"{len(paths)} episodes of {int(rollouts.lengths.max())} steps, one skill each, from ring "
        f"to dot; {covered} cells of {canvas.cell_size(spec)} covered.",
        canvas.height(spec),
    )
    if flat:
        time = np.arange(paths.shape[1]) * spec.dt
        lines = np.stack(np.broadcast_arrays(time, paths[..., 0]), axis=-1)
        ax.set_xlabel("time (s)")
        ax.set_ylabel(f"{spec.descriptor[0]} ({spec.descriptor_unit})")
        ax.grid(color=GRID)
    else:
        lines = paths[..., :2]
        canvas.ground(ax, spec)
    canvas.paths(ax, lines, colours)
    canvas.legend(ax, space)
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
    solved = "" if rate is None else f"; {rate:.0%} succeed"
    what = "action" if space is None else "skill"
    figure, ax = canvas.blank(
        title or f"A controller on {spec.id}",
        f"{len(rollouts.paths)} episodes from ring to dot; colour: the {what} in use, chosen "
        f"every {'step' if k == 1 else f'{k} steps'}{solved}.",
        canvas.height(spec),
    )
    canvas.ground(ax, spec)
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
            colours = canvas.hue(np.arctan2(command[used, 1], command[used, 0]))
        else:
            colours = canvas.skill_colours(command[used], space)
        ax.add_collection(LineCollection(list(part), colors=colours, linewidths=1.1, alpha=0.75))
    canvas.ends(ax, rollouts.paths[..., :2], INK)
    ax.autoscale_view()
    canvas.legend(ax, space)
    return figure


def occupancy(rollouts: Rollouts, title: str = "") -> Figure:
    """How many episodes visit each cell; on a line, where along it each episode's time goes."""
    spec = rollouts.env_spec
    if len(spec.descriptor) == 1:
        return _strips(rollouts, title)
    index = np.floor(rollouts.paths[..., :2] / spec.cell).astype(int)
    visits: dict[Place, float] = {}
    for episode in index:
        for place in {(x, y) for x, y in episode.tolist()}:
            visits[place] = visits.get(place, 0) + 1
    counts, extent = _image(visits, spec.cell)
    figure, ax = canvas.blank(
        title or f"Where the skills of {spec.id} have been",
        f"{len(visits)} cells of {canvas.cell_size(spec)} visited by {len(index)} episodes of one "
        "skill each.",
        canvas.height(spec),
    )
    canvas.ground(ax, spec)
    edges = _levels(int(np.nanmax(counts)))
    image = ax.imshow(
        counts,
        origin="lower",
        extent=extent,
        cmap="cividis_r",
        norm=BoundaryNorm(edges, 256),
        zorder=1,
    )
    bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02)
    bar.set_ticks((edges[1:] + edges[:-1]) / 2, labels=_spans(edges))
    canvas.quiet(bar, "episodes that visit the cell")
    return figure


def visited_values(rollouts: Rollouts, values: np.ndarray, unit: str, title: str) -> Figure:
    """Values (M, T+1) of the states of episodes, averaged over each cell of the plane."""
    spec = rollouts.env_spec
    index = np.floor(rollouts.paths[..., :2] / spec.cell).astype(int)
    places, cell = np.unique(index.reshape(-1, 2), axis=0, return_inverse=True)
    means = np.bincount(cell.ravel(), values.ravel()) / np.bincount(cell.ravel())
    seen: dict[Place, float] = {
        (x, y): value for (x, y), value in zip(places.tolist(), means, strict=True)
    }
    note = f"Mean over the states that {len(index)} episodes of one skill each met in a cell of "
    figure, ax = canvas.blank(title, f"{note}{canvas.cell_size(spec)}.", canvas.height(spec))
    canvas.ground(ax, spec)
    image, extent = _image(seen, spec.cell)
    drawn = ax.imshow(image, origin="lower", extent=extent, cmap="cividis", zorder=1)
    canvas.quiet(figure.colorbar(drawn, ax=ax, shrink=0.7, pad=0.02), unit)
    return figure


def _image(values: Mapping[Place, float], cell: float) -> tuple[np.ndarray, Extent]:
    """Values of cells as an image (height, width), NaN elsewhere, and the ground that it covers."""
    places = np.array(list(values))
    low, high = places.min(0), places.max(0) + 1
    image = np.full(high - low, np.nan)
    image[tuple((places - low).T)] = list(values.values())
    return image.T, (low[0] * cell, high[0] * cell, low[1] * cell, high[1] * cell)


def _strips(rollouts: Rollouts, title: str) -> Figure:
    """One row per episode over the cells of a line, ordered by where it ends."""
    spec = rollouts.env_spec
    index = np.floor(rollouts.paths[..., 0] / spec.cell).astype(int)
    low, high = int(index.min()), int(index.max()) + 1
    share = np.stack([np.bincount(row - low, minlength=high - low) for row in index])
    share = share[np.argsort(rollouts.paths[:, -1, 0], kind="stable")] / index.shape[1]
    figure, ax = canvas.blank(
        title or f"Where the skills of {spec.id} have been",
        "A row per episode of one skill, ordered by where it ends; "
        f"{len(np.unique(index))} cells of {canvas.cell_size(spec)} visited.",
        canvas.height(spec),
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
    canvas.quiet(bar, "share of the episode's time")
    return figure


def heat_maps(maps: Mapping[str, np.ndarray], unit: str, title: str, note: str) -> Figure:
    """Numbers (height, width) of cells side by side, y upwards, in the colours of one scale."""
    figure, ax = canvas.blank(title, note, 3.6)
    ax.remove()
    every = np.concatenate([values.ravel() for values in maps.values()])
    low, high = every.min(), every.max()
    for ax, (name, values) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        image = ax.imshow(values, origin="lower", cmap="cividis", vmin=low, vmax=high)
        for (y, x), value in np.ndenumerate(values):
            colour = "white" if value < (low + high) / 2 else INK
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        ax.set_title(name, fontsize=9.5, color=INK)
        ax.set_axis_off()
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, pad=0.02)
    canvas.quiet(bar, unit)
    return figure


def learning_curves(
    curves: Mapping[str, Sequence[Curve]],
    ylabel: str,
    title: str,
    *,
    share: bool = False,
    note: str = "",
    xlabel: str = STEPS,
    names: Sequence[str] = (),
) -> Figure:
    """Values over environment steps: a thin line per seed, a thick one for their IQM.

    Args:
        curves: seeds of each arm.
        ylabel: what the values are, with unit.
        title: of the picture.
        share: the values are shares, shown in percent from 0 to 100.
        note: a sentence for the line under the title.
        xlabel: what the curves' first values are, if not steps.
        names: arms in the order of their colours, for one arm to look the same in several pictures;
            none takes the order of `curves`.
    """
    seeds = sorted({len(c) for c in curves.values()})
    several = seeds != [1]
    count = "-".join(map(str, sorted({seeds[0], seeds[-1]})))
    text = f"Thin lines: {count} seeds each; thick: their interquartile mean." if several else ""
    figure, ax = canvas.blank(title, f"{text} {note}".strip())
    order = list(names or curves)
    for name, runs in curves.items():
        i = order.index(name)
        colour, style = PALETTE[i % len(PALETTE)], ("-", "--", "-.")[i // len(PALETTE) % 3]
        for steps, values in runs if several else ():
            ax.plot(steps, values, style, color=colour, linewidth=0.8, alpha=0.35)
        grid, middle = _together(runs)
        ax.plot(grid, middle, style, color=colour, linewidth=2.2, label=name)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if xlabel == STEPS:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k; a score stays 0.2
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
    """One bar per arm at the IQM of its seeds, a point per seed and, for several, the interval.

    Args:
        values: one value per seed of each arm; the first arm stands out.
        xlabel: what the values are, with unit.
        title: of the picture.
        share: the values are shares, shown in percent from 0 to 100.
    """
    several = max(map(len, values.values())) > 1
    note = "Bar: interquartile mean; line: its 95% bootstrap interval; points: seeds."
    figure, ax = canvas.blank(title, note if several else "", 1.5 + 0.38 * len(values))
    spread = np.random.default_rng(0)
    for row, seeds in enumerate(values.values()):
        found = summarise(seeds)
        ax.barh(row, found.iqm, height=0.62, color="#b3bdc9" if row else PALETTE[0])
        if found.n > 1:
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


def _levels(top: int) -> np.ndarray:
    """Edges of classes of counts: 1, 2, 3, … up to eight, else 1, 2-3, 4-7, 8-15, …"""
    if top <= 8:
        return np.arange(1, top + 2)
    return np.append(2 ** np.arange(int(np.log2(top)) + 1), top + 1)


def _spans(edges: np.ndarray) -> list[str]:
    pairs = zip(edges[:-1], edges[1:] - 1, strict=True)
    return [f"{low}" if low == high else f"{low}-{high}" for low, high in pairs]
