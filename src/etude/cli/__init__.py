"""The command line: `python train.py COMMAND …` in a checkout, `etude COMMAND …` when installed.

Every error a user can cause ends here as one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Sequence

from etude.errors import EtudeError, unknown

COMMANDS = {
    "demo": "discover skills in a point maze, compose them on a far sparse goal, compare, report",
    "discover": "practise without a reward: LEARNER --env ENV; leaves a run folder with a library",
    "compose": "train a meta-controller: LIBRARY --task TASK --algo ppo|sac|dqn [--baselines all]",
    "finetune": "let skills and their controller learn on a task: LIBRARY --task TASK",
    "compare": "learners side by side, or controllers on many tasks: learners|tasks [options]",
    "evaluate": "measure and draw the skills of a LIBRARY",
    "library": "verify, describe, diff, merge, subset libraries; import-sb3 makes one of a policy",
}

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 bad input, 130 interrupted)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    os.environ.setdefault("MUJOCO_GL", "egl" if not os.environ.get("DISPLAY") else "glfw")
    try:
        if args[0] not in COMMANDS:
            raise unknown("command", args[0], COMMANDS)
        command = importlib.import_module(f"etude.cli.{args[0]}")
        return int(command.main(args[1:]))
    except EtudeError as error:
        print(f"etude: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("etude: interrupted.", file=sys.stderr)
        return INTERRUPTED


def overview() -> str:
    """The text of `--help`: what there is, and a first command for each path."""
    from etude.envs import registry
    from etude.skills import learners
    from etude.skills.library import zoo_names

    commands = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return f"""Étude: discover skills without a reward, keep them, compose them on sparse tasks.

usage: python train.py COMMAND …        (or: etude COMMAND …)

commands
{commands}

  COMMAND --help lists every option with its meaning, unit and default.

names
{_named("learners", learners.ids())}
{_named("environments", registry.bodies())}
{_named("tasks", registry.tasks())}
{_named("libraries", (*zoo_names(), "or a path"))}

examples
  python train.py demo
  python train.py discover metra --env half-cheetah --seed 1
  python train.py discover diayn --env ant --method.dim 16 --loop.num-envs 16
  python train.py discover --resume runs/half-cheetah-metra
  python train.py compose half-cheetah-metra --task half-cheetah-goal --algo sac
  python train.py compose runs/ant-metra --task ant-multi-goal --algo sac --baselines all --seeds 3
  python train.py compose --resume runs/ant-multi-goal-ant-metra
  python train.py finetune ant-metra --task ant-multi-goal-leg-60
  python train.py compare learners --envs half-cheetah --learners metra diayn --seeds 3
  python train.py compare tasks --tasks point-maze-large-goal --seeds 5
  python train.py evaluate half-cheetah-metra
  python train.py library verify runs/ant-metra half-cheetah-metra

A run folder holds config.json, metrics.csv, evaluations.csv, tb/ (TensorBoard), checkpoints/,
library/ and report.md. Watch a run with: tensorboard --logdir runs"""


def _named(title: str, names: Sequence[str]) -> str:
    """A list of names under a hanging title, as wide as a terminal."""
    first = f"  {title:<14}"
    return textwrap.fill(
        ", ".join(names),
        100,
        initial_indent=first,
        subsequent_indent=" " * 16,
        break_on_hyphens=False,
    )
