"""What a library's contents may be, rule by rule and at its limits; and what tells bodies apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.errors import LibraryError, UsageError
from etude.skills.library import MLP, SetData, SkillLibrary, merge, subset, write
from etude.skills.library_data import Contents, body_fields, check_name, differences, plain
from etude.skills.spaces import Discrete, SkillSpace, Sphere

ENV: dict[str, Any] = {
    "id": "crab",
    "body": "crab",
    "fields": [{"name": "x", "dim": 2}, {"name": "joints", "dim": 3}, {"name": "goal", "dim": 1}],
    "task_fields": ["goal"],
    "action_dim": 3,
    "dt": 0.05,
    "constants": {"gear": [150, 150], "gear_ratio": 2.0, "mass": 1.0},
    "xml_sha256": "abc",
}


def net(*sizes: int, seed: int = 0, **kwargs: Any) -> MLP:
    rng = np.random.default_rng(seed)
    shapes = zip(sizes, sizes[1:], strict=False)
    return MLP([(rng.standard_normal(s), rng.standard_normal(s[1])) for s in shapes], **kwargs)


def a_set(space: SkillSpace | None = None, name: str = "main", **change: Any) -> SetData:
    space = space or Sphere(2)
    values: dict[str, Any] = {
        "name": name,
        "learner": "metra",
        "config": {},
        "space": space,
        "policy": net(5 + space.dim, 8, 3, output="tanh"),
        "encoders": {"phi": net(2, 8, space.dim, inputs=("obs",), input_fields=("x",))},
        "mean": np.zeros(5),
        "std": np.ones(5),
        "skills": [{"id": i, "z": z, "reach": [i, 2.5]} for i, z in enumerate(space.even(3))],
        "metrics": {"coverage": 12},
    }
    return SetData(**{**values, **change})


def library(path: Path, *sets: SetData, name: str = "crab", **env: Any) -> SkillLibrary:
    made = {"seed": 3}
    write(path, sets=sets or [a_set()], env={**ENV, **env}, provenance=made, name=name)
    return SkillLibrary.load(path)


# ---- contents


def test_a_library_has_sets_with_names_of_their_own() -> None:
    for sets in ([], [a_set(), a_set()]):
        with pytest.raises(UsageError, match="one or more sets with distinct names"):
            Contents("crab", ENV, sets)
    assert len(Contents("crab", ENV, [a_set(), a_set(name="other")]).sets) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"constants": 3}, "constants of a library must be a dict"),
        ({"changes": {}}, "changes of a library must be a list"),
        ({"dt": "0.05"}, "dt of a library must be a float"),
        ({"dt": True}, "dt of a library must be a float"),
        ({"action_dim": 3.0}, "action_dim of a library must be a int"),
        ({"id": None}, "id of a library must be a str"),
        ({"fields": [{"name": "a.b", "dim": 5}], "task_fields": []}, "observation field 'a.b'"),
        ({"fields": {}}, "lacks its list of fields"),
        ({"task_fields": "goal"}, "lacks its list of fields"),
        ({"fields": [3]}, "field 3 needs a name of its own"),
        ({"fields": [{"name": 3, "dim": 5}]}, "needs a name"),
        ({"fields": [{"name": "x", "dim": 0}]}, "width >= 1"),
        ({"fields": [{"name": "x", "dim": 1.0}]}, "width >= 1"),
        ({"fields": [{"name": "x", "dim": True}]}, "width >= 1"),
        ({"fields": [{"name": "x", "dim": 2}, {"name": "x", "dim": 3}]}, "a name of its own"),
    ],
)
def test_each_entry_of_the_environment_is_checked(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Contents("crab", {**ENV, **change}, [a_set()])


def test_a_time_step_may_be_a_whole_number_and_options_may_be_missing() -> None:
    env = {k: v for k, v in ENV.items() if k not in ("constants", "changes")}
    assert Contents("crab", {**env, "dt": 1}, [a_set()]).env["dt"] == 1


@pytest.mark.parametrize("key", ["name", "id", "relation"])
def test_parents_are_named(key: str) -> None:
    parent = {"name": "a", "id": "b", "relation": "subset"}
    assert Contents("crab", ENV, [a_set()], parents=[parent]).parents == [parent]
    for bad in ({**parent, key: 3}, {k: v for k, v in parent.items() if k != key}):
        with pytest.raises(UsageError, match=f"a parent's {key} of a library must be a str"):
            Contents("crab", ENV, [a_set()], parents=[bad])


def test_there_may_be_1024_fields() -> None:
    fields = [{"name": f"f{i}", "dim": 1} for i in range(1025)]
    assert len(body_fields({"fields": fields[:1024]})) == 1024
    with pytest.raises(UsageError, match="1025 observation fields: there may be 1024"):
        body_fields({"fields": fields})
    assert body_fields(ENV) == {"x": 2, "joints": 3}, "skills do not see those of the task"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"std": np.full(5, np.inf)}, "NaN or infinite"),
        ({"std": np.array([1, 1, 1, 1, -1.0])}, "must be positive"),
        ({"std": np.ones(4)}, "normaliser has shapes"),
        ({"mean": np.zeros((1, 5))}, "normaliser has shapes"),
        ({"policy": net(7, 3, 2, output="tanh")}, "gives 2 tanh outputs, the body needs 3"),
        ({"encoders": {"phi": net(4, 2, inputs=("obs",))}}, "input width 4"),
    ],
)
def test_each_part_of_a_set_fits_the_body(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Contents("crab", ENV, [a_set(**change)])


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([3], 'needs "id" and "z"'),
        ([{"id": 1}], 'needs "id" and "z"'),
        ([{"id": True, "z": [1, 0]}], "distinct whole numbers"),
        ([{"id": 1.0, "z": [1, 0]}], "distinct whole numbers"),
        ([{"id": 1, "z": [1, 0]}, {"id": 1, "z": [0, 1]}], "distinct whole numbers"),
        ({}, "skills of a library must be a list"),
    ],
)
def test_each_row_of_a_skill_is_checked(rows: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        a_set(skills=rows)


def test_names_and_words_have_64_characters() -> None:
    check_name("name", "a" * 64)
    for bad in ("a" * 65, "", ".a", "a b", "a/b", 3, None):
        with pytest.raises(UsageError, match="cannot be used"):
            check_name("name", bad)
    assert a_set(learner="a" * 64).learner == "a" * 64 and a_set(name="a.b").name == "a.b"
    for bad in ("a" * 65, "os.system", ""):
        with pytest.raises(UsageError, match="without a dot"):
            a_set(learner=bad)


def test_plain_data_is_taken_as_it_is() -> None:
    given = {1: np.float32(0.5), "a": (True, None, "x", 2**70), "b": np.arange(2), "c": np.inf}
    taken = plain({**given, "d": [float("nan"), -1.5], "e": np.bool_(True)})
    wanted = {"1": 0.5, "a": [True, None, "x", 2**70], "b": [0, 1], "c": None, "d": [None, -1.5]}
    assert taken == {**wanted, "e": True} and taken["a"][0] is True
    nested: Any = 1
    for _ in range(16):
        nested = {"a": [nested]}
    assert plain(nested) == nested
    for bad, match in (
        ([nested], "more than 32 levels"),
        ({"a": {"_target_": "os.system"}}, "does not begin with an underscore"),
        ({"a": {1, 2}}, "give numbers, text, lists, maps"),
        ({"a": b"x"}, "give numbers, text, lists, maps"),
    ):
        with pytest.raises(UsageError, match=match):
            plain(bad)


# ---- what tells bodies apart


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, []),
        ({"dt": 0.05 * (1 + 1e-12)}, []),
        ({"dt": 0.05 * (1 + 1e-6)}, ["dt: skills have 0.05"]),
        ({"body": "ant", "action_dim": 8}, ["body: skills have crab", "action_dim: skills have 3"]),
        (
            {"fields": ENV["fields"][1:]},
            ["field x: skills have 2 values, the environment has miss"],
        ),
        ({"fields": [{"name": "x", "dim": 3}, *ENV["fields"][1:]]}, ["environment has 3 values"]),
        ({"fields": [*ENV["fields"][::-1], {"name": "new", "dim": 1}]}, []),
        ({"constants": {"mass": 2.0}}, ["mass: skills have 1.0, the environment has 2.0"]),
        ({"constants": {"mass": 2.0}, "changes": ["mass 1 -> 2"]}, []),
        ({"constants": {"mass": 2.0}, "changes": ["gear 1 -> 2"]}, ["mass"]),
        ({"constants": {"gear_ratio": 3.0}, "changes": ["gear: other", ""]}, []),
        ({"constants": {"mass": 1.0 + 1e-12, "new": 3}}, []),
        ({"constants": None, "changes": None}, []),
        ({"xml_sha256": "abd"}, ["xml_sha256: skills have abc, the environment has abd"]),
        ({"xml_sha256": "abd", "changes": ["geoms added"]}, []),
        ({"constants": {"mass": 2.0}, "changes": ["geoms added"]}, ["mass"]),
    ],
)
def test_what_keeps_skills_out_of_an_environment(change: dict[str, Any], lines: list[str]) -> None:
    found = differences(ENV, {**ENV, **change})
    assert len(found) == len(lines), found
    for line, part in zip(found, lines, strict=True):
        assert line.startswith("\n  ") and part in line


# ---- a library in memory


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    whole = library(tmp_path / "lib", a_set(), a_set(Discrete(3), "other", metrics={}))
    assert repr(whole) == f"<SkillLibrary crab/main: {whole.space} for crab>"
    assert whole.env == {**ENV} and whole.provenance == {"seed": 3} and whole.parents == []
    assert whole.metrics == {"coverage": 12} and whole.learner == "metra" and len(whole.id) == 64
    assert [row["id"] for row in whole.skills] == [0, 1, 2]
    assert whole.table()[1].keys() > {"id", "z"} and whole.table()[2]["id"] == 2
    text = whole.describe().splitlines()
    assert text[0] == f"library    crab ({whole.id[:12]})"
    assert text[1] == "set        main, one of main, other"
    assert "encoders   phi" in text and "coverage   12" in text and "3 known" in whole.describe()
    alone = library(tmp_path / "alone", a_set(encoders={}))
    assert "set        main\n" in alone.describe() and "encoders   none" in alone.describe()
    fresh = alone.untrained(0)
    assert "crab-untrained (never written)" in fresh.describe() and fresh.metrics == {}
    assert fresh.provenance == {} and fresh.parents[0]["relation"] == "untrained, seed 0"
    for copied in (whole.env, whole.metrics, whole.provenance, whole.skills[0]):
        copied.clear()
    assert whole.env and whole.metrics and whole.provenance and whole.skills[0]


def test_one_skill_is_a_policy(tmp_path: Path) -> None:
    whole = library(tmp_path / "lib")
    policy, obs = whole.policy([0, 1]), np.random.default_rng(0).standard_normal((4, 5))
    policy.reset(obs)
    np.testing.assert_array_equal(policy.act(obs), whole.act(obs, [0, 1]))
    with pytest.raises(UsageError, match="no skill of"):
        whole.policy([1, 1])
    drawn = whole.sample(np.random.default_rng(0), 5)
    np.testing.assert_array_equal(drawn, whole.space.sample(np.random.default_rng(0), 5))


def test_the_longest_name_has_a_control(tmp_path: Path) -> None:
    whole = library(tmp_path / "lib", name="a" * 64)
    assert whole.untrained(0).name == "a" * 54 + "-untrained"


def test_the_weights_of_a_subset_are_those_of_its_skills(tmp_path: Path) -> None:
    """Encoders that read z lose its rows as the policy does; others as wide as z lose outputs."""
    encoders = {
        "phi": net(2, 8, 3, inputs=("obs",), input_fields=("x",)),
        "wide": net(5, 8, 4, inputs=("obs",), seed=1),
        "outcome": net(8, 8, 3, seed=2),  # as wide as z by chance
        "value": net(8, 1, seed=3),
    }
    policy = net(8, 8, 3, output="tanh")  # as many outputs as skills, and they stay
    whole = library(tmp_path / "whole", a_set(Discrete(3), encoders=encoders, policy=policy))
    part = subset(whole, [2, 0], tmp_path / "part")
    old, new = whole.data, part.data
    rows = [0, 1, 2, 3, 4, 7, 5]
    np.testing.assert_array_equal(new.policy.weights[0][0], old.policy.weights[0][0][rows])
    np.testing.assert_array_equal(new.policy.weights[1][0], old.policy.weights[1][0])
    (weight, bias), (before, shift) = new.encoders["phi"].weights[1], encoders["phi"].weights[1]
    np.testing.assert_array_equal(weight, before[:, [2, 0]])
    np.testing.assert_array_equal(bias, shift[[2, 0]])
    whole_outcome = encoders["outcome"].weights[1][0]
    np.testing.assert_array_equal(new.encoders["outcome"].weights[1][0], whole_outcome)
    for name in ("outcome", "value"):
        first, before = new.encoders[name].weights[0][0], encoders[name].weights[0][0]
        np.testing.assert_array_equal(first, before[rows])
    for a, b in zip(new.encoders["wide"].weights, encoders["wide"].weights, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    assert [row["id"] for row in part.skills] == [2, 0] and part.metrics == {}
    assert [row["z"] for row in part.skills] == [[1, 0], [0, 1]]
    assert part.provenance == {"crab": {"seed": 3}} and part.name == "part"


def test_each_skill_is_named_once_and_something_is_merged(tmp_path: Path) -> None:
    whole = library(tmp_path / "lib")
    for ids in ([], [1, 1], [0, 1, 0]):
        with pytest.raises(UsageError, match="name at least one skill, each once"):
            subset(whole, ids, tmp_path / "part")
    with pytest.raises(UsageError, match="name at least one library"):
        merge([], tmp_path / "none")
    again = merge([whole], tmp_path / "again")
    assert again.sets == ("main",) and again.parents[0]["relation"] == "merge"


def test_where_a_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etude.skills.library._zoo", lambda: tmp_path / "zoo")
    with pytest.raises(LibraryError, match="no such file or folder here, and the zoo is empty"):
        SkillLibrary.load("crab")
    (tmp_path / "half").mkdir()
    for file in ("library.json", "MANIFEST.json"):  # either says that it was meant to be one
        (tmp_path / "half" / file).touch()
        with pytest.raises(LibraryError, match="half"):
            SkillLibrary.load(tmp_path / "half")
        (tmp_path / "half" / file).unlink()
    library(tmp_path / "zoo" / "crab", name="in-the-zoo")
    monkeypatch.chdir(tmp_path)
    assert SkillLibrary.load("crab").name == "in-the-zoo"
    library(tmp_path / "crab", name="here")
    assert SkillLibrary.load("crab").name == "here", "a folder goes before the zoo"
    assert SkillLibrary.load("crab").path == Path("crab")
