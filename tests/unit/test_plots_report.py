"""Pictures hold the numbers they are given, and reports repeat them with units and origin."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure

from etude.envs import registry
from etude.evaluate import canvas, metrics, plots
from etude.evaluate.arms import TrialSpec
from etude.evaluate.compare import Comparison
from etude.evaluate.report import report_library
from etude.evaluate.rollouts import Rollouts, TaskRollouts, rollout_skills
from etude.evaluate.trials.report import report_comparison
from etude.skills.compose import ComposeConfig
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Cube, Discrete, Sphere

PROVENANCE = {"command": "python train.py evaluate x", "versions": {"mujoco": "4.0.0"}, "cores": 2}


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
    for n in (3, 20, 40):
        named = canvas.skill_colours(np.eye(n), Discrete(n))
        assert len(np.unique(named.round(4), axis=0)) == n


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


# ---- reports


def compass(
    folder: Path, discriminator: bool = False, encoders: dict[str, MLP] | None = None
) -> SkillLibrary:
    """Four discrete skills of the open arena: east, west, north, south."""
    spec = registry.spec("point-open")
    ways = np.array([[1, 0], [-1, 0], [0, 1], [0, -1.0]])
    policy = MLP([(np.vstack([np.zeros((4, 2)), 3 * ways]), np.zeros(2))], output="tanh")
    names = MLP([(np.vstack([ways.T, np.zeros((2, 4))]), np.zeros(4))], inputs=("obs",))
    data = SetData(
        name="compass",
        learner="compass",
        config={},
        space=Discrete(4),
        policy=policy,
        encoders={"discriminator": names} if discriminator else encoders or {},
        mean=np.zeros(4),
        std=np.ones(4),
        skills=[],
    )
    made_by = {"command": "python train.py discover compass", "seed": 7, "steps": 1234}
    path = write(folder, sets=[data], env=spec.to_json(), provenance=made_by, name="four")
    return SkillLibrary.load(path)


@pytest.mark.parametrize("discriminator", [False, True])
def test_report_of_a_library(tmp_path, discriminator):
    library = compass(tmp_path / "library", discriminator)
    history = [
        {"steps": 1000 * i, "policy_coverage": i, "queue_coverage": i, "total_coverage": 2 * i}
        for i in range(3)
    ]
    folder = tmp_path / "run"
    data = report_library(
        library,
        "point-open",
        folder,
        provenance=PROVENANCE,
        history=history,
        episodes=8,
        steps=20,
        seed=3,
    )
    assert json.loads((folder / "report.json").read_text()) == data
    rollouts = rollout_skills(library, "point-open", episodes=8, steps=20, seed=3)
    assert data["metrics"] == metrics.policy_metrics(rollouts.paths, 0.5)
    assert data["units"]["policy_coverage"] == "cells of 0.5 x 0.5 m"
    apart = data["discriminability"]
    assert apart["method"] == (metrics.DISCRIMINATOR if discriminator else metrics.CLASSIFIER)
    assert apart["chance"] == 0.25
    assert apart["accuracy"] > 0.9
    east = data["skills"][0]
    assert east["dx"] > 1.5
    assert abs(east["dy"]) < 0.1
    text = (folder / "report.md").read_text()
    for word in (
        "| policy coverage | " + f"{data['metrics']['policy_coverage']:.4g}",
        "8 deterministic episodes of 20 steps",
        "seed 3",
        apart["method"],
        "dx (m)",
        "python train.py discover compass",
        "python train.py evaluate x",
        "| versions mujoco | 4.0.0 |",
        library.id[:12],
    ):
        assert word in text
    assert data["pictures"] == ["trajectories.png", "occupancy.png", "coverage.png"]
    for name in data["pictures"]:
        assert f"({name})" in text
        assert (folder / name).stat().st_size < canvas.LIMIT


def test_a_learned_empowerment_is_drawn_where_the_skills_were(tmp_path, monkeypatch):
    east = MLP([(np.array([[1.0], [0], [0], [0]]), np.zeros(1))], inputs=("obs",))
    library, drawn = compass(tmp_path / "library", encoders={"empowerment": east}), {}
    monkeypatch.setattr(
        plots,
        "visited_values",
        lambda rollouts, values, *words: (
            drawn.update(paths=rollouts.paths, values=values) or plots.occupancy(rollouts)
        ),
    )
    how = {"provenance": PROVENANCE, "episodes": 4, "steps": 5}
    data = report_library(library, "point-open", tmp_path / "run", **how)
    assert data["pictures"] == ["trajectories.png", "occupancy.png", "empowerment.png"]
    np.testing.assert_allclose(drawn["values"], drawn["paths"][..., 0], rtol=1e-6)  # x is seen


CLAIM = {"claimed": 1.9, "confirmed": 1.2, "confirmed_low": 1.1, "confirmed_high": 1.3}


@pytest.mark.parametrize("alarm", [None, 0, 1])
def test_what_the_skills_tell_as_the_run_measured_it(tmp_path, alarm):
    """Of its last such evaluation; no episode is acted out for it."""
    library = compass(tmp_path / "library")
    base = {"policy_coverage": 1, "queue_coverage": 1, "total_coverage": 1}
    told = {"mi_nats": math.log(3), "mi_low": 1.0, "mi_high": 1.2, "mi_entropy": math.log(4)}
    claim = {} if alarm is None else {**CLAIM, "alarm": alarm}
    history = [
        {"steps": 0, **base},
        {"steps": 10, **base, **told, "mi_nats": 0.1, "mi_episodes": 50},
        {"steps": 20, **base, **told, "mi_episodes": 480, **claim},
        {"steps": 30, **base},
    ]
    out = tmp_path / "run"
    data = report_library(
        library, "point-open", out, provenance=PROVENANCE, history=history, episodes=4, steps=5
    )
    found = data["information"]
    assert (found["nats"], found["low"], found["high"]) == (math.log(3), 1.0, 1.2)
    assert found["skills"] == pytest.approx(3)
    assert found["conditional"] == pytest.approx(math.log(4 / 3))
    assert (found["features"], found["episodes"], found["steps"]) == (["x", "y"], 480, 200)
    assert (found["rows"], found["claim"]) == (240, claim or None)
    text = (out / "report.md").read_text()
    for word in (
        "| information | 1.1 nats [1, 1.2] |",
        "| distinguishable skills, exp of it | 3 |",
        "| H(Z), what there was to tell | 1.39 nats |",
        "x, y at the end, given x, y at the start",
        "480 of 200 steps, 240 held out",
        "lower bound",
    ):
        assert word in text
    said = "the learner claims 1.9 nats (`skill/bound`); 1.2 [1.1, 1.3] were measured"
    assert (said in text) == (alarm is not None)
    assert ("**Alarm:**" in text) == (alarm == 1)
    assert ("no contradiction" in text) == (alarm == 0)


def row(spec: TrialSpec, success: float | None) -> dict[str, object]:
    return {
        "trial": spec.key,
        "arm": spec.arm,
        "seed": spec.config.seed,
        "success_rate": success,
        "return_mean": 0.5,
        "env_steps": 1000,
        "pretraining_steps": 1234 if spec.arm == "hierarchical" else 0,
        "first_success": None,
        "effective_skills": 2.0 if spec.arm == "hierarchical" else None,
    }


@pytest.mark.parametrize("share", [True, False])
def test_report_of_a_comparison(tmp_path, share):
    library = compass(tmp_path / "library")
    config = ComposeConfig(env_steps=1000)
    first = TrialSpec("hierarchical", "point-open", "x", "compass", library.id, 1234, config, "ppo")
    specs = [
        dataclasses.replace(first, arm=arm, config=dataclasses.replace(config, seed=seed))
        for seed in (0, 1, 2)
        for arm in ("hierarchical", "flat")
    ]
    scores = {"hierarchical": [0.5, 0.9, 1.0], "flat": [0.0, 0.0, 0.0]}
    rows = [row(s, scores[s.arm][s.config.seed] if share else None) for s in specs[:-1]]
    points = [{"env_steps": s, "success": None, "episode_return": s / 10} for s in (10, 20)]
    failures = [(specs[-1], "its process died.")]
    found = Comparison(tuple(specs), tuple(rows), {specs[0].key: points}, tuple(failures))
    data = report_comparison(found, library, tmp_path / "run", provenance=PROVENANCE)
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == data
    arm = data["arms"]["hierarchical"]
    assert (arm["n"], data["arms"]["flat"]["n"]) == (3, 2)
    assert arm["iqm"] == pytest.approx(0.8 if share else 0.5)
    assert (arm["env_steps"], arm["pretraining_steps"], arm["first_success"]) == (1000, 1234, None)
    assert data["seeds"] == [0, 1, 2]
    text = (tmp_path / "run" / "report.md").read_text()
    score = "80% [50%, 100%]" if share else "0.5 [0.5, 0.5]"
    for word in (score, "1,234", "its process died.", "python train.py evaluate x", "| k | 25 |"):
        assert word in text
    # no point of the curve has a success rate, so there is nothing to draw of it
    assert data["pictures"] == ["arms.png"] if share else ["arms.png", "curves.png"]
