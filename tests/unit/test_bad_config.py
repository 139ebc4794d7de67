"""Bad configurations: each is refused in one sentence, before any environment is built."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from etude import cli
from etude.agents.meta_config import MetaConfig
from etude.agents.sac import SACConfig
from etude.config import MAX_BYTES, Config, from_dict, load, replace
from etude.envs.engine import BatchedEnv
from etude.errors import UsageError
from etude.skills.compose import ComposeConfig
from etude.skills.discovery import DiscoverConfig, LoopConfig, preset
from etude.skills.learners.diayn import Diayn
from etude.skills.learners.metra import Metra

CASES = int(os.environ.get("ETUDE_CASES", "300"))
NAN, INFINITY = float("nan"), float("inf")
RUN = preset("metra", "half-cheetah")
TYPE, RANGE, KEY, CHOICE = "wrong type", "out of range", "unknown setting", "unknown"

Row = tuple[Config, dict[str, Any], str, str, str]
BAD: list[Row] = [  # configuration, data, what the sentence names: setting, why, what is allowed
    (RUN, {"steps": "many"}, "steps = 'many'", TYPE, "a whole number"),
    (RUN, {"steps": True}, "steps = True", TYPE, "a whole number"),
    (RUN, {"steps": 1.5}, "steps = 1.5", TYPE, "a whole number"),
    (RUN, {"steps": 0}, "steps = 0", RANGE, "[1, inf]"),
    (RUN, {"steps": 2**80}, "steps = a number of 81 bits", RANGE, "9.22337e+18"),
    (RUN, {"steps": None}, "steps = None", TYPE, "a whole number"),
    (RUN, {"seed": -1}, "seed = -1", RANGE, "[0, inf]"),
    (RUN, {"seed": [1]}, "seed = [1]", TYPE, "a whole number"),
    (RUN, {"minutes": NAN}, "minutes = nan", RANGE, "[0, inf]"),
    (RUN, {"minutes": INFINITY}, "minutes = inf", RANGE, "finite"),
    (RUN, {"minutes": "5"}, "minutes = '5'", TYPE, "a number"),
    (RUN, {"minutes": -1}, "minutes = -1", RANGE, "[0, inf]"),
    (RUN, {"minutes": 10**400}, "minutes = a number of", RANGE, "9.22337e+18"),
    (RUN, {"learner": 3}, "learner = 3", TYPE, "a text"),
    (RUN, {"env": ["ant"]}, "env = ['ant']", TYPE, "a text"),
    (RUN, {"preset": False}, "preset = False", TYPE, "a text"),
    (RUN, {"step": 5}, '"step"', KEY, 'did you mean "steps"'),
    (RUN, {"Seed": 5}, '"Seed"', KEY, 'did you mean "seed"'),
    (RUN, {"gamma": 0.9}, '"gamma"', KEY, 'did you mean "agent.gamma"'),
    (RUN, {"num_envs": 4}, '"num_envs"', KEY, 'did you mean "loop.num_envs"'),
    (RUN, {"": 4}, '""', KEY, "choose one of"),
    (RUN, {"steps\n": 4}, r'"steps\n"', KEY, 'did you mean "steps"'),
    (RUN, {"agent": 3}, "agent = 3", TYPE, "a table"),
    (RUN, {"loop": []}, "loop = []", TYPE, "a table"),
    (RUN, {"method": None}, "method = None", TYPE, "a table"),
    (RUN, {"agent": SACConfig().hidden}, "agent = (256, 256)", TYPE, "a table"),
    (RUN, {"loop": LoopConfig}, "loop = <class", TYPE, "a table"),
    (RUN, {"agent": {"lr": 0}}, "agent.lr = 0", RANGE, "(0, 1]"),
    (RUN, {"agent": {"lr": "1e-4"}}, "agent.lr = '1e-4'", TYPE, "a number"),
    (RUN, {"agent": {"activation": "relo"}}, "agent.activation = 'relo'", CHOICE, '"relu"'),
    (RUN, {"agent": {"gama": 0.9}}, '"gama"', KEY, 'did you mean "gamma"'),
    (RUN, {"method": {"dims": 4}}, '"dims"', KEY, 'did you mean "dim"'),
    (RUN, {"loop": {"batch_size": 0}}, "loop.batch_size = 0", RANGE, "[1, inf]"),
    (RUN, {"loop": {"replay_capacity": 100}}, "replay_capacity = 100", "too small", "1600"),
    (RUN, {"loop": {"batch_size": 2_000_000}}, "replay_capacity", "too small", "2000000"),
    (RUN, {"loop": {"num_envs": 1024, "episode_steps": 1000}}, "replay", "too small", "1024000"),
    (LoopConfig(), {"num_envs": 0}, "num_envs = 0", RANGE, "[1, 1024]"),
    (LoopConfig(), {"num_envs": 1025}, "num_envs = 1025", RANGE, "[1, 1024]"),
    (LoopConfig(), {"num_envs": 8.0}, "num_envs = 8.0", TYPE, "a whole number"),
    (LoopConfig(), {"episode_steps": 0}, "episode_steps = 0", RANGE, "[1, inf]"),
    (LoopConfig(), {"updates_per_epoch": -3}, "updates_per_epoch = -3", RANGE, "[1, inf]"),
    (LoopConfig(), {"warmup_steps": -1}, "warmup_steps = -1", RANGE, "[0, inf]"),
    (LoopConfig(), {"hold": -1}, "hold = -1", RANGE, "[0, inf]"),
    (LoopConfig(), {"hold": False}, "hold = False", TYPE, "a whole number"),
    (LoopConfig(), {"visited_starts": 1.1}, "visited_starts = 1.1", RANGE, "[0, 1]"),
    (LoopConfig(), {"visited_start": 1.0}, '"visited_start"', KEY, '"visited_starts"'),
    (SACConfig(), {"hidden": 256}, "hidden = 256", TYPE, "a list, each item a whole number"),
    (SACConfig(), {"hidden": [256, 0]}, "hidden[1] = 0", RANGE, "[1, 8192]"),
    (SACConfig(), {"hidden": [256, "256"]}, "hidden[1] = '256'", TYPE, "a whole number"),
    (SACConfig(), {"hidden": "256"}, "hidden = '256'", TYPE, "a list"),
    (SACConfig(), {"activation": 3}, "activation = 3", CHOICE, "relu, tanh"),
    (SACConfig(), {"gamma": 1.01}, "gamma = 1.01", RANGE, "[0, 1]"),
    (SACConfig(), {"tau": NAN}, "tau = nan", RANGE, "(0, 1]"),
    (SACConfig(), {"alpha0": INFINITY}, "alpha0 = inf", RANGE, "finite"),
    (SACConfig(), {"layer_norm": 1}, "layer_norm = 1", TYPE, "true or false"),
    (SACConfig(), {"auto_alpha": "false"}, "auto_alpha = 'false'", TYPE, "true or false"),
    (SACConfig(), {"critics": 65}, "critics = 65", RANGE, "[1, 64]"),
    (SACConfig(), {"actor_every": 0}, "actor_every = 0", RANGE, "[1, 100]"),
    (SACConfig(), {"learning_rate": 1e-4}, '"learning_rate"', KEY, "alpha_lr"),
    (Metra.Config(), {"skills": "sphere"}, "skills = 'sphere'", CHOICE, "continuous, discrete"),
    (Metra.Config(), {"dim": 0}, "dim = 0", RANGE, "[1, 1024]"),
    (Metra.Config(), {"dual_init": 0.0}, "dual_init = 0.0", RANGE, "(0, inf]"),
    (Metra.Config(), {"dual_inti": 3}, '"dual_inti"', KEY, 'did you mean "dual_init"'),
    (Metra.Config(), {"skill_obs": "xy"}, "skill_obs = 'xy'", TYPE, "a list, each item a text"),
    (Metra.Config(), {"skill_obs": [1]}, "skill_obs[0] = 1", TYPE, "a text"),
    (Diayn.Config(), {"min_std": 0}, "min_std = 0", RANGE, "(0, inf]"),
    (Diayn.Config(), {"slack": 0.1}, '"slack"', KEY, "choose one of dim, hidden"),
    (Diayn.Config(), {"lr": 2}, "lr = 2", RANGE, "(0, 1]"),
    (ComposeConfig(), {"algo": "pppo"}, "algo = 'pppo'", CHOICE, 'did you mean "ppo"'),
    (ComposeConfig(), {"k": 0}, "k = 0", RANGE, "[1, inf]"),
    (ComposeConfig(), {"gamma": 0}, "gamma = 0", RANGE, "(0, 1]"),
    (ComposeConfig(), {"smdp": None}, "smdp = None", CHOICE, "exact, per_decision"),
    (ComposeConfig(), {"env_step": 10}, '"env_step"', KEY, 'did you mean "env_steps"'),
    (ComposeConfig(), {"hyper": {"tau": 0}}, "hyper.tau = 0", RANGE, "(0, 1]"),
    (ComposeConfig(), {"hyper": {"hidden": [0]}}, "hyper.hidden[0] = 0", RANGE, "[1, inf]"),
    (MetaConfig(), {"exploration": "much"}, "exploration = 'much'", TYPE, "a number"),
]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchedEnv, "__init__", lambda *_, **__: pytest.fail("an env was built"))


def said(error: object) -> str:
    """The sentence of a refusal: one line, one full stop at the end, not too long to read."""
    text = str(error)
    assert text.isprintable() and text.endswith((".", "?")) and len(text) < 400, text
    return text


@pytest.mark.parametrize(("config", "data", "key", "why", "allowed"), BAD)
def test_refused_with_setting_reason_and_remedy(
    config: Config, data: dict[str, Any], key: str, why: str, allowed: str
) -> None:
    with pytest.raises(UsageError) as caught:
        replace(config, data)
    text = said(caught.value)
    assert key in text and why in text and allowed in text, text


@pytest.mark.parametrize(("config", "data", "key", "why", "allowed"), BAD)
def test_refused_at_construction_as_well(
    config: Config, data: dict[str, Any], key: str, why: str, allowed: str
) -> None:
    if why == KEY or any(isinstance(value, Mapping) for value in data.values()):
        return  # Python's own TypeError; the parts are configurations with rows of their own
    with pytest.raises(UsageError) as caught:
        type(config)(**{**vars(config), **data})
    assert key in said(caught.value)


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 60
    assert {type(row[0]) for row in BAD} >= {DiscoverConfig, SACConfig, LoopConfig, ComposeConfig}
    assert {type(row[0]) for row in BAD} >= {Metra.Config, Diayn.Config}


def test_what_is_right_is_taken() -> None:
    data = {"minutes": 5, "agent": {"hidden": [8], "lr": 1}, "loop": {"hold": 3}}
    config = replace(RUN, data)
    assert (config.minutes, config.agent.hidden, config.loop.hold) == (5.0, (8,), 3)
    assert type(config.minutes) is float and type(config.agent.lr) is float
    assert type(SACConfig(lr=1).lr) is float and SACConfig(hidden=[8]).hidden == (8,)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Other(Config):
    """Annotations that no configuration of a run has together."""

    out: Path | None = None
    """a path"""
    arms: Literal["none", "all"] | tuple[str, ...] = "none"
    """a word or a list"""
    size: tuple[int, float] = (1, 1.0)
    """two numbers"""


def test_paths_unions_and_pairs() -> None:
    data = {"out": "a/b", "arms": ["x"], "size": [2, 3]}
    assert from_dict(Other, data) == Other(Path("a/b"), ("x",), (2, 3.0))
    assert from_dict(Other, {"out": None, "arms": "all"}) == Other(None, "all")
    for bad, words in (
        ({"out": 3}, "out = 3 has the wrong type: give a path"),
        ({"out": "a\0b"}, "give a path"),
        ({"arms": None}, "arms = None has the wrong type: give one of none, all or a list"),
        ({"arms": "some"}, "arms = 'some' has the wrong type"),
        ({"size": [1]}, "give a list of 2: a whole number, a number"),
    ):
        with pytest.raises(UsageError, match=words):
            from_dict(Other, bad)


MISTAKES = {
    "range": (["--loop.batch-size", "0"], "batch_size = 0 is out of range"),
    "nan": (["--agent.gamma", "nan"], "gamma = nan is out of range"),
    "infinity": (["--agent.alpha0", "inf"], "alpha0 = inf is out of range"),
    "combination": (["--loop.replay-capacity", "9"], "replay_capacity = 9 is too small"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_command_line_says_it_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, words = MISTAKES[name]
    out = tmp_path / "run"
    args = ["discover", "metra", "--env", "ant", "--out", str(out), *flags]
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not out.exists()


# ---- files

FILES = {
    "yaml": ("run.yaml", b"steps: 3", "give a .toml or .json file"),
    "python": ("run.py", b"steps = 3", "give a .toml or .json file"),
    "pickle": ("run.pkl", b"\x80\x04.", "give a .toml or .json file"),
    "broken toml": ("run.toml", b"steps = = 3", "is not valid TOML"),
    "broken json": ("run.json", b'{"steps": 3', "is not valid JSON"),
    "not text": ("run.toml", b"\xff\xfe", "is not valid TOML"),
    "a list": ("run.json", b"[1, 2]", "holds no settings"),
    "nan": ("run.json", b'{"minutes": NaN}', "NaN is not a number of JSON"),
    "infinity": ("run.json", b'{"minutes": -Infinity}', "-Infinity is not a number of JSON"),
    "twice": ("run.json", b'{"seed": 1, "steps": 2, "seed": 3}', "'seed' is given twice"),
    "twice in toml": ("run.toml", b"seed = 1\nseed = 2\n", "is not valid TOML"),
    "deep": ("run.json", b'{"a":' * 20 + b"[]" + b"}" * 20, "at most 20 tables and lists"),
    "deep list": ("run.toml", b"a = " + b"[" * 20 + b"]" * 20, "at most 20 tables and lists"),
    "bottomless": ("run.json", b"[" * 500_000, "at most 20 tables and lists"),
    "bottomless toml": ("run.toml", b"a = " + b"[" * 500_000, "at most 20 tables and lists"),
    "slow key": ("run.toml", b"a." * 100_000 + b"a = 1", "at most 20 tables and lists"),
    "slow quoted key": ("run.toml", b'"\\"" . ' * 50_000 + b"a = 1", "at most 20 tables"),
    "digits": ("run.json", b'{"seed": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    "large": ("run.toml", b"#" * (MAX_BYTES + 1), "at most 1000000 bytes"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_data_within_limits(name: str, tmp_path: Path) -> None:
    file, content, words = FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load(tmp_path / file)
    assert words in str(caught.value) and str(tmp_path / file) in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("folder.toml", "nowhere.toml", "pipe.json"):
        with pytest.raises(UsageError, match=f"{name} is not a file"):
            load(tmp_path / name)


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    text = 'steps = 7000\n[agent]\nhidden = [8, 8]\nactivation = "tanh"\n'
    (tmp_path / "a.toml").write_text(text)
    data = load(tmp_path / "a.toml")
    (tmp_path / "a.JSON").write_text(json.dumps(data))
    assert load(tmp_path / "a.JSON") == data
    assert replace(RUN, data).agent.hidden == (8, 8)
    limits = {"json": b'{"a":' * 19 + b"[]" + b"}" * 19, "toml": b"#" * (MAX_BYTES - 1) + b"\n"}
    for form, content in limits.items():  # the largest that is allowed
        (tmp_path / f"b.{form}").write_bytes(content)
        assert isinstance(load(tmp_path / f"b.{form}"), dict)


SEEDS = (
    b'steps = 9000\nseed = 3\nminutes = 1.5\nenv = "ant"\n[agent]\nhidden = [64, 64]\nlr = 1e-3\n'
    b'activation = "tanh"\nlayer_norm = true\n[method]\ndim = 4\nskill_obs = ["x"]\n[loop]\nhold=5',
    b'{"steps": 9000, "minutes": 1.5, "env": "ant", "agent": {"hidden": [64, 64], "lr": 1e-3, '
    b'"layer_norm": true}, "method": {"skills": "discrete"}, "loop": {"num_envs": 4, "hold": 5}}',
)
PIECES = (
    *(b"nan", b"-inf", b"1e999", b"true", b"null", b"''", b"[", b"]", b"{", b"}", b'"', b"\x00"),
    *(b"-1", b"0", b"0x" + b"f" * 300, b"9" * 25, b"1979-05-27", b"07:32:00", b"\xed\xa0\x80"),
    *(b'"\\ud800"', b"[[1]]", b"a.b.c", b"\n", b"=", b",", b"steps", b"[agent]", b"\xff", b"{}"),
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut, double, swap in a piece, or replace a byte, up to four times."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 2, 5, 20)))
        new = rng.choice((b"", data[start:end] * 2, rng.choice(PIECES), rng.randbytes(1)))
        data = data[:start] + new + data[end:]
    return data


def test_random_damage_is_taken_or_refused(tmp_path: Path) -> None:
    rng, refused = random.Random(0), 0
    for case in range(CASES):
        which = rng.randrange(2)
        path = tmp_path / ("a.toml", "a.json")[which]
        path.write_bytes(mutated(SEEDS[which], rng))
        try:
            config = replace(RUN, load(path))
        except UsageError as error:
            sentence = str(error)
        else:
            assert from_dict(type(config.agent), vars(config.agent)) == config.agent
            continue
        refused += 1
        assert sentence.isprintable(), (case, sentence)
    assert 0 < refused < CASES or CASES < 50
