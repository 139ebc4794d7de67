"""`library verify|describe|diff|merge|subset|import-sb3`: look after skill libraries."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from etude.cli import runs
from etude.envs import registry
from etude.errors import EtudeError, UsageError
from etude.skills.library import SkillLibrary, merge, subset, zoo_names
from etude.skills.library_card import flat_row
from etude.skills.library_data import SetData
from etude.skills.library_diff import compare
from etude.skills.mlp import ACTIVATIONS, describe_fields
from etude.skills.sb3_import import import_sb3

ABOUT = """Look after skill libraries: check, describe, compare, join, cut, import.

A library is a folder, a run folder with a library/ inside, or a name of the zoo. No command changes
one: what is made is a new folder, never over an existing path, and says what it was made from."""
VERIFY = """Read libraries whole and say of each whether it is sound.

Every file is compared with the manifest (name, size, SHA-256), parsed as data, and the policy must
repeat its golden actions. One line each; exit code 2 if one is refused, with the file and why."""
DESCRIBE = "Print what a library's card says: body, sets, skills, metrics and how it was made."
DIFF = """Say what differs between two libraries, one line each.

Environment, skill space, settings, metrics, skills row by row, and which tensors differ in how many
entries and by how much at most. Exit code 0 also if they differ; names and origin do not count."""
MERGE = """Join libraries for one body: all their sets, in one new library.

A set whose name is taken becomes LIBRARY.SET. The parents' hashes are kept."""
SUBSET = """Make a library of some skills of a set, named by the ids in its rows.

A discrete space shrinks to them; a continuous one stays whole and knows fewer skills."""
IMPORT = """Make a library of one skill out of a Stable-Baselines3 SAC or TD3 zip (MlpPolicy).

Only the weights are read, by a reader that runs no code; SB3's loader is not used. Activation
functions and a VecNormalize are not among the weights: state the one, do without the other. PPO
is refused, since it does not end in tanh."""
BETWEEN = "between its layers (default: relu, as SB3 has it for SAC and TD3)"
SKILL_INPUT = (
    "how many skills the policy chooses among, by a one-hot vector after the observation "
    "(default: 0, it reads the observation alone)"
)
SHOWN = 64  # skills in a table
WIDTH = 76  # characters of a value


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a `UsageError`, as everywhere in this command line."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong and where to read on."""
        raise UsageError(f"{message}; `{self.prog} --help` lists what there is.")


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    args = parser().parse_args(list(argv))
    args.argv = ["library", *argv]
    return int(args.run(args))


def parser() -> argparse.ArgumentParser:
    """The commands below `library` and their options."""
    form: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    zoo = f"libraries of the zoo: {', '.join(zoo_names()) or 'none'}"
    top = Parser("library", description=ABOUT, epilog=zoo, **form)
    commands = top.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )

    def add(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        about = text.splitlines()[0].rstrip(".")
        command = commands.add_parser(name, description=text, help=about, **form)
        command.set_defaults(run=run)
        return command

    paths = add("verify", VERIFY, _verify)
    paths.add_argument("paths", nargs="+", metavar="PATH", help="library, run folder or zoo name")
    add("describe", DESCRIBE, _describe).add_argument("library", metavar="PATH")
    two = add("diff", DIFF, _diff)
    two.add_argument("a", metavar="A")
    two.add_argument("b", metavar="B")
    joined = add("merge", MERGE, _merge)
    joined.add_argument("libraries", nargs="+", metavar="PATH", help="two or more libraries")
    cut = add("subset", SUBSET, _subset)
    cut.add_argument("library", metavar="PATH")
    cut.add_argument("--set", help="which of its sets (default: its first)")
    cut.add_argument("--skills", nargs="+", type=int, required=True, metavar="ID", help="their ids")
    sb3 = add("import-sb3", IMPORT, _import)
    sb3.add_argument("zip", type=Path, metavar="ZIP", help="file that SB3's model.save wrote")
    sb3.add_argument("--env", required=True, metavar="ID", help="environment it was trained in")
    sb3.add_argument("--activation", choices=ACTIVATIONS, default="relu", help=BETWEEN)
    sb3.add_argument("--skill-dim", type=int, default=0, metavar="N", help=SKILL_INPUT)
    sb3.add_argument("--name", default="", help="the library's name (default: ENV-ALGORITHM)")
    for command in (joined, cut, sb3):
        command.add_argument("--out", type=Path, required=True, metavar="PATH", help="new folder")
    return top


def _verify(args: argparse.Namespace) -> int:
    refused = 0
    for path in args.paths:
        try:
            found = SkillLibrary.load(path)
        except EtudeError as error:
            refused += 1
            print(f"refused  {path}: {error}")
        else:
            print(f"sound    {path}: {found.name} {found.id[:12]}, {_counted(found)}")
    return 2 if refused else 0


def _counted(library: SkillLibrary) -> str:
    sets = library.contents.sets
    skills = sum(len(s.skills) for s in sets)
    return f"{len(sets)} set{'s' * (len(sets) > 1)}, {skills} known skill{'s' * (skills != 1)}"


def _describe(args: argparse.Namespace) -> int:
    print(describe(SkillLibrary.load(args.library)))
    return 0


def describe(library: SkillLibrary) -> str:
    """The facts of a library's card as aligned text."""
    contents, env = library.contents, library.env
    parents = [f"{p['relation']} of {p['name']} ({p['id'][:12]})" for p in library.parents]
    blocks = [
        _facts(
            {
                "library": library.name,
                "id": library.id,
                "folder": library.path or "",
                "environment": env["id"],
                "body": env["body"],
                "observation": describe_fields(library.fields),
                "action": f"{env['action_dim']} values in [-1, 1], one every {env['dt']:g} s",
                "sets": ", ".join(library.sets),
                "parents": ", ".join(parents) or "none",
            }
        )
    ]
    blocks += [_set(data) for data in contents.sets]
    origin = flat_row(contents.provenance)
    return "\n\n".join([*blocks, f"origin\n{_facts(origin)}" if origin else "origin unknown"])


def _set(data: SetData) -> str:
    """One set: its facts, then its skills as a table."""
    facts = {
        "learner": data.learner,
        "skill space": f"{data.space.kind}, {data.space.dim} dimensions",
        "policy": f"{' x '.join(map(str, data.policy.sizes))}, {data.policy.activation}",
        "encoders": ", ".join(data.encoders) or "none",
        **flat_row(data.metrics),
    }
    rows = [flat_row(row) for row in data.skills]
    heads = list(dict.fromkeys(key for row in rows for key in row))
    table = _table([heads, *([row.get(key, "") for key in heads] for row in rows[:SHOWN])])
    more = f"\n… and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"set {data.name}\n{_facts(facts)}\n\n{table if rows else 'no known skills'}{more}"


def _facts(facts: dict[str, Any]) -> str:
    return _table([[f"  {key}", value] for key, value in facts.items()])


def _table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows of values in aligned columns."""
    texts = [[_text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in texts)
    return "\n".join(line.rstrip() for line in lines)


def _text(value: Any) -> str:
    """A value on one line: numbers to four digits, nothing that a terminal would obey."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        value = f"[{', '.join(_text(v) for v in value[:8])}{', …' if len(value) > 8 else ''}]"
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[: WIDTH + 1])
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _diff(args: argparse.Namespace) -> int:
    a, b = SkillLibrary.load(args.a), SkillLibrary.load(args.b)
    _print(compare(a.contents, b.contents) or [f"{args.a} and {args.b} hold the same."])
    return 0


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


def _merge(args: argparse.Namespace) -> int:
    if len(args.libraries) < 2:
        raise UsageError(f"merge got only {args.libraries[0]}: name two or more libraries.")
    _free(args.out)
    return _made(merge([SkillLibrary.load(path) for path in args.libraries], args.out))


def _subset(args: argparse.Namespace) -> int:
    _free(args.out)
    return _made(subset(SkillLibrary.load(args.library, args.set), args.skills, args.out))


def _import(args: argparse.Namespace) -> int:
    _free(args.out)
    registry.spec(args.env)  # an unknown name is said before anything is read
    made = runs.provenance(args.argv)
    import_sb3(
        args.zip,
        args.env,
        args.out,
        activation=args.activation,
        skill_dim=args.skill_dim,
        name=args.name,
        provenance=made,
    )
    return _made(SkillLibrary.load(args.out))


def _free(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists, and a library is never overwritten: choose another path.")


def _made(library: SkillLibrary) -> int:
    print(f"library  {library.path}: {library.name} {library.id[:12]}, {_counted(library)}")
    return 0
