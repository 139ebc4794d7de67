"""The README's examples run as they are printed, and its picture and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- test: ([\w ]+) -->\n```python\n(.*?)```", README, re.DOTALL))


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_three_lines_give_an_environment_of_skills() -> None:
    code = BLOCKS["three lines"] + (
        "obs, info = env.reset(seed=0)\n"
        "obs, reward, terminated, truncated, info = env.step(env.action_space.sample())\n"
        "assert info['skill']['duration'] == 25 and env.action_space.shape == (2,)\n"
    )
    assert len(BLOCKS["three lines"].strip().splitlines()) <= 4
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_the_ten_lines_train_a_stable_baselines3_agent_on_skills() -> None:
    short = BLOCKS["ten lines"].replace("40_000", "256")
    assert short != BLOCKS["ten lines"], "the example's number of decisions moved"
    # an unseeded policy may reach a goal, which ends that episode early, but not in all of them
    code = short + (
        "lengths = [episode['l'] for episode in model.ep_info_buffer]\n"
        "assert model.num_timesteps == 256 and max(lengths) == 200, lengths\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)#]+)", README))
def test_links_and_pictures_exist(target: str) -> None:
    assert (ROOT / target).exists(), target


def test_commands_in_the_readme_name_things_that_exist() -> None:
    from etude.envs import registry
    from etude.skills import learners
    from etude.skills.library import zoo_names

    for learner, env in re.findall(r"discover (\w+) --env ([\w-]+)", README):
        assert learner in learners.ids() and env in registry.bodies()
    for library, task in re.findall(r"compose ([\w-]+) --task ([\w-]+)", README):
        assert library in zoo_names() and task in registry.tasks()
