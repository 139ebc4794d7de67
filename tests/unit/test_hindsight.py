"""Learners that read no skills: goals from later in an episode, and data that others have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch, Replay
from etude.config import replace
from etude.skills import learners
from etude.skills.dataset import write
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.base import Spec

O, A = 4, 2
LOOP = {"num_envs": 4, "episode_steps": 40, "updates_per_epoch": 4, "batch_size": 32}
LOOP |= {"warmup_steps": 160, "replay_capacity": 640}
SMALL: dict[str, Any] = {"steps": 640, "agent": {"hidden": [16, 16]}, "loop": LOOP}
WITH_GOALS = ("crl", "goal-box", "hilp", "qrl")
FREE = [n for n in learners.ids() if learners.get(n).agent and not learners.get(n).reads_skills]


@pytest.mark.parametrize("name", FREE)
def test_it_learns_from_what_other_skills_did(name: str, tmp_path: Path) -> None:
    run = Discovery(replace(preset("metra", "point-open"), {**SMALL, "method": {"dim": 5}}))
    run.run()
    data = write(tmp_path / "data", run.replay, run.env_spec, run.space, {})
    learning = Discovery(replace(preset(name, "point-open"), {**SMALL, "dataset": str(data)}))
    assert learning.learner.offline and learning.space != run.space
    before = [p.clone() for p in learning.learner.parameters() if p.requires_grad]
    learning.run()
    assert learning.updates == 16 and len(learning.replay) == 640
    after = [p for p in learning.learner.parameters() if p.requires_grad]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(("gamma", "ahead"), [(0.01, 1.01), (0.9, 9.6)])
@pytest.mark.parametrize("name", WITH_GOALS)
def test_goals_are_met_after_a_discounted_while(name: str, gamma: float, ahead: float) -> None:
    method = learners.get(name)
    spec = Spec({"place": slice(0, O)}, O, A)
    learner = method(spec, method.Config(gamma=gamma))  # type: ignore[call-arg]
    replay, none = Replay(100, 1, O, A, 2, seed=0), np.zeros((1, 2), np.float32)
    for t in range(100):
        now, after = (np.full((1, O), x, np.float32) for x in (t, t + 1))
        replay.add(now, none, after, none, np.zeros(1, bool), np.full(1, t == 99))
    drawn = learner.draw(replay, 4000)
    assert isinstance(drawn, Batch) and drawn.future_obs is not None
    early = drawn.obs[:, 0] < 50  # with enough of a future
    steps = (drawn.future_obs - drawn.obs)[early, 0].mean()
    assert float(steps) == pytest.approx(ahead, rel=0.06)
