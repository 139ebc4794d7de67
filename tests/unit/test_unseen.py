"""Fields that the policy does not see: in training, in the library, and in what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from etude.config import replace
from etude.errors import UsageError
from etude.skills.discovery import DiscoverConfig, Discovery, preset
from etude.skills.export import export, listed
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Discrete, Sphere

SMALL = {"num_envs": 2, "episode_steps": 20, "updates_per_epoch": 3, "warmup_steps": 40}


def config(learner: str = "oracle", env: str = "half-cheetah", **loop: object) -> DiscoverConfig:
    small = {"steps": 80, "agent": {"hidden": [16, 16]}, "loop": {**SMALL, **loop}}
    return replace(preset(learner, env), small)


@pytest.mark.parametrize("representation", ["none", "mrq"])
def test_the_policy_does_the_same_everywhere(tmp_path: Path, representation: str) -> None:
    changes: dict[str, object] = {"representation": representation}
    if representation != "none":
        changes["encoder"] = {"hidden": [8], "width": 8}
    run = Discovery(replace(config(unseen=("x",)), changes))
    run.run()
    here = run.venv.reset(seed=0)[0]
    there = here.copy()
    there[:, 0] += 30.0
    z = run.space.even(2)
    np.testing.assert_array_equal(run.plan(here, z, True), run.plan(there, z, True))
    library = SkillLibrary.load(export(run, tmp_path / "library", {}))
    np.testing.assert_array_equal(library.act(here, z), library.act(there, z))
    np.testing.assert_allclose(library.act(here, z), run.plan(here, z, True)[:, 0], atol=1e-5)
    other = here.copy()
    other[:, 1] += 0.3  # the height is seen
    assert np.abs(library.act(here, z) - library.act(other, z)).max() > 1e-4


def test_the_agent_learns_without_it_and_the_learner_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Discovery(config(unseen=("x", "pitch")))
    assert run.agent is not None
    learnt, told, update = [], [], run.agent.update
    signal = run.learner.signal

    def spy(batch, *rest):  # type: ignore[no-untyped-def]
        learnt.append(batch)
        return update(batch, *rest)

    def seen(batch):  # type: ignore[no-untyped-def]
        told.append(batch)
        return signal(batch)

    monkeypatch.setattr(run.agent, "update", spy)
    monkeypatch.setattr(run.learner, "signal", seen)
    run.run()
    assert len(learnt) == len(told) > 0
    for batch, whole in zip(learnt, told, strict=True):
        for mine, all_of_it in ((batch.obs, whole.obs), (batch.next_obs, whole.next_obs)):
            assert (mine[:, [0, 2]] == 0).all() and (all_of_it[:, [0, 2]] != 0).any()
            torch.testing.assert_close(mine[:, 3:], all_of_it[:, 3:])
    assert Discovery(config(unseen=())).visible is None


def test_the_model_of_a_representation_does_not_see_it_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Discovery(replace(config(unseen=("x",)), {"representation": "mrq"}))
    assert run.representation is not None
    update, drawn = run.representation.update, []

    def spy(batch, signal):  # type: ignore[no-untyped-def]
        drawn.append(batch)
        return update(batch, signal)

    monkeypatch.setattr(run.representation, "update", spy)
    run.run()
    assert drawn
    for batch in drawn:
        assert (batch.obs[..., 0] == 0).all() and (batch.obs[..., 1] != 0).any()


@pytest.mark.parametrize("learner", ["metra", "lsd", "csd", "csf"])
@pytest.mark.parametrize(
    ("env", "hidden"), [("half-cheetah", ("x",)), ("walker2d", ("x",)), ("ant", ("x", "y"))]
)
def test_directions_are_learnt_without_the_place(
    learner: str, env: str, hidden: tuple[str, ...]
) -> None:
    assert preset(learner, env).loop.unseen == hidden
    assert preset(learner, env, "paper").loop.unseen == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(unseen=("speed",)), 'unknown observation field "speed"'),
        (config("lpe", hold=0, unseen=("x",)), "for what an agent sees, and lpe has none"),
    ],
)
def test_what_cannot_be_hidden_is_refused(settings: DiscoverConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Discovery(settings)


def test_a_line_has_two_skills_and_a_library_lists_each_once() -> None:
    np.testing.assert_array_equal(listed(Sphere(1)), [[1], [-1]])
    assert len(listed(Sphere(2))) == 16 and len(listed(Discrete(5))) == 5
