"""Every learner has a page in `docs/learners/`, and the page names what the learner logs."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etude.agents.replay import Replay
from etude.cli import discover, runs
from etude.config import replace
from etude.evaluate import monitor
from etude.logger import Logger
from etude.skills import learners
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.base import Spec

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "learners"
PARTS = ("optimises", "logs", "Deviations", "does and does not do", "was measured")
METRICS = ROOT / "docs" / "metrics.md"
MEASURED = {"skill/mi_nats", "skill/claimed", "skill/confirmed", "skill/alarm"}  # by the monitor

every_learner = pytest.mark.parametrize("name", learners.ids())


def page(name: str) -> str:
    path = PAGES / f"{name}.md"
    assert path.is_file(), f"write docs/learners/{name}.md: what it optimises, logs, can and cannot"
    return path.read_text()


def logged(name: str) -> set[str]:
    """The tags of one update with default settings, and of the loop."""
    torch.manual_seed(0)
    method = learners.get(name)
    learner = method(Spec({"place": slice(0, 2), "speed": slice(2, 4)}, 4, 2), method.Config())
    rng, dim = np.random.default_rng(0), learner.space.dim
    replay, z = Replay(80, 2, 4, 2, dim, seed=0), np.zeros((2, dim), np.float32)
    for t in range(40):
        z = learner.resample(z, t, rng, 0)
        now, after = rng.normal(size=(2, 2, 4)).astype(np.float32)
        action = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
        replay.add(now, action, after, z, np.zeros(2, bool), np.full(2, t == 39))
    found = set(learner.update(learner.draw(replay, 12)))
    return found | ({"skill/reward"} if learner.agent else set())


def stem(tag: str) -> str:
    """A tag without the number of a coordinate, for which a page may write `_i`."""
    return re.sub(r"_(\d+|i)$", "", tag)


@every_learner
def test_the_page_names_every_metric_and_no_other(name: str) -> None:
    told = {stem(t) for t in re.findall(r"`(skill/\w+)`", page(name))}
    known = {stem(t) for t in logged(name)}
    assert not known - told, f"docs/learners/{name}.md does not explain {sorted(known - told)}"
    strange = told - known - MEASURED
    assert not strange, f"docs/learners/{name}.md explains {sorted(strange)}, which is not logged"


def tags(text: str) -> set[str]:
    """The tags that a page names."""
    return {stem(tag) for tag in re.findall(r"`((?:skill|train|time)/\w+)`", text)}


def written(name: str, folder: Path) -> set[str]:
    """Every tag, of numbers and of pictures, that a small run with evaluation writes."""
    loop = {"num_envs": 8, "episode_steps": 20, "updates_per_epoch": 2, "warmup_steps": 160}
    run = Discovery(replace(preset(name, "point-open"), {"steps": 640, "loop": loop}))
    with closing(Logger(folder)) as log, runs.Stop() as stop:
        watcher = monitor.Monitor("point-open", 320, log, mi_episodes=64)
        while discover.forward(run, watcher, log, stop):
            pass
    events = EventAccumulator(str(folder / "tb")).Reload().Tags()
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert {row.split(",")[2] for row in rows} == set(events["scalars"])
    return {stem(tag) for tag in (*events["scalars"], *events["images"])}


def test_the_page_of_metrics_explains_what_runs_write_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SAC, with an agent of its own, and without one; the last claims what is then checked."""
    monkeypatch.setattr(monitor, "STEPS", 2)  # of an episode, so that 64 are soon practised for
    monkeypatch.setattr(monitor, "CHECKED", 64)
    shared, ever = tags(METRICS.read_text()), set()
    for name in ("metra", "crl", "lpe"):
        found, own = written(name, tmp_path / name), tags(page(name))
        assert not found - shared - own, f"{name} writes what neither page explains"
        assert not own - found, f"the page of {name} explains what its run never writes"
        ever |= found
    assert not shared - ever, "docs/metrics.md explains what no run writes"


@every_learner
def test_the_page_leads_to_what_every_run_logs(name: str) -> None:
    assert "](../metrics.md)" in page(name).split("## Deviations")[0]


@every_learner
def test_the_page_has_its_parts(name: str) -> None:
    text = page(name)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert len(headings) == len(PARTS)
    assert all(part in head for part, head in zip(PARTS, headings, strict=True)), headings
    file = f"skills/learners/{name.replace('-', '_')}.py"
    assert file in text and f"discover {name} --env" in text
    cited = set(re.findall(r"arXiv:(\d{4}\.\d{5})", str(learners.get(name).__doc__)))
    module = (ROOT / file).read_text().split('"""')[1]
    cited |= set(re.findall(r"arXiv:(\d{4}\.\d{5})", module)[:1])
    assert all(number in text for number in cited), f"{name}: {cited} is cited in the code"


def test_links_of_the_pages_lead_somewhere() -> None:
    for path in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            found = target.startswith("https://") or (path.parent / target).exists()
            assert found, f"{path.name}: {target}"


def test_there_is_no_page_of_a_learner_that_is_gone() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} <= set(learners.ids())
