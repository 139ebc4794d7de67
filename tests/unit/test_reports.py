"""Reports repeat the numbers with units and origin."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from etude.envs import registry
from etude.evaluate import canvas, metrics, plots
from etude.evaluate.arms import TrialSpec
from etude.evaluate.compare import Comparison
from etude.evaluate.report import report_library
from etude.evaluate.rollouts import rollout_skills
from etude.evaluate.trials.report import report_comparison
from etude.skills.compose import ComposeConfig
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Discrete

PROVENANCE = {"command": "python train.py evaluate x", "versions": {"mujoco": "4.0.0"}, "cores": 2}


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
