"""The batched engine against Gymnasium's own environments, and against itself."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.envs.registry import make_vec
from etude.envs.spec import EnvSpec
from etude.errors import EnvContractError, UsageError

ROBOTS = ("ant", "half-cheetah")
N = 4


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory for the log file that MuJoCo writes its warnings to."""
    monkeypatch.chdir(tmp_path)


def reference(env_id: str, max_steps: int) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """Gymnasium's environment with the options that ours stands for."""
    options: dict[str, Any] = {"exclude_current_positions_from_observation": False}
    if env_id == "ant":
        options |= {
            "include_cfrc_ext_in_observation": False,
            "contact_cost_weight": 0,
            "terminate_when_unhealthy": False,
        }
    name = registry.spec(env_id).constants["gymnasium_id"]
    return gymnasium.make(name, max_episode_steps=max_steps, **options)


def actions(env: BatchedEnv, steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)


@pytest.mark.usefixtures("scratch")
@pytest.mark.filterwarnings("ignore:.*settotalmass.*:UserWarning")
@pytest.mark.parametrize(("threads", "persistent"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("env_id", ROBOTS)
def test_bit_equal_to_gymnasium(env_id: str, threads: int, persistent: bool) -> None:
    """Observations, rewards, flags and seeded starts over 300 steps with several autoresets."""
    limit = 70
    env = make_vec(env_id, N, seed=99, threads=threads, max_steps=limit, persistent=persistent)
    singles = [reference(env_id, limit) for _ in range(N)]
    obs, _ = env.reset(seed=17)
    expected = np.array([e.reset(seed=17 + i)[0] for i, e in enumerate(singles)])
    np.testing.assert_array_equal(obs, expected.astype(np.float32))
    episodes = 0
    for action in actions(env, 300):
        obs, reward, terminated, truncated, infos = env.step(action)
        state = np.concatenate((env._view.qpos, env._view.qvel), axis=1)
        for i, single in enumerate(singles):
            after, r, ended, cut, _ = single.step(action[i])
            assert reward[i] == r
            assert (terminated[i], truncated[i]) == (ended, cut)
            np.testing.assert_array_equal(infos["final_obs_array"][i], after.astype(np.float32))
            if ended or cut:
                np.testing.assert_array_equal(infos["final_obs"][i], after.astype(np.float32))
                after, _ = single.reset()
                episodes += 1
            np.testing.assert_array_equal(state[i], after)  # float64, nothing rounded away
            np.testing.assert_array_equal(obs[i], after.astype(np.float32))
    assert episodes == N * (300 // limit)
    for single in singles:
        single.close()


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("env_id", ROBOTS)
def test_set_state_continues_bit_for_bit(env_id: str, persistent: bool) -> None:
    env = make_vec(env_id, N, seed=3, max_steps=60, persistent=persistent)
    env.reset()
    plan = actions(env, 80)
    for action in plan[:40]:
        env.step(action)
    saved, generators = env.get_state(), env.state_dict()
    original = [env.step(action)[:4] for action in plan[40:]]
    assert any(step[3].any() for step in original)  # the autoreset is part of what is compared

    other = make_vec(env_id, N, seed=77, max_steps=60, persistent=persistent)
    other.reset()
    other.step(plan[0])
    for target in (env, other):
        obs = target.load_state_dict(generators)
        np.testing.assert_array_equal(target.get_state(), saved)
        np.testing.assert_array_equal(obs, target._obs)
        for step, action in zip(original, plan[40:], strict=True):
            for kept, again in zip(step, target.step(action)[:4], strict=True):
                np.testing.assert_array_equal(kept, again)


def test_set_state_of_some_leaves_the_others() -> None:
    env = make_vec("ant", N, seed=3)
    env.reset()
    start = env.get_state()
    for action in actions(env, 5):
        env.step(action)
    later = env.get_state()
    env.set_state(start[[1, 3]], ids=np.array([1, 3]))
    np.testing.assert_array_equal(env.get_state()[[1, 3]], start[[1, 3]])
    np.testing.assert_array_equal(env.get_state()[[0, 2]], later[[0, 2]])
    assert env.elapsed.tolist() == [5, 0, 5, 0]


@pytest.mark.parametrize(
    ("env_id", "steps"), [("ant", 12), ("half-cheetah", 12), ("ant-multi-goal", 60)]
)
def test_only_active_environments_step(env_id: str, steps: int) -> None:
    """What an environment goes through, goals included, does not depend on when others step."""
    masked, whole = (make_vec(env_id, N, seed=5, max_steps=steps) for _ in range(2))
    masked.reset()
    whole.reset()
    rng = np.random.default_rng(1)
    for action in actions(masked, steps):
        rewards = whole.step(action)[1]
        pending, gained = np.ones(N, dtype=bool), np.zeros(N)
        while pending.any():
            active = pending & (rng.random(N) < 0.5)
            if not active.any():
                continue
            held = masked._obs.copy()
            given = np.where(active[:, None], action, np.nan)  # the others' actions are not read
            obs, reward, terminated, truncated, infos = masked.step(given, active)
            np.testing.assert_array_equal(obs[~active], held[~active])
            np.testing.assert_array_equal(infos["final_obs_array"][~active], held[~active])
            assert not reward[~active].any()
            assert not (terminated | truncated)[~active].any()
            gained += reward
            pending &= ~active
        np.testing.assert_array_equal(gained, rewards)
    np.testing.assert_array_equal(masked.get_state(), whole.get_state())
    assert (whole.elapsed == 0).all()


def test_seeds() -> None:
    """Environment i has the generator of seed + i; a list gives one each; None goes on."""
    env = make_vec("half-cheetah", 3, seed=10)
    first, _ = env.reset()
    np.testing.assert_array_equal(env.reset(seed=10)[0], first)
    np.testing.assert_array_equal(env.reset(seed=[12, 11, 10])[0], first[::-1])
    assert not np.array_equal(env.reset()[0], first)
    mask = np.array([True, False, False])
    kept = env.reset()[0]
    obs, _ = env.reset(seed=10, options={"mask": mask})
    np.testing.assert_array_equal(obs, np.where(mask[:, None], first, kept))
    obs, _ = env.reset(seed=10, options={"reset_mask": ~mask})
    np.testing.assert_array_equal(obs, first)


def test_reset_into_a_state_starts_the_clock() -> None:
    env = make_vec("ant", 2, seed=0)
    env.reset()
    for action in actions(env, 7):
        env.step(action)
    reached, place = env.get_state(), env.descriptor()
    obs, infos = env.reset(options={"state": reached[[1, 0]]})
    assert env.elapsed.tolist() == [0, 0]
    np.testing.assert_array_equal(infos["descriptor"], place[[1, 0]])
    np.testing.assert_array_equal(obs[:, :2], place[[1, 0]].astype(np.float32))


def test_actions_are_clipped() -> None:
    wild, tame = (make_vec("half-cheetah", 2, seed=0) for _ in range(2))
    wild.reset()
    tame.reset()
    action = 3 * actions(wild, 1)[0]
    for one, other in zip(wild.step(action)[:2], tame.step(action.clip(-1, 1))[:2], strict=True):
        np.testing.assert_array_equal(one, other)  # the reward charges the clipped action too


def test_success_is_that_of_the_step() -> None:
    body, task = registry.build("half-cheetah-goal")
    env = BatchedEnv(body, task, 2, seed=0, autoreset=False)
    env.reset()
    env._task_state[:, 0] = (0.0, 90.0)  # the first goal is in reach of the start
    action, second = np.zeros((2, 6), np.float32), np.array([False, True])
    assert env.step(action)[4]["is_success"].tolist() == [True, False]
    assert env.step(action, second)[4]["is_success"].tolist() == [False, False]


def test_time_limit_can_be_switched_off() -> None:
    env = make_vec("half-cheetah", 1, max_steps=0)
    env.reset()
    assert not any(env.step(action)[3].any() for action in actions(env, 201))


def test_arrays_handed_out_stay_as_they_are() -> None:
    env = make_vec("ant", 2, seed=0, max_steps=2)
    obs, infos = env.reset()
    kept = obs.copy(), infos["descriptor"].copy()
    step = env.step(actions(env, 1)[0])
    copies = [np.array(x) for x in step[:4]], step[4]["descriptor"].copy()
    env.step(actions(env, 1)[0])
    np.testing.assert_array_equal(obs, kept[0])
    np.testing.assert_array_equal(infos["descriptor"], kept[1])
    for array, copy in zip(step[:4], copies[0], strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(step[4]["descriptor"], copies[1])


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize("autoreset", [True, False])
def test_divergence_truncates_and_never_teleports(
    autoreset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """MuJoCo resets a diverged simulation on its own; that jump must not become a transition."""
    body, _ = registry.build("half-cheetah")
    env = BatchedEnv(body, num_envs=2, seed=0, autoreset=autoreset)
    env.reset()
    env._view.qpos[1, 0] = 50.0
    env._view.qvel[1] = 1e9
    with caplog.at_level(logging.WARNING, logger="etude"):
        _, reward, terminated, truncated, infos = env.step(np.zeros((2, 6), np.float32))
    assert reward[1] == 0
    assert "environment 1 diverged" in caplog.text
    assert truncated.tolist() == [False, True]
    assert not terminated.any()
    assert infos["final_obs_array"][1, 0] == 50.0
    env.reset()
    caplog.clear()
    assert not env.step(np.zeros((2, 6), np.float32))[3].any()
    assert not caplog.records


def test_a_bad_action_is_named() -> None:
    env = make_vec("ant", 3, seed=0)
    env.reset()
    action = np.zeros((3, 8), np.float32)
    env.step(action)
    action[2, 5] = np.nan
    with pytest.raises(EnvContractError, match=r"environment 2 at step 1 .* not finite"):
        env.step(action)
    with pytest.raises(EnvContractError, match=r"shape \(8,\), not \(3, 8\)"):
        env.step(action[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 1}, 'unknown reset option "masks": did you mean "mask"'),
        ({"mask": np.zeros(2, dtype=bool)}, "at least one of them True"),
        ({"mask": np.ones(3, dtype=bool)}, "2 booleans"),
        ({"state": np.zeros((2, 3))}, "states must have shape"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_vec("half-cheetah", 2).reset(options=options)


def test_bad_numbers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="num_envs is 0: choose 1 or more"):
        make_vec("ant", 0)
    with pytest.raises(UsageError, match="max_steps is -1"):
        make_vec("ant", 1, max_steps=-1)
    with pytest.raises(UsageError, match='did you mean "ant"'):
        make_vec("antt")
    with pytest.raises(UsageError, match="2 seeds for 1 environments"):
        make_vec("ant", 1).reset(seed=[1, 2])
    monkeypatch.setenv("ETUDE_THREADS", "many")
    with pytest.raises(UsageError, match="ETUDE_THREADS is 'many'"):
        make_vec("ant", 1)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ETUDE_THREADS", raising=False)
    assert make_vec("half-cheetah", 1).threads == 1
    assert make_vec("half-cheetah", 8, threads=3).threads == 3
    monkeypatch.setenv("ETUDE_THREADS", "2")
    assert make_vec("half-cheetah", 8).threads == 2
    assert make_vec("half-cheetah", 8, threads=3).threads == 3


@pytest.mark.parametrize("error", [RuntimeError, ImportError, AttributeError])
def test_no_opengl_is_one_sentence(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise error("no platform")

    monkeypatch.setattr(mujoco, "Renderer", refuse)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = make_vec("ant", 1)
    env.reset()
    with pytest.raises(UsageError, match=r"\(no platform\): set MUJOCO_GL=egl .* libegl1"):
        env.render()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a window needs no DISPLAY")
def test_no_screen_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    env = make_vec("ant", 1)
    env.reset()
    with pytest.raises(UsageError, match=r"\(there is no screen\): set MUJOCO_GL=egl"):
        env.render()


def test_render_draws_the_asked_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Renderer:
        """Notes what it is asked to draw."""

        def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
            self.height, self.width, self.closed = height, width, False
            made.append(self)

        def update_scene(self, data: mujoco.MjData, camera: str | int) -> None:
            self.scene = data.qpos.copy(), data.xpos.copy(), camera

        def render(self) -> np.ndarray:
            return np.zeros((self.height, self.width, 3), np.uint8)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(mujoco, "Renderer", Renderer)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = make_vec("ant", 3, seed=0)
    env.reset()
    assert env.render(2, width=64, height=48).shape == (48, 64, 3)
    qpos, xpos, camera = made[0].scene
    np.testing.assert_array_equal(qpos, env._view.qpos[2])
    np.testing.assert_array_equal(xpos[1], qpos[:3])
    assert camera == "track"
    env.render(0, width=64, height=48)
    assert len(made) == 1
    env.render(0, width=32, height=48)
    assert [r.closed for r in made] == [True, False]
    env.close()
    assert made[1].closed


@pytest.mark.parametrize("env_id", ROBOTS)
def test_specs(env_id: str) -> None:
    spec = registry.spec(env_id)
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert spec.obs_dim == spec.body_dim == {"ant": 29, "half-cheetah": 18}[env_id]
    assert list(spec.slices())[0] == "x"
    assert list(spec.slices().values())[-1].stop == spec.obs_dim
    assert len(spec.obs_mean) == len(spec.obs_std) == spec.body_dim
    assert spec.dt == 0.05
    assert spec.constants["gear"][0] == {"ant": 150.0, "half-cheetah": 120.0}[env_id]
