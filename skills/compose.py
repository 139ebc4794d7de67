"""Composing skills: a library, a task and an algorithm that learns which skill to use when.

The skills stay as they are; only the controller learns, in decisions of k steps. `flat` is the
same thing without skills, on the same engine and with the same accounting, for the two baselines
without which no result says anything about the skills: flat control (k = 1) and action repeat.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from etude.agents.meta import (
    Callbacks,
    Policy,
    Progress,
    Stats,
    load_policy,
    make_model,
    save_policy,
    train,
)
from etude.agents.meta_config import MASKABLE, MetaConfig, settings
from etude.agents.meta_state import Keeper
from etude.config import Config, Range, from_dict, to_dict
from etude.envs.registry import make_vec, spec
from etude.errors import CheckpointError, LibraryError
from etude.logger import Logger
from etude.skills.controllers.base import Scaling
from etude.skills.controllers.trained import TrainedController
from etude.skills.durations import Duration, Mode
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import (
    Discounting,
    LibraryLevel,
    LowLevel,
    PrimitiveLevel,
    SkillVecEnv,
)

FOLDER = "controller"

Algo = Literal["ppo", "sac", "dqn", "maskable-ppo"]


@dataclass(frozen=True)
class ComposeConfig(Config):
    """One run of a controller on a task."""

    algo: Algo = "ppo"
    """ppo: any skills; sac: continuous; dqn: discrete; maskable-ppo: only those that may begin"""
    k: Annotated[int, Range(1)] = 25
    """environment steps a skill is held (METRA: 25 for ant and half-cheetah)"""
    gamma: Annotated[float, Range(0, 1, open_low=True)] = 0.99
    """discount per environment step"""
    env_steps: Annotated[int, Range(1)] = 300_000
    """environment steps of the whole run"""
    num_envs: Annotated[int, Range(1, 4096)] = 16
    """environments stepped together"""
    seed: Annotated[int, Range(0)] = 0
    """seed of networks, environments and choices"""
    smdp: Discounting = "exact"
    """exact: rewards and values discounted per environment step; per_decision: as most papers do"""
    duration: Mode = "fixed"
    """fixed: k steps; random: from k/2 to 3k/2 while training (judged with k); chosen: in `menu`"""
    menu: tuple[Annotated[int, Range(1)], ...] = ()
    """steps among which the controller chooses; none: half of k, k and twice k"""
    every_step: bool = False
    """sac, dqn: learn from every step of a decision, as HSD-3 does"""
    fallback: Annotated[int, Range(0)] | None = None
    """id of the skill that is held where the chosen one may not begin (default: an error)"""
    hyper: MetaConfig = field(default_factory=MetaConfig)
    """values that differ from the algorithm's preset"""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings(self.algo, self.k, self.hyper)  # refuses what the algorithm has no use for
        self.hold  # noqa: B018  # refuses impossible durations

    @property
    def hold(self) -> Duration:
        """The steps that a decision holds."""
        return Duration(self.k, self.duration, self.menu)


@dataclass(frozen=True)
class Trained:
    """A trained controller, what it was trained on, and how that went."""

    policy: Policy
    scaling: Scaling
    level: LowLevel
    task: str
    config: ComposeConfig
    stats: Stats

    @property
    def controller(self) -> TrainedController:
        """The controller, acting deterministically."""
        level, hold, body = self.level, self.config.hold, spec(self.task).body_dim
        masks = None
        if self.config.algo == MASKABLE and isinstance(level, LibraryLevel):
            may_begin = level.masks

            def masks(obs: np.ndarray) -> np.ndarray:
                return hold.masks(may_begin(obs[:, :body]))

        return TrainedController(
            self.policy,
            level.command,
            self.scaling,
            hold=hold,
            masks=masks,
            every_step=self.config.every_step,
        )

    def save(self, run: Path) -> Path:
        """Write the controller into `run/controller/` and return that folder."""
        about = {
            **_about(self.level, self.task, self.config),
            "scaling": {"mean": self.scaling.mean, "std": self.scaling.std},
            "stats": self.stats.to_json(),
        }
        return save_policy(self.policy, run / FOLDER, about).parent


def compose(
    library: SkillLibrary | str | Path,
    task: str,
    config: ComposeConfig,
    *,
    log: Logger | None = None,
    progress: Progress | None = None,
    callbacks: Callbacks = (),
    keeper: Keeper | None = None,
) -> Trained:
    """Train a controller that solves `task` with the skills of `library`.

    Args:
        library: a library, or whatever `SkillLibrary.load` finds one by.
        task: id of the environment; its body must be the one the library was learnt on.
        config: algorithm, budget and accounting.
        log: gets SB3's numbers and our `meta/*`, over environment steps.
        progress: called about a hundred times with the steps done and the latest numbers.
        callbacks: further SB3 callbacks.
        keeper: saves the run, stops it, and knows from where it goes on.

    Raises:
        CheckpointError: the keeper has a run with other settings.
        LibraryError: the library is broken, made for another environment, or not the one that the
            keeper's run began with.
        Stopped: the keeper said so; the run is saved.
        UsageError: no such task, or an algorithm that cannot choose such skills.
    """
    if not isinstance(library, SkillLibrary):
        library = SkillLibrary.load(library)
    level = LibraryLevel.for_spec(library, spec(task), config.fallback)
    return _learn(level, task, config, log, progress, callbacks, keeper)


def flat(
    task: str,
    config: ComposeConfig,
    *,
    log: Logger | None = None,
    progress: Progress | None = None,
    callbacks: Callbacks = (),
    keeper: Keeper | None = None,
) -> Trained:
    """Train a controller of primitive actions, each held for `config.k` steps; as `compose`."""
    level = PrimitiveLevel(spec(task).action_dim)
    return _learn(level, task, config, log, progress, callbacks, keeper)


def _learn(
    level: LowLevel,
    task: str,
    config: ComposeConfig,
    log: Logger | None,
    progress: Progress | None,
    callbacks: Callbacks,
    keeper: Keeper | None,
) -> Trained:
    if keeper:
        _claim(keeper, _about(level, task, config))
    venv = SkillVecEnv(
        make_vec(task, config.num_envs),
        level,
        config.hold,
        config.gamma,
        smdp=config.smdp,
        every_step=config.every_step,
    )
    try:
        model = make_model(
            config.algo,
            venv,
            gamma=config.gamma,
            k=config.k,
            seed=config.seed,
            hyper=config.hyper,
            every_step=config.every_step,
        )
        stats = train(
            model,
            config.env_steps,
            log=log,
            progress=progress,
            callbacks=callbacks,
            keeper=keeper,
        )
    finally:
        venv.close()
    return Trained(model.policy, venv.scaling, level, task, config, stats)


def load_trained(run: Path, library: SkillLibrary | str | Path | None = None) -> Trained:
    """The controller saved in `run/controller/`, ready to act.

    Args:
        run: folder of the run.
        library: the skills it was trained on; None for a controller of primitive actions.

    Raises:
        CheckpointError: there is no whole controller.
        LibraryError: `library` is not the one it was trained on.
    """
    policy, about = load_policy(run / FOLDER)
    if library is not None and not isinstance(library, SkillLibrary):
        library = SkillLibrary.load(library)
    if _identity(library) != about["library"]:
        raise LibraryError(
            f"the controller in {run} was trained with {_name(about['library'])}, not with "
            f"{_name(_identity(library))}: give it that."
        )
    task, config = about["task"], from_dict(ComposeConfig, about["config"])
    level: LowLevel = PrimitiveLevel(spec(task).action_dim)
    if library is not None:
        level = LibraryLevel.for_spec(library, spec(task), config.fallback)
    return Trained(
        policy,
        Scaling(**about["scaling"]),
        level,
        task,
        config,
        Stats.from_json(about["stats"]),
    )


def _about(level: LowLevel, task: str, config: ComposeConfig) -> dict[str, Any]:
    """What a run is, as plain data."""
    library = level.library if isinstance(level, LibraryLevel) else None
    return {"task": task, "library": _identity(library), "config": to_dict(config)}


def _claim(keeper: Keeper, about: dict[str, Any]) -> None:
    """Let the keeper save this run; refuse it if it has another one."""
    about = json.loads(json.dumps(about))  # as it is read back
    saved = about if keeper.tree is None else keeper.tree["about"]
    if saved["library"] != about["library"]:
        raise LibraryError(
            f"the run in {keeper.folder} began with {_name(saved['library'])}, not with "
            f"{_name(about['library'])}: give it that."
        )
    old = {**saved, "config": to_dict(from_dict(ComposeConfig, saved["config"]))}
    if json.loads(json.dumps(old)) != about:  # settings that it does not name have their defaults
        raise CheckpointError(
            f"the run in {keeper.folder} has another task or other settings than are asked for: "
            f"go on with its own."
        )
    keeper.about = about


def _identity(library: SkillLibrary | None) -> dict[str, str] | None:
    if library is None:
        return None
    return {"name": library.name, "id": library.id, "set": library.set}


def _name(identity: dict[str, str] | None) -> str:
    if identity is None:
        return "no library"
    return 'set "{set}" of library {name} (id {id:.12})'.format(**identity)
