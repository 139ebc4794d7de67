"""Predicates over named fields: what they mean, what they refuse, and that a library keeps them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.envs.registry import spec
from etude.errors import UsageError
from etude.skills.library import MLP, SetData, SkillLibrary, write
from etude.skills.library_data import Contents
from etude.skills.predicates import Conditions, annotate, predicate
from etude.skills.spaces import Discrete, SkillSpace, Sphere

THREE = Discrete(3)
FIELDS = {"x": 1, "joints": 3, "y": 1}
OBS = np.array([[0, 5, 6, 7, 0], [1, 5, -6, 7, 2], [3, 0, 0, 0, 4]], np.float32)


@pytest.mark.parametrize(
    ("data", "holds"),
    [
        (True, [1, 1, 1]),
        (False, [0, 0, 0]),
        ({"field": "x", "above": 0}, [0, 1, 1]),
        ({"field": "x", "below": 3}, [1, 1, 0]),
        ({"field": "x", "above": 0, "below": 3}, [0, 1, 0]),
        ({"field": "joints", "above": 1}, [1, 1, 0]),
        ({"field": "joints", "entry": 1, "below": 0}, [0, 1, 0]),
        ({"field": "y", "above": 3}, [0, 0, 1]),
        ({"near": {"x": 0, "y": 4}, "within": 3}, [0, 1, 1]),  # distances 4, sqrt 5 and 3
        ({"near": {"y": 2}, "within": 2}, [1, 1, 1]),
        ({"not": {"field": "x", "above": 0}}, [1, 0, 0]),
        ({"all": [{"field": "x", "above": 0}, {"field": "y", "below": 3}]}, [0, 1, 0]),
        ({"any": [{"field": "x", "below": 1}, {"field": "y", "above": 3}]}, [1, 0, 1]),
        ({"all": []}, [1, 1, 1]),
        ({"any": []}, [0, 0, 0]),
    ],
)
def test_meaning(data, holds):
    assert predicate(json.loads(json.dumps(data)), FIELDS)(OBS).tolist() == [*map(bool, holds)]


TREES = st.recursive(
    st.tuples(st.sampled_from("xy"), st.integers(-2, 2)),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["all", "any"]), st.lists(inner, max_size=3)),
        st.tuples(st.just("not"), inner),
    ),
    max_leaves=8,
)


def as_data(tree):
    kind, rest = tree
    if kind in ("all", "any"):
        return {kind: [as_data(part) for part in rest]}
    return {"not": as_data(rest)} if kind == "not" else {"field": kind, "above": rest}


def by_hand(tree, row):
    kind, rest = tree
    if kind == "not":
        return not by_hand(rest, row)
    if kind in ("all", "any"):
        return {"all": all, "any": any}[kind](by_hand(part, row) for part in rest)
    return row["xy".index(kind)] > rest


@given(TREES, st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=4))
def test_logic_is_pythons(tree, rows):
    found = predicate(as_data(tree), {"x": 1, "y": 1})(np.array(rows, float))
    assert found.tolist() == [by_hand(tree, row) for row in rows]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"field": "z", "above": 1}, 'unknown observation field of a predicate "z"'),
        ({"near": {"yy": 1}, "within": 1}, 'did you mean "y"'),
        ({"field": "joints", "entry": 3, "above": 1}, "choose 0 to 2"),
        ({"field": "joints", "entry": True, "above": 1}, "choose 0 to 2"),
        ({"field": "x", "above": "1"}, "give a number"),
        ({"field": "x", "above": True}, "give a number"),
        ({"field": "x"}, "is no predicate"),
        ({"field": "x", "over": 3}, "is no predicate"),
        ({"all": {"field": "x", "above": 1}}, "is no predicate"),
        ({"near": {"x": 1}}, "is no predicate"),
        ("x > 1", "is no predicate"),
        (None, "is no predicate"),
    ],
)
def test_what_is_refused(data, match):
    with pytest.raises(UsageError, match=match):
        predicate(data, FIELDS)


# ---- in a library

RULES = {
    4: {"initiation": {"field": "x", "below": 0}},
    5: {"termination": {"near": {"x": 1, "y": 1}, "within": 0.5}},
}


def library(space: SkillSpace = THREE) -> SkillLibrary:
    policy = MLP([(np.zeros((4 + space.dim, 2)), np.zeros(2))], output="tanh")
    rows = [{"id": 4 + i, "z": z} for i, z in enumerate(space.even(3))]
    data = SetData("main", "none", {}, space, policy, {}, np.zeros(4), np.ones(4), rows)
    return SkillLibrary(Contents("tested", spec("point-maze-u").to_json(), [data]))


def at(*places):
    return np.array([[*place, 0, 0] for place in places], np.float32)


@pytest.mark.parametrize("space", [Discrete(3), Sphere(2)], ids=str)
def test_conditions_belong_to_the_skills_of_their_rows(space):
    found = Conditions.of(annotate(library(space), RULES))
    first, second, third = space.even(3)
    obs = at((-1, 0), (1, 1), (1, 1.2))
    for z, allowed, over in (
        (first, [1, 0, 0], [0, 0, 0]),
        (second, [1, 1, 1], [0, 1, 1]),
        (third, [1, 1, 1], [0, 0, 0]),
    ):
        assert found.allowed(obs, np.tile(z, (3, 1))).tolist() == [*map(bool, allowed)]
        assert found.over(obs, np.tile(z, (3, 1))).tolist() == [*map(bool, over)]
    mixed = found.over(obs, np.stack([second, third, second]))
    assert mixed.tolist() == [False, False, True]


def test_masks_and_the_skill_to_fall_back_to():
    made, obs = annotate(library(), RULES), at((-1, 0), (1, 0))
    found = Conditions.of(made)
    assert found.masks(obs).tolist() == [[True, True, True], [False, True, True]]
    one_hot = np.eye(3, dtype=np.float32)
    with pytest.raises(UsageError, match=r"action_masks\(\)"):
        found.begin(obs, one_hot[[0, 0]])
    np.testing.assert_array_equal(found.begin(obs, one_hot[[0, 1]]), one_hot[[0, 1]])
    falling = Conditions.of(made, fallback=6)
    np.testing.assert_array_equal(falling.begin(obs, one_hot[[0, 0]]), one_hot[[0, 2]])
    never = annotate(
        library(), dict.fromkeys((4, 5, 6), {"initiation": {"field": "x", "below": 0}})
    )
    with pytest.raises(UsageError, match="no skill may begin"):
        Conditions.of(never).masks(obs)
    assert Conditions.of(never, fallback=5).masks(obs)[1].tolist() == [False, True, False]
    with pytest.raises(UsageError, match='unknown skill id to fall back to "9"'):
        Conditions.of(never, fallback=9)


def test_a_library_without_predicates_has_no_conditions():
    assert Conditions.of(library()) is None


def test_predicates_survive_in_a_library(tmp_path):
    old = library()
    path = write(
        tmp_path / "old", sets=[old.data], env=old.env, provenance={"seed": 3}, name="tested"
    )
    old = SkillLibrary.load(path)
    made = annotate(old, RULES, tmp_path / "new")
    again = SkillLibrary.load(tmp_path / "new")
    assert [row.get("initiation") for row in again.skills] == [RULES[4]["initiation"], None, None]
    assert again.skills[1]["termination"] == RULES[5]["termination"]
    assert again.parents == [{"name": "tested", "id": old.id, "relation": "annotated"}]
    assert again.provenance == {"seed": 3} and made.id == again.id != old.id
    assert Conditions.of(again).over(at((1, 1)), np.eye(3)[[1]]).tolist() == [True]
    changed = annotate(again, {4: {"initiation": True}})
    assert changed.skills[0]["initiation"] is True and changed.id == ""


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({9: {}}, 'unknown skill id of library tested "9"'),
        ({4: {"terminaton": True}}, 'did you mean "termination"'),
        ({4: {"termination": {"field": "z", "above": 1}}}, "observation field of a predicate"),
    ],
)
def test_annotations_are_checked(rules, match):
    with pytest.raises(UsageError, match=match):
        annotate(library(), rules)
