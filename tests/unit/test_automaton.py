"""Tasks in logic: automata against Python's `re`, plans against brute force, an office."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.envs.registry import spec
from etude.envs.spec import EnvSpec, Field
from etude.errors import UsageError
from etude.skills.controllers.automaton import AutomatonController, Effect, TaskAutomaton
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Discrete

WORDS = st.lists(st.sampled_from("abc"), max_size=7)
PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "c", "."]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(" ".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]} | {two[1]})"),
        st.tuples(inner, st.sampled_from("*+?")).map(lambda two: f"({two[0]}){two[1]}"),
    ),
    max_leaves=7,
)


@given(PATTERNS, st.lists(WORDS, min_size=5, max_size=20))
def test_regular_expressions_mean_what_pythons_mean(pattern, words):
    task = TaskAutomaton.regex(pattern, letters="abc")
    python = re.compile(pattern.replace(" ", ""))
    for word in words:
        assert task.accepts(word) == bool(python.fullmatch("".join(word)))


@given(PATTERNS)
def test_dead_states_are_those_without_a_way_out(pattern):
    task = TaskAutomaton.regex(pattern, letters="abc")
    longest = len(task.table)
    for state in range(longest):
        reached, new = {state}, {state}
        while new:
            new = {int(q) for s in new for q in task.table[s]} - reached
            reached |= new
        assert task.dead[state] == (not any(task.accepting[q] for q in reached))


def test_names_are_words_of_several_letters():
    task = TaskAutomaton.regex("coffee (mail|tea_2)+", letters=["plant"])
    assert task.letters == ("coffee", "mail", "tea_2", "plant")
    assert task.accepts(["coffee", "tea_2", "mail"]) and not task.accepts(["coffee"])
    assert task.accepts(["coffee", "unheard of", "mail"])  # no letter: it changes nothing
    assert not task.accepts(["coffee", "plant", "mail"])


@given(st.permutations("abc"), st.integers(1, 3), st.lists(st.sampled_from("abcd"), max_size=8))
def test_sequences_against_a_walk_through_the_word(goals, count, word):
    goals, avoid = goals[:count], goals[count:] + ["d"]
    left, alive = [*goals], True
    for event in word:
        if left and alive:
            alive = event not in avoid
            left = left[1:] if event == left[0] else left
    assert TaskAutomaton.sequence(goals, avoid).accepts(word) == (alive and not left)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TaskAutomaton.sequence([]), "give goals"),
        (lambda: TaskAutomaton.sequence(["a"], ["a"]), "none of them to be avoided"),
        (lambda: TaskAutomaton.regex("a & b"), r"the characters \['&'\]"),
        (lambda: TaskAutomaton.regex("a{2}"), "the characters"),
        (lambda: TaskAutomaton.regex("(a"), "not well formed"),
        (lambda: TaskAutomaton.regex("()"), "no event"),
    ],
)
def test_tasks_that_are_none(make, match):
    with pytest.raises(UsageError, match=match):
        make()


def test_a_missing_automata_lib_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "automata.fa.nfa", None)
    with pytest.raises(UsageError, match=r"etude-rl\[logic\]"):
        TaskAutomaton.regex("a")
    assert TaskAutomaton.sequence(["a"]).accepts(["a"])  # needs none


# ---- an office of 12 x 9 cells

OFFICE = EnvSpec(
    id="office",
    body="office",
    fields=(Field("x", 1), Field("y", 1)),
    task_fields=(),
    action_dim=2,
    descriptor=("x", "y"),
    descriptor_unit="cell",
    cell=1.0,
    dt=1.0,
    max_steps=200,
    constants={},
)
PLACES = {"coffee": (3, 6), "mail": (7, 4), "office": (4, 4)}
PLANTS = [(4, 5), (7, 6), (1, 4), (10, 4)]
LABELS = {
    name: {"near": dict(zip("xy", place, strict=True)), "within": 0}
    for name, place in PLACES.items()
}
LABELS["plant"] = {"any": [{"near": {"x": x, "y": y}, "within": 0} for x, y in PLANTS]}
BEGIN = (1, 1)


def walk(here, there, x_first):
    """Cells from here to there, along x and then y or the other way."""
    path = [here]
    for axis in (0, 1) if x_first else (1, 0):
        while path[-1][axis] != there[axis]:
            step = [*path[-1]]
            step[axis] += int(np.sign(there[axis] - step[axis]))
            path.append((step[0], step[1]))
    return path[1:]


SKILLS = [*itertools.product(PLACES, (True, False))]  # go there, along x first or along y first


def events(path):
    """What becomes true on a path that enters every cell anew."""
    names = {place: name for name, place in PLACES.items()} | dict.fromkeys(PLANTS, "plant")
    return tuple(names[cell] for cell in path if cell in names)


def measured():
    """The effect of each skill from each place: as rollouts would find them."""
    found = []
    for i, (name, x_first) in enumerate(SKILLS):
        for begins, here in (("", BEGIN), *PLACES.items()):
            if here != PLACES[name]:
                path = walk(here, PLACES[name], x_first)
                found.append(
                    Effect(np.eye(6, dtype=np.float32)[i], events(path), len(path), begins)
                )
    return found


def carry_out(task, effects):
    """Act in the office; whether it was done, and in how many steps. A plan may fail."""
    controller = AutomatonController(task, effects, LABELS, OFFICE)
    here, held, path = BEGIN, None, []
    controller.reset(np.array([here], np.float32))
    for step in range(100):
        skill = int(controller.act(np.array([here], np.float32)).argmax())
        assert not controller.failed[0]
        if controller.done[0]:
            return controller, step
        if skill != held or not path:
            name, x_first = SKILLS[skill]
            held, path = skill, walk(here, PLACES[name], x_first)
        here = path.pop(0)
    raise AssertionError


TASKS = {
    "coffee": TaskAutomaton.sequence(["coffee"]),
    "coffee, mail": TaskAutomaton.sequence(["coffee", "mail"]),
    "coffee, office, no plants": TaskAutomaton.sequence(["coffee", "office"], ["plant"]),
    "mail, coffee, office, no plants": TaskAutomaton.sequence(
        ["mail", "coffee", "office"], ["plant"]
    ),
    "regex": TaskAutomaton.regex("office* (mail office*)+ coffee", ["plant"]),
}


def shortest(task, effects):
    """The cheapest word of up to five effects that is accepted, by trying them all."""
    todo, best = [(task.start, "", 0.0)], np.inf
    for _ in range(5):
        after = []
        for q, last, cost in todo:
            for e in effects:
                if e.begins == last:
                    state = task.read(q, e.events)
                    if task.accepting[state]:
                        best = min(best, cost + e.steps)
                    elif not task.dead[state]:
                        after.append((state, e.events[-1], cost + e.steps))
        todo = after
    return best


@pytest.mark.parametrize("name", TASKS)
def test_the_office_is_done_without_training_at_the_least_cost(name):
    task, effects = TASKS[name], measured()
    controller, steps = carry_out(task, effects)
    assert steps <= shortest(task, effects) == pytest.approx(controller.values[task.start, 0])
    # a task may be done in the middle of a skill, never later than planned


def test_plants_change_the_way():
    free, careful = (
        TaskAutomaton.sequence(["coffee", "office"], avoid) for avoid in ([], ["plant"])
    )
    effects = measured()
    through = [e for e in effects if e.begins == "coffee" and e.events[-1] == "office"]
    assert sorted("plant" in e.events for e in through) == [False, True]
    kept = [e for e in effects if e not in through] + [e for e in through if "plant" in e.events]
    assert carry_out(free, kept)[0].done[0]
    detour = AutomatonController(careful, kept, LABELS, OFFICE)
    direct = AutomatonController(careful, effects, LABELS, OFFICE)
    assert detour.values[careful.start, 0] > direct.values[careful.start, 0]


def test_a_task_that_cannot_be_done_is_refused():
    effects = [e for e in measured() if e.events[-1] != "mail"]
    with pytest.raises(UsageError, match="no sequence of known effects"):
        AutomatonController(TaskAutomaton.sequence(["mail"]), effects, LABELS, OFFICE)
    with pytest.raises(UsageError, match='event without a label "tea"'):
        AutomatonController(TaskAutomaton.sequence(["tea"]), effects, LABELS, OFFICE)


def test_environments_are_at_different_points_of_the_task():
    task = TaskAutomaton.sequence(["coffee", "mail"], ["plant"])
    effects = [
        Effect(np.eye(2)[0], ("coffee",)),
        Effect(np.eye(2)[1], ("mail",)),
    ]
    controller = AutomatonController(task, effects, LABELS, OFFICE)
    nowhere, plant = (0, 0), PLANTS[0]
    controller.reset(np.array([nowhere, nowhere, nowhere, PLACES["coffee"]], np.float32))
    seen = [
        [nowhere, nowhere, nowhere, PLACES["coffee"]],  # there from the start: no event
        [nowhere, PLACES["coffee"], plant, nowhere],
        [nowhere, PLACES["mail"], PLACES["coffee"], PLACES["coffee"]],
    ]
    chosen = [controller.act(np.array(places, np.float32)).argmax(1).tolist() for places in seen]
    assert chosen == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1]]
    assert controller.done.tolist() == [False, True, False, False]
    assert controller.failed.tolist() == [False, False, True, False]


def test_effects_live_in_the_rows_of_a_library():
    env = spec("point-maze-u").to_json()
    policy = MLP([(np.zeros((7, 2)), np.zeros(2))], output="tanh")
    data = {"events": ["plant", "coffee"], "steps": 12, "begins": "mail"}
    rows = [{"id": i, "z": z} for i, z in enumerate(np.eye(3))]
    rows[1]["effects"] = [data, {"events": ["mail"]}]
    made = SetData("main", "none", {}, Discrete(3), policy, {}, np.zeros(4), np.ones(4), rows)
    library = SkillLibrary(Contents("tested", env, [made]))
    first, second = Effect.of(library)
    assert (first.events, first.steps, first.begins) == (("plant", "coffee"), 12, "mail")
    assert (second.events, second.steps, second.begins) == (("mail",), 1.0, None)
    assert first.skill.tolist() == [0, 1, 0]
    for bad, match in (({"steps": 3}, "give events"), ({"events": [], "ends": 1}, "give events")):
        rows[1]["effects"] = [bad]
        other = dataclasses.replace(made, skills=rows)
        with pytest.raises(UsageError, match=match):
            Effect.of(SkillLibrary(Contents("tested", env, [other])))
    del rows[1]["effects"]
    with pytest.raises(UsageError, match="no skill of library tested has known"):
        Effect.of(SkillLibrary(Contents("tested", env, [dataclasses.replace(made, skills=rows)])))
