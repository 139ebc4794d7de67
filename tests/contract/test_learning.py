"""Every learner learns: on the point, a minute of one core gives skills that lead apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etude.config import replace
from etude.evaluate.metrics import policy_metrics
from etude.evaluate.rollouts import rollout_skills
from etude.skills import learners
from etude.skills.discovery import Discovery, preset

pytestmark = pytest.mark.slow
STEPS = 24_000


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("learner", learners.ids())
def test_skills_of_the_point_cover_more_than_before(
    learner: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    run = Discovery(replace(preset(learner, "point-open"), {"seed": seed, "steps": STEPS}))
    before = measured(run)
    run.run()
    after = measured(run)
    assert after["policy_coverage"] > 3 * before["policy_coverage"], (before, after)
    assert after["displacement"] > 3 * before["displacement"], (before, after)
    assert run.seconds < 60
    record_property("count", 1)


def measured(run: Discovery) -> dict[str, float]:
    """Coverage and displacement of the skills as they are."""
    done = rollout_skills(run.snapshot(), run.config.env)
    return policy_metrics(done.paths, run.env_spec.cell)
