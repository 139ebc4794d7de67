"""`library verify|describe|diff|merge|subset`: what it says, what it makes, what it refuses."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from etude.cli import main
from etude.skills.library import SetData, SkillLibrary, write

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "v1"
SPHERE, DISCRETE = (str(GOLDEN / name) for name in ("sphere-metra", "discrete-diayn"))


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `library …`."""
    code = main(["library", *map(str, argv)])
    return code, *capsys.readouterr()


def changed(path: Path, **change: object) -> Path:
    """A copy of the sphere library with another set."""
    library = SkillLibrary.load(SPHERE)
    data: SetData = dataclasses.replace(library.data, **change)
    return write(path, sets=[data], env=library.env, provenance={}, name="changed")


def test_verify_says_one_line_each(capsys, tmp_path: Path) -> None:
    assert run(capsys, "verify", SPHERE, "point-open-diayn")[0] == 0
    damaged = shutil.copytree(SPHERE, tmp_path / "run" / "library")
    assert run(capsys, "verify", tmp_path / "run")[0] == 0
    (damaged / "skills.jsonl").write_text("{}")
    code, out, _ = run(capsys, "verify", SPHERE, tmp_path / "run", DISCRETE, "nothing")
    first, second, third, fourth = out.splitlines()
    assert code == 2
    assert first.startswith(f"sound    {SPHERE}: sphere-metra 41b6ceb3ab4b, 1 set, 4 known skills")
    assert second.startswith("refused") and "skills.jsonl has 2 bytes" in second
    assert third.startswith("sound")
    assert fourth.startswith("refused  nothing") and "no skill library" in fourth


def test_describe_is_the_card_as_text(capsys) -> None:
    code, out, _ = run(capsys, "describe", SPHERE)
    assert code == 0
    for part in ("x(2) joints(4)", "one every 0.05 s", "sphere, 2 dimensions", "8 x 16 x 16 x 2",
                 "skill-3", "metrics.distance", "displacement  3.25", "write_v1.py"):  # fmt: skip
        assert part in out


def test_describe_prints_nothing_that_a_terminal_obeys(capsys, tmp_path: Path) -> None:
    path = changed(tmp_path / "lib", metrics={"\x1b[2J": "\x1b]0;owned\x07"})
    code, out, _ = run(capsys, "describe", path)
    assert code == 0 and "\x1b" not in out and "\\x1b[2J" in out
    assert "\x1b" not in run(capsys, "diff", path, SPHERE)[1]


def test_diff_names_every_difference(capsys, tmp_path: Path) -> None:
    old = SkillLibrary.load(SPHERE).data
    weights = [(w.copy(), b.copy()) for w, b in old.policy.weights]
    weights[1][0][2, 3] += 0.25
    path = changed(
        tmp_path / "lib",
        policy=dataclasses.replace(old.policy, weights=weights),
        config={**old.config, "lr": 0.001},
        skills=[{**old.skills[0], "name": "walk"}, *old.skills[1:3]],
        encoders={},
    )
    code, out, _ = run(capsys, "diff", SPHERE, path)
    lines = out.splitlines()
    assert code == 0
    assert "set metra: config lr: 0.0003 -> 0.001" in lines
    assert "set metra: skill 10 name: skill-0 -> walk" in lines
    assert "set metra: skill 13 id: 13 -> (none)" in lines
    assert "set metra: tensor policy/1/weight: 1 of 256 entries differ, by 0.25 at most" in lines
    assert "set metra: tensor phi/0/bias: (8,) -> (none)" in lines
    assert not any("policy/0/weight" in line or "environment" in line for line in lines)


def test_diff_of_other_spaces_and_of_equals(capsys, tmp_path: Path) -> None:
    _, out, _ = run(capsys, "diff", SPHERE, DISCRETE)
    assert "set metra: space kind: sphere -> discrete" in out
    assert "tensor policy/0/weight: (8, 16) -> (10, 16)" in out
    code, out, _ = run(capsys, "diff", SPHERE, changed(tmp_path / "same"))
    assert code == 0 and "hold the same" in out
    both = tmp_path / "both"
    assert run(capsys, "merge", SPHERE, DISCRETE, "--out", both)[0] == 0
    assert "set diayn: (none) -> there" in run(capsys, "diff", SPHERE, both)[1]


def test_merge_and_subset_keep_the_parents(capsys, tmp_path: Path) -> None:
    both, part = tmp_path / "both", tmp_path / "part"
    code, out, _ = run(capsys, "merge", SPHERE, DISCRETE, "--out", both)
    assert code == 0 and out.startswith(f"library  {both}: both ")
    merged = SkillLibrary.load(both)
    assert merged.sets == ("metra", "diayn")
    assert [p["id"] for p in merged.parents] == [
        SkillLibrary.load(p).id for p in (SPHERE, DISCRETE)
    ]
    code, _, _ = run(capsys, "subset", both, "--set", "diayn", "--skills", 13, 10, "--out", part)
    cut, whole = SkillLibrary.load(part), merged.with_set("diayn")
    assert code == 0 and [row["id"] for row in cut.skills] == [13, 10]
    assert cut.parents[0]["id"] == merged.id and cut.parents[0]["relation"] == "subset"
    obs = np.random.default_rng(0).standard_normal((9, 6))
    np.testing.assert_allclose(cut.act(obs, [1, 0]), whole.act(obs, [0, 0, 0, 1]), atol=1e-6)


def test_nothing_is_overwritten(capsys, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "there", tmp_path / "link"):
        for argv in (
            ("merge", SPHERE, DISCRETE),
            ("subset", SPHERE, "--skills", 10),
            ("import-sb3", tmp_path / "none.zip", "--env", "point-open"),
        ):
            code, _, err = run(capsys, *argv, "--out", out)
            assert code == 2 and f"{out} exists" in err
    assert not any((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        ((), "required: COMMAND"),
        (("polish",), "invalid choice: 'polish'"),
        (("verify",), "required: PATH"),
        (("merge", SPHERE, "--out", "x"), "name two or more"),
        (("subset", SPHERE, "--skills", "99", "--out", "x"), 'unknown skill id .* "99"'),
        (("subset", SPHERE, "--skills", "a", "--out", "x"), "invalid int value: 'a'"),
        (("subset", SPHERE, "--set", "metre", "--skills", "10", "--out", "x"), 'mean "metra"'),
        (("import-sb3", "x.zip", "--env", "point-opne", "--out", "x"), 'mean "point-open"'),
        (("import-sb3", "x.zip", "--env", "point-open", "--out", "x"), "x.zip is no file"),
    ],
)
def test_bad_input_is_one_sentence(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert re.search(match, err), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "verify", "describe", "diff", "merge", "subset", "import-sb3"]
)
def test_help_explains(capsys, name: str) -> None:
    with pytest.raises(SystemExit) as done:
        main(["library", *([name] if name else []), "--help"])
    out = capsys.readouterr().out
    assert done.value.code == 0 and len(out) > 200 and "usage: library" in out
