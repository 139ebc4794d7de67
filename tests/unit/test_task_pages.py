"""Pages that list the tasks list all of them, and pictures show what the state says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from etude.envs import GYMNASIUM_IDS, registry

PAGE = Path(__file__).resolve().parents[2] / "results" / "tasks" / "README.md"


def test_the_page_of_the_suite_lists_every_task_as_it_is() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines() if "| `" in line]
    listed = {row[0].strip("|` "): row for row in rows}
    assert set(listed) == set(registry.tasks())
    for task, (_, name, body, steps, *_, fields, changes) in listed.items():
        spec = registry.spec(task)
        assert GYMNASIUM_IDS[name] == (task, spec.max_steps)
        assert (body, int(steps)) == (spec.body, spec.max_steps)
        assert fields == (", ".join(spec.task_fields) or "-")
        assert changes.strip(" |") == "; ".join(spec.changes)


@pytest.mark.parametrize("task", registry.tasks())
def test_marks_are_where_the_observed_goal_is(task: str) -> None:
    """What a picture shows of a task is what its fields say."""
    env = registry.make_vec(task, 2, seed=0)
    obs, _ = env.reset(seed=3)
    shown = env._task.marks(env._task_state[0])
    if not shown:
        return
    at = env.env_spec.slices()["goal"]
    places = np.array([mark.place[: at.stop - at.start] for mark in shown])
    assert np.abs(places - obs[0, at]).sum(axis=1).min() < 1e-5


@pytest.mark.skipif(os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"), reason="no drawing here")
def test_a_goal_is_drawn_where_it_is() -> None:
    """The disc of the sparse push, seen from above: y upwards, x to the right."""
    env = registry.make_vec("push-sparse", 1, seed=0)
    env.reset(seed=0)
    state = env.get_state()
    state[0, 1:5] = -0.2, -0.2, -0.2, 0.2  # paddle and puck out of the way
    centres = []
    for goal in ((0.1, 0.12), (-0.05, 0.0)):
        state[0, -2:] = goal
        env.set_state(state)
        picture = env.render(0, 200, 200).astype(int)
        red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
        rows, columns = np.nonzero((red - blue > 100) & (green - blue > 80))
        assert len(rows) > 100
        centres.append([columns.mean() - 99.5, 99.5 - rows.mean()])
    env.close()
    (x0, y0), (x1, y1) = centres
    scale = (x0 - x1) / 0.15  # pixels per metre
    assert scale > 100
    np.testing.assert_allclose([x0, y0, x1, y1], scale * np.array([0.1, 0.12, -0.05, 0]), atol=2)
