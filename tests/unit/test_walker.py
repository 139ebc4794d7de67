"""The walker against Gymnasium's Walker2d-v5: observations, rewards and seeded starts."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from etude.envs.bodies.locomotion import Walker2d
from etude.envs.body import View
from etude.envs.registry import make_vec, spec

N, LIMIT = 3, 80


@pytest.mark.parametrize("persistent", [False, True])
def test_bit_equal_to_gymnasium(persistent: bool) -> None:
    """Over 250 steps with autoresets; limbs are thrown about faster than what is observed."""
    env = make_vec("walker2d", N, seed=99, threads=2, max_steps=LIMIT, persistent=persistent)
    singles = [
        gymnasium.make(
            "Walker2d-v5",
            max_episode_steps=LIMIT,
            exclude_current_positions_from_observation=False,
            terminate_when_unhealthy=False,
        )
        for _ in range(N)
    ]
    obs, _ = env.reset(seed=17)
    expected = np.array([single.reset(seed=17 + i)[0] for i, single in enumerate(singles)])
    np.testing.assert_array_equal(obs, expected.astype(np.float32))
    rng, clipped, unhealthy = np.random.default_rng(0), 0, 0
    for _ in range(250):
        action = rng.uniform(-1, 1, (N, 6)).astype(np.float32)
        obs, reward, terminated, truncated, infos = env.step(action)
        for i, single in enumerate(singles):
            after, r, ended, cut, info = single.step(action[i])
            assert reward[i] == r
            assert (terminated[i], truncated[i]) == (ended, cut)
            np.testing.assert_array_equal(infos["final_obs_array"][i], after.astype(np.float32))
            clipped += bool((np.abs(after[9:]) == 10).any())
            unhealthy += info["reward_survive"] == 0
            if cut:
                after, _ = single.reset()
            np.testing.assert_array_equal(obs[i], after.astype(np.float32))
    assert clipped > 50
    assert unhealthy > 50
    for single in singles:
        single.close()


def test_the_walker_is_described() -> None:
    walker = spec("walker2d")
    assert (walker.obs_dim, walker.action_dim, walker.dt) == (18, 6, 0.008)
    assert walker.descriptor == ("x",)
    assert walker.constants["gymnasium_id"] == "Walker2d-v5"
    assert walker.constants["reset_noise_scale"] == 5e-3


@pytest.mark.parametrize(
    ("z", "pitch", "upright"),
    [(1.2, 0, 1), (0.8, 0, 0), (0.81, 0.99, 1), (2.0, 0, 0), (1.2, 1, 0), (1.2, -1, 0)],
)
def test_the_walker_is_paid_for_standing_and_moving(z: float, pitch: float, upright: int) -> None:
    before, after = np.zeros((1, 9)), np.zeros((1, 9))
    after[0, :3] = 0.004, z, pitch
    action = np.full((1, 6), 0.5)
    found = Walker2d().reward(View(before, before, {}), View(after, after, {}), action)
    assert found[0] == pytest.approx(0.5 + upright - 1e-3 * 6 * 0.25)


@pytest.mark.parametrize("name", ["walker2d", "reacher"])
def test_the_preset_normaliser_is_that_of_random_rollouts(name: str) -> None:
    env, rng = make_vec(name, 64, seed=1, threads=1, max_steps=50), np.random.default_rng(1)
    seen = [env.reset(seed=1)[0]]
    for _ in range(199):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        seen.append(env.step(action)[0])
    scaled = (np.concatenate(seen) - env.env_spec.obs_mean) / env.env_spec.obs_std
    assert np.abs(scaled.mean(axis=0)).max() < 0.2
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=0.15)
