"""Fine-tuning both levels: what is recorded, what may move when, and what is left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude import cli
from etude.agents.meta_state import Keeper
from etude.agents.skill_critic import SkillCriticConfig
from etude.config import from_dict
from etude.envs import registry
from etude.errors import CheckpointError, Stopped, UsageError
from etude.skills.compose import ComposeConfig, compose, load_trained
from etude.skills.finetune import COOL, Finetuned, finetune, settle
from etude.skills.finetune_env import FinetuneConfig, FinetuneVecEnv
from etude.skills.library import SkillLibrary, merge, write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Discrete, Sphere

BODY, TASK = "point-maze-u", "point-maze-u-goal"
K, N, GAMMA = 5, 3, 0.9
SMALL: dict[str, Any] = {"hidden": (8,), "batch_size": 16}
QUICK: dict[str, Any] = {
    "k": K,
    "gamma": GAMMA,
    "num_envs": N,
    "env_steps": 600,
    "warmup_steps": 150,
    "high_steps": 150,
    "replay_capacity": 1000,
    "low": SMALL,
    "hyper": {"hidden": (8,), "batch_size": 16, "learning_starts": 5},
}


def config(**changes: Any) -> FinetuneConfig:
    return from_dict(FinetuneConfig, {**QUICK, **changes})


def compass(
    folder: Path, discrete: bool = False, name: str = "compass", **rules: Any
) -> SkillLibrary:
    """Skills that are the directions of the plane; they look at the velocities alone."""
    space = Discrete(2) if discrete else Sphere(2)
    layers = [(np.vstack([np.zeros((2, 2)), 2 * np.eye(2)]), np.zeros(2))]
    policy = MLP(layers, output="tanh", input_fields=("y_velocity", "x_velocity"))
    rows = [{"id": 0, "name": "east", "z": [1.0, 0.0], "reach": 3.0, **rules}]
    data = SetData("main", "none", {}, space, policy, {}, np.arange(4), 1 + np.arange(4), rows)
    env = registry.spec(BODY).to_json()
    write(folder, sets=[data], env=env, provenance={"seed": 7}, name=name)
    return SkillLibrary.load(folder)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> SkillLibrary:
    return compass(tmp_path_factory.mktemp("zoo") / "compass")


@pytest.fixture(scope="module")
def controller(library: SkillLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a controller."""
    run = tmp_path_factory.mktemp("runs") / "controller"
    made = from_dict(
        ComposeConfig,
        {"algo": "sac", "k": K, "gamma": GAMMA, "num_envs": N, "env_steps": 300}
        | {"hyper": {"hidden": (8,), "batch_size": 16, "learning_starts": 5}},
    )
    compose(library, TASK, made).save(run)
    return run


def weights(made: Finetuned) -> np.ndarray:
    """All numbers of the skills' policy."""
    layers = made.library.data.policy.weights
    return np.concatenate([part.ravel() for layer in layers for part in layer])


def chooser(policy: Any) -> np.ndarray:
    """All numbers of the controller but those of targets, which follow by themselves."""
    named = ((k, p) for k, p in policy.named_parameters() if "target" not in k)
    return torch.cat([p.flatten() for _, p in named]).detach().numpy()


# ---- what is recorded


def test_each_step_of_a_decision_is_recorded_and_no_other(library: SkillLibrary) -> None:
    venv = FinetuneVecEnv(TASK, library, config())
    venv.venv.max_steps = 2 * K + 2  # so that decisions are cut, and environments wait
    venv.seed(0)
    venv.reset()
    rng, rows, made = np.random.default_rng(0), [], []
    for _ in range(6):
        choice = rng.uniform(-1, 1, (N, 2)).astype(np.float32)
        _, reward, _, infos = venv.step(choice)
        made += [
            (library.space.from_action(c), r, i["skill"])
            for c, r, i in zip(choice, reward, infos, strict=True)
        ]
    replay = venv.level.replay
    rows = replay._read(0, replay.total)
    o = venv.venv.env_spec.obs_dim
    obs, action, reward, after = (
        rows[:, :o],
        rows[:, o : o + 2],
        rows[:, o + 2],
        rows[:, o + 3 : 2 * o + 3],
    )
    skill, step = rows[:, 2 * o + 3 : 2 * o + 5], rows[:, 2 * o + 5]
    assert len(rows) == venv.env_steps == sum(info["duration"] for *_, info in made)
    assert {info["duration"] for *_, info in made} == {K, 2}
    for z, value, info in made:
        mine = np.flatnonzero((skill == z).all(1))
        np.testing.assert_array_equal(step[mine], np.arange(info["duration"]))
        np.testing.assert_array_equal(after[mine][:-1], obs[mine][1:])
        assert float(GAMMA ** step[mine] @ reward[mine]) == pytest.approx(value)
    seen = (obs[:, :4] - library.data.mean) / library.data.std
    mean = library.act(obs[:, :4], skill)
    assert seen.shape == (len(rows), 4)
    assert 0.05 < np.abs(np.arctanh(action) - np.arctanh(mean)).mean() < 0.5  # it explores
    venv.close()


def test_a_batch_shows_each_network_what_it_was_made_for(library: SkillLibrary) -> None:
    venv = FinetuneVecEnv(TASK, library, config())
    venv.seed(0)
    venv.reset()
    for _ in range(5):
        venv.step(np.ones((N, 2), np.float32))
    state = venv.level.replay.rng.bit_generator.state
    drawn = venv.level.replay.steps(16)
    venv.level.replay.rng.bit_generator.state = state
    batch = venv.level._draw()
    np.testing.assert_allclose(batch.obs, venv.scaling(drawn.obs.numpy()), atol=1e-6)
    np.testing.assert_allclose(batch.next_obs, venv.scaling(drawn.next_obs.numpy()), atol=1e-6)
    velocity = (drawn.next_obs.numpy()[:, [3, 2]] - [3, 2]) / [4, 3]  # y first, as they are named
    np.testing.assert_allclose(batch.next_body, velocity, atol=1e-6)
    greedy = venv.level.agent.act(batch.body, batch.skill, deterministic=True)
    np.testing.assert_allclose(
        greedy, library.act(drawn.obs.numpy()[:, :4], batch.skill), atol=1e-5
    )
    venv.close()


# ---- what may move when


def test_first_the_critics_then_the_controller_then_both(
    library: SkillLibrary, controller: Path
) -> None:
    def after(steps: int) -> Finetuned:
        return finetune(library, TASK, config(env_steps=steps), controller=controller)

    start = chooser(load_trained(controller, library).policy)
    parent = np.concatenate([p.ravel() for layer in library.data.policy.weights for p in layer])
    critics, high, both = after(140), after(280), after(600)
    np.testing.assert_array_equal(chooser(critics.trained.policy), start)
    np.testing.assert_array_equal(weights(critics), parent)
    assert np.abs(chooser(high.trained.policy) - start).max() > 1e-4
    np.testing.assert_array_equal(weights(high), parent)
    assert np.abs(weights(both) - parent).max() > 1e-4


def test_no_updates_leave_the_skills_as_they_are(library: SkillLibrary) -> None:
    made = finetune(library, TASK, config(updates_per_step=0.0))
    parent = [p for layer in library.data.policy.weights for p in layer]
    np.testing.assert_array_equal(weights(made), np.concatenate([p.ravel() for p in parent]))


def test_the_number_of_updates_follows_the_steps(library: SkillLibrary) -> None:
    venv = FinetuneVecEnv(TASK, library, config(updates_per_step=0.5))
    venv.seed(0)
    venv.reset()
    for _ in range(8):
        venv.step(np.ones((N, 2), np.float32))
        venv.learn(lambda obs: torch.zeros(len(obs)))
    # after one decision the batch of 16 is not there yet, and those updates are not made up for
    assert venv.level.agent.updates == (venv.env_steps - N * K) // 2
    venv.close()


@pytest.mark.parametrize(("algo", "discrete"), [("ppo", False), ("dqn", True)])
def test_any_algorithm_may_choose(algo: str, discrete: bool, tmp_path: Path) -> None:
    library = compass(tmp_path / "compass", discrete)
    hyper = {"hidden": (8,), "rollout": 16} if algo == "ppo" else QUICK["hyper"]
    made = finetune(library, TASK, config(algo=algo, hyper=hyper))
    parent = [p.ravel() for layer in library.data.policy.weights for p in layer]
    assert np.abs(weights(made) - np.concatenate(parent)).max() > 1e-4
    assert made.trained.config.algo == algo


def test_auto_takes_what_can_choose_such_skills(library: SkillLibrary, tmp_path: Path) -> None:
    assert settle(config(), library).algo == "sac"
    assert settle(config(), compass(tmp_path / "two", discrete=True)).algo == "dqn"


# ---- the new version


def test_the_new_version_names_its_parent_and_leaves_it_alone(
    library: SkillLibrary, tmp_path: Path
) -> None:
    both = merge([library, compass(tmp_path / "other", name="other")], tmp_path / "both")
    parent = both.with_set("other.main")
    made = finetune(parent, TASK, config()).save(tmp_path / "run", "better", command="x")
    again = SkillLibrary.load(tmp_path / "run", "other.main")
    assert (again.name, again.id) == ("better", made.library.id)
    [link] = again.parents
    assert (link["name"], link["id"], link["relation"]) == ("both", both.id, f"finetune on {TASK}")
    assert SkillLibrary.load(tmp_path / "both").id == both.id
    assert (again.provenance["command"], again.provenance["both"]) == ("x", both.provenance)
    assert again.skills == [{"id": 0, "name": "east", "z": [1.0, 0.0]}]  # its reach was another's
    obs, z = np.ones((2, 4), np.float32), np.array([1.0, 0.0])
    np.testing.assert_array_equal(again.with_set("main").act(obs, z), both.act(obs, z))
    assert not np.allclose(again.act(obs, z), parent.act(obs, z), atol=1e-4)
    with pytest.raises(UsageError, match="never overwritten"):
        made.save(tmp_path / "run")
    trained = load_trained(tmp_path / "run", again)
    np.testing.assert_array_equal(
        trained.controller.act(np.ones((1, 6))), made.trained.controller.act(np.ones((1, 6)))
    )


# ---- a controller that is given


def test_a_given_controller_must_be_of_these_skills_and_this_rhythm(
    library: SkillLibrary, controller: Path, tmp_path: Path
) -> None:
    settled = settle(config(hyper={}), library, controller)
    hyper = settled.hyper
    assert (settled.algo, hyper.hidden, hyper.learning_starts) == ("sac", (8,), 0)
    assert hyper.ent_coef == COOL
    warm = settle(config(hyper={"ent_coef": 0.3}), library, controller)
    assert warm.hyper.ent_coef == 0.3
    with pytest.raises(UsageError, match="k = 5 and not 25: say --k 5"):
        settle(config(k=25), library, controller)
    with pytest.raises(UsageError, match="leave --algo out"):
        settle(config(algo="ppo", hyper={}), library, controller)
    with pytest.raises(UsageError, match="from library compass and not from other"):
        settle(config(), compass(tmp_path / "other", name="other"), controller)
    with pytest.raises(CheckpointError, match="no checkpoint|not a checkpoint"):
        settle(config(), library, tmp_path)


def test_plans_cannot_be_fine_tuned(tmp_path: Path) -> None:
    policy = MLP([(np.ones((6, 4)), np.zeros(4))], output="tanh", knots=2)
    data = SetData("main", "none", {}, Sphere(2), policy, {}, np.zeros(4), np.ones(4), [])
    env = registry.spec(BODY).to_json()
    write(tmp_path / "plans", sets=[data], env=env, provenance={}, name="plans")
    with pytest.raises(UsageError, match="plans of 2 steps"):
        finetune(tmp_path / "plans", TASK, config())


def test_skills_that_end_by_themselves_cannot_be_fine_tuned(tmp_path: Path) -> None:
    library = compass(tmp_path / "rules", discrete=True, termination={"field": "x", "above": 0})
    with pytest.raises(UsageError, match="only skills that hold for k steps"):
        finetune(library, TASK, config())


# ---- stopping and going on


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    algo: str, library: SkillLibrary, tmp_path: Path
) -> None:
    hyper = {"hidden": (8,), "rollout": 16} if algo == "ppo" else QUICK["hyper"]
    settings = config(algo=algo, hyper=hyper)
    alone = finetune(library, TASK, settings)
    asked = iter([False] * 30 + [True] * 100)  # in the middle of the third part
    keeper = Keeper(tmp_path, 0, lambda: next(asked))
    with pytest.raises(Stopped):
        finetune(library, TASK, settings, keeper=keeper)
    keeper = Keeper(tmp_path, 0)
    assert keeper.env_steps is not None
    assert 300 < keeper.env_steps < 600
    with pytest.raises(CheckpointError, match="other"):
        finetune(library, TASK, dataclasses.replace(settings, seed=1), keeper=keeper)
    again = finetune(library, TASK, settings, keeper=Keeper(tmp_path, 0))
    np.testing.assert_array_equal(weights(again), weights(alone))
    np.testing.assert_array_equal(chooser(again.trained.policy), chooser(alone.trained.policy))


def test_a_signal_saves_and_the_printed_command_goes_on(
    library: SkillLibrary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--k", "5", "--num-envs", "3", "--env-steps", "2500", "--updates-per-step", "0.01"]
    options += ["--low.hidden", "8", "--low.batch-size", "8", "--out", str(out)]
    options += ["--algo", "ppo", "--hyper.rollout", "30", "--hyper.epochs", "1"]

    def interrupt() -> None:
        while not list(out.glob("checkpoints/*/manifest.json")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    start = ["finetune", str(library.path), "--task", TASK, *options, "--save-minutes", "0.0005"]
    assert cli.main(start) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert f"python train.py finetune --resume {out}" in said
    assert not (out / "library").exists()
    assert cli.main(["finetune", "--resume", str(out)]) == 0
    assert "going on from step" in capsys.readouterr().err
    assert SkillLibrary.load(out).parents[0]["id"] == library.id


# ---- the command


def test_the_command_leaves_a_version_a_controller_and_a_report(
    library: SkillLibrary, controller: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--k", "5", "--gamma", "0.9", "--num-envs", "3", "--env-steps", "300"]
    options += ["--warmup-steps", "100", "--high-steps", "0", "--low.hidden", "8"]
    options += ["--low.batch-size", "16", "--name", "better"]
    where = ["finetune", str(library.path), "--task", TASK, "--controller", str(controller)]
    assert cli.main([*where, *options, "--out", str(out)]) == 0
    made = SkillLibrary.load(out)
    report = json.loads((out / "report.json").read_text())
    assert report["library"] == {"name": "better", "id": made.id}
    assert made.parents[0]["id"] == library.id
    assert {"success_rate", "return_mean"} <= report["parent"].keys() & report["finetuned"].keys()
    assert "--low.batch-size 16" in made.provenance["command"]
    logged = (out / "metrics.csv").read_text()
    assert "finetune/kl," in logged and "meta/episodes," in logged
    assert (out / "tb").is_dir()
    assert cli.main(["finetune", "--resume", str(out)]) == 2
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["finetune", "ant-metra"], "needs a library and a task"),
        (["finetune", "ant-metra", "--task", "ant-multi-gaol"], 'did you mean "ant-multi-goal"'),
        (["finetune", "ant-metra", "--task", TASK], 'move the body "ant"'),
        (["finetune", "--resume", "nowhere"], "no run of finetune"),
        (["finetune", "--resume", "nowhere", "--task", TASK], "stay as they are"),
    ],
)
def test_the_command_says_what_is_wrong(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_the_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["finetune", "--help"])
    text = capsys.readouterr().out
    assert TASK in text and "--low.kl-target" in text and "ant-metra" in text


def test_the_defaults_are_in_order() -> None:
    made = FinetuneConfig()
    assert made.warmup_steps + made.high_steps < made.env_steps
    assert made.low == SkillCriticConfig()
