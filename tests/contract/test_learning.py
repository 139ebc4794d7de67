"""Every learner learns: on the point, a minute of one core gives skills that lead apart.

Methods without skills are to see, while they practise, twice as much as uniform actions would.

Methods without an agent, whose plans lead apart before they have learned anything, are measured
where the answer is known (`bench/empowerment.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from etude.config import replace
from etude.evaluate.metrics import RunningCoverage, policy_metrics
from etude.evaluate.rollouts import rollout_skills
from etude.skills import learners
from etude.skills.discovery import Discovery, preset

pytestmark = pytest.mark.slow
STEPS = 24_000
WITH_AGENT = [name for name in learners.ids() if learners.get(name).agent]
EXPLORERS = [name for name in WITH_AGENT if Discovery(preset(name, "point-open")).space.dim == 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("learner", [name for name in WITH_AGENT if name not in EXPLORERS])
def test_skills_of_the_point_cover_more_than_before(
    learner: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    run = Discovery(replace(preset(learner, "point-open"), {"seed": seed, "steps": STEPS}))
    before = measured(run)
    began = time.process_time()
    run.run()
    seconds = time.process_time() - began  # of a processor, whoever else is using it
    after = measured(run)
    assert after["policy_coverage"] > 3 * before["policy_coverage"], (before, after)
    assert after["displacement"] > 3 * before["displacement"], (before, after)
    assert seconds < 60
    record_property("count", 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("learner", EXPLORERS)
def test_an_explorer_sees_twice_as_much_as_uniform_actions(
    learner: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    seen, seconds = {}, {}
    for warmup in (3_000, 2 * STEPS):  # the longer one leaves no update
        settings = {"seed": seed, "steps": 2 * STEPS, "loop": {"warmup_steps": warmup}}
        run = Discovery(replace(preset(learner, "point-open"), settings))
        counted, began = RunningCoverage(run.env_spec.cell), time.process_time()
        while not run.done:
            run.epoch()
            counted.add(run.collected)
        seen[warmup], seconds[warmup] = counted.total, time.process_time() - began
    assert seen[3_000] > 2 * seen[2 * STEPS], seen
    assert seconds[3_000] < 60, seconds
    record_property("count", 1)


def measured(run: Discovery) -> dict[str, float]:
    """Coverage and displacement of the skills as they are."""
    done = rollout_skills(run.snapshot(), run.config.env)
    return policy_metrics(done.paths, run.env_spec.cell)
