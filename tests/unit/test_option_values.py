"""Values learnt through stable-baselines3 over a library's options, against exact ones.

The line and the four rooms of `etude.envs.tasks.options`, with skills that end by themselves, hold
for random times and may not begin everywhere.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecEnvWrapper

from etude.agents.smdp import DurationCallback, SMDPReplayBuffer, SMDPRolloutBuffer
from etude.envs.bodies.tables import four_rooms, line
from etude.envs.registry import make_vec, spec
from etude.envs.tasks.options import optimal_values
from etude.skills.durations import Duration
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.predicates import annotate
from etude.skills.spaces import Discrete, Sphere
from etude.skills.vec_env import LibraryLevel, SkillVecEnv

GAMMA = 0.9
LINE = GAMMA ** np.arange(22.0, -1, -1)  # of places 0 to 22
COMPASS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])  # east, west, north, south


def compass(body, skills, rules=None):
    """The first few skills of the compass."""
    width = sum(field.dim for field in spec(body).fields)
    weight = np.vstack([np.zeros((width, 2)), 3 * COMPASS[:skills]])
    policy = MLP([(weight, np.zeros(2))], output="tanh")
    rows = [{"id": i, "z": z} for i, z in enumerate(np.eye(skills))]
    space, nothing = Discrete(skills), (np.zeros(width), np.ones(width))
    data = SetData("main", "none", {}, space, policy, {}, *nothing, rows)
    return annotate(SkillLibrary(Contents(body, spec(body).to_json(), [data])), rules or {})


def eastward(space):
    """Skills that all go east, and are over at places 7, 9 and 21."""
    width = sum(field.dim for field in spec("line-24").fields)
    weight, bias = np.zeros((width + space.dim, 2)), np.array([3.0, 0.0])
    policy = MLP([(weight, bias)], output="tanh")
    z = np.eye(space.dim) if isinstance(space, Discrete) else np.array([[1.0], [-1.0]])
    rows = [{"id": i, "z": one, "termination": ENDS} for i, one in enumerate(z)]
    nothing = np.zeros(width), np.ones(width)
    data = SetData("main", "none", {}, space, policy, {}, *nothing, rows)
    return SkillLibrary(Contents("east", spec("line-24").to_json(), [data]))


class Cells(VecEnvWrapper):
    """Shows cells as one-hot vectors, so that a linear network is a table."""

    def __init__(self, venv, places):
        self.places = places
        box = type(venv.observation_space)(0, 1, (len(places),), np.float32)
        super().__init__(venv, box)

    def shown(self, obs):
        cell = np.abs(obs[..., None, :2] - self.places).sum(-1).argmin(-1)
        return np.eye(len(self.places), dtype=np.float32)[cell]

    def reset(self):
        return self.shown(self.venv.reset())

    def step_wait(self):
        obs, reward, done, infos = self.venv.step_wait()
        for i in np.flatnonzero(done):
            infos[i]["terminal_observation"] = self.shown(infos[i]["terminal_observation"])
        return self.shown(obs), reward, done, infos


def world(task, library, hold, envs, fallback=None):
    table = (line() if task == "line-option" else four_rooms()).table
    level = LibraryLevel.for_spec(library, spec(task), fallback)
    raw = make_vec(task, envs, threads=1, seed=0)
    return Cells(SkillVecEnv(raw, level, hold, GAMMA, normalise=False), table.places)


ENDS = {"any": [{"near": {"x": x, "y": 0}, "within": 0.4} for x in (7, 9, 21)]}


def ending(space, envs):
    """East and nothing else, for 6 to 14 steps, and it is over at places 7, 9 and 21."""
    library = eastward(space)
    return world("line-option", library, Duration(9, "random"), envs)


def test_skills_that_end_by_themselves_keep_the_value_of_the_line():
    model = PPO(
        "MlpPolicy",
        ending(Discrete(1), 8),
        gamma=0.5,  # must not matter
        learning_rate=lambda left: 1e-5 + 2e-2 * left,
        n_steps=16,
        batch_size=128,
        rollout_buffer_class=SMDPRolloutBuffer,
        policy_kwargs={"net_arch": []},
        seed=0,
    )
    model.learn(5000, callback=DurationCallback())
    with torch.no_grad():
        values = model.policy.predict_values(torch.eye(24)).flatten().numpy()
    model.env.close()
    assert values[[0, 7, 9, 21]] == pytest.approx(LINE[[0, 7, 9, 21]], abs=1e-3)


def off_policy(kind, space, **more):
    """A table of values learnt from a replay of decisions; a linear network of one-hot cells."""
    model = kind(
        "MlpPolicy",
        ending(space, 8),
        gamma=0.5,  # must not matter
        learning_rate=lambda left: 1e-5 + 2e-2 * left,
        buffer_size=2000,
        learning_starts=400,
        train_freq=1,
        gradient_steps=4,
        batch_size=128,
        replay_buffer_class=SMDPReplayBuffer,
        seed=0,
        **more,
    )
    model.learn(4000)
    model.env.close()
    return model


def test_they_do_so_for_dqn():
    model = off_policy(DQN, Discrete(1), target_update_interval=200, policy_kwargs={"net_arch": []})
    with torch.no_grad():
        values = model.q_net(torch.eye(24)).flatten().numpy()
    assert values[[0, 7, 9, 21]] == pytest.approx(LINE[[0, 7, 9, 21]], abs=1e-3)


@pytest.mark.slow
def test_they_do_so_for_sac():
    """Continuous skills of one dimension are two, and both go east."""
    nets = {"net_arch": {"pi": [8], "qf": []}, "n_critics": 1}
    model = off_policy(SAC, Sphere(1), tau=0.05, ent_coef=1e-9, policy_kwargs=nets)
    with torch.no_grad():
        values = model.critic(torch.eye(24), torch.zeros(24, 1))[0].flatten().numpy()
    assert values[[0, 7, 9, 21]] == pytest.approx(LINE[[0, 7, 9, 21]], abs=1e-3)


def model_of(moves, goal, durations, stops):
    """Reward (S,) and discounted arrival (S, S) of an option over moves p(s' | s), (S, S).

    It holds for one of `durations`, all equally likely, or until a state of `stops`.
    """
    going = moves.copy()
    going[goal] = 0  # the episode is over
    pays, going[:, goal] = going[:, goal].copy(), 0
    alive, reward, arrival = np.eye(len(moves)), 0.0, 0.0
    for t in range(1, max(durations) + 1):
        reward = reward + alive @ pays
        alive = GAMMA * alive @ going
        left = sum(k >= t for k in durations)
        out = alive * np.where(stops, 1.0, sum(k == t for k in durations) / left)
        arrival, alive = arrival + out, alive - out
    return reward, arrival


def best_values(rewards, arrivals):
    """V = max_a R_a + W_a V, (S,), of models (A, S) and (A, S, S)."""
    values = np.zeros(rewards.shape[1])
    for _ in range(400):
        values = (rewards + arrivals @ values).max(0)
    return values


def test_the_models_are_those_of_held_actions():
    """Without stops and at one duration, value iteration is that of the task itself."""
    table, goal = four_rooms().table, 103
    models = [model_of(moves, goal, [4], np.zeros(104, bool)) for moves in table.transition]
    found = best_values(*map(np.array, zip(*models, strict=True)))
    np.testing.assert_allclose(found, optimal_values(table.transition, goal, GAMMA, 4), atol=1e-9)


def random_decisions(library, envs, decisions):
    """A replay of random choices in the four rooms, with east in place of what may not begin."""
    level = LibraryLevel.for_spec(library, spec("four-rooms-option"), fallback=0)
    raw = make_vec("four-rooms-option", envs, threads=1, seed=0)
    venv = SkillVecEnv(raw, level, Duration(3, "random"), GAMMA, normalise=False)
    buffer = SMDPReplayBuffer(
        envs * decisions, venv.observation_space, venv.action_space, device="cpu", n_envs=envs
    )
    rng = np.random.default_rng(0)
    venv.seed(0)
    obs = venv.reset()
    for _ in range(decisions):
        choice = rng.integers(4, size=envs)
        after, reward, done, infos = venv.step(choice)
        stored = after.copy()
        for i in np.flatnonzero(done):
            stored[i] = infos[i]["terminal_observation"]
        buffer.add(obs, stored, choice, reward, done, infos)
        obs = after
    venv.close()
    return buffer


@pytest.mark.slow
def test_options_of_the_four_rooms_are_worth_what_value_iteration_says():
    """Random durations, an end at the doors, no south in the upper half: from random decisions."""
    envs, decisions, goal = 512, 2400, 103
    doors = [(0, 3), (-4, 0), (3, -1), (0, -4)]
    table = four_rooms().table
    at = {tuple(place): i for i, place in enumerate(table.places.astype(int).tolist())}
    assert {*doors} <= {*at}
    stop = {"any": [{"near": {"x": x, "y": y}, "within": 0.1} for x, y in doors]}
    rules = {i: {"termination": stop} for i in range(4)}
    rules[3]["initiation"] = {"field": "y", "below": 0.5}
    buffer = random_decisions(compass("four-rooms", 4, rules), envs, decisions)

    def cells(rows):
        return np.array([at[x, y] for x, y in rows.reshape(-1, 4)[:, :2].astype(int).tolist()])

    row = cells(buffer.observations) * 4 + buffer.actions.flatten().astype(int)
    to = cells(buffer.next_observations)
    weight = (buffer.discounts * (1 - buffer.dones * (1 - buffer.timeouts))).flatten()
    count = np.maximum(np.bincount(row, minlength=416), 1)
    learnt = np.zeros(104)
    for _ in range(150):
        target = buffer.rewards.flatten() + weight * learnt[to]
        learnt = (np.bincount(row, target, 416) / count).reshape(104, 4).max(1)

    stops = np.zeros(104, bool)
    stops[[at[door] for door in doors]] = True
    models = [model_of(moves, goal, [2, 3, 4], stops) for moves in table.transition[1:]]
    rewards, arrivals = map(np.array, zip(*models, strict=True))
    upper = table.places[:, 1] > 0.5
    rewards[3, upper], arrivals[3, upper] = rewards[0, upper], arrivals[0, upper]
    exact = best_values(rewards, arrivals)
    plain = best_values(*map(np.array, zip(*models, strict=True)))
    assert np.abs(exact - plain).max() > 0.02  # what may not begin matters
    np.testing.assert_allclose(learnt[:103], exact[:103], atol=1e-2)
