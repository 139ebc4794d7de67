"""The skill library: what is written is read back exactly, and nothing else is ever read."""

import hashlib
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.errors import LibraryError, UsageError
from etude.skills import library as library_module
from etude.skills import library_files
from etude.skills.library import MLP, SetData, SkillLibrary, merge, subset, write
from etude.skills.spaces import Cube, Discrete, SkillSpace, Sphere

OBS, ACTIONS = 5, 3
ENV: dict[str, Any] = {
    "id": "crab",
    "body": "crab",
    "fields": [{"name": "x", "dim": 2}, {"name": "joints", "dim": 3}, {"name": "goal", "dim": 1}],
    "task_fields": ["goal"],
    "action_dim": ACTIONS,
    "dt": 0.05,
    "constants": {"gear": [150, 150, 150]},
    "changes": [],
    "xml_sha256": "abc",
}

CIRCLE = Sphere(2)


def net(sizes: tuple[int, ...], seed: int = 0, **kwargs: Any) -> MLP:
    rng = np.random.default_rng(seed)
    layers = [
        (rng.standard_normal((i, o)) / np.sqrt(i), rng.standard_normal(o))
        for i, o in zip(sizes, sizes[1:], strict=False)
    ]
    return MLP(layers, **kwargs)


def a_set(space: SkillSpace = CIRCLE, name: str = "main", seed: int = 0, **change: Any) -> SetData:
    z = space.even(4)
    values: dict[str, Any] = {
        "name": name,
        "learner": "metra",
        "config": {"lr": 1e-4, "widths": (16, 16)},
        "space": space,
        "policy": net((OBS + space.dim, 16, 16, ACTIONS), seed, output="tanh"),
        "encoders": {"phi": net((2, 8, space.dim), seed + 1, inputs=("obs",), input_fields=("x",))},
        "mean": np.arange(OBS) * 0.1,
        "std": np.arange(OBS) + 0.5,
        "skills": [{"id": 10 + i, "z": z[i], "metrics": {"speed": 0.5 * i}} for i in range(4)],
        "metrics": {"coverage": np.float32(12), "broken": float("nan")},
    }
    return SetData(**{**values, **change})


def save(path: Path, *sets: SetData, name: str = "crab-skills") -> Path:
    return write(path, sets=sets or (a_set(),), env=ENV, provenance={"seed": 3}, name=name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "lib")


def reference(data: SetData, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The policy in float64, written out."""
    h = np.concatenate(((obs - data.mean) / data.std, z), -1).astype(np.float64)
    for i, (weight, bias) in enumerate(data.policy.weights):
        h = h @ weight.astype(np.float64) + bias
        h = np.tanh(h) if i == 2 else np.maximum(h, 0)
    return h


# What is written is read back


def test_round_trip(folder: Path) -> None:
    library, data = SkillLibrary.load(folder), a_set()
    assert (library.name, library.set, library.sets) == ("crab-skills", "main", ("main",))
    assert library.learner == "metra" and library.space == Sphere(2) and library.path == folder
    assert library.fields == {"x": 2, "joints": 3}
    assert library.env == ENV and library.provenance == {"seed": 3}
    assert library.metrics == {"coverage": 12.0, "broken": None}
    assert [row["id"] for row in library.skills] == [10, 11, 12, 13]
    assert library.table()[1]["metrics.speed"] == 0.5
    assert library.id == hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()
    for ours, theirs in zip(library.data.policy.weights, data.policy.weights, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_actions_are_the_policys(folder: Path) -> None:
    library, data = SkillLibrary.load(folder), a_set()
    rng = np.random.default_rng(5)
    obs, z = 3 * rng.standard_normal((40, OBS)), library.sample(rng, 40)
    expected = reference(data, obs, z)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(library.act(obs, z), expected, atol=2e-6)
    single = library.act(obs[0], z[0])
    assert single.shape == (ACTIONS,) and single.dtype == np.float32
    np.testing.assert_allclose(single, expected[0], atol=2e-6)
    np.testing.assert_allclose(library.act(obs, z[0])[0], expected[0], atol=2e-6)
    policy = library.policy(z[0])
    policy.reset(obs[0])
    np.testing.assert_array_equal(policy.act(obs[0]), single)


def test_returned_actions_are_not_shared(folder: Path) -> None:
    library = SkillLibrary.load(folder)
    first = library.act(np.zeros(OBS), [1, 0])
    kept = first.copy()
    library.act(np.ones(OBS), [0, 1])
    np.testing.assert_array_equal(first, kept)


def test_hidden_fields_do_not_reach_a_policy_that_names_its_own(tmp_path: Path) -> None:
    policy = net((3 + 2, 8, ACTIONS), output="tanh", input_fields=("joints",))
    library = SkillLibrary.load(save(tmp_path / "lib", a_set(policy=policy)))
    obs = np.random.default_rng(0).standard_normal(OBS)
    moved = obs + [7, -7, 0, 0, 0]
    np.testing.assert_array_equal(library.act(obs, [1, 0]), library.act(moved, [1, 0]))
    assert not np.array_equal(library.act(obs, [1, 0]), library.act(obs + 1, [1, 0]))


def test_encode_reads_its_fields_normalised(folder: Path) -> None:
    library, data = SkillLibrary.load(folder), a_set()
    obs = np.random.default_rng(1).standard_normal((6, OBS))
    x = ((obs - data.mean) / data.std)[:, :2].astype(np.float32)
    np.testing.assert_allclose(library.encode(obs), data.encoders["phi"](x), atol=1e-6)


def test_goal_skill_points_along_phi(folder: Path) -> None:
    library = SkillLibrary.load(folder)
    obs, goal = np.random.default_rng(1).standard_normal((2, 6, OBS))
    way = library.encode(goal) - library.encode(obs)
    expected = way / np.linalg.norm(way, axis=-1, keepdims=True)
    np.testing.assert_allclose(library.goal_skill(obs, goal), expected, atol=1e-5)
    assert library.goal_skill(obs[0], goal[0]).shape == (2,)


def test_goal_skill_of_discrete_skills_is_the_largest_entry(tmp_path: Path) -> None:
    library = SkillLibrary.load(save(tmp_path / "lib", a_set(Discrete(4))))
    obs, goal = np.random.default_rng(1).standard_normal((2, 9, OBS))
    way = library.encode(goal) - library.encode(obs)
    np.testing.assert_array_equal(library.goal_skill(obs, goal), np.eye(4)[way.argmax(-1)])


def test_without_phi_goals_are_refused(tmp_path: Path) -> None:
    library = SkillLibrary.load(save(tmp_path / "none", a_set(encoders={}, learner="diayn")))
    with pytest.raises(LibraryError, match="diayn does not learn"):
        library.goal_skill(np.zeros(OBS), np.ones(OBS))
    wide = {"phi": net((OBS, 8, 6), inputs=("obs",))}
    library = SkillLibrary.load(save(tmp_path / "wide", a_set(encoders=wide)))
    with pytest.raises(LibraryError, match="6 dimensions and z 2"):
        library.goal_skill(np.zeros(OBS), np.ones(OBS))


@pytest.mark.parametrize(
    ("obs", "z", "match"),
    [
        (np.zeros(OBS + 1), [1, 0], r"raw body fields x\(2\) joints\(3\)"),
        (np.zeros((1, 2, OBS)), [1, 0], "does not fit"),
        (np.zeros(OBS), [1, 0, 0], "a skill of shape"),
        (np.zeros(OBS), [[1, 0]], "a skill of shape"),
        ([0, 0, np.nan, 0, 0], [1, 0], "observation field joints"),
        ([np.inf, 0, np.nan, 0, 0], [1, 0], "observation field x, joints"),
        (np.zeros(OBS), [np.nan, 0], "infinity in the skill"),
    ],
)
def test_bad_input_is_named(folder: Path, obs: Any, z: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        SkillLibrary.load(folder).act(obs, z)


def test_sets(tmp_path: Path) -> None:
    path = save(tmp_path / "lib", a_set(), a_set(Discrete(3), "other", seed=7, learner="diayn"))
    library = SkillLibrary.load(path)
    other = library.with_set("other")
    assert library.sets == ("main", "other") and library.space == Sphere(2)
    assert other.space == Discrete(3) and other.learner == "diayn" and other.id == library.id
    assert SkillLibrary.load(path, set="other").set == "other"
    with pytest.raises(UsageError, match='did you mean "other"'):
        SkillLibrary.load(path, set="othr")


def test_describe_and_card(folder: Path) -> None:
    text = SkillLibrary.load(folder).describe()
    for part in ("crab-skills", "metra", "x(2) joints(3)", "sphere, 2 dim", "7 x 16 x 16 x 3"):
        assert part in text
    card = (folder / "README.md").read_text()
    for part in ('SkillLibrary.load("crab-skills")', "etude/Crab-v0", "| 13 |", "| seed | 3 |"):
        assert part in card


def test_pickle_and_threads(folder: Path) -> None:
    library = SkillLibrary.load(folder)
    copy = pickle.loads(pickle.dumps(library))
    obs = np.random.default_rng(0).standard_normal((8, OBS))
    expected = library.act(obs, [1, 0])
    np.testing.assert_array_equal(copy.act(obs, [1, 0]), expected)
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(300):
            if not np.allclose(library.act(obs[i], [1, 0]), expected[i], atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_size_of_the_usual_library(tmp_path: Path) -> None:
    fields = [{"name": "body", "dim": 29}]
    env = {**ENV, "fields": fields, "task_fields": [], "action_dim": 8}
    usual = a_set(
        policy=net((31, 256, 256, 8), output="tanh"),
        encoders={"phi": net((29, 256, 256, 2), inputs=("obs",))},
        mean=np.zeros(29),
        std=np.ones(29),
    )
    path = write(tmp_path / "lib", sets=[usual], env=env, provenance={}, name="usual")
    assert sum(f.stat().st_size for f in path.iterdir()) < 2 * 2**20


def test_untrained_is_a_control(folder: Path) -> None:
    library = SkillLibrary.load(folder)
    control, again, other = (library.untrained(seed) for seed in (1, 1, 2))
    obs = np.random.default_rng(0).standard_normal((50, OBS))
    assert control.data.policy.sizes == library.data.policy.sizes
    np.testing.assert_array_equal(control.data.std, library.data.std)
    np.testing.assert_array_equal(control.act(obs, [1, 0]), again.act(obs, [1, 0]))
    assert not np.allclose(control.act(obs, [1, 0]), other.act(obs, [1, 0]))
    assert not np.allclose(control.act(obs, [1, 0]), library.act(obs, [1, 0]))
    for i, (weight, bias) in enumerate(control.data.policy.weights):
        bound = np.sqrt(6 / sum(weight.shape)) * (0.1 if i == 2 else 1)
        assert 0.8 * bound < np.abs(weight).max() <= bound and not bias.any()
    assert control.id == "" and control.parents[0]["id"] == library.id


# Finding a library


def test_run_folder_and_zoo(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "run" / "library")
    assert SkillLibrary.load(tmp_path / "run").path == tmp_path / "run" / "library"
    zoo = tmp_path / "zoo"
    save(zoo / "crab-metra", name="crab-metra")
    (zoo / "notes").mkdir()
    monkeypatch.setattr(library_module, "_zoo", lambda: zoo)
    monkeypatch.chdir(tmp_path)
    assert library_module.zoo_names() == ["crab-metra"]
    assert SkillLibrary.load("crab-metra").path == zoo / "crab-metra"
    with pytest.raises(LibraryError, match='zoo has crab-metra. did you mean "crab-metra"'):
        SkillLibrary.load("crab-metre")
    with pytest.raises(LibraryError, match="no run with one"):
        SkillLibrary.load(zoo / "notes")


# Nothing is ever overwritten, nothing invalid is written


def test_existing_folders_stay(folder: Path) -> None:
    before = (folder / "MANIFEST.json").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        save(folder)
    assert (folder / "MANIFEST.json").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["lib"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(library_files, "sync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "lib")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mean": np.zeros(4)}, "normaliser has shapes"),
        ({"std": np.zeros(OBS)}, "must be positive"),
        ({"mean": np.full(OBS, np.nan)}, "NaN or infinite"),
        ({"policy": net((9, 4, ACTIONS), output="tanh")}, "input width 9"),
        ({"policy": net((7, 4, 2), output="tanh")}, "needs 3 tanh outputs"),
        ({"policy": net((7, 4, ACTIONS))}, "needs 3 tanh outputs"),
        ({"policy": net((7, 4, ACTIONS), output="tanh", input_fields=("legs",))}, "unknown observ"),
        ({"skills": [{"id": 1, "z": [1, 1]}]}, "no skill of"),
        ({"skills": [{"id": 1, "z": [1, 0]}, {"id": 1, "z": [0, 1]}]}, "distinct"),
        ({"skills": [{"z": [1, 0]}]}, 'needs "id" and "z"'),
        ({"encoders": {"../phi": net((OBS, 2), inputs=("obs",))}}, "cannot be used"),
        ({"encoders": {"policy": net((OBS, 2), inputs=("obs",))}}, "cannot be called"),
        ({"config": {"f": print}}, "cannot be stored"),
        ({"name": "a/b"}, "cannot be used"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        save(tmp_path / "lib", a_set(**change))
    assert not (tmp_path / "lib").exists()


# New libraries from old ones


def test_subset_of_discrete_skills_acts_the_same(tmp_path: Path) -> None:
    whole = SkillLibrary.load(save(tmp_path / "whole", a_set(Discrete(4))))
    part = subset(whole, [13, 11], tmp_path / "part")
    assert part.space == Discrete(2) and [row["id"] for row in part.skills] == [13, 11]
    assert part.parents == [{"name": "crab-skills", "id": whole.id, "relation": "subset"}]
    obs, goal = np.random.default_rng(0).standard_normal((2, 20, OBS))
    for new, old in ((0, 3), (1, 1)):
        a, b = part.act(obs, np.eye(2)[new]), whole.act(obs, np.eye(4)[old])
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(part.encode(obs), whole.encode(obs)[:, [3, 1]], atol=1e-6)
    assert part.goal_skill(obs, goal).shape == (20, 2)
    with pytest.raises(UsageError, match="never overwritten"):
        subset(whole, [13], tmp_path / "part")


def test_subset_of_a_continuous_space_keeps_the_space(tmp_path: Path, folder: Path) -> None:
    whole = SkillLibrary.load(folder)
    part = subset(whole, [12], tmp_path / "part")
    assert part.space == Sphere(2) and part.skills == [whole.skills[2]]
    for ids, match in (([99], 'unknown skill id of library crab-skills "99"'), ([], "at least")):
        with pytest.raises(UsageError, match=match):
            subset(whole, ids, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_merge(tmp_path: Path) -> None:
    first = SkillLibrary.load(save(tmp_path / "a", a_set(), name="a"))
    second = SkillLibrary.load(
        save(tmp_path / "b", a_set(Cube(2), seed=5), a_set(name="more", seed=6), name="b")
    )
    both = merge([first, second], tmp_path / "ab")
    assert both.sets == ("main", "b.main", "more") and both.name == "ab"
    assert [p["id"] for p in both.parents] == [first.id, second.id]
    obs = np.random.default_rng(0).standard_normal((20, OBS))
    np.testing.assert_allclose(
        both.with_set("b.main").act(obs, [0.3, 0.4]), second.act(obs, [0.3, 0.4]), atol=1e-6
    )
    with pytest.raises(UsageError, match="merge each library once"):
        merge([first, first, first], tmp_path / "aaa")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"body": "ant"}, "body: skills have crab, the environment has ant"),
        ({"dt": 0.1}, "dt: skills have 0.05"),
        ({"constants": {"gear": [30, 30, 30]}}, "gear: skills have"),
        ({"fields": [ENV["fields"][1], ENV["fields"][0]]}, "the order of the fields differs"),
    ],
)
def test_merge_refuses_other_bodies(
    tmp_path: Path, folder: Path, change: dict[str, Any], match: str
) -> None:
    foreign = a_set(encoders={}, policy=net((OBS + 2, 8, ACTIONS), output="tanh"))
    write(tmp_path / "b", sets=[foreign], env={**ENV, **change}, provenance={}, name="b")
    with pytest.raises(LibraryError, match=match):
        merge([SkillLibrary.load(folder), SkillLibrary.load(tmp_path / "b")], tmp_path / "ab")


# No torch


def test_a_library_needs_no_torch(folder: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from etude.skills.library import SkillLibrary, merge, subset
library = SkillLibrary.load({str(folder)!r})
z = library.sample(np.random.default_rng(0), 1)[0]
assert library.act(np.zeros({OBS}), z).shape == ({ACTIONS},)
library.goal_skill(np.zeros({OBS}), np.ones({OBS}))
library.untrained(0).act(np.zeros({OBS}), z)
subset(library, [10], {str(folder.parent / "part")!r})
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)
