"""The wheel holds the whole package and nothing else, and leaves other people's packages alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("agents", "skills", "worldmodels", "envs", "evaluate", "zoo")
BUILD_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
IMPORT_ALL = """
import agents, etude, evaluate
import etude.agents.sac, etude.evaluate, etude.skills.library
assert callable(evaluate.load), evaluate.__file__
assert agents.Agent.__module__.startswith("agents."), agents.__file__
assert etude.__file__.startswith({site!r}), etude.__file__
"""


def call(*command: str | Path, cwd: Path) -> str:
    """Output of a command that has to succeed; nothing of the checkout is on its path."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
    result = subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, with the tools that are installed."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("src", *FOLDERS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy / name)
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist")
    call(*build, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def sources() -> set[str]:
    """What has to be in the wheel: every file of the packages but notes for developers."""
    mapping = {"src/etude": "etude", **{name: f"etude/{name}" for name in FOLDERS}}
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in mapping.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
        if path.suffix != ".md" or folder == "zoo"
    }


def test_the_wheel_holds_the_sources_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - about == sources()
    assert {"METADATA", "RECORD", "entry_points.txt"} <= {name.split("/")[1] for name in about}
    assert {name.split("/")[0] for name in names - about} == {"etude"}


def test_the_sources_have_code_presets_and_types() -> None:
    kinds = {Path(name).suffix for name in sources()}
    assert {".py", ".toml"} <= kinds
    assert "etude/py.typed" in sources()


def test_a_library_of_the_zoo_loads_from_the_wheel_without_torch(
    wheel: Path, tmp_path: Path
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import etude, numpy as np\n"
        f"assert etude.__file__.startswith({str(tmp_path)!r}), etude.__file__\n"
        "library = etude.SkillLibrary.load('half-cheetah-metra')\n"
        "assert library.act(np.zeros(18), np.array([1.0, 0.0])).shape == (6,)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wheel_lives_beside_its_namesakes(wheel: Path, tmp_path: Path) -> None:
    """Hugging Face `evaluate` and `openai-agents` survive us, in either order of installation."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = call(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", cwd=tmp_path)
    # our dependencies come from the environment of this test, but not what its .pth files add
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    for namesakes in (("evaluate", "openai-agents"), ()):  # we come first, then last
        call(*pip, "install", "--no-deps", wheel, cwd=tmp_path)
        if namesakes:
            call(*pip, "install", *namesakes, cwd=tmp_path)
        call(python, "-c", IMPORT_ALL.format(site=site.strip()), cwd=tmp_path)
        call(*pip, "uninstall", "--yes", "etude-rl", cwd=tmp_path)
        call(python, "-c", "import agents, evaluate; agents.Agent, evaluate.load", cwd=tmp_path)
