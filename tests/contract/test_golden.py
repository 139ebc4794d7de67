"""Libraries of format 1.0 load for ever: tests/data/golden/README.md."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from etude.errors import UsageError
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Discrete, Sphere

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
IDS = {
    "sphere-metra": "41b6ceb3ab4b8e715e8998bca20a638ba5d44cccbb8247aa003fc7e1dac3b196",
    "discrete-diayn": "641e498e58017b2ee5ec7cfadafc24af29184b5cb2b617f3252874dba772216b",
}

every_library = pytest.mark.parametrize("name", IDS)


def test_no_golden_library_is_forgotten() -> None:
    assert {path.name for path in (GOLDEN / "v1").iterdir() if path.is_dir()} == {*IDS}
    assert sum(path.stat().st_size for path in GOLDEN.rglob("v1/*/*")) < 60_000


@every_library
def test_it_is_as_it_was_written(name: str) -> None:
    """The id covers every byte, so this also fails when somebody writes it again."""
    assert SkillLibrary.load(GOLDEN / "v1" / name).id == IDS[name]


@every_library
def test_it_acts_and_describes_itself_as_it_did(name: str) -> None:
    folder = GOLDEN / "v1" / name
    library = SkillLibrary.load(folder)
    golden = load_file(folder / "golden.safetensors")
    obs, z, action = (golden[f"{library.set}/{key}"] for key in ("obs", "z", "action"))
    assert np.abs(action).max() > 0.1
    np.testing.assert_allclose(library.act(obs, z), action, atol=1e-5)
    assert library.describe() + "\n" == folder.with_suffix(".txt").read_text("utf-8")
    assert [row["id"] for row in library.skills] == [10, 11, 12, 13]


def test_the_two_spaces_and_the_encoder() -> None:
    sphere, discrete = (SkillLibrary.load(GOLDEN / "v1" / name) for name in IDS)
    assert (sphere.space, discrete.space) == (Sphere(2), Discrete(4))
    obs, goal = np.random.default_rng(0).standard_normal((2, 6))
    assert sphere.space.contains(sphere.goal_skill(obs, goal))


def test_they_are_never_written_again() -> None:
    script = runpy.run_path(str(GOLDEN / "write_v1.py"))
    with pytest.raises(UsageError, match="never written again"):
        script["main"]()
