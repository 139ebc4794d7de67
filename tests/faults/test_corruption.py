"""Random damage: no truncated file and no flipped bit is ever loaded in silence.

Of libraries and of checkpoints; each is refused by name, within a second of the processor, and in
hardly more memory than a good one takes.

`ETUDE_CASES=5000 pytest tests/faults/test_corruption.py` soaks.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from etude import checkpoint
from etude.config import replace
from etude.errors import CheckpointError, LibraryError
from etude.skills.discovery import Discovery, preset
from etude.skills.library import SkillLibrary

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "v1"
CASES = int(os.environ.get("ETUDE_CASES", "200"))
MANIFESTS = ("MANIFEST.json", checkpoint.MANIFEST)
MOST = 2**25  # bytes by which memory may grow, a hundred times what the files are
Record = Callable[[str, object], None]


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


def accepted(load: Callable[[Path], object], folder: Path, file: str) -> str:
    """Why the damaged folder got past, or an empty string if it was refused as it should be.

    Damage of the manifest may look like damage of the file whose hash it holds.
    """
    start = time.process_time()
    try:
        load(folder)
    except (LibraryError, CheckpointError) as error:
        seconds = time.process_time() - start
        named = str(folder) if file in MANIFESTS else file
        why = "" if seconds < 1 else f"it took {seconds} s"
        return why if named in str(error) else f"the sentence does not name the file: {error}"
    return "loaded in silence"


def copies(source: Path, folder: Path) -> dict[str, bytes]:
    """Copy a library; returns its files."""
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


class Memory:
    """How much more memory than at the beginning a block has taken at most, where the system says.

    The system's own high-water mark, which is put back at the beginning.
    """

    STATUS = Path("/proc/self/status")

    def __enter__(self) -> Memory:
        gc.collect()  # what earlier tests have left would hide as much growth when it goes
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self._peak()
        return self

    def __exit__(self, *_: object) -> None:
        self.grown = self._peak() - self.before

    def _peak(self) -> int:
        if not self.STATUS.exists():
            return 0
        found = re.search(r"VmHWM:\s+(\d+) kB", self.STATUS.read_text())
        assert found is not None
        return int(found[1]) * 1024


def test_no_damaged_library_is_loaded_in_silence(tmp_path: Path, record_property: Record) -> None:
    rng = np.random.default_rng(0)
    names = ("sphere-metra", "discrete-diayn")
    wholes = [copies(GOLDEN / name, tmp_path / name) for name in names]
    for name in names:
        SkillLibrary.load(tmp_path / name)
    past = []
    with Memory() as memory:
        for case in range(CASES):
            folder, files = tmp_path / names[case % 2], wholes[case % 2]
            file, damage = corrupt(folder, rng)
            if why := accepted(SkillLibrary.load, folder, file):
                past.append(f"case {case}: {file} {damage}: {why}")
            (folder / file).write_bytes(files[file])
    assert past == []
    assert memory.grown < MOST
    for name in names:
        SkillLibrary.load(tmp_path / name)
    record_property("count", CASES)


def test_no_damaged_checkpoint_is_loaded_in_silence(
    tmp_path: Path, record_property: Record
) -> None:
    """Arrays, state, manifest, and the file of rows beside them, of a run that has learnt."""
    small = {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 1, "warmup_steps": 80}
    settings = {"agent": {"hidden": [16, 16]}, "method": {"hidden": [16, 16]}, "loop": small}
    run = Discovery(replace(preset("metra", "point-open"), settings))
    run.epoch()
    path = checkpoint.save(tmp_path, "1", run.checkpoint())
    folders = (path, tmp_path / checkpoint.ROWS)
    files = {file: file.read_bytes() for folder in folders for file in folder.iterdir()}
    assert {file.suffix for file in files} == {".safetensors", ".json"} and len(files) > 3
    rng, past = np.random.default_rng(0), []
    with Memory() as memory:
        for case in range(CASES):
            folder = folders[int(rng.random() < 0.2)]
            file, damage = corrupt(folder, rng)
            if why := accepted(checkpoint.load, path, file):
                past.append(f"case {case}: {file} {damage}: {why}")
            (folder / file).write_bytes(files[folder / file])
    assert past == []
    assert memory.grown < MOST
    run.restore(checkpoint.load(path))
    record_property("count", CASES)


def test_whatever_stands_in_latest_a_whole_checkpoint_is_found(tmp_path: Path) -> None:
    """It is a pointer and nothing more: without a name that fits, the newest is taken."""
    checkpoint.save(tmp_path, "1", {"x": 1})
    checkpoint.save(tmp_path, "2", {"x": 2})
    for text in (b"", b"3", b"../1", b"\xff\x00", b"." * 4096):
        (tmp_path / checkpoint.LATEST).write_bytes(text)
        assert checkpoint.load_newest(tmp_path) == {"x": 2}, text


def test_the_measure_of_memory_sees_a_large_array() -> None:
    if not Memory.STATUS.exists():
        pytest.skip("needs /proc")
    with Memory() as memory:
        np.ones(4 * MOST // 8).sum()
    assert memory.grown > MOST


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
            assert accepted(SkillLibrary.load, folder, "MANIFEST.json") == "", (place, bit)
