"""The architecture, read from the sources: who imports whom, who owns what, how long things are.

A rule is a function from sources to complaints. The first test applies each rule to the
repository, the second feeds it the offences of `OFFENCES`, so that no rule passes by being blind.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("agents", "skills", "worldmodels", "envs", "evaluate", "zoo")
BOTTOM = ("errors", "config", "checkpoint", "logger", "__version__")
BELOW = {  # what a layer may import beside itself and the bottom
    **dict.fromkeys(("bottom", "envs", "agents", "zoo"), ()),
    "worldmodels": ("envs", "agents"),
    "skills": ("envs", "agents", "worldmodels"),
    "evaluate": ("envs", "agents", "worldmodels", "skills"),
    "cli": FOLDERS,
    "public names": FOLDERS,
}
LEARN_ON_SB3 = tuple(f"agents/{n}.py" for n in ("smdp", "meta", "meta_state", "skill_critic"))
OWNERS = {
    "stable_baselines3": (*LEARN_ON_SB3, "skills/vec_env.py", "evaluate/"),
    "mujoco": ("envs/",),
    "ray": ("evaluate/trials/pool.py", "evaluate/tune.py"),
    "matplotlib": ("evaluate/", "src/etude/logger.py"),
    "tyro": ("src/etude/cli/",),
}
_LIGHT = ("library", "library_files", "spaces", "env", "field_maps")
LIGHT = tuple(f"etude.skills.{name}" for name in _LIGHT)
HEAVY = ("torch", "stable_baselines3", "matplotlib", "sklearn")
REGISTRIES = ("src/etude", "src/etude/cli", "envs", "skills/learners", "skills/presets")
IMPORTED = {"scikit-learn": "sklearn", "automata-lib": "automata"}
COMMAND_LINE = ("src/etude/cli/", "train.py")
LONGER = ("train.py", "/lpe.py", "/choreographer.py")
UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
GENERATORS = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64"}
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".csv", ".in"}
Rule = Callable[[Sequence["Source"]], Iterator[str]]
FOREIGN = {  # what belongs to one machine and not to the project
    "a path of one machine": r"(?<![\w.])/(?:work|root|home|opt|Users)/\w",
    "a package index": r"pypi[.]org|index[-]url|find[-]links|file:[/]/",
    "a folder outside the repository": r"(?<![\w/.])shared[/]\w",
}


@dataclass(frozen=True)
class Source:
    """One file: its path from the root of the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        """Dotted import name: `etude.skills` for `skills/__init__.py`."""
        parts = self.path.removeprefix("src/etude/").removesuffix(".py").split("/")
        return ".".join(["etude", *(p for p in parts if p != "__init__")])

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py")

    @property
    def in_package(self) -> bool:
        return self.is_python and self.path.startswith(("src/etude/", *FOLDERS))

    @property
    def is_learner(self) -> bool:
        folder, _, name = self.path.rpartition("/")
        return folder == "skills/learners" and not name.startswith(("_", "base."))

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that the import statements among `nodes` name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def at_import(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        only_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in ("orelse",) if only_types else ("body", "orelse", "handlers", "finalbody"):
            yield from at_import(getattr(node, part, []))


def parents(module: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c`: all that is imported for the sake of the last."""
    return itertools.accumulate(module.split("."), "{}.{}".format)


def layer(module: str) -> str:
    name = (module.split(".") + [""])[1]
    return "bottom" if name in BOTTOM else name if name in BELOW else "public names"


def import_direction(sources: Sequence[Source]) -> Iterator[str]:
    """Imports run from the command line down to the bottom, never up and never bare."""
    for source in (s for s in sources if s.is_python):
        for line, name in imported(ast.walk(source.tree)):
            if name.startswith(".") or name.split(".")[0] in FOLDERS:
                yield f"{source.path}:{line}: {name} must be imported as etude.*"
            elif name.split(".")[0] == "etude" and source.in_package:
                here, there = layer(source.module), layer(name)
                if there not in (here, "bottom", *BELOW[here]):
                    yield f"{source.path}:{line}: {here} imports {name} ({there})"


def third_party_owners(sources: Sequence[Source]) -> Iterator[str]:
    """A heavy dependency has few owners; nothing is imported that pyproject.toml does not name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = (re.split(r"[\[<>=;~ ]", line)[0] for group in groups for line in group)
    ours = (IMPORTED.get(name, name).replace("-", "_") for name in names)
    known = {"etude", *sys.stdlib_module_names, *ours}
    for source in (s for s in sources if s.in_package):
        for line, name in imported(ast.walk(source.tree)):
            top = name.split(".")[0]
            if not source.path.startswith(OWNERS.get(top, "")):
                yield f"{source.path}:{line}: {top} belongs to {', '.join(OWNERS[top])}"
            elif top not in known:
                yield f"{source.path}:{line}: {top} is not a dependency in pyproject.toml"


def light_modules(sources: Sequence[Source]) -> Iterator[str]:
    """A library loads and acts without torch, through whatever its modules import."""
    modules = {s.module: s for s in sources if s.in_package}
    for start in (name for name in LIGHT if name in modules):
        todo, seen = [*parents(start)], set()
        while todo:
            if (name := todo.pop()) in seen or name not in modules:
                continue
            seen.add(name)
            for line, target in imported(at_import(modules[name].tree.body)):
                todo += parents(target)
                if target.split(".")[0] in HEAVY:
                    yield f"{modules[name].path}:{line}: {start} would import {target}"


def bare_packages(sources: Sequence[Source]) -> Iterator[str]:
    """An `__init__.py` is its docstring, so that importing a part does not import the whole."""
    for source in (s for s in sources if s.in_package and s.path.endswith("/__init__.py")):
        if len(source.tree.body) > 1 and source.path.rpartition("/")[0] not in REGISTRIES:
            yield f"{source.path}:2: holds more than its docstring"


def offence(node: ast.AST) -> str | None:
    """Why a node is unsafe wherever it stands, or None."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        data = name == "torch.load" and "weights_only=True" in map(ast.unparse, node.keywords)
        if name in ("eval", "exec", "compile", "torch.load", "torch.save") and not data:
            return f"{name} runs code out of data or hides it there"
        if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
            return "allow_pickle runs code out of data"
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
        return None if node.attr in GENERATORS else f"np.random.{node.attr} is global state"
    if isinstance(node, ast.ExceptHandler):
        caught = ast.unparse(node.type) if node.type else "everything"
        if re.search(r"\b(everything|Exception|BaseException)\b", caught):
            return f"catches {caught}"
    return None


def unsafe_code(sources: Sequence[Source]) -> Iterator[str]:
    """No unpickling, no evaluation, no global random state, no blind except, no stray print."""
    for source in (s for s in sources if s.in_package or s.path == "train.py"):
        for line, name in imported(ast.walk(source.tree)):
            if name.split(".")[0] in {"random", *UNPICKLERS}:
                yield f"{source.path}:{line}: imports {name}"
        for node in ast.walk(source.tree):
            if why := offence(node):
                yield f"{source.path}:{node.lineno}: {why}"
            printed = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            if printed and not source.path.startswith(COMMAND_LINE):
                yield f"{source.path}:{node.lineno}: prints outside the command line"


def budgets(sources: Sequence[Source]) -> Iterator[str]:
    """Lines per file and function, files per folder."""
    for source in (s for s in sources if s.is_python):
        limit = 200 if source.path.endswith(LONGER) else 130 if source.is_learner else 400
        if (lines := len(source.text.splitlines())) > limit:
            yield f"{source.path}:{limit}: {lines} lines, at most {limit}"
        for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
            if (lines := node.end_lineno - node.lineno + 1) > 50:
                yield f"{source.path}:{node.lineno}: {node.name} has {lines} lines, at most 50"
    folders = Counter(s.path.rpartition("/")[0] for s in sources if s.in_package)
    for folder, files in folders.items():
        if files > 12 and not folder.startswith("skills"):
            yield f"{folder}: {files} files, at most 12"


def learner_docstrings(sources: Sequence[Source]) -> Iterator[str]:
    """Every module says what it is; a learner cites its source and lists its deviations."""
    for source in (s for s in sources if s.in_package):
        text = ast.get_docstring(source.tree) or ""
        if not text:
            yield f"{source.path}:1: no docstring"
        if source.is_learner and not re.search(r"arXiv:\d{4}\.\d{5}|\b(19|20)\d\d\b", text):
            yield f"{source.path}:1: no citation (arXiv number or year)"
        if source.is_learner and "Deviations" not in text:
            yield f"{source.path}:1: does not list its Deviations"


def learner_imports(sources: Sequence[Source]) -> Iterator[str]:
    """Learners share parents (`base`, `_*`), and know nothing of each other."""
    start = "etude.skills.learners."
    for source in (s for s in sources if s.in_package and s.module.startswith(start)):
        for line, name in imported(ast.walk(source.tree)):
            sibling = name.removeprefix(start).split(".")[0] if name.startswith(start) else "base"
            if sibling != "base" and not sibling.startswith("_"):
                yield f"{source.path}:{line}: imports its sibling {sibling}"


def config_fields(sources: Sequence[Source]) -> Iterator[str]:
    """Every setting is followed by a docstring: meaning, unit, range, source."""
    for source in (s for s in sources if s.in_package):
        classes = (c for c in source.nodes(ast.ClassDef) if c.bases)
        for node in (c for c in classes if ast.unparse(c.bases[0]).endswith("Config")):
            for field, after in itertools.zip_longest(node.body, node.body[1:]):
                if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field):
                    continue
                text = after.value if isinstance(after, ast.Expr) else None
                if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
                    name = ast.unparse(field.target)
                    yield f"{source.path}:{field.lineno}: {name} has no docstring"


def bases(sources: Sequence[Source]) -> dict[str, list[str]]:
    """Class -> bases, both as dotted names."""
    found: dict[str, list[str]] = {}
    for source in (s for s in sources if s.in_package):
        names = {c.name: f"{source.module}.{c.name}" for c in source.nodes(ast.ClassDef)}
        names |= {n.split(".")[-1]: n for _, n in imported(ast.walk(source.tree))}
        for node in source.nodes(ast.ClassDef):
            texts = (re.sub(r"\[.*", "", ast.unparse(base)).split(".") for base in node.bases)
            own = f"{source.module}.{node.name}"
            resolved = [".".join([names.get(t[0], t[0]), *t[1:]]) for t in texts]
            found[own] = [base for base in resolved if base != own]
    return found


def inheritance(sources: Sequence[Source]) -> Iterator[str]:
    """At most contract -> family -> member, and a family has two members or more."""
    known = bases(sources)

    def line(name: str) -> list[str]:
        return [*max((line(b) for b in known[name] if b in known), key=len, default=()), name]

    lines = [line(name) for name in known]
    members = Counter(ancestor for chain in lines for ancestor in chain[:-1])
    for chain in lines:
        if chain[0] == "etude.config.Config":
            continue  # settings mirror the classes that they configure
        if len(chain) > 3:
            yield f"{chain[-1]}: more than two levels of inheritance"
        elif len(chain) == 3 and members[chain[1]] < 2:
            yield f"{chain[-1]}: its parent {chain[1]} is a family of {members[chain[1]]}"


def twins(sources: Sequence[Source]) -> Iterator[str]:
    """No two functions of more than 15 lines are 0.7 alike: copies drift apart."""
    bodies = []
    for source in (s for s in sources if s.in_package):
        for node in source.nodes(ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = "\n".join(map(ast.unparse, body)).splitlines()
            if len(lines) > 15:
                bodies.append((f"{source.path}:{node.lineno}: {node.name}", lines))
    for (name, lines), (other, others) in itertools.combinations(bodies, 2):
        matcher = difflib.SequenceMatcher(None, lines, others, autojunk=False)
        if matcher.real_quick_ratio() > 0.7 and matcher.quick_ratio() > 0.7 < matcher.ratio():
            yield f"{name} is nearly the same as {other}"


def foreign_words(sources: Sequence[Source]) -> Iterator[str]:
    """No file speaks of the machine it was written on."""
    for source in sources:
        for what, pattern in FOREIGN.items():
            for found in re.finditer(pattern, source.text):
                line = source.text.count("\n", 0, found.start()) + 1
                yield f"{source.path}:{line}: {what}: {found[0]}"


CONFIG = "class A(Config):\n    "
TWIN = "def {}():\n" + "".join(f"    a{i} = {i}\n" for i in range(20))
DEEP = "class P:0\nclass C(P):0\nclass D(C):0\nclass E(C):0\nclass F(C):0\nclass G(F):0"
FAMILY = "from etude.skills.x import P\nclass C(P):0\nclass F(C):0"
LEARNER = "skills/learners/x.py"
UNSAFE = (
    *("import pickle", "import random", "eval('1')", "torch.load(path)", "print(1)"),
    *("np.load(path, allow_pickle=True)", "np.random.rand(3)", "torch.load(p, weights_only=False)"),
    *("try: f()\nexcept: g()", "try: f()\nexcept (KeyError, Exception): g()"),
)
OFFENCES: list[tuple[Rule, dict[str, str]]] = [
    (import_direction, {"agents/x.py": "from etude.skills.library import load"}),
    (import_direction, {"agents/x.py": "from etude import skills"}),
    (import_direction, {"envs/x.py": "def f():\n    import etude.agents.sac"}),
    (import_direction, {"skills/x.py": "from etude import SkillLibrary"}),
    (import_direction, {"src/etude/config.py": "from etude.envs import registry"}),
    (import_direction, {"skills/x.py": "from .library import load"}),
    (import_direction, {"tests/unit/test_x.py": "import skills.library"}),
    (third_party_owners, {"skills/x.py": "import stable_baselines3"}),
    (third_party_owners, {"evaluate/x.py": "from mujoco import MjModel"}),
    (third_party_owners, {"evaluate/x.py": "import pandas"}),
    (light_modules, {"skills/library.py": "import torch.nn"}),
    (light_modules, {"skills/env.py": "", "skills/__init__.py": "import torch"}),
    (light_modules, {"skills/env.py": "import etude.a.b", "src/etude/a/b.py": "import torch"}),
    (light_modules, {"skills/env.py": "import etude.envs.b", "envs/__init__.py": "import torch"}),
    (bare_packages, {"agents/__init__.py": '"""Agents."""\nimport etude.agents.sac'}),
    *((unsafe_code, {"agents/x.py": text}) for text in UNSAFE),
    (budgets, {"evaluate/x.py": "a = 1\n" * 401}),
    *((budgets, {p: "a = 1\n" * n}) for p, n in ((LEARNER, 131), ("train.py", 201))),
    (budgets, {"envs/x.py": "def f():\n" + "    a = 1\n" * 50}),
    (budgets, {f"envs/x{i}.py": "a = 1" for i in range(13)}),
    (learner_docstrings, {"envs/x.py": "a = 1"}),
    (learner_docstrings, {LEARNER: '"""Deviations: none."""'}),
    (learner_docstrings, {LEARNER: '"""Someone, ICLR 2024 (arXiv:2310.08887)."""'}),
    (learner_imports, {LEARNER: "from etude.skills.learners.metra import Metra"}),
    (learner_imports, {LEARNER: "from etude.skills.learners import metra"}),
    (config_fields, {"agents/x.py": CONFIG + "a: int = 1\n    b: int = 1\n    'unit'"}),
    (config_fields, {"agents/x.py": CONFIG + "a: int = 1"}),
    (inheritance, {"skills/x.py": DEEP}),
    (inheritance, {"skills/x.py": "class P:0", "skills/y.py": FAMILY}),
    (twins, {"agents/x.py": TWIN.format("f"), "skills/x.py": TWIN.format("g")}),
    (foreign_words, {"README.md": "cd /" + "home/me"}),
    (foreign_words, {"docs/index.md": "see shared" + "/notes.md"}),
    (foreign_words, {"Makefile": "pip install --index" + "-url x"}),
]
RULES = tuple(dict.fromkeys(rule for rule, _ in OFFENCES))


def files() -> Iterator[Path]:
    """The files of the checkout, without what the Makefile or a training run put there."""
    made = {"runs", "build", "dist", "__pycache__"}
    for folder, below, names in os.walk(ROOT):
        kept = (n for n in below if n == ".ci" or not n.startswith(".") and n not in made)
        below[:] = sorted(n for n in kept if not n.endswith(".egg-info"))
        yield from (Path(folder, name) for name in sorted(names))


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    found = (path for path in files() if path.suffix in TEXT or path.name in ("Makefile", "run"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in found]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule: Rule, sources: list[Source]) -> None:
    if complaints := list(rule(sources)):
        pytest.fail("\n".join([str(rule.__doc__), *complaints]), pytrace=False)


@pytest.mark.parametrize(("rule", "texts"), OFFENCES)
def test_the_rule_sees_the_offence(rule: Rule, texts: dict[str, str]) -> None:
    assert list(rule([Source(path, text) for path, text in texts.items()]))


def test_the_rules_have_subjects(sources: list[Source]) -> None:
    found = {source.module for source in sources if source.is_python}
    assert {*LIGHT, "etude.cli", "etude", "etude.skills.learners.metra"} <= found


@pytest.mark.parametrize("module", ["etude", *LIGHT])
def test_importing_stays_light(module: str, tmp_path: Path) -> None:
    banned = {"torch", "mujoco", "gymnasium"} if module == "etude" else {*HEAVY}
    python = [sys.executable, "-c", f"import sys, {module}; print(*{banned} & sys.modules.keys())"]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
