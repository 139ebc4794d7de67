"""The bench of every learner on the open point: a row is made once, and ends tell skills apart."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from etude.config import replace
from etude.evaluate.metrics import cells
from etude.evaluate.rollouts import rollout_skills
from etude.evaluate.trials import tables
from etude.skills.discovery import Discovery, preset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    found = importlib.import_module("arena")
    monkeypatch.setattr(found, "STEPS", {"point-open": 3_200, "point-maze-u": 3_200})
    small = {"loop": {"updates_per_epoch": 2}, "agent": {"hidden": [16, 16]}}
    monkeypatch.setattr(found, "preset", lambda *name: replace(preset(*name), small))
    return found


def test_a_run_has_a_row_and_is_not_made_again(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "arena"
    out = folder / "point-open.csv"
    bench.main(bench.Arguments("point-open", ("diayn", "metra", "rnd"), (3,), folder))
    rows = {row["learner"]: row for row in tables.read(out, ("learner",))}
    assert list(rows) == ["diayn", "metra", "rnd"] and all(r["seed"] == 3 for r in rows.values())
    assert list(rows["rnd"]) == bench.HEAD
    assert all(row["coverage"] > 0 and row["updates"] > 0 for row in rows.values())
    assert [rows[n]["steps"] for n in rows] == [3_200, 3_200, 6_400]
    assert 0 <= rows["diayn"]["accuracy"] <= 1 and rows["metra"]["accuracy"] is None
    assert all(0 <= rows[n]["goals"] <= 1 for n in ("diayn", "metra"))
    assert rows["rnd"]["goals"] is None and rows["rnd"]["ends"] is None
    capsys.readouterr()
    bench.main(bench.Arguments("point-open", ("metra", "rnd"), (3,), folder))
    assert not capsys.readouterr().out and len(tables.read(out, ("learner",))) == 3
    bench.main(bench.Arguments("point-maze-u", ("metra",), (3,), folder))
    (row,) = tables.read(folder / "point-maze-u.csv", ("learner",))
    assert row["steps"] == 3_200 and row["goals"] is not None


def test_an_explorer_is_held_against_uniform_actions(bench: ModuleType) -> None:
    run = Discovery(replace(preset("rnd", "point-open"), {"steps": 6_400}))
    assert run.space.dim == 1 and bench.explores("rnd") and not bench.explores("metra")
    row = bench.explore("rnd", 0)
    assert row["updates"] == 2 * 2 and row["untrained"] > 0  # of two epochs


def test_skills_that_all_do_the_same_end_in_the_same_few_cells(bench: ModuleType) -> None:
    """However far they go, and whatever they cover on the way."""
    run = Discovery(preset("metra", "point-open"))

    class Alike:
        space, period = run.space, 1

        def plan(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
            return np.full((len(obs), 1, 2), 0.7, np.float32)

    paths = rollout_skills(Alike(), bench.ENV).paths
    assert len(cells(paths, run.env_spec.cell)) > 12 and len(cells(paths[:, -1], 0.5)) <= 4
