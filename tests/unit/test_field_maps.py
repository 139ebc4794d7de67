"""Which environments a library accepts, and where it finds its fields in them."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from line_world import LINE_SPEC as LINE

from etude.envs import registry
from etude.errors import LibraryError
from etude.skills.env import SkillEnv
from etude.skills.field_maps import FieldMap, environment_spec
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Discrete


class Spec(dict[str, Any]):
    def to_json(self) -> dict[str, Any]:
        return dict(self)


class Line(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment that only says what it is, and moves by its action."""

    def __init__(self, **change: Any) -> None:
        self.env_spec = Spec({**LINE, **change})
        width = sum(f["dim"] for f in self.env_spec["fields"])
        self.observation_space = spaces.Box(-99, 99, (width,), np.float64)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **_: Any) -> Any:
        self.obs = np.array([23.0, 0.0])
        return self.obs, {}

    def step(self, action: np.ndarray) -> Any:
        self.obs = self.obs + [0, action[0]]
        return self.obs, 0.0, False, False, {}


def library_for(env: dict[str, Any]) -> SkillLibrary:
    """Two skills, every action 0.1 and -0.1."""
    dim = sum(f["dim"] for f in env["fields"] if f["name"] not in env["task_fields"])
    weight = np.zeros((dim + 2, env["action_dim"]))
    weight[dim:] = np.arctanh([[0.1], [-0.1]])
    policy = MLP([(weight, np.zeros(env["action_dim"]))], output="tanh")
    data = SetData("main", "none", {}, Discrete(2), policy, {}, np.zeros(dim), np.ones(dim), [])
    return SkillLibrary(Contents("tested", env, [data]))


@pytest.fixture(scope="module")
def line() -> SkillLibrary:
    return library_for(LINE)


@pytest.fixture(scope="module")
def cheetah() -> SkillLibrary:
    return library_for(registry.spec("half-cheetah").to_json())


@pytest.fixture(scope="module")
def ant() -> SkillLibrary:
    return library_for(registry.spec("ant").to_json())


def test_fields_are_found_by_name(line: SkillLibrary) -> None:
    """The task's goal stands in front of the body's x here, and does not reach the library."""
    field_map = FieldMap.for_env(Line(), line)
    np.testing.assert_array_equal(field_map(np.array([23, 7]), {}, None), [7])
    np.testing.assert_array_equal(FieldMap.for_spec(LINE, line).columns, [1])
    batch = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(field_map(batch, {}, None), [[1], [3], [5]])


def test_a_mismatch_is_shown_as_a_diff(line: SkillLibrary) -> None:
    env = Line(
        body="plane",
        action_dim=2,
        dt=0.2,
        fields=[{"name": "x", "dim": 2}],
        constants={"length": 40},
        xml_sha256="1",
    )
    env.action_space = spaces.Box(-2, 2, (2,), np.float32)
    with pytest.raises(LibraryError) as caught:
        FieldMap.for_env(env, line)
    lines = str(caught.value).split("\n")
    for difference in (
        "  body: skills have line, the environment has plane",
        "  action_dim: skills have 1, the environment has 2",
        "  dt: skills have 0.1, the environment has 0.2",
        "  field x: skills have 1 values, the environment has 2 values",
        "  length: skills have 23, the environment has 40",
        "  xml_sha256: skills have 0, the environment has 1",
    ):
        assert difference in lines
    assert any("skills give 1 values in [-1, 1]" in line for line in lines)


def test_a_missing_field_is_named(line: SkillLibrary) -> None:
    with pytest.raises(LibraryError, match="field x: skills have 1 values, .* has missing"):
        FieldMap.for_env(Line(fields=[{"name": "y", "dim": 2}]), line)


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({"changes": ["length 23 -> 40"], "constants": {"length": 40}}, True),
        ({"changes": ["gear 1 -> 2"], "constants": {"length": 40}}, False),
        ({"changes": ["geoms: a wall"], "xml_sha256": "1"}, True),
        ({"changes": ["goal region"], "xml_sha256": "1"}, False),
        ({"changes": ["goal region"], "constants": {"goal_radius": 1}}, True),
        ({"dt": 0.1 + 1e-14}, True),
    ],
)
def test_only_declared_changes_are_accepted(
    line: SkillLibrary, change: dict[str, Any], accepted: bool
) -> None:
    env = Line(**change)
    if accepted:
        FieldMap.for_env(env, line)
    else:
        with pytest.raises(LibraryError, match="cannot act in line-goal"):
            FieldMap.for_env(env, line)


def test_observation_wrappers_belong_above(line: SkillLibrary) -> None:
    scaled = gymnasium.wrappers.TransformObservation(TimeLimit(Line(), 100), lambda o: o / 2, None)
    with pytest.raises(LibraryError, match="TransformObservation changes it; wrap SkillEnv in it"):
        SkillEnv(scaled, line)
    above = gymnasium.wrappers.TransformObservation(
        SkillEnv(TimeLimit(Line(), 100), line), lambda o: o / 2, None
    )
    assert above.reset()[0][0] == 23 / 2


def test_environments_without_names_need_a_field_map(line: SkillLibrary) -> None:
    class Plain(Line):
        def __init__(self) -> None:
            super().__init__()
            del self.env_spec

    with pytest.raises(LibraryError, match="pass field_map="):
        SkillEnv(TimeLimit(Plain(), 10), line)
    env = SkillEnv(TimeLimit(Plain(), 10), line, field_map=lambda obs, info, raw: obs[1:])
    env.reset()
    np.testing.assert_allclose(env.step(0)[0], [23, 1], rtol=1e-6)
    with pytest.raises(LibraryError, match="actions: skills give 1"):
        SkillEnv(gymnasium.make("Pendulum-v1"), line, field_map=lambda obs, info, raw: obs[1:])


# MuJoCo, ours and Gymnasium's


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("etude/HalfCheetah-v0", {}),
        ("etude/HalfCheetahGoal-v0", {}),
        ("HalfCheetah-v5", {}),
        ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False}),
    ],
)
def test_cheetahs_show_the_same_body(
    cheetah: SkillLibrary, env_id: str, options: dict[str, Any]
) -> None:
    """From one simulator state, each of them gives the library the same 18 numbers."""
    env = gymnasium.make(env_id, **options)
    read = FieldMap.for_env(env, cheetah)
    truth = gymnasium.make("HalfCheetah-v5", exclude_current_positions_from_observation=False)
    obs, info = env.reset(seed=5)
    expected, _ = truth.reset(seed=5)
    np.testing.assert_allclose(read(obs, info, env.unwrapped), expected, rtol=1e-6, atol=1e-6)
    for _ in range(10):
        action = np.full(6, 0.3, np.float32)
        obs, _, _, _, info = env.step(action)
        expected = truth.step(action)[0]
    np.testing.assert_allclose(read(obs, info, env.unwrapped), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env_id", ["etude/Ant-v0", "etude/AntMultiGoal-v0", "Ant-v5"])
def test_ants(ant: SkillLibrary, env_id: str) -> None:
    env = SkillEnv(gymnasium.make(env_id), ant, k=10)
    obs, info = env.reset(seed=1)
    body = env.read_body(obs, info, env.unwrapped)
    assert body.shape == (29,) and abs(body[:2]).max() < 0.2 and 0.5 < body[2] < 1
    _, _, _, _, info = env.step(1)
    assert info["skill"]["duration"] == 10


@pytest.mark.parametrize(
    ("env_id", "options", "match"),
    [
        ("Ant-v5", {}, "body: skills have half-cheetah, the environment has ant"),
        ("HalfCheetah-v5", {"frame_skip": 10}, "dt: skills have 0.05, the environment has 0.1"),
        ("Walker2d-v5", {}, "body: skills have half-cheetah, the environment has walker2d"),
        ("Hopper-v5", {}, "HopperEnv does not name its observation fields"),
    ],
)
def test_other_bodies_are_refused(
    cheetah: SkillLibrary, env_id: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(LibraryError, match=match):
        FieldMap.for_env(gymnasium.make(env_id, **options), cheetah)


def test_a_changed_gear_is_refused(cheetah: SkillLibrary) -> None:
    env = gymnasium.make("HalfCheetah-v5")
    env.unwrapped.model.actuator_gear[2, 0] = 1
    with pytest.raises(LibraryError, match="gear: skills have"):
        FieldMap.for_env(env, cheetah)


def test_a_changed_gravity_is_refused(cheetah: SkillLibrary) -> None:
    env = gymnasium.make("HalfCheetah-v5")
    FieldMap.for_env(env, cheetah)
    env.unwrapped.model.opt.gravity[2] = -3.7
    with pytest.raises(LibraryError, match="gravity: skills have 9.81, the environment has 3.7"):
        FieldMap.for_env(env, cheetah)


@pytest.mark.parametrize(
    ("body", "env_id"), [("half-cheetah", "HalfCheetah-v5"), ("walker2d", "Walker2d-v5")]
)
def test_gymnasiums_bodies_are_described_as_ours(body: str, env_id: str) -> None:
    ours = registry.spec(body).to_json()
    found = environment_spec(gymnasium.make(env_id))
    for key in ("body", "fields", "action_dim", "dt", "xml_sha256"):
        assert found[key] == ours[key], key
