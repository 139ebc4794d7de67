"""Configurations: ranges at construction, plain data round trip, helpful refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest

from etude.config import Config, Range, from_dict, to_dict
from etude.errors import UsageError, unknown


@dataclass(frozen=True)
class Inner(Config):
    """Settings inside settings."""

    rate: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    """a share"""
    widths: tuple[Annotated[int, Range(1)], ...] = (4, 4)
    """units"""


@dataclass(frozen=True)
class Outer(Config):
    """Settings of the test."""

    limit: Annotated[int, Range(1, 10)] | None = None
    """at most ten"""
    inner: Inner = field(default_factory=Inner)
    """nested"""


def test_round_trip_through_plain_data() -> None:
    config = Outer(limit=3, inner=Inner(rate=0.25, widths=(8,)))
    assert to_dict(config) == {"limit": 3, "inner": {"rate": 0.25, "widths": [8]}}
    assert from_dict(Outer, to_dict(config)) == config


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.01, float("nan")])
def test_a_value_out_of_range_is_refused_with_value_and_range(rate: float) -> None:
    with pytest.raises(UsageError, match=r"rate = .* out of range.*\(0, 1\]"):
        Inner(rate=rate)


def test_ranges_inside_tuples_and_optionals_are_checked() -> None:
    with pytest.raises(UsageError, match="widths"):
        Inner(widths=(4, 0))
    with pytest.raises(UsageError, match="limit = 11"):
        Outer(limit=11)
    assert Outer(limit=None).limit is None


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match='unknown setting "rat" of Inner: did you mean "rate"'):
        from_dict(Outer, {"inner": {"rat": 0.1}})


def test_an_unknown_name_lists_what_exists() -> None:
    error = unknown("learner", "mtra", ["metra", "diayn"])
    assert 'did you mean "metra"' in str(error) and "diayn, metra" in str(error)
    assert "did you mean" not in str(unknown("learner", "qqqqqq", ["metra"]))
