"""Policies of Stable-Baselines3 become libraries: the same actions, and nothing of the zip runs."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3

import etude  # noqa: F401  # registers the environments
from etude.cli import main
from etude.errors import UsageError
from etude.skills import sb3_import
from etude.skills.library import SkillLibrary
from etude.skills.sb3_import import import_sb3
from etude.skills.spaces import Discrete

SMALL = {"net_arch": [16, 16]}
LEARN = {"learning_starts": 4, "buffer_size": 64, "batch_size": 8, "device": "cpu", "seed": 0}


class WithSkill(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A one-hot skill of three after the observation."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (7,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.concatenate((observation, [0, 1, 0])).astype(np.float32)


@pytest.fixture(scope="module")
def sac(tmp_path_factory: pytest.TempPathFactory) -> tuple[SAC, Path]:
    """A SAC policy after a few updates, and its zip."""
    model = SAC(
        "MlpPolicy", gymnasium.make("etude/PointOpen-v0"), policy_kwargs=dict(SMALL), **LEARN
    )
    model.learn(12)
    path = tmp_path_factory.mktemp("sac") / "sac.zip"
    model.save(path)
    return model, path


def same_actions(library: SkillLibrary, model: Any) -> None:
    obs = np.random.default_rng(0).normal(scale=3, size=(50, 4)).astype(np.float32)
    expected, _ = model.predict(obs, deterministic=True)
    assert np.ptp(expected, axis=0).min() > 0.01
    np.testing.assert_allclose(library.act(obs, [1]), expected, atol=1e-5)


def edited(source: Path, target: Path, **entries: bytes) -> Path:
    """A copy of a zip with other entries; `policy` stands for `policy.pth`."""
    changes = {name.replace("policy", "policy.pth"): data for name, data in entries.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if entry.filename not in changes:
                new.writestr(entry.filename, old.read(entry))
        for name, data in changes.items():
            new.writestr(name, data)
    return target


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)  # noqa: TID251  # SB3 writes this
    return buffer.getvalue()


def test_sac_acts_the_same(sac: tuple[SAC, Path], tmp_path: Path) -> None:
    model, source = sac
    code = main(
        ["library", "import-sb3", str(source), "--env", "point-open", "--out", str(tmp_path / "c")]
    )
    library = SkillLibrary.load(tmp_path / "c")
    assert code == 0 and library.space == Discrete(1) and library.learner == "imported"
    assert library.name == "point-open-sac" and library.env["body"] == "point-open"
    assert library.provenance["imported_from"] == "sac.zip"
    assert "import-sb3" in library.provenance["command"]
    same_actions(library, model)


def test_td3_and_tanh_act_the_same(tmp_path: Path) -> None:
    env = gymnasium.make("etude/PointOpen-v0")
    for activation, module in (("relu", torch.nn.ReLU), ("tanh", torch.nn.Tanh)):
        kwargs = {**SMALL, "activation_fn": module}
        model = TD3("MlpPolicy", env, policy_kwargs=kwargs, **LEARN)
        model.save(tmp_path / f"{activation}.zip")
        path = import_sb3(
            tmp_path / f"{activation}.zip", "point-open", tmp_path / activation,
            activation=activation,
        )  # fmt: skip
        same_actions(SkillLibrary.load(path), model)


def test_a_policy_that_reads_a_skill(tmp_path: Path) -> None:
    env = WithSkill(gymnasium.make("etude/PointOpen-v0"))
    model = SAC("MlpPolicy", env, policy_kwargs=dict(SMALL), **LEARN)
    model.save(tmp_path / "z.zip")
    with pytest.raises(UsageError, match="reads 7 values and gives 2 actions"):
        import_sb3(tmp_path / "z.zip", "point-open", tmp_path / "c")
    library = SkillLibrary.load(
        import_sb3(tmp_path / "z.zip", "point-open", tmp_path / "c", skill_dim=3)
    )
    assert library.space == Discrete(3) and len(library.skills) == 3
    obs = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    for z in np.eye(3, dtype=np.float32):
        joined = np.concatenate((obs, np.tile(z, (5, 1))), -1)
        expected, _ = model.predict(joined, deterministic=True)
        np.testing.assert_allclose(library.act(obs, z), expected, atol=1e-5)


def test_ppo_is_refused(tmp_path: Path) -> None:
    env = gymnasium.make("etude/PointOpen-v0")
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu").save(tmp_path / "p.zip")
    with pytest.raises(UsageError, match="PPO or A2C policy, which clips"):
        import_sb3(tmp_path / "p.zip", "point-open", tmp_path / "c")


# Hostile zips


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_a_malicious_data_entry_is_never_opened(sac: tuple[SAC, Path], tmp_path: Path) -> None:
    model, source = sac
    mark = tmp_path / "owned"
    code = base64.b64encode(pickle.dumps(Payload(mark))).decode()
    data = json.dumps({"policy_class": {":type:": "x", ":serialized:": code}}).encode()
    evil = edited(source, tmp_path / "evil.zip", data=data)
    with contextlib.suppress(Exception):
        SAC.load(evil)
    assert mark.exists(), "the payload does not work, so this test shows nothing"
    mark.unlink()
    same_actions(SkillLibrary.load(import_sb3(evil, "point-open", tmp_path / "c")), model)
    assert not mark.exists()


def test_a_malicious_policy_is_refused(sac: tuple[SAC, Path], tmp_path: Path) -> None:
    _, source = sac
    mark = tmp_path / "owned"
    for i, data in enumerate(
        (saved({"actor.mu.weight": Payload(mark)}), pickle.dumps(Payload(mark)))
    ):
        evil = edited(source, tmp_path / f"evil{i}.zip", policy=data)
        with pytest.raises(UsageError, match=r"policy.pth cannot be imported"):
            import_sb3(evil, "point-open", tmp_path / "c")
    assert not mark.exists() and not (tmp_path / "c").exists()


def test_nothing_is_unpickled_or_compiled(sac: tuple[SAC, Path], tmp_path: Path) -> None:
    """Audited: Python's own unpickler looks up no name, and no code is compiled or started."""
    script = f"""
import json, sys
from pathlib import Path
import torch
from etude.skills.sb3_import import read
source = Path({str(sac[1])!r})
read(source)
seen = []
bad = ("pickle", "exec", "compile", "import", "subprocess", "os.system", "socket", "marshal")
sys.addaudithook(lambda e, a: seen.append(e) if e.startswith(bad) else None)
read(source)
found = list(seen)
print(json.dumps([found, "stable_baselines3" in sys.modules]))
"""
    python = [sys.executable, "-c", script]
    done = subprocess.run(python, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], False]


def test_states_that_are_no_plain_actor(sac: tuple[SAC, Path], tmp_path: Path) -> None:
    state = sac[0].policy.state_dict()
    first = "actor.latent_pi.0.weight"
    huge = torch.zeros(1).expand(9000, 9000)  # four bytes that claim 324 MB
    changes: list[tuple[dict[str, Any] | list[int], str]] = [
        ({}, "no actor"),
        ([1], "no state dict"),
        ({**state, "actor.features_extractor.cnn.0.weight": state[first]}, "no part of a plain"),
        ({**state, "actor.latent_pi.1.weight": state[first]}, "not at 0, 2, 4"),
        ({**state, first: state[first].double()}, "float64"),
        ({**state, first: huge}, "widths go from 1 to 8192"),
        ({**state, first: state[first].to_sparse()}, "no plain tensor"),
        ({**state, first: torch.full_like(state[first], torch.nan)}, "NaN or infinite"),
        ({k: v for k, v in state.items() if k != "actor.mu.bias"}, "actor.mu.bias"),
    ]
    for i, (value, match) in enumerate(changes):
        evil = edited(sac[1], tmp_path / f"{i}.zip", policy=saved(value))
        with pytest.raises(UsageError, match=match):
            import_sb3(evil, "point-open", tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [("../x", "none that SB3"), ("/etc/x", "none that SB3"), ("x.py", "none that")],
)
def test_foreign_names_in_the_zip(
    sac: tuple[SAC, Path], tmp_path: Path, name: str, match: str
) -> None:
    evil = edited(sac[1], tmp_path / "evil.zip", **{name: b"x"})
    with pytest.raises(UsageError, match=match):
        import_sb3(evil, "point-open", tmp_path / "c")


def test_zips_that_are_none_or_bombs(sac: tuple[SAC, Path], tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "no.zip").write_bytes(b"\x80\x04cos\nsystem\n")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", b"\0" * 10**6)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("data", "{}")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 10**6)
    edited(sac[1], tmp_path / "inner.zip", policy=inner.getvalue())
    for name, match in (("no", "no zip of SB3"), ("bomb", "compressed"), ("empty", "no policy.pth"),
                        ("inner", "compressed")):  # fmt: skip
        with pytest.raises(UsageError, match=match):
            import_sb3(tmp_path / f"{name}.zip", "point-open", tmp_path / "c")
    monkeypatch.setattr(sb3_import, "MAX_POLICY", 1000)
    with pytest.raises(UsageError, match="at most 1000 are read"):
        import_sb3(sac[1], "point-open", tmp_path / "c")


def test_an_old_torch_is_refused(sac: tuple[SAC, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.9.1+cpu")
    with pytest.raises(UsageError, match=r"install torch 2.10 or newer"):
        sb3_import.read(sac[1])
