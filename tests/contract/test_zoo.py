"""Every library in the zoo is small, whole, says how it was made, and acts in its environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from etude.envs import registry
from etude.evaluate.rollouts import rollout_skills
from etude.skills import learners
from etude.skills.library import SkillLibrary, zoo_names

ROOT = Path(__file__).resolve().parents[2]

every_library = pytest.mark.parametrize("name", zoo_names())


def test_there_is_one_of_each() -> None:
    assert {"half-cheetah-metra", "ant-metra", "half-cheetah-diayn", "point-open-diayn"} <= set(
        zoo_names()
    )


@every_library
def test_it_is_small_and_says_how_it_was_made(name: str) -> None:
    library = SkillLibrary.load(name)
    files = (ROOT / "zoo" / name).iterdir()
    assert sum(file.stat().st_size for file in files) < 2 * 2**20
    made = library.provenance
    assert made["command"].startswith("python train.py discover ") and made["updates"] > 0
    assert library.learner in learners.ids() and library.env["id"] in registry.bodies()


@every_library
def test_its_skills_move_its_body_as_its_rows_say(name: str) -> None:
    library = SkillLibrary.load(name)
    z = np.array([row["z"] for row in library.skills], np.float32)
    done = rollout_skills(library, library.env["id"], z=z)
    gone = np.linalg.norm(done.paths[:, -1] - done.paths[:, 0], axis=-1)
    said = np.array([row["distance"] for row in library.skills])
    assert np.isfinite(done.paths).all()
    # contacts make single episodes of legged bodies differ between processors, not their size
    assert gone.mean() == pytest.approx(said.mean(), rel=0.5, abs=0.2)
