"""Maps the root folders under one import name: `skills/` is `etude.skills`, and so on.

The folders stand at the root because that is where people look for them; they are imported under
`etude` because top-level packages called `agents` or `evaluate` would overwrite those of others.
Everything else about the distribution stands in `pyproject.toml`.
"""

from setuptools import find_packages, setup

ROOTS = ("agents", "skills", "worldmodels", "envs", "evaluate", "zoo")


def packages(root: str) -> list[str]:
    """`etude.<root>` and every package below it, so that a new folder is never forgotten."""
    return [f"etude.{root}", *(f"etude.{root}.{name}" for name in find_packages(root))]


setup(
    packages=[*find_packages("src"), *(name for root in ROOTS for name in packages(root))],
    package_dir={"etude": "src/etude", **{f"etude.{root}": root for root in ROOTS}},
    package_data={
        "etude": ["py.typed"],
        "etude.skills.presets": ["*.toml"],
        "etude.zoo": ["**/*.json", "**/*.jsonl", "**/*.safetensors", "**/*.md"],
    },
)
