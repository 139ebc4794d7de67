"""Skill libraries: load one, act with it, plan goals with it, cut it and join it to others.

    library = SkillLibrary.load("ant-metra")        # a folder, a run folder, or a name in the zoo
    z = library.sample(np.random.default_rng(0), 1)[0]
    action = library.act(observation, z)            # raw body observation in, action out

A library needs NumPy, safetensors and Gymnasium; torch is never imported. It is immutable and
keeps no buffers, so one object may serve several threads, and it can be pickled. What is on disk
is described in `library_files`. Shapes: B batch (may be absent), O body observation, Z skill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from etude.errors import LibraryError, UsageError, nearest, unknown
from etude.skills import library_files, library_goals
from etude.skills.library_card import flat_row
from etude.skills.library_data import Contents, SetData, body_fields, differences
from etude.skills.mlp import MLP, describe_fields
from etude.skills.spaces import Array, Discrete, SkillSpace

__all__ = ["MLP", "SetData", "SkillLibrary", "SkillPolicy", "merge", "subset", "write", "zoo_names"]


class SkillLibrary:
    """Skills of one body, ready to act; a view of one of the library's sets."""

    def __init__(
        self,
        contents: Contents,
        set: str | None = None,  # noqa: A002
        path: Path | None = None,
    ) -> None:
        sets = {s.name: s for s in contents.sets}
        if set is not None and set not in sets:
            raise unknown(f"set of library {contents.name}", set, sets)
        self.contents, self.path = contents, path
        self.data = sets[set] if set is not None else contents.sets[0]
        self.fields = body_fields(contents.env)
        """Names and widths of the raw observation that `act` takes."""
        self._policy = self.data.on_raw(self.data.policy, self.fields)
        self.encoders = {k: self.data.on_raw(n, self.fields) for k, n in self.data.encoders.items()}
        """Networks beside the policy, by name; they take raw body observations."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        set: str | None = None,  # noqa: A002
        allow_newer: bool = False,
    ) -> Self:
        """Verify and read a library.

        Args:
            source: its folder, a run folder with a `library/` inside, or a name in the zoo.
            set: which of its sets to act with; the first by default.
            allow_newer: read a newer minor format, whose additions are ignored.

        Raises:
            LibraryError: nothing there, or not exactly what was written.
            UsageError: there is no such set.
        """
        path = _locate(source)
        return cls(library_files.read(path, allow_newer), set, path)

    def with_set(self, name: str) -> SkillLibrary:
        """The same library, acting with another of its sets."""
        return SkillLibrary(self.contents, name, self.path)

    @property
    def name(self) -> str:
        """The library's name."""
        return self.contents.name

    @property
    def id(self) -> str:
        """SHA-256 of the manifest, which covers every byte; empty if it was never written."""
        return self.contents.id

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of all sets."""
        return tuple(s.name for s in self.contents.sets)

    @property
    def set(self) -> str:
        """Name of the set that acts."""
        return self.data.name

    @property
    def space(self) -> SkillSpace:
        """The skills z, with their prior."""
        return self.data.space

    @property
    def env(self) -> dict[str, Any]:
        """Specification of the environment it was learnt in."""
        return dict(self.contents.env)

    @property
    def learner(self) -> str:
        """Id of the method that learnt this set."""
        return self.data.learner

    @property
    def skills(self) -> list[dict[str, Any]]:
        """A row per known skill: id, z, and whatever was measured."""
        return [dict(row) for row in self.data.skills]

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers about this set."""
        return dict(self.data.metrics)

    @property
    def provenance(self) -> dict[str, Any]:
        """How it was made."""
        return dict(self.contents.provenance)

    @property
    def parents(self) -> list[dict[str, Any]]:
        """The libraries it was made from."""
        return [dict(parent) for parent in self.contents.parents]

    def act(self, obs: ArrayLike, z: ArrayLike) -> Array:
        """Deterministic actions (B, A) in [-1, 1] for raw body observations (B, O).

        `z` is (B, Z), or (Z,) for one skill in all rows.

        Raises:
            UsageError: a shape does not fit, something is NaN or infinite, or the skills are plans
                of several steps (`plan`, `policy`).
        """
        if self.period > 1:
            raise UsageError(
                f'skills of set "{self.set}" are plans of {self.period} steps: act with '
                "`policy(z)`, which remembers where it is, or take `plan(obs, z)`."
            )
        return self._policy(obs, z)

    @property
    def period(self) -> int:
        """Steps that a skill plans ahead; 1 for one that looks at every observation."""
        return self.data.policy.period

    def plan(self, obs: ArrayLike, z: ArrayLike) -> Array:
        """The next actions (B, period, A) of skills (B, Z) or (Z,) at raw observations (B, O).

        Raises:
            UsageError: a shape does not fit, or something is NaN or infinite.
        """
        actions, net = self._policy(obs, z), self.data.policy
        return actions.reshape(*actions.shape[:-1], net.knots, -1).repeat(net.hold, axis=-2)

    def policy(self, z: ArrayLike) -> SkillPolicy:
        """One skill as a policy with `reset` and `act`."""
        return SkillPolicy(self, self.space.check(z))

    @property
    def directional(self) -> bool:
        """Whether skills are ways for phi to move (METRA), not where phi is to be (VISR)."""
        return library_goals.PHI in self.encoders

    def encode(self, obs: ArrayLike) -> Array:
        """phi (B, D) of raw body observations (B, O).

        Raises:
            LibraryError: the set has no phi.
        """
        if (phi := library_goals.encoder(self.space, self.encoders)) is None:
            raise LibraryError(
                f'set "{self.set}" of library {self.name} has no encoder "phi", which '
                f"{self.learner} does not learn: choose one learnt by a metric method."
            )
        return phi(obs)

    def goal_skill(self, obs: ArrayLike, goal: ArrayLike) -> Array:
        """The skill (B, Z) from `obs` to `goal` (both (B, O)); `library_goals` has the rules.

        Raises:
            LibraryError: no network tells it, or phi has another width than z.
        """
        if skill := library_goals.namer(self.space, self.encoders):
            return skill(goal)
        way = self.encode(goal) - self.encode(obs)
        if way.shape[-1] != self.space.dim:
            raise LibraryError(
                f'phi of set "{self.set}" has {way.shape[-1]} dimensions and z {self.space.dim}: '
                "there is no direction that a skill could follow."
            )
        return self.space.towards(way)

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        """n skills (n, Z) of the prior."""
        return self.space.sample(rng, n)

    def table(self) -> list[dict[str, Any]]:
        """The skills' rows without nesting, ready for a data frame."""
        return [flat_row(row) for row in self.data.skills]

    def describe(self) -> str:
        """A few lines of text."""
        env, data = self.contents.env, self.data
        lines = {
            "library": f"{self.name} ({self.id[:12] or 'never written'})",
            "set": f"{data.name}, one of {', '.join(self.sets)}" if self.sets[1:] else data.name,
            "learner": data.learner,
            "body": f"{env['body']}: {describe_fields(self.fields)} -> "
            f"{env['action_dim']} actions every {env['dt']:g} s",
            "skills": f"{data.space.kind}, {data.space.dim} dimensions; {len(data.skills)} known",
            "policy": " x ".join(map(str, data.policy.sizes)),
            "encoders": ", ".join(data.encoders) or "none",
            **{key: f"{value}" for key, value in flat_row(data.metrics).items()},
        }
        return "\n".join(f"{key:<10} {value}" for key, value in lines.items())

    def untrained(self, seed: int) -> SkillLibrary:
        """The control for "did learning matter": this set before training, in memory.

        Same architectures, normaliser, space and rows; weights drawn anew as agents initialise
        them (Xavier-uniform, zero biases, the policy's last layer a tenth as large).
        """
        rng, old = np.random.default_rng(seed), self.data
        fresh = dataclasses.replace(
            old,
            policy=old.policy.fresh(rng),
            encoders={key: net.fresh(rng) for key, net in old.encoders.items()},
            metrics={},
        )
        parent = _parent(self, f"untrained, seed {seed}")
        name = f"{self.name[:54]}-untrained"
        return SkillLibrary(Contents(name, self.contents.env, [fresh], {}, [parent]))

    def __repr__(self) -> str:
        return (
            f"<SkillLibrary {self.name}/{self.set}: {self.space} for {self.contents.env['body']}>"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SkillPolicy:
    """One skill of a library: `reset` when it begins, `act` at every step."""

    library: SkillLibrary
    z: Array
    _ahead: list[Array] = dataclasses.field(default_factory=list)
    """What is left of a plan, (B, A) each."""

    def reset(self, obs: ArrayLike) -> None:
        """Begin anew; drops what was planned."""
        self._ahead.clear()

    def act(self, obs: ArrayLike) -> Array:
        """Action (B, A) for raw body observations (B, O)."""
        if not self._ahead:
            self._ahead.extend(np.moveaxis(self.library.plan(obs, self.z), -2, 0))
        return self._ahead.pop(0)


def write(
    path: str | Path,
    *,
    sets: Sequence[SetData],
    env: dict[str, Any],
    provenance: dict[str, Any],
    name: str,
) -> Path:
    """Write a new library; it is read back and checked before it appears under `path`.

    Args:
        path: the folder to make.
        sets: the learners' skills, all for the body of `env`.
        env: `EnvSpec.to_json()` of the environment they were learnt in.
        provenance: how to make it again (command, commit, versions, seed, steps, hardware).
        name: what the library calls itself.

    Raises:
        UsageError: `path` exists, or the parts do not fit each other.
    """
    return library_files.write(Path(path), Contents(name, env, sets, provenance))


def subset(library: SkillLibrary, ids: Sequence[int], path: str | Path) -> SkillLibrary:
    """Write a new library with only the skills `ids` of the acting set, in that order.

    A discrete space shrinks to them (the other skills' weights are gone); a continuous one stays
    whole and only its known skills are fewer. Ids are kept.
    """
    data, rows = library.data, {row["id"]: row for row in library.data.skills}
    if missing := [i for i in ids if i not in rows]:
        raise unknown(f"skill id of library {library.name}", str(missing[0]), map(str, rows))
    if not ids or len({*ids}) < len(ids):
        raise UsageError(f"skills {list(ids)}: name at least one skill, each once.")
    kept = [rows[i] for i in ids]
    if isinstance(data.space, Discrete):
        data = _keep(data, [int(np.argmax(row["z"])) for row in kept])
        kept = [{**row, "z": z} for row, z in zip(kept, np.eye(len(ids)), strict=True)]
    data = dataclasses.replace(data, skills=kept, metrics={})
    return _derive(path, [data], [library], "subset")


def merge(libraries: Sequence[SkillLibrary], path: str | Path) -> SkillLibrary:
    """Write a new library with all sets of several libraries for one body.

    A set whose name is taken is called `library.set` instead.

    Raises:
        LibraryError: the libraries are for different bodies.
    """
    if not libraries:
        raise UsageError("nothing to merge: name at least one library.")
    first, merged = libraries[0], dict[str, SetData]()
    for library in libraries:
        lines = differences(first.env, library.env)
        if lines or [*library.fields.items()] != [*first.fields.items()]:
            raise LibraryError(
                f"{library.name} cannot be merged with {first.name}, they are for different bodies:"
                f"{''.join(lines) or ' the order of the fields differs.'}"
            )
        for data in library.contents.sets:
            name = f"{library.name}.{data.name}" if data.name in merged else data.name
            if name in merged:
                raise UsageError(f'two sets are called "{name}": merge each library once.')
            merged[name] = dataclasses.replace(data, name=name)
    return _derive(path, list(merged.values()), libraries, "merge")


def zoo_names() -> list[str]:
    """Names of the libraries that come with the package."""
    return sorted(p.name for p in _zoo().glob("*") if _is_library(p))


def _zoo() -> Path:
    return Path(str(resources.files("etude.zoo")))


def _is_library(path: Path) -> bool:
    return any((path / f).is_file() for f in (library_files.MANIFEST, library_files.INDEX))


def _locate(source: str | Path) -> Path:
    """The folder of the library that `source` means; a folder goes before a name of the zoo."""
    path, names = Path(source), zoo_names()
    for folder in (path, path / "library"):
        if _is_library(folder):
            return folder
    if str(source) in names:
        return _zoo() / str(source)
    what = "no skill library and no run with one" if path.exists() else "no such file or folder"
    zoo = f"the zoo has {', '.join(names)}" if names else "the zoo is empty"
    raise LibraryError(
        f'no skill library "{source}": {what} here, and {zoo}.{nearest(str(source), names)}'
    )


def _parent(library: SkillLibrary, relation: str) -> dict[str, Any]:
    return {"name": library.name, "id": library.id, "relation": relation}


def _derive(
    path: str | Path, sets: Sequence[SetData], libraries: Sequence[SkillLibrary], relation: str
) -> SkillLibrary:
    """Write a library made from others, and load it."""
    first, target = libraries[0].contents, Path(path)
    parents = [_parent(library, relation) for library in libraries]
    provenance = {library.name: library.provenance for library in libraries}
    contents = Contents(target.name, first.env, sets, provenance, parents)
    return SkillLibrary.load(library_files.write(target, contents))


def _keep(data: SetData, kept: list[int]) -> SetData:
    """A discrete set with only the skills `kept`: inputs and outputs of the others are cut off."""
    n = data.space.dim

    def cut(net: MLP) -> MLP:
        layers = list(net.weights)
        if len(net.inputs) == 2:
            weight, bias = layers[0]
            known = len(weight) - n
            layers[0] = (np.concatenate((weight[:known], weight[known:][kept])), bias)
        if net.sizes[-1] == n and net.inputs == ("obs",):  # it names skills
            weight, bias = layers[-1]
            layers[-1] = (weight[:, kept], bias[kept])
        return dataclasses.replace(net, weights=layers)

    return dataclasses.replace(
        data,
        space=Discrete(len(kept)),
        policy=cut(data.policy),
        encoders={key: cut(net) for key, net in data.encoders.items()},
        skills=[],
    )
