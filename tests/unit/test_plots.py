"""Pictures hold the numbers they are given."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure

from etude.envs import registry
from etude.evaluate import canvas, metrics, plots
from etude.evaluate.rollouts import Rollouts, TaskRollouts
from etude.skills.spaces import Cube, Discrete, Sphere


def made(env_id: str, space: object = None, episodes: int = 12) -> Rollouts:
    """Skills that wander, without an engine."""
    spec, rng = registry.spec(env_id), np.random.default_rng(0)
    space = space or Sphere(2)
    z = space.even(episodes)
    ways = rng.normal(size=(episodes, 1, len(spec.descriptor)))
    steps = ways * 0.02 + rng.normal(scale=0.02, size=(episodes, 41, len(spec.descriptor)))
    lengths = np.full(episodes, 40)
    return Rollouts(spec, z, np.cumsum(steps, axis=1), np.zeros((episodes, 41, 4)), lengths)


def collections(figure: Figure, kind: type) -> list:
    return [c for c in figure.axes[0].collections if isinstance(c, kind)]


def words(figure: Figure) -> str:
    texts = [t.get_text() for t in figure.texts]
    for ax in (child for a in figure.axes for child in (a, *a.child_axes)):
        texts += [ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in ax.texts)]
        texts += [label.get_text() for label in ax.get_yticklabels()]
    return "\n".join(texts).replace("\n", " ")


def test_colours_of_skills():
    sphere = canvas.skill_colours(Sphere(2).even(24), Sphere(2))
    assert sphere.shape == (24, 3)
    assert ((sphere >= 0) & (sphere <= 1)).all()
    apart = np.linalg.norm(sphere[:, None] - sphere, axis=-1)
    assert apart[~np.eye(24, dtype=bool)].min() > 0.03  # no two directions alike
    assert np.linalg.norm(np.roll(sphere, 1, 0) - sphere, axis=1).max() < 0.3  # a closed ring
    # only the angle counts, and spaces of other sizes take their first two coordinates
    far = canvas.skill_colours(np.array([[2.0, 0.0, 5.0]]), Cube(3))
    np.testing.assert_allclose(far[0], sphere[0], atol=1e-6)
    line = canvas.skill_colours(np.linspace(-1, 1, 24)[:, None], Cube(1))
    assert np.linalg.norm(np.diff(line, axis=0), axis=1).min() > 0.01  # near skills are alike
    apart = np.linalg.norm(line[:, None] - line, axis=-1)
    assert apart[~np.eye(24, dtype=bool)].min() > 0.01 and apart[0, -1] > 0.3
    for n in (3, 20, 40):
        named = canvas.skill_colours(np.eye(n), Discrete(n))
        assert len(np.unique(named.round(4), axis=0)) == n


def test_skills_of_one_number_have_a_scale():
    rollouts = made("half-cheetah")
    rollouts = dataclasses.replace(
        rollouts, skills=np.linspace(-1, 1, len(rollouts.skills))[:, None]
    )
    text = words(plots.trajectories(rollouts, Cube(1)))
    assert "skill $z$" in text and "$z_1$" not in text


@pytest.mark.parametrize("env_id", ["point-open", "point-maze-large", "ant"])
def test_trajectories_from_above(env_id, tmp_path):
    rollouts = made(env_id)
    figure = plots.trajectories(rollouts, Sphere(2))
    (lines,) = collections(figure, LineCollection)
    np.testing.assert_allclose(np.array(lines.get_segments()), rollouts.paths)
    np.testing.assert_allclose(
        lines.get_colors()[:, :3], canvas.skill_colours(rollouts.skills, Sphere(2))
    )
    assert len(collections(figure, PatchCollection)) == (env_id != "ant")  # walls
    covered = metrics.coverage(rollouts.paths, rollouts.env_spec.cell)
    text = words(figure)
    for word in (env_id, "12 episodes of 40 steps", f"{covered} cells", "x (m)", "y (m)", "$z_1$"):
        assert word in text
    assert figure.axes[0].get_aspect() == 1.0
    path = canvas.save(figure, tmp_path / "deep" / "a.png")
    again = canvas.save(plots.trajectories(rollouts, Sphere(2)), tmp_path / "b.png")
    assert path.read_bytes() == again.read_bytes()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < canvas.LIMIT
    assert plt.get_fignums() == []


def test_walls_are_drawn_only_for_the_very_same_map():
    rollouts = made("point-maze-u")
    spec = rollouts.env_spec
    other = dataclasses.replace(spec, constants={**spec.constants, "map_sha256": "0" * 64})
    figure = plots.trajectories(dataclasses.replace(rollouts, env_spec=other), Sphere(2))
    assert collections(figure, PatchCollection) == []


def test_trajectories_on_a_line_go_over_time():
    rollouts = made("half-cheetah", Discrete(4))
    figure = plots.trajectories(rollouts, Discrete(4))
    (lines,) = collections(figure, LineCollection)
    first = np.array(lines.get_segments())[0]
    np.testing.assert_allclose(first[:, 0], np.arange(41) * rollouts.env_spec.dt)
    np.testing.assert_allclose(first[:, 1], rollouts.paths[0, :, 0])
    assert "time (s)" in words(figure)
    legend = figure.axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["0", "1", "2", "3"]


def test_many_discrete_skills_get_a_ring():
    figure = plots.trajectories(made("ant", Discrete(48), 48), Discrete(48))
    assert figure.axes[0].get_legend() is None
    ring = figure.axes[0].child_axes[0]
    assert [t.get_text() for t in ring.texts] == ["0", "12", "skill"]


def test_dense_pictures_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    spec = registry.spec("point-open")
    walk = np.cumsum(rng.normal(scale=0.15, size=(48, 300, 2)), axis=1)
    path = np.abs((walk + 4.9) % 19.6 - 9.8) - 4.9  # reflected at the walls
    rollouts = Rollouts(spec, Sphere(2).even(48), path, path, np.full(48, 299))
    picture = canvas.save(plots.trajectories(rollouts, Sphere(2)), tmp_path / "a.png")
    assert picture.stat().st_size < 1.5 * canvas.LIMIT


def test_occupancy_counts_episodes_per_cell():
    rollouts = made("point-open", episodes=30)
    figure = plots.occupancy(rollouts)
    image = figure.axes[0].images[0]
    cell = rollouts.env_spec.cell
    left, right, bottom, top = (round(edge / cell) for edge in image.get_extent())
    shown = image.get_array()
    assert shown.shape == (top - bottom, right - left)
    index = np.floor(rollouts.paths / cell).astype(int)
    for row in range(top - bottom):
        for column in range(right - left):
            here = (index == (column + left, row + bottom)).all(-1).any(-1).sum()
            assert shown.filled(0)[row, column] == here
    assert "episodes that visit the cell" in words(figure)


def test_heat_maps_share_a_scale_and_name_their_numbers():
    exact, learnt = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3) + 1
    figure = plots.heat_maps({"exact": exact, "learnt": learnt}, "nats", "Title", "Note.")
    left, right = figure.axes[:2]
    assert [ax.get_title() for ax in (left, right)] == ["exact", "learnt"]
    for ax, values in ((left, exact), (right, learnt)):
        np.testing.assert_array_equal(ax.images[0].get_array(), values)
        assert ax.images[0].get_clim() == (0, 6)
        assert [t.get_text() for t in ax.texts] == [f"{v:.2f}" for v in values.ravel()]
    assert left.get_ylim()[0] < left.get_ylim()[1]  # y upwards


def test_values_are_averaged_over_the_visits_of_a_cell():
    rollouts = made("point-open")
    values = np.random.default_rng(1).normal(size=rollouts.paths.shape[:2])
    image = plots.visited_values(rollouts, values, "nats", "Values").axes[0].images[0]
    shown, (left, right, bottom, top) = image.get_array(), image.get_extent()
    cell = rollouts.env_spec.cell
    assert shown.shape == (round((top - bottom) / cell), round((right - left) / cell))
    index = np.floor(rollouts.paths / cell - np.array([left, bottom]) / cell + 1e-9).astype(int)
    for x, y in {tuple(place) for place in index.reshape(-1, 2)}:
        inside = (index == (x, y)).all(-1)
        assert shown[y, x] == pytest.approx(values[inside].mean())
    assert shown.mask.sum() == shown.size - len({tuple(i) for i in index.reshape(-1, 2)})


def test_occupancy_of_a_line_shows_shares_of_time():
    rollouts = made("half-cheetah")
    shown = plots.occupancy(rollouts).axes[0].images[0].get_array().filled(0)
    assert len(shown) == 12
    np.testing.assert_allclose(shown.sum(1), 1)
    order = np.argsort(rollouts.paths[:, -1, 0])
    low = np.floor(rollouts.paths.min())
    at = np.floor(rollouts.paths[order[0], :, 0] - low).astype(int)
    np.testing.assert_allclose(shown[0], np.bincount(at, minlength=shown.shape[1]) / 41)


@pytest.mark.parametrize(("top", "classes"), [(3, ["1", "2", "3"]), (20, ["1", "2-3", "4-7"])])
def test_classes_of_counts(top, classes):
    edges = plots._levels(top)
    assert plots._spans(edges)[:3] == classes
    assert edges[0] == 1 and edges[-1] == top + 1 and (np.diff(edges) > 0).all()


def task_rollouts(k: int = 5) -> TaskRollouts:
    paths = np.cumsum(np.full((3, 13, 2), 0.1), axis=1)
    commands = np.tile(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), (3, 1, 1))
    commands[2, 2] = np.nan  # the third episode ends with its second decision
    success = np.array([True, True, False])
    spec = registry.spec("point-maze-u-goal")
    return TaskRollouts(spec, k, success, np.ones(3), np.full(3, 12), paths, commands)


def test_journeys_change_colour_with_the_skill():
    rollouts = task_rollouts()
    figure = plots.journeys(rollouts, Sphere(2))
    parts = collections(figure, LineCollection)
    assert [len(part.get_segments()) for part in parts] == [3, 3, 2]
    np.testing.assert_allclose(parts[1].get_segments()[0], rollouts.paths[0, 5:11])
    np.testing.assert_allclose(
        parts[1].get_colors()[0, :3], canvas.skill_colours(np.array([[0.0, 1.0]]), Sphere(2))[0]
    )
    text = words(figure)
    for word in ("3 episodes", "skill", "every 5 steps", "67% succeed", "goal"):
        assert word in text
    assert "action" in words(plots.journeys(rollouts))


def test_arms_show_every_seed(tmp_path):
    values = {"hierarchical": [0.9, 1.0, 0.8], "flat": [0.0, 0.1]}
    figure = plots.arms(values, "success rate", "a task", share=True)
    ax = figure.axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0.9, 0.05])
    points = [np.asarray(c.get_offsets()) for c in ax.collections]
    assert [sorted(p[:, 0].tolist()) for p in points] == [sorted(v) for v in values.values()]
    assert all(np.abs(p[:, 1] - row).max() < 0.31 for row, p in enumerate(points))
    text = words(figure)
    for word in ("hierarchical", "flat", "90%  (3 seeds)", "5%  (2 seeds)", "success rate"):
        assert word in text
    assert canvas.save(figure, tmp_path / "a.png").stat().st_size < canvas.LIMIT


def test_one_seed_has_no_interval():
    alone, several = (plots.arms({"a": [0.5] * n}, "return", "a task") for n in (1, 2))
    assert len(several.axes[0].lines) == len(alone.axes[0].lines) + 1
    assert "interval" in words(several)
    assert "interval" not in words(alone)


def test_learning_curves_average_on_common_steps():
    runs = [
        (np.array([0.0, 100.0]), np.array([0.0, 1.0])),
        (np.array([50.0, 200.0]), np.array([1.0, 1.0])),
    ]
    figure = plots.learning_curves({"a": runs}, "success rate", "title", share=True)
    thick = figure.axes[0].lines[-1]
    assert (thick.get_xdata()[0], thick.get_xdata()[-1]) == (50.0, 100.0)
    np.testing.assert_allclose(thick.get_ydata()[[0, -1]], [0.75, 1.0])
    assert len(figure.axes[0].lines) == 3
    alone = plots.learning_curves({"a": runs[:1], "b": runs[1:]}, "cells", "title")
    assert len(alone.axes[0].lines) == 2
    assert [t.get_text() for t in alone.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_an_arm_has_the_colour_of_its_place_among_the_names():
    run = [(np.array([0.0, 1.0]), np.array([0.0, 1.0]))]
    names = [f"arm {i}" for i in range(9)]
    whole = plots.learning_curves(dict.fromkeys(names, run), "y", "title").axes[0].lines
    some = {"arm 8": run, "arm 1": run}
    lines = plots.learning_curves(some, "y", "title", names=names).axes[0].lines
    for line, like in zip(lines, (whole[8], whole[1]), strict=True):
        look = line.get_color(), line.get_linestyle()
        assert look == (like.get_color(), like.get_linestyle()) != (whole[0].get_color(), "-")
