"""NumPy networks: valid by construction, equal to the formula, fresh weights as before training."""

from typing import Any

import numpy as np
import pytest

from etude.errors import UsageError
from etude.skills.mlp import MLP, columns


@pytest.mark.parametrize(("activation", "f"), [("relu", lambda x: x * (x > 0)), ("tanh", np.tanh)])
@pytest.mark.parametrize(("output", "g"), [("linear", lambda x: x), ("tanh", np.tanh)])
def test_forward_is_the_formula(activation: str, f: Any, output: str, g: Any) -> None:
    rng = np.random.default_rng(0)
    (w, b), (v, c) = layers = [
        (rng.normal(size=s), rng.normal(size=s[1])) for s in ((4, 8), (8, 2))
    ]
    x = rng.normal(size=(10, 4))
    before = x.copy()
    y = MLP(layers, activation, output)(x)
    np.testing.assert_allclose(y, g(f(x @ w + b) @ v + c), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(x, before)
    assert y.dtype == np.float32


def test_a_single_layer_leaves_its_input_alone() -> None:
    x = np.ones(2, np.float32)
    MLP([(np.eye(2), np.ones(2))], output="tanh")(x)
    np.testing.assert_array_equal(x, [1, 1])


def test_columns_of_named_fields() -> None:
    fields = {"x": 1, "joints": 3, "velocity": 2}
    assert columns(fields, None) == slice(None)
    np.testing.assert_array_equal(columns(fields, ("velocity", "x")), [4, 5, 0])
    with pytest.raises(UsageError, match='did you mean "joints"'):
        columns(fields, ("joint",))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"activation": "gelu"}, "unknown activation"),
        ({"output": "sigmoid"}, "unknown output"),
        ({"inputs": ("z",)}, "network inputs"),
    ],
)
def test_unknown_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        MLP([(np.eye(2), np.ones(2))], **settings)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([], "0 layers"),
        ([(np.zeros((3, 2)), np.zeros(3))], "layer 0"),
        ([(np.zeros((3, 2)), np.zeros(2)), (np.zeros((3, 2)), np.zeros(2))], "layer 1"),
        ([(np.full((3, 2), np.inf), np.zeros(2))], "NaN or infinite"),
        ([(np.zeros((0, 2)), np.zeros(2))], "widths"),
    ],
)
def test_networks_are_valid_by_construction(layers: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        MLP(layers)
