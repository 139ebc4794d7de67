"""Fine-tuning: a library and a task in, a new version of the library and its controller out.

Both levels learn at once (`etude.agents.skill_critic`): the controller in decisions of k steps, as
in `compose`, and the skills in environment steps, held near their parent by a KL. First nothing
moves but the critics of the skills, then the controller alone learns, then both: skills that moved
while the controller was still choosing at random would all be drawn to the average goal.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from etude import checkpoint
from etude.agents.meta import Progress, load_model, make_model, train
from etude.agents.meta_state import Keeper
from etude.agents.skill_critic import Algorithm, JointLearning, values
from etude.config import replace, to_dict
from etude.envs.registry import spec
from etude.errors import CheckpointError, UsageError
from etude.logger import Logger
from etude.skills import library_files
from etude.skills.compose import FOLDER, ComposeConfig, Trained
from etude.skills.finetune_env import FinetuneConfig, FinetuneVecEnv, LearningLevel
from etude.skills.library import SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Discrete
from etude.skills.vec_env import LibraryLevel

__all__ = ["FinetuneConfig", "Finetuned", "finetune", "settle"]

LIBRARY = "library"
COOL = 0.01
"""SAC's temperature to go on from, which no controller keeps: at that of a beginner, 0.1, one that
solves its task forgets how within a few thousand steps."""
SHARED = ("algo", "k", "gamma", "env_steps", "num_envs", "seed", "hyper")  # with `compose`


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning made, in memory."""

    library: SkillLibrary
    """the new version"""
    trained: Trained
    """the controller, over the new version"""

    def save(self, run: Path, name: str = "", **facts: Any) -> Finetuned:
        """Write `run/library/` and `run/controller/`; returns them as they are read back.

        Args:
            run: folder of the run.
            name: of the new version; the parent's by default.
            facts: what made it, beside the parent, the task and the settings.

        Raises:
            UsageError: there is a library already; none is ever overwritten.
        """
        old = self.library.contents
        made = {**old.provenance, **facts}
        contents = dataclasses.replace(old, name=name or old.name, provenance=made)
        path = library_files.write(run / LIBRARY, contents)
        library = SkillLibrary.load(path, self.library.set)
        level = LibraryLevel.for_spec(library, spec(self.trained.task))
        trained = dataclasses.replace(self.trained, level=level)
        trained.save(run)
        return Finetuned(library, trained)


def settle(
    config: FinetuneConfig, library: SkillLibrary, controller: Path | None = None
) -> FinetuneConfig:
    """The settings with what the library and a given controller say about them.

    Raises:
        CheckpointError: there is no whole controller.
        UsageError: the controller chooses skills of another library, or in another rhythm.
    """
    if controller is None:
        usual: str = "dqn" if isinstance(library.space, Discrete) else "sac"
        algo = usual if config.algo == "auto" else config.algo
        return dataclasses.replace(config, algo=algo)  # type: ignore[arg-type]
    about = checkpoint.load(controller / FOLDER / "policy")
    made = about["about"]
    trained = made["config"]
    if not made["library"] or made["library"]["id"] != library.id:
        found = f"library {made['library']['name']}" if made["library"] else "primitive actions"
        raise UsageError(
            f"the controller in {controller} chooses from {found} and not from {library.name} "
            f"(id {library.id:.12}): give one that was trained with it."
        )
    for name, ours in (("k", config.k), ("gamma", config.gamma)):
        if trained[name] != ours:
            raise UsageError(
                f"the controller in {controller} was trained with {name} = {trained[name]} and not "
                f"{ours}: say --{name} {trained[name]}, or train another one."
            )
    if config.algo not in ("auto", about["algo"]):
        raise UsageError(
            f"the controller in {controller} is one of {about['algo']}: leave --algo out."
        )
    given: dict[str, Any] = {"hidden": tuple(about["hidden"])}
    if about["algo"] != "ppo":
        given["learning_starts"] = 0  # it need not begin at random
    if about["algo"] == "sac":
        given["ent_coef"] = COOL
    if about["algo"] == "dqn":
        given["exploration"] = 1e-6
    hyper = replace(
        config.hyper, {k: v for k, v in given.items() if getattr(config.hyper, k) is None}
    )
    return dataclasses.replace(config, algo=about["algo"], hyper=hyper)


def finetune(
    library: SkillLibrary | str | Path,
    task: str,
    config: FinetuneConfig,
    *,
    controller: Path | None = None,
    log: Logger | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Finetuned:
    """Let the skills of `library` learn on `task`, together with a controller.

    The new version keeps its parent's environment, so that it can act wherever that can.

    Args:
        library: the parent, or whatever `SkillLibrary.load` finds it by.
        task: id of the environment; what of its body differs must be among its declared changes.
        config: budget, phases and settings.
        controller: run folder of `compose` with the controller to begin with; None: a new one.
        log: gets SB3's numbers and our `meta/*` and `finetune/*`, over environment steps.
        progress: called about a hundred times with the steps done and the latest numbers.
        keeper: saves the run, stops it, and knows from where it goes on.

    Raises:
        CheckpointError: the keeper has another run, or there is no whole controller.
        LibraryError: the library is broken, or made for another environment.
        Stopped: the keeper said so; the run is saved.
        UsageError: no such task, a controller of other skills, or skills that cannot learn.
    """
    if not isinstance(library, SkillLibrary):
        library = SkillLibrary.load(library)
    config = settle(config, library, controller)
    if keeper:
        _claim(keeper, {"library": library.id, "task": task, "config": to_dict(config)})
    venv = FinetuneVecEnv(task, library, config)
    try:
        fresh = controller is None or (keeper is not None and keeper.tree is not None)
        model = _controller(config, venv, None if fresh else controller)
        joint = JointLearning(
            lambda: venv.phase == "critics", lambda: venv.learn(partial(values, model))
        )
        stats = train(
            model, config.env_steps, log=log, progress=progress, callbacks=[joint], keeper=keeper
        )
    finally:
        venv.close()
    version = _version(library, venv.level, task)
    level = LibraryLevel.for_spec(version, spec(task))
    over = ComposeConfig(**{name: getattr(config, name) for name in SHARED})
    return Finetuned(version, Trained(model.policy, venv.scaling, level, task, over, stats))


def _controller(config: FinetuneConfig, venv: FinetuneVecEnv, run: Path | None) -> Algorithm:
    """The controller of a run of `compose`, or a new one."""
    common: dict[str, Any] = {
        name: getattr(config, name) for name in ("gamma", "k", "seed", "hyper")
    }
    if run is None:
        return make_model(config.algo, venv, **common)
    return load_model(run / FOLDER, venv, **common)


def _version(parent: SkillLibrary, level: LearningLevel, task: str) -> SkillLibrary:
    """The library with the skills as they are now; what was measured of them is dropped."""
    rows: list[dict[str, Any]] = [
        {key: row[key] for key in ("id", "name", "z") if key in row} for row in parent.skills
    ]
    about = {**parent.data.config, "finetune": to_dict(level.config)}
    new = dataclasses.replace(
        parent.data, policy=level.policy(), skills=rows, metrics={}, config=about
    )
    sets = [new if data is parent.data else data for data in parent.contents.sets]
    link = {"name": parent.name, "id": parent.id, "relation": f"finetune on {task}"}
    made = {"task": task, "set": parent.set, parent.name: parent.provenance}
    return SkillLibrary(Contents(parent.name, parent.env, sets, made, [link]), parent.set)


def _claim(keeper: Keeper, about: dict[str, Any]) -> None:
    """Let the keeper save this run; refuse it if it has another one."""
    keeper.about = json.loads(json.dumps(about))  # as it is read back
    if keeper.tree is not None and keeper.tree["about"] != keeper.about:
        raise CheckpointError(
            f"the run in {keeper.folder} began with another library, task or settings: "
            "go on with its own."
        )
