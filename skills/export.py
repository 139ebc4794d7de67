"""From a run of discovery to a library: networks as arrays, normaliser, skills, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etude.agents.networks import linear_layers
from etude.config import to_dict
from etude.skills.discovery import Discovery
from etude.skills.library import SetData, write
from etude.skills.mlp import MLP
from etude.skills.spaces import Discrete, SkillSpace

NAMED_SKILLS = 16


def export(
    run: Discovery,
    path: Path,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    effects: Sequence[Mapping[str, Any]] = (),
    name: str = "",
) -> Path:
    """Write the run's skills as a library at `path`.

    Args:
        run: the run, trained or not.
        path: folder to create.
        provenance: what made it; seed, steps, updates and training time are added.
        metrics: figures of the whole set.
        effects: what each of `listed(run.space)` does, in their order.
        name: the library's name; ENV-LEARNER if empty.

    Raises:
        UsageError: `path` exists.
    """
    config = run.config
    made = {
        **provenance,
        "seed": config.seed,
        "steps": run.steps,
        "updates": run.updates,
        "training_seconds": round(run.seconds, 1),
    }
    data = _contents(run, metrics or {}, effects)
    name = name or f"{config.env}-{config.learner}"
    return write(path, sets=[data], env=run.env_spec.to_json(), provenance=made, name=name)


def listed(space: SkillSpace) -> np.ndarray:
    """The skills (n, Z) that get a row of their own: all discrete ones, else even ones."""
    return space.distinct(space.dim if isinstance(space, Discrete) else NAMED_SKILLS)


def _contents(
    run: Discovery, metrics: Mapping[str, Any], effects: Sequence[Mapping[str, Any]]
) -> SetData:
    """The run's skills as plain data."""
    config = run.config
    fields = config.method.skill_obs or None
    shared = run.representation if config.learner_on_features else None
    encoders = {
        key: net
        if isinstance(net, MLP)
        else MLP(
            linear_layers(shared.network(net) if shared else net),
            inputs=("obs",),
            input_fields=fields,
        )
        for key, net in run.learner.export().items()
    }
    skills = listed(run.space)
    effects = effects or [{}] * len(skills)
    rows = [
        {"id": i, "name": f"skill-{i}", "z": z.tolist(), **effect}
        for i, (z, effect) in enumerate(zip(skills, effects, strict=True))
    ]
    return SetData(
        name=config.learner,
        learner=config.learner,
        config=to_dict(config),
        space=run.space,
        policy=_policy(run),
        encoders=encoders,
        mean=run.normaliser.mean.cpu().numpy(),
        std=run.normaliser.std.cpu().numpy(),
        skills=rows,
        metrics=dict(metrics),
    )


def _policy(run: Discovery) -> MLP:
    if run.agent is None:
        return run.learner.policy()
    layers = run.agent.policy_layers()
    if run.representation:
        layers = run.representation.policy(layers)
    if run.visible is not None:  # whatever stands there in the observation now counts for nothing
        weight, bias = layers[0]
        visible = np.append(run.visible.cpu().numpy(), np.ones(run.space.dim, np.float32))
        layers = [(weight * visible[:, None], bias), *layers[1:]]
    return MLP(layers, run.agent.config.activation, output="tanh")
