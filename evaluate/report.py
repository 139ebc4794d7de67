"""Reports: `report.md` for people, `report.json` for programs, with all that is needed to redo it.

Numbers carry their units, seeds and the way they were measured; command, versions, commit and
machine come from the caller as `provenance`. Pictures lie beside the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from etude import checkpoint
from etude.envs import registry
from etude.envs.spec import EnvSpec
from etude.evaluate import canvas, metrics, monitor, plots
from etude.evaluate.metrics import Discriminability
from etude.evaluate.rollouts import EPISODES, STEPS, Rollouts, rollout_skills
from etude.evaluate.skillset_mi import FOLDS, rollout_mi
from etude.skills.library import SkillLibrary
from etude.skills.library_card import markdown_table
from etude.skills.library_data import plain
from etude.skills.library_goals import DISCRIMINATOR
from etude.skills.spaces import Discrete

MARKDOWN, JSON = "report.md", "report.json"
KINDS, REPEATS = 32, 4  # distinct skills that are told apart at most, and episodes of each
NAMED = 16  # distinct skills taken from a continuous space
EMPOWERMENT = "empowerment"  # name of an encoder in a library


def report_library(
    library: SkillLibrary,
    env_id: str,
    folder: Path,
    *,
    provenance: Mapping[str, Any],
    history: Sequence[Mapping[str, float]] = (),
    episodes: int = EPISODES,
    steps: int = STEPS,
    mi_episodes: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure and draw a library's acting set and report it; returns what `report.json` holds.

    Args:
        library: the skills.
        env_id: environment with the same body.
        folder: gets the report and its pictures.
        provenance: command, versions, commit and machine of this evaluation.
        history: `Monitor.history` of the run that made the library, for its curve.
        episodes: for coverage.
        steps: of an episode.
        mi_episodes: to measure with how many nats the skills tell; 0: as the run last did, if so.
        seed: of skills and starts.
    """
    spec = registry.spec(env_id)
    made = rollout_skills(library, env_id, episodes=episodes, steps=steps, seed=seed)
    figures = {
        "trajectories.png": plots.trajectories(made, library.space),
        "occupancy.png": plots.occupancy(made),
        **_coverage_curve(history, spec),
        **_empowerment(library, made),
    }
    data = {
        "kind": "library",
        "library": {"name": library.name, "id": library.id, "set": library.set},
        "learner": library.learner,
        "space": library.space.to_json(),
        "environment": env_id,
        "evaluation": {"episodes": episodes, "steps": steps, "seed": seed},
        "metrics": metrics.policy_metrics(made.paths, spec.cell),
        "units": _units(spec),
        **_one_by_one(library, env_id, steps, seed),
        "information": _information(library, env_id, history, mi_episodes, steps, seed),
        "history": list(history),
        "made_by": library.provenance,
        "provenance": provenance,
    }
    return write(folder, data, figures, _library_text)


# ---- measuring


def _units(spec: EnvSpec) -> dict[str, str]:
    length, cells = spec.descriptor_unit, f"cells of {canvas.cell_size(spec)}"
    return {"policy_coverage": cells, "displacement": length, "x_range": length}


def _one_by_one(library: SkillLibrary, env_id: str, steps: int, seed: int) -> dict[str, Any]:
    """What each of some distinct skills does, and how well they can be told apart."""
    space, spec = library.space, registry.spec(env_id)
    kinds = space.distinct(min(space.n, KINDS) if isinstance(space, Discrete) else NAMED)
    z = np.repeat(kinds, REPEATS, axis=0)
    made = rollout_skills(library, env_id, z=z, steps=steps, seed=seed)
    found = metrics.effects(made.paths, made.skills, spec.cell, spec.descriptor)
    apart = _tell_apart(library, made, seed)
    return {
        "skills": [{"z": row.tolist(), **effect} for row, effect in zip(kinds, found, strict=True)],
        "repeats": REPEATS,
        "discriminability": asdict(apart) if apart else None,
    }


def _tell_apart(library: SkillLibrary, made: Rollouts, seed: int) -> Discriminability | None:
    """By the learner's own discriminator if it names discrete skills, else by a classifier."""
    if len(np.unique(made.skills, axis=0)) < 2:
        return None
    net = library.data.encoders.get(DISCRIMINATOR) if isinstance(library.space, Discrete) else None
    own = None if net is None else library.data.on_raw(net, library.fields)
    return metrics.discriminability(made.obs, made.skills, own, seed)


def _information(
    library: SkillLibrary,
    env_id: str,
    history: Sequence[Mapping[str, float]],
    episodes: int,
    steps: int,
    seed: int,
) -> dict[str, Any] | None:
    """How many nats the skills tell, measured anew or by the run, and what the learner claims."""
    last = next((row for row in reversed(history) if "mi_nats" in row), {})
    if episodes:
        found = rollout_mi(library, env_id, episodes=episodes, steps=steps, seed=seed, folds=FOLDS)
    elif last:
        found, episodes, steps = monitor.information(last), int(last["mi_episodes"]), STEPS
    else:
        return None
    return {
        **asdict(found),
        "skills": found.size,
        "features": list(registry.spec(env_id).descriptor),
        "episodes": episodes,
        "steps": steps,
        "claim": {k: last[k] for k in monitor.CLAIMED if k in last} or None,
    }


def _coverage_curve(history: Sequence[Mapping[str, float]], spec: EnvSpec) -> dict[str, Figure]:
    if len(history) < 2:
        return {}
    steps = np.array([row["steps"] for row in history], dtype=float)
    curves = {
        f"{name} coverage": [(steps, np.array([row[f"{name}_coverage"] for row in history]))]
        for name in ("policy", "queue", "total")
    }
    drawn = plots.learning_curves(
        curves,
        f"cells of {canvas.cell_size(spec)}",
        f"Coverage while practising in {spec.id}",
        note="Policy: deterministic episodes; queue: the last 100,000 training steps; total: all.",
    )
    return {"coverage.png": drawn}


def _empowerment(library: SkillLibrary, made: Rollouts) -> dict[str, Figure]:
    """What the learner holds each state's empowerment to be; beside what it is, where known."""
    net, spec = library.data.encoders.get(EMPOWERMENT), made.env_spec
    if net is None or len(spec.descriptor) < 2:
        return {}
    told = library.data.on_raw(net, library.fields)
    learnt = told(made.obs.reshape(-1, made.obs.shape[-1])).reshape(made.obs.shape[:2])
    title = f"Empowerment in {spec.id}, plans of {library.period} steps"
    drawn = plots.visited_values(made, learnt, "nats", title)
    return {"empowerment.png": drawn}


# ---- writing


def write(
    folder: Path,
    data: Mapping[str, Any],
    figures: Mapping[str, Figure],
    text: Callable[[Mapping[str, Any]], str],
) -> dict[str, Any]:
    """The pictures, then the two files, each as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        canvas.save(figure, folder / name)
    whole: dict[str, Any] = plain({**data, "pictures": list(figures)})
    checkpoint.write_text(folder / JSON, json.dumps(whole, indent=2) + "\n")
    checkpoint.write_text(folder / MARKDOWN, text(whole))
    return whole


def _library_text(data: Mapping[str, Any]) -> str:
    found, how, unit = data["metrics"], data["evaluation"], data["units"]["displacement"]
    ways = {
        "policy_coverage": f"{how['episodes']} deterministic episodes of {how['steps']} steps",
        "displacement": "of the same episodes: mean distance from start to end",
        "x_range": "of the same episodes: largest minus smallest coordinate",
    }
    rows = [(k.replace("_", " "), found[k], data["units"][k], way) for k, way in ways.items()]
    if apart := data["discriminability"]:
        chance = f"{apart['method']}, on held-out episodes; chance is {apart['chance']:.3f}"
        rows.append(("discriminability", apart["accuracy"], "share of states", chance))
    trained = data["made_by"]
    made = {
        key: trained[key]
        for key in ("command", "seed", "steps", "updates", "training_seconds", "commit")
        if key in trained
    }
    keys = [key for key in data["skills"][0] if key != "z"]
    heads = [key if key == "cells" else f"{key} ({unit})" for key in keys]
    name = _number if data["space"]["kind"] == "discrete" else _vector
    skills = [
        (name(row["z"]), *(row[k] if k == "cells" else f"{row[k]:.2f}" for k in keys))
        for row in data["skills"]
    ]
    return f"""# Skills of {data["library"]["name"]}

Set `{data["library"]["set"]}` of library `{data["library"]["id"][:12]}`, learnt by \
{data["learner"]} without a reward, evaluated in `{data["environment"]}` (seed {how["seed"]}).

{markdown_table(("metric", "value", "unit", "how"), rows)}

{pictures(data["pictures"])}

{_information_text(told) if (told := data["information"]) else ""}## Skill by skill

Means over {data["repeats"]} episodes each: how far the skill moves along each coordinate, and the
distance from start to end; and the cells that these episodes visit together.

{markdown_table(("skill", *heads), skills)}

{origin("How the skills were made", made)}
{origin("How this was measured", data["provenance"])}"""


def _information_text(found: Mapping[str, Any]) -> str:
    seen = ", ".join(found["features"])
    how = f"{found['episodes']:,} of {found['steps']} steps, {found['rows']:,} held out"
    rows = [
        ("information", f"{found['nats']:.3g} nats [{found['low']:.3g}, {found['high']:.3g}]"),
        ("distinguishable skills, exp of it", f"{found['skills']:.3g}"),
        ("H(Z), what there was to tell", f"{found['entropy']:.3g} nats"),
        ("features f", f"{seen} at the end, given {seen} at the start"),
        ("episodes", how),
    ]
    return f"""## What the skills tell

A lower bound on the mutual information of skill and f, with its 95% interval. It compares libraries
with the same f, network and number of episodes only. H(Z) of continuous skills is differential.

{markdown_table(("", ""), rows)}

{_claim_text(found["claim"]) if found["claim"] else ""}"""


def _claim_text(claim: Mapping[str, float]) -> str:
    """What the learner claims, and whether that was confirmed, in words."""
    there = "{confirmed:.3g} [{confirmed_low:.3g}, {confirmed_high:.3g}]".format(**claim)
    said = (
        f"the learner claims {claim['claimed']:.3g} nats (`{monitor.CLAIM}`); {there} were measured"
    )
    if not claim["alarm"]:
        return f"At the last check {said}: no contradiction.\n\n"
    return f"""**Alarm:** at the last check {said}, less by more than three
standard errors. Both bounds are lower ones: either the learner claims too much, or the measurement
sees too little.\n\n"""


def origin(title: str, values: Mapping[str, Any]) -> str:
    """What made something, as a table; nested values become rows of their own."""
    rows = []
    for key, value in values.items():
        nested = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [(f"{key} {name}".strip().replace("_", " "), item) for name, item in nested]
    return f"## {title}\n\n{markdown_table(('', ''), rows)}\n" if rows else ""


def pictures(names: Sequence[str]) -> str:
    """Markdown that shows pictures beside the report."""
    return "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in names)


def _number(z: Sequence[float]) -> str:
    return str(int(np.argmax(z)))


def _vector(z: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in z) + "]"
