"""SMDP discounting against closed forms, through real SB3 algorithms and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, MaskablePPO
from stable_baselines3 import DQN, PPO, SAC

from etude.agents.smdp import (
    DurationCallback,
    EnvStepsCallback,
    EveryStepReplayBuffer,
    SMDPReplayBuffer,
    SMDPRolloutBuffer,
    maskable_rollout_buffer,
)
from etude.envs.spec import EnvSpec, Field
from etude.errors import UsageError
from etude.skills.durations import Duration
from etude.skills.vec_env import SkillVecEnv

GAMMA, K, GOAL = 0.9, 10, 23
PLACES = np.arange(GOAL)
VALUES = GAMMA ** (GOAL - 1 - PLACES)  # of walking on: reward 1 with the last of the steps left


class LineWorld:
    """Places 0 to 23 in a row, seen as one-hot; +1 and the end at 23. Acts as a BatchedEnv."""

    def __init__(self, starts, limit=10**9):
        self.starts, self.limit, self.num_envs = np.asarray(starts), limit, len(starts)
        self.env_spec = EnvSpec(
            id="line",
            body="line",
            fields=(Field("place", GOAL + 1),),
            task_fields=(),
            action_dim=1,
            descriptor=("place",),
            descriptor_unit="step",
            cell=1.0,
            dt=1.0,
            max_steps=limit,
            constants={},
        )
        self.render_mode = None

    def reset(self, *, seed=None, options=None):
        self.place, self.elapsed = self.starts.copy(), np.zeros(self.num_envs, int)
        return self._obs(), {}

    def step(self, actions, active=None):
        moved = np.ones(self.num_envs, bool) if active is None else active
        self.place[moved] += (actions[moved, 0] > 0).astype(int)
        self.elapsed[moved] += 1
        terminated = moved & (self.place == GOAL)
        truncated = moved & (self.elapsed >= self.limit)
        infos = {"final_obs_array": self._obs()}
        done = terminated | truncated
        self.place[done], self.elapsed[done] = self.starts[done], 0
        return self._obs(), terminated.astype(float), terminated, truncated, infos

    def _obs(self):
        return np.eye(GOAL + 1, dtype=np.float32)[self.place]

    def close(self):
        pass


class Walk:
    """Skill 0 walks on; skill 1, if there is one, stands still."""

    def __init__(self, skills):
        self.action_space = spaces.Discrete(skills)

    def command(self, choice):
        return np.asarray(choice)[:, None]

    period = 1

    def plan(self, obs, command):
        return 1.0 - command[:, None]


class Stroll(Walk):
    """Any choice of a continuous controller walks on."""

    def __init__(self):
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def command(self, choice):
        return np.zeros_like(choice)


RANDOM = Duration(K, "random")


def line(skills, starts=(0,) * 8, limit=10**9, hold=K, **kwargs):
    level = Walk(skills) if skills else Stroll()
    return SkillVecEnv(LineWorld(starts, limit), level, hold, GAMMA, **kwargs)


def places(n=GOAL):
    return torch.eye(GOAL + 1)[:n]


OFF_POLICY = {
    "gamma": 0.5,  # must not matter
    "learning_rate": lambda left: 1e-5 + 3e-3 * left,
    "buffer_size": 2000,
    "learning_starts": 400,
    "train_freq": 1,
    "gradient_steps": 4,
    "batch_size": 128,
    "seed": 0,
}


def dqn(venv, steps, kind=DQN, buffer=SMDPReplayBuffer, **nets):
    model = kind(
        "MlpPolicy",
        venv,
        target_update_interval=200,
        exploration_final_eps=0.3,
        replay_buffer_class=buffer,
        policy_kwargs={"net_arch": [64], **nets},
        **OFF_POLICY,
    )
    model.learn(steps)
    seen = torch.zeros(GOAL, venv.observation_space.shape[0])  # `held` is 0 at a decision
    seen[:, : GOAL + 1] = places()
    with torch.no_grad():
        net = model.q_net if kind is DQN else model.quantile_net
        values = net(seen) if kind is DQN else net(seen).mean(1)
        return values.max(1).values.numpy()


def sac(venv, steps, kind=SAC, **nets):
    model = kind(
        "MlpPolicy",
        venv,
        tau=0.05,
        ent_coef=1e-9,  # else the entropy has a value too
        replay_buffer_class=SMDPReplayBuffer,
        # linear in one-hot places, and one critic: the smaller of two is a little below the truth
        policy_kwargs={"net_arch": {"pi": [8], "qf": []}, "n_critics": 1, **nets},
        **(OFF_POLICY | {"learning_rate": lambda left: 1e-5 + 2e-2 * left}),
    )
    model.learn(steps)
    with torch.no_grad():
        found = model.critic(places(), torch.zeros(GOAL, 1))
        values = found[0].flatten() if kind is SAC else found.mean((1, 2))
        return values.numpy()


def ppo(venv, steps, kind=PPO, buffer=SMDPRolloutBuffer):
    model = kind(
        "MlpPolicy",
        venv,
        gamma=0.5,  # must not matter
        learning_rate=lambda left: 1e-5 + 3e-3 * left,
        n_steps=16,
        batch_size=venv.num_envs * 16,
        rollout_buffer_class=buffer,
        policy_kwargs={"net_arch": [64]},
        seed=0,
    )
    model.learn(steps, callback=DurationCallback())
    with torch.no_grad():
        return model.policy.predict_values(places()).flatten().numpy()


def test_dqn_finds_the_closed_form_value():
    values = dqn(line(skills=2), 3000)
    assert values[0] == pytest.approx(0.9**22, abs=1e-3)
    assert values[[0, 10, 20]] == pytest.approx(VALUES[[0, 10, 20]], abs=1e-3)


def test_dqn_finds_it_when_time_limits_cut_decisions():
    values = dqn(line(skills=2, starts=PLACES, limit=17), 20_000)
    assert values[0] == pytest.approx(0.9**22, abs=1e-3)
    assert values == pytest.approx(VALUES, abs=3e-3)


def test_ppo_finds_the_closed_form_value():
    values = ppo(line(skills=1), 4000)
    assert values[0] == pytest.approx(0.9**22, abs=1e-3)


def test_ppo_finds_it_when_time_limits_cut_decisions():
    values = ppo(line(skills=1, starts=PLACES, limit=17), 15_000)
    assert values == pytest.approx(VALUES, abs=1e-3)


def test_random_durations_change_no_value():
    assert dqn(line(skills=2, hold=RANDOM), 3000)[0] == pytest.approx(0.9**22, abs=1e-3)
    assert ppo(line(skills=1, hold=RANDOM), 4000)[0] == pytest.approx(0.9**22, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"hold": RANDOM, "limit": 17, "starts": PLACES}],
    ids=["fixed", "random and cut"],
)
def test_sac_finds_the_closed_form_value(options):
    values = sac(line(skills=0, **options), 4000)
    assert values[0] == pytest.approx(0.9**22, abs=1e-3)


def test_every_step_of_a_decision_teaches_the_same_value():
    values = dqn(line(skills=1, every_step=True), 3000, buffer=EveryStepReplayBuffer)
    assert values[[0, 10, 20]] == pytest.approx(VALUES[[0, 10, 20]], abs=1e-3)


@pytest.mark.slow
def test_sb3_contrib_finds_the_closed_form_value():
    few = {"n_quantiles": 8}
    assert dqn(line(skills=1), 4000, QRDQN, **few)[0] == pytest.approx(0.9**22, abs=1e-3)
    assert sac(line(skills=0), 4000, TQC, **few)[0] == pytest.approx(0.9**22, abs=1e-3)


def test_maskable_ppo_finds_the_closed_form_value():
    """Standing still is masked, so every decision walks on."""

    class Masked(SkillVecEnv):
        def get_attr(self, attr_name, indices=None):
            return [True] if attr_name == "action_masks" else super().get_attr(attr_name, indices)

        def env_method(self, method_name, *args, **kwargs):
            return [np.array([True, False])] * self.num_envs

    venv = Masked(LineWorld((0,) * 8), Walk(2), RANDOM, GAMMA)
    values = ppo(venv, 4000, MaskablePPO, maskable_rollout_buffer())
    assert values[0] == pytest.approx(0.9**22, abs=1e-3)


def test_per_decision_discounting_gives_another_value():
    """Raw sums and one gamma per decision, as published hierarchies do: 0.9^2, not 0.9^22."""
    values = ppo(line(skills=1, smdp="per_decision"), 4000)
    assert values[0] == pytest.approx(0.81, abs=1e-2)


def replayed(venv, decisions, kind=SMDPReplayBuffer, size=100):
    """What the replay buffer holds after walking on: arrays (T, N)."""
    buffer = kind(
        size, venv.observation_space, venv.action_space, device="cpu", n_envs=venv.num_envs
    )
    obs = venv.reset()
    choice = np.zeros(venv.num_envs, np.int64)
    for _ in range(decisions):
        next_obs, reward, done, infos = venv.step(choice)
        stored = next_obs.copy()
        for i in np.flatnonzero(done):
            stored[i] = infos[i]["terminal_observation"]
        buffer.add(obs, stored, choice, reward, done, infos)
        obs = next_obs
    return buffer


def test_replay_discounts_whole_cut_and_final_decisions():
    buffer = replayed(line(skills=1, starts=(0, 20), limit=17), 2)
    assert buffer.discounts[0] == pytest.approx([GAMMA**10, GAMMA**3])  # whole, goal reached
    assert buffer.discounts[1] == pytest.approx([GAMMA**7, GAMMA**3])  # cut by the time limit
    assert buffer.dones[:2].tolist() == [[0, 1], [1, 1]]
    assert buffer.timeouts[:2].tolist() == [[0, 0], [1, 0]]
    assert buffer.rewards[:2] == pytest.approx(np.array([[0, GAMMA**2], [0, GAMMA**2]]))
    assert buffer.next_observations[1, 0].argmax() == 17


def test_replay_samples_keep_each_discount_with_its_transition():
    torch.manual_seed(0)
    buffer = replayed(line(skills=1, starts=(0, 20, 5, 13), limit=17), 6)
    batch = buffer.sample(256)
    start, after = batch.observations.argmax(1), batch.next_observations.argmax(1)
    assert len(start.unique()) > 5
    torch.testing.assert_close(batch.discounts[:, 0], GAMMA ** (after - start).float())
    ended = (after == GOAL).float()
    torch.testing.assert_close(batch.dones[:, 0], ended)  # a time limit is no end
    torch.testing.assert_close(batch.rewards[:, 0], ended * GAMMA ** (after - start - 1).float())


def test_every_step_goes_round_a_ring():
    """Two environments take 23 and 3 steps to the goal, in decisions of 10, 10, 3 and 3."""
    venv = line(skills=1, starts=(0, 20), every_step=True)
    buffer = replayed(venv, 2, EveryStepReplayBuffer, 40)
    assert (buffer.size(), buffer.full, buffer.total) == (26, False, 26)
    buffer = replayed(venv, 5, EveryStepReplayBuffer, 40)
    assert (buffer.size(), buffer.full, buffer.total, buffer.pos) == (40, True, 58, 18)
    place, after = (x[:, 0, :-1].argmax(1) for x in (buffer.observations, buffer.next_observations))
    walks = (range(10), range(10, 20), range(20, 23))
    ever = [x for i in range(5) for x in (*walks[i % 3], 20, 21, 22)]
    assert [place[i % 40] for i in range(18, 58)] == ever[-40:]
    ended = after == GOAL
    np.testing.assert_allclose(buffer.discounts[:, 0], GAMMA ** (after - place), rtol=1e-6)
    np.testing.assert_allclose(
        buffer.rewards[:, 0], ended * GAMMA ** (after - place - 1.0), rtol=1e-6
    )
    np.testing.assert_array_equal(buffer.dones[:, 0], ended)


def gae_by_hand(rewards, values, starts, discounts, last_values, last_dones, lam):
    """Advantages (T, N) as the sum over l of (prod of discounts and lambda) delta_{t+l}."""
    steps, n = rewards.shape
    advantages = np.zeros((steps, n))
    for i in range(n):
        for t in range(steps):
            weight = 1.0
            for s in range(t, steps):
                last = s + 1 == steps
                going_on = 1.0 - (last_dones[i] if last else starts[s + 1, i])
                after = last_values[i] if last else values[s + 1, i]
                delta = rewards[s, i] + discounts[s, i] * going_on * after - values[s, i]
                advantages[t, i] += weight * delta
                weight *= discounts[s, i] * lam * going_on
    return advantages


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_advantages_equal_those_by_hand(lam):
    rng = np.random.default_rng(1)
    steps, n, model_gamma = 12, 3, 0.3
    box = spaces.Box(-1, 1, (2,))
    buffer = SMDPRolloutBuffer(
        steps, box, box, device="cpu", gae_lambda=lam, gamma=model_gamma, n_envs=n
    )
    earned = rng.normal(size=(steps, n)).astype(np.float32)
    values = rng.normal(size=(steps, n)).astype(np.float32)
    starts = rng.random((steps, n)) < 0.3
    cut = rng.random((steps, n)) < 0.3  # episodes ended by a time limit
    final_values = rng.normal(size=(steps, n))
    discounts = (0.9 ** rng.integers(1, 11, (steps, n))).astype(np.float32)
    for t in range(steps):
        buffer.announce(earned[t], discounts[t])
        shown = earned[t] + model_gamma * final_values[t] * cut[t]  # what SB3 makes of it
        zeros = np.zeros((n, 2), np.float32)
        buffer.add(zeros, zeros, shown, starts[t], torch.tensor(values[t]), torch.zeros(n))
    last, dones = rng.normal(size=n).astype(np.float32), np.array([True, False, False])
    buffer.compute_returns_and_advantage(torch.tensor(last), dones)
    exact = earned + discounts * final_values * cut
    expected = gae_by_hand(exact, values, starts, discounts, last, dones, lam)
    np.testing.assert_allclose(buffer.advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(buffer.returns, expected + values, rtol=1e-4, atol=1e-5)


def test_without_the_callback_ppo_refuses():
    model = PPO(
        "MlpPolicy",
        line(skills=1),
        n_steps=2,
        batch_size=16,
        rollout_buffer_class=SMDPRolloutBuffer,
    )
    with pytest.raises(UsageError, match="pass DurationCallback"):
        model.learn(16)


def test_the_callback_refuses_a_plain_buffer():
    model = PPO("MlpPolicy", line(skills=1), n_steps=2, batch_size=16)
    with pytest.raises(UsageError, match="rollout_buffer_class=SMDPRolloutBuffer"):
        model.learn(16, callback=DurationCallback())


def test_an_environment_without_durations_is_named():
    buffer = replayed(line(skills=1), 1)
    zeros = np.zeros((8, GOAL + 1))
    with pytest.raises(UsageError, match="wrap it in SkillEnv"):
        buffer.add(zeros, zeros, np.zeros(8), np.zeros(8), np.zeros(8), [{}] * 8)


def test_saving_memory_by_sharing_observations_is_refused():
    with pytest.raises(UsageError, match="optimize_memory_usage"):
        SMDPReplayBuffer(
            8,
            spaces.Box(0, 1, (1,)),
            spaces.Discrete(2),
            optimize_memory_usage=True,
            handle_timeout_termination=False,
        )


def test_a_budget_of_environment_steps_ends_training():
    venv = line(skills=1)
    model = DQN("MlpPolicy", venv, buffer_size=100, replay_buffer_class=SMDPReplayBuffer)
    counter = EnvStepsCallback(budget=500)
    model.learn(10_000, callback=counter)
    # 8 environments take 80, 80 and 24 steps on their way to the goal, over and over
    assert counter.env_steps == venv.env_steps == 80 + 80 + 24 + 80 + 80 + 24 + 80 + 80
    assert model.num_timesteps == 8 * 8
