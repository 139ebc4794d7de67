"""The bench of learning from other people's data: what its figures mean, and that a row is made."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from etude.evaluate.trials import tables
from etude.skills.dataset import Dataset
from etude.skills.discovery import Discovery, preset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    found = importlib.import_module("from_dataset")
    monkeypatch.setattr(found, "RANDOM", 6_400)
    monkeypatch.setattr(found, "PER_EPOCH", 5)
    return found


def test_a_run_takes_no_step_and_has_a_row_once(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    asked = bench.Arguments(("point-maze-u",), ("hilp", "qrl"), (3,), 10, out)
    bench.main(asked)
    rows = tables.read(out, ("env", "learner"))
    assert [row["learner"] for row in rows] == ["hilp", "qrl"]
    assert all(row["updates"] == 10 and 0 <= row["goals"] <= 1 for row in rows)
    assert all(-1 <= row["correlation"] <= 1 and row["line"] == 0.765 for row in rows)
    capsys.readouterr()
    bench.main(asked)
    assert not capsys.readouterr().out and tables.read(out, ("env", "learner")) == rows


def test_the_data_are_uniform_actions_and_a_run_on_them_collects_nothing(
    bench: ModuleType, tmp_path: Path
) -> None:
    bench.random_data("point-open", 0, tmp_path / "data")
    run = Discovery(preset("qrl", "point-open"))
    data = Dataset.load(tmp_path / "data", run.env_spec)
    assert data.steps == 6_400
    batch = data.replay(0, "cpu").steps(4_000)
    assert abs(float(batch.action.mean())) < 0.05
    assert float(batch.action.std()) == pytest.approx(1 / 3**0.5, abs=0.03)
    learned = bench.learned("point-open", "qrl", 0, tmp_path / "data", 10)
    assert learned.updates == 10 and learned.replay.steps(8).obs.shape == (8, 4)
    assert not learned.collected.size


def test_the_correlation_is_one_for_the_way_itself(bench: ModuleType) -> None:
    run = Discovery(preset("qrl", "point-maze-u"))
    obs = torch.zeros(7, 4)
    obs[:, :2] = torch.tensor(bench.CORRIDOR, dtype=torch.float32)
    place = run.normaliser(obs)[:, run.learner.columns]

    def way(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = [torch.cdist(x, place).argmin(-1) for x in (a, b)]
        return 3.0 * (found[1] - found[0])

    assert bench.correlation(way, run) == pytest.approx(1)
    straight = bench.correlation(lambda a, b: (a - b).norm(dim=-1), run)
    assert straight == pytest.approx(bench.line(), abs=1e-6) and np.isfinite(straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "learner", "goals"), [("point-open", "hilp", 0.6), ("point-maze-u", "qrl", 0.9)]
)
def test_random_actions_teach_the_way_to_goals(
    env: str, learner: str, goals: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    row = importlib.import_module("from_dataset").one(env, learner, 0, 10_000)
    assert row["goals"] > goals, row
    assert row["correlation"] == "" or row["correlation"] > 0.9 > row["line"], row
