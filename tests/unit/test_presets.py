"""Presets: which table lies over which, and that every learner has one for every common body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from etude.config import to_dict
from etude.envs import registry
from etude.errors import UsageError
from etude.skills import learners, presets
from etude.skills.discovery import preset, read_config

COMMON = {"half-cheetah", "ant", "walker2d", "point-open", "point-maze-u", "point-maze-large"}
EXCEPTIONS: dict[str, tuple[set[str], str]] = {
    "choreographer": (
        {"point-open", "point-maze-u", "point-maze-large"},
        "has a policy of its own, learned in a model of the world, and no settings for robots yet",
    ),
    "lpe": (
        {"half-cheetah"},
        "has open-loop plans of its own, for grids with a known answer and for one robot at rest",
    ),
}
"""Learners with settings for fewer bodies: for which, and why."""

BLOCKS = {
    "default": {"steps": 1, "agent": {"lr": 0.1, "hidden": [8]}, "loop": {"hold": 1}},
    "open": {"steps": 2, "agent": {"lr": 0.2}, "loop": {"num_envs": 2}},
    "maze": {"like": "open", "steps": 3, "loop": {"hold": 3}},
    "large": {"like": "maze", "agent": {"lr": 0.4}},
    "same": {"like": "large"},
}

every_learner = pytest.mark.parametrize("name", learners.ids())


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "_read", lambda learner: {"cpu": BLOCKS, "paper": {}})


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("elsewhere", BLOCKS["default"]),
        (
            "open",
            {"steps": 2, "agent": {"lr": 0.2, "hidden": [8]}, "loop": {"hold": 1, "num_envs": 2}},
        ),
        (
            "maze",
            {"steps": 3, "agent": {"lr": 0.2, "hidden": [8]}, "loop": {"hold": 3, "num_envs": 2}},
        ),
        (
            "large",
            {"steps": 3, "agent": {"lr": 0.4, "hidden": [8]}, "loop": {"hold": 3, "num_envs": 2}},
        ),
        (
            "same",
            {"steps": 3, "agent": {"lr": 0.4, "hidden": [8]}, "loop": {"hold": 3, "num_envs": 2}},
        ),
    ],
)
def test_the_default_lies_under_the_like_one_and_that_under_the_own(
    env: str, settings: dict[str, Any]
) -> None:
    """Value by value, through any number of them; `like` itself is no setting."""
    before = json.dumps(BLOCKS)
    assert presets.load("any", env, "cpu") == settings
    assert json.dumps(BLOCKS) == before, "what was read is not written to"


@pytest.mark.usefixtures("blocks")
def test_flavours_have_tables_of_their_own() -> None:
    assert presets.names("any") == {"cpu": ("open", "maze", "large", "same"), "paper": ()}
    assert presets.load("any", "open", "paper") == {}
    with pytest.raises(UsageError, match='unknown preset of any "papr": did you mean "paper"'):
        presets.load("any", "open", "papr")


def test_a_configuration_starts_from_the_flavour_that_was_asked_for() -> None:
    """That of the learner, and that of the bonus."""
    cpu, paper = (preset("metra", "ant", flavour, "rnd") for flavour in ("cpu", "paper"))
    assert (cpu.preset, paper.preset) == ("cpu", "paper")
    for config in (cpu, paper):
        assert config.agent.lr == presets.load("metra", "ant", config.preset)["agent"]["lr"]
    assert cpu.agent.lr != paper.agent.lr
    beside = presets.load("rnd", "ant", "paper")["method"]
    assert to_dict(paper.bonus_method) == to_dict(cpu.bonus_method) | beside
    assert beside["dim"] != to_dict(cpu.bonus_method)["dim"]


def test_a_learner_without_a_file_has_its_defaults() -> None:
    assert presets.names("none") == {} and presets.load("none", "ant", "cpu") == {}


@every_learner
def test_every_learner_has_settings_for_the_common_bodies(name: str) -> None:
    has = COMMON & set(presets.names(name)["cpu"])
    assert has == (EXCEPTIONS[name][0] if name in EXCEPTIONS else COMMON)


@every_learner
@pytest.mark.parametrize("env", sorted(COMMON))
@pytest.mark.parametrize("flavour", ["cpu", "paper"])
def test_settings_are_valid_and_name_fields_of_the_body(name: str, env: str, flavour: str) -> None:
    assert "default" in presets._read(name)[flavour]
    config = preset(name, env, flavour)
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config
    fields = set(registry.spec(env).slices())
    assert {*config.method.skill_obs, *config.loop.unseen} <= fields


def test_exceptions_are_learners_with_a_policy_of_their_own() -> None:
    assert all(learners.get(name).agent is None for name in EXCEPTIONS)
