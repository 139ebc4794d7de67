"""SHA-256 of what a short run of every learner exports: what a speed-up must not change.

    OMP_NUM_THREADS=1 python bench/same.py [--steps 4800]

Run it before and after a change that claims to change no behaviour, on one machine with the same
number of threads, and compare.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch
import tyro

from etude.config import replace
from etude.skills import learners
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export


def main(steps: int = 4800) -> None:
    """Print a line for each file.

    Args:
        steps: length of each run, environment steps.
    """
    torch.set_num_threads(1)
    for learner in learners.ids():
        for env in ("ant", "point-maze-u"):
            run = Discovery(replace(preset(learner, env), {"steps": steps}))
            run.run()
            with tempfile.TemporaryDirectory() as folder:
                for file in sorted(export(run, Path(folder, "library"), {}).glob("*.safetensors")):
                    digest = hashlib.sha256(file.read_bytes()).hexdigest()
                    print(f"{digest[:32]}  {learner} {env} {run.updates} updates {file.name}")


if __name__ == "__main__":
    tyro.cli(main)
