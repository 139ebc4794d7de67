"""Random damage: no truncated file and no flipped bit of a library is ever loaded in silence.

`ETUDE_CASES=5000 pytest tests/faults/test_corruption.py` soaks.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from etude.errors import CheckpointError, LibraryError
from etude.skills.library import SkillLibrary

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "v1"
CASES = int(os.environ.get("ETUDE_CASES", "200"))


def corrupt(folder: Path, rng: np.random.Generator) -> tuple[str, str]:
    """Cut a random file at a random length or flip a random bit of it; returns file and damage."""
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    file = files[rng.integers(len(files))]
    data = bytearray(file.read_bytes())
    place = int(rng.integers(len(data)))
    if rng.integers(2):
        file.write_bytes(data[:place])
        return file.name, f"cut to {place} of {len(data)} bytes"
    bit = int(rng.integers(8))
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return file.name, f"bit {bit} of byte {place} flipped"


def accepted(folder: Path, file: str) -> str:
    """Why the damaged library got past, or an empty string if it was refused as it should be.

    Damage of the manifest may look like damage of the file whose hash it holds.
    """
    try:
        SkillLibrary.load(folder)
    except (LibraryError, CheckpointError) as error:
        named = str(folder) if file == "MANIFEST.json" else str(folder / file)
        return "" if named in str(error) else f"the sentence does not name the file: {error}"
    return "loaded in silence"


def copies(source: Path, folder: Path) -> dict[str, bytes]:
    """Copy a library; returns its files."""
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def test_no_damage_is_loaded_in_silence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("sphere-metra", "discrete-diayn")
    wholes = [copies(GOLDEN / name, tmp_path / name) for name in names]
    past = []
    for case in range(CASES):
        folder, files = tmp_path / names[case % 2], wholes[case % 2]
        file, damage = corrupt(folder, rng)
        if why := accepted(folder, file):
            past.append(f"case {case}: {file} {damage}: {why}")
        (folder / file).write_bytes(files[file])
    assert past == []
    for name in names:
        SkillLibrary.load(tmp_path / name)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_manifest_without_its_last_bytes_is_refused(tmp_path: Path, lost: int) -> None:
    """No hash covers the manifest: it has to notice by itself that its end is missing."""
    files = copies(GOLDEN / "sphere-metra", tmp_path / "lib")
    (tmp_path / "lib" / "MANIFEST.json").write_bytes(files["MANIFEST.json"][:-lost])
    with pytest.raises(LibraryError, match=r"MANIFEST.json is malformed"):
        SkillLibrary.load(tmp_path / "lib")


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    """The file that only its own form protects, bit by bit where the names and spaces stand."""
    folder = tmp_path / "lib"
    whole = copies(GOLDEN / "discrete-diayn", folder)["MANIFEST.json"]
    for place in range(0, len(whole), 1 if CASES > 200 else 7):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            (folder / "MANIFEST.json").write_bytes(data)
            assert accepted(folder, "MANIFEST.json") == "", (place, bit)
