"""Writes the golden libraries of format 1.0. It was run once; see README.md before running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from etude.errors import UsageError
from etude.skills.library import MLP, SetData, SkillLibrary, write
from etude.skills.spaces import Discrete, SkillSpace, Sphere

HERE = Path(__file__).resolve().parent / "v1"
OBS, ACTIONS = 6, 2
ENV: dict[str, Any] = {
    "id": "crab",
    "body": "crab",
    "fields": [
        {"name": "x", "dim": 2, "hidden_from_policy": False},
        {"name": "joints", "dim": 4, "hidden_from_policy": False},
        {"name": "goal", "dim": 1, "hidden_from_policy": False},
    ],
    "task_fields": ["goal"],
    "action_dim": ACTIONS,
    "descriptor": ["x"],
    "descriptor_unit": "m",
    "cell": 1.0,
    "dt": 0.05,
    "max_steps": 200,
    "constants": {"gear": [150.0, 150.0], "frame_skip": 5},
    "changes": [],
    "xml_sha256": "abc",
    "obs_mean": None,
    "obs_std": None,
}


def net(rng: np.random.Generator, *sizes: int, **kwargs: Any) -> MLP:
    """Random layers of these widths."""
    shapes = zip(sizes, sizes[1:], strict=False)
    layers = [(rng.standard_normal(s) / np.sqrt(s[0]), rng.standard_normal(s[1])) for s in shapes]
    return MLP(layers, **kwargs)


def a_set(space: SkillSpace, learner: str, activation: str, encoders: dict[str, MLP]) -> SetData:
    """A set of random networks with a row per skill."""
    rng = np.random.default_rng(2026)
    skills = space.even(4)
    return SetData(
        name=learner,
        learner=learner,
        config={"lr": 0.0003, "widths": [16, 16], "preset": "cpu"},
        space=space,
        policy=net(rng, OBS + space.dim, 16, 16, ACTIONS, activation=activation, output="tanh"),
        encoders=encoders,
        mean=np.arange(OBS) * 0.1,
        std=np.arange(OBS) * 0.25 + 0.5,
        skills=[
            {"id": 10 + i, "name": f"skill-{i}", "z": z, "metrics": {"distance": 0.5 * i}}
            for i, z in enumerate(skills)
        ],
        metrics={"coverage": 12, "displacement": 3.25},
    )


def save(name: str, data: SetData) -> None:
    """Write a library and, beside it, what it says of itself."""
    made = {"command": "python tests/data/golden/write_v1.py", "seed": 2026}
    path = write(HERE / name, sets=[data], env=ENV, provenance=made, name=name)
    (HERE / f"{name}.txt").write_text(SkillLibrary.load(path).describe() + "\n", "utf-8")


def main() -> None:
    """Write both; refuse if they are there."""
    if HERE.exists():
        raise UsageError(f"{HERE} exists, and golden files are never written again.")
    rng = np.random.default_rng(1)
    phi = net(rng, 2, 8, 2, inputs=("obs",), input_fields=("x",))
    save("sphere-metra", a_set(Sphere(2), "metra", "relu", {"phi": phi}))
    save("discrete-diayn", a_set(Discrete(4), "diayn", "tanh", {}))


if __name__ == "__main__":
    main()
