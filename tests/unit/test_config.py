"""Configurations: ranges at construction, plain data round trip, helpful refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from etude.config import (
    Config,
    Range,
    from_dict,
    load,
    replace,
    shorten,
    show,
    to_dict,
)
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


@dataclass(frozen=True)
class Plain(Config):
    """Settings without a range, and with an open one."""

    size: float = 1.0
    """any finite number"""
    share: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """below one"""
    pair: tuple[int, int] | None = None
    """two numbers"""
    choice: Literal[1, True, "yes"] = 1
    """what is equal, and of the same type"""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_without_a_range_is_finite_all_the_same(value: float) -> None:
    with pytest.raises(UsageError, match=r"size = -?(nan|inf) .* choose a finite number"):
        Plain(size=value)
    assert Plain(size=1e308).size == 1e308


def test_an_open_end_is_excluded_and_a_closed_one_is_not() -> None:
    for low, high, inside, outside in (
        (False, False, (0, 0.5, 1), (-0.001, 1.001)),
        (True, False, (0.001, 1), (0, -1)),
        (False, True, (0, 0.999), (1, 2)),
        (True, True, (0.001, 0.999), (0, 1)),
    ):
        limits = Range(0, 1, low, high)
        assert all(x in limits for x in inside) and not any(x in limits for x in outside)
        assert str(limits) == f"{'(' if low else '['}0, 1{')' if high else ']'}"
    with pytest.raises(UsageError, match=r"share = 1.0 .*\[0, 1\)"):
        Plain(share=1.0)


def test_whole_numbers_end_at_64_bits() -> None:
    for value in (2**63 - 1, 1 - 2**63):
        assert Plain(pair=(value, 0)).pair == (value, 0)
    for value in (2**63, -(2**63)):
        with pytest.raises(UsageError, match=r"pair\[0\] = .* out of range"):
            Plain(pair=(value, 0))


def test_a_choice_is_of_the_same_type() -> None:
    assert Plain(choice=True).choice is True and Plain(choice=1).choice is not True
    with pytest.raises(UsageError, match=r"choice = 1.0 is unknown: choose one of 1, True, yes"):
        Plain(choice=1.0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match='choice = .yess. is unknown: did you mean "yes"'):
        Plain(choice="yess")  # type: ignore[arg-type]


def test_parts_of_a_configuration_are_kept_as_they_are() -> None:
    inner = Inner(rate=0.25)
    assert replace(Outer(), {"inner": inner}).inner is inner
    assert replace(Outer(inner=inner), {"inner": {"widths": [1]}}).inner == Inner(0.25, (1,))
    assert replace(Outer(inner=inner), {}) == Outer(inner=inner)
    with pytest.raises(UsageError, match=r"agent.inner.rate = 2.0"):
        replace(Outer(), {"inner": {"rate": 2.0}}, "agent.")


def test_the_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"once": 1, "twice": 2, "twice": 2}')
    with pytest.raises(UsageError, match="'twice' is given twice"):
        load(tmp_path / "a.json")


def test_a_file_that_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_text("a = 1")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"a.toml cannot be read \(Permission denied\): make"):
        load(tmp_path / "a.toml")


@pytest.mark.parametrize("parts", [19, 20])
@pytest.mark.parametrize("part", ["a", '"a"', "'a b'", "a "])
def test_long_dotted_keys_are_refused_before_they_are_parsed(
    tmp_path: Path, part: str, parts: int
) -> None:
    """A key of twenty parts is as deep as may be; TOML's parser is never given a longer one."""
    for more in (0, 1):
        (tmp_path / "a.toml").write_text(".".join([part] * (parts + more)) + "= 1")
        if parts + more <= 20:
            assert load(tmp_path / "a.toml")
        else:
            with pytest.raises(UsageError, match="nested too deeply: at most 20"):
                load(tmp_path / "a.toml")


def test_long_values_are_cut_in_sentences() -> None:
    assert shorten("x" * 80) == "x" * 80
    assert shorten("x" * 81) == "x" * 79 + "…"
    assert shorten("a\n\tb\x00 c", 5) == "a b c"
    assert show(10**20 - 1) == "9" * 20 and show(10**20) == "a number of 67 bits"
    assert show(-(10**20)) == "a number of 67 bits"
