"""`--representation mrq-all`: the encoder that critic, actor and learner share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopped import stopped

from etude.config import replace
from etude.errors import UsageError
from etude.skills import learners
from etude.skills.discovery import DiscoverConfig, Discovery, preset
from etude.skills.export import export
from etude.skills.library import SkillLibrary

WIDTH = 12
LOOP = {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 3, "batch_size": 32}
LOOP |= {"warmup_steps": 80, "replay_capacity": 320, "visited_starts": 0.0, "unseen": []}
ENCODER = {"width": WIDTH, "hidden": [16], "horizon": 4, "sequences": 8}
PAID = [n for n in learners.ids() if (agent := learners.get(n).agent) and agent.rewarded]
PLAIN = [name for name in PAID if name != "dads"]


def small(learner: str, **settings: Any) -> DiscoverConfig:
    config = replace(
        preset(learner, "point-open"),
        {"steps": 320, "agent": {"hidden": [16, 16]}, "loop": LOOP, "method": {"skill_obs": []}},
    )
    return replace(config, {"representation": "mrq-all", "encoder": ENCODER, **settings})


@pytest.mark.parametrize("learner", PLAIN)
def test_a_library_holds_the_learners_networks_behind_the_encoder(
    learner: str, tmp_path: Path
) -> None:
    run = Discovery(small(learner))
    assert run.representation is not None and run.learner.seen_dim == WIDTH
    before = {k: v.clone() for k, v in run.learner.state_dict().items()}
    run.run()
    assert np.isfinite([*run.metrics.values()]).all()
    moved = [k for k, v in run.learner.state_dict().items() if not torch.equal(v, before[k])]
    assert moved or not before
    library = SkillLibrary.load(export(run, tmp_path / "library", {}, {}))
    obs, _ = run.venv.reset()
    goal = obs[::-1] + np.float32(0.3)
    seen, there = (
        run.representation.encode(run.normaliser(torch.from_numpy(np.ascontiguousarray(x))))
        for x in (obs, goal)
    )
    features = run.learner.encode(seen)
    if features is not None and "phi" in library.encoders:
        np.testing.assert_allclose(library.encode(obs), features.detach(), atol=1e-4)
    skill = run.learner.goal_skill(seen, there)
    if skill is not None:
        found = library.goal_skill(obs, goal)
        assert run.space.contains(found)
        close = np.abs(found - library.space.nearest(skill.detach().numpy())).max()
        assert close < 1e-3
    z = run.space.sample(np.random.default_rng(0), len(obs))
    np.testing.assert_allclose(library.plan(obs, z), run.snapshot().plan(obs, z), atol=1e-5)


def test_the_learner_is_paid_for_features_and_does_not_train_the_encoder() -> None:
    run = Discovery(small("metra"))
    run.collect()
    assert run.representation is not None
    before = {k: v.clone() for k, v in run.representation.state_dict().items()}
    batch = run.replay.steps(32).normalised(run.normaliser)
    seen = run.representation.encoded(batch)
    step = run.learner.encode(seen.next_obs) - run.learner.encode(seen.obs)  # type: ignore[operator]
    signal, weights, _ = run._paid(batch, run._for_learner(batch))
    torch.testing.assert_close((signal * weights).sum(-1), (step * batch.skill).sum(-1))
    run.learner.update(run._for_learner(batch))
    assert all(torch.equal(v, before[k]) for k, v in run.representation.state_dict().items())


def test_goals_in_hindsight_are_features_too() -> None:
    """HILP learns from an observation later in the episode."""
    run = Discovery(small("hilp"))
    run.collect()
    drawn = run.learner.draw(run.replay, 8).normalised(run.normaliser)
    assert run.representation is not None
    told = run._for_learner(drawn)  # type: ignore[arg-type]
    assert told.future_obs is not None and told.future_obs.shape == (8, WIDTH)
    torch.testing.assert_close(told.future_obs, run.representation.encode(drawn.future_obs))  # type: ignore[attr-defined]


@pytest.mark.parametrize("learner", ["metra", "hilp"])
@pytest.mark.parametrize("asked", [7, 44], ids=["episode", "updates"])
def test_resume_is_bit_equal(learner: str, asked: int, tmp_path: Path) -> None:
    whole = Discovery(small(learner))
    second = stopped(Discovery(small(learner)), asked, tmp_path)
    whole.run()
    second.run()
    for part in ("agent", "learner", "representation"):
        one, other = (getattr(run, part).state_dict() for run in (second, whole))
        assert all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize(
    ("learner", "settings", "said"),
    [
        ("metra", {"method": {"skill_obs": ["x"]}}, "skill_obs = x does not go with .* mrq-all"),
        ("metra", {"loop": {"unseen": ["x", "y"]}}, "unseen = x, y does not go with .* mrq-all"),
        ("dads", {}, "dads learns a model of the body .* choose representation = mrq"),
        ("lpe", {}, "lpe has no agent that learns from a signal"),
    ],
)
def test_what_cannot_be_is_refused(learner: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Discovery(small(learner, **settings))
