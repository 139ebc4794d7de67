"""Trials on a Ray cluster here: results, errors, deaths and late ones, each by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from etude.errors import Stopped, UsageError
from etude.evaluate.trials import pool
from etude.evaluate.trials.pool import BrokenProcessPool, run_all

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ended even where a test fails."""
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()


def job(what: str) -> str:
    """Something that goes well, or does not."""
    if what == "refuse":
        raise UsageError("no such arm")
    if what == "die":
        os._exit(9)
    if what == "sleep":
        time.sleep(600)
    return f"{what} with {os.environ['OMP_NUM_THREADS']} thread in another: {os.getpid()}"


def test_a_failure_takes_no_other_job_with_it() -> None:
    found = dict(run_all(["a", "refuse", "die", "b"], job, 2, ray=True))
    assert str(found["a"]).startswith("a with 1 thread") and str(os.getpid()) not in str(found["a"])
    assert str(found["b"]).startswith("b with 1 thread")
    refused = found["refuse"]
    assert type(refused) is UsageError and str(refused) == "no such arm"
    assert isinstance(found["die"], BrokenProcessPool)


def test_a_late_job_is_ended() -> None:
    found = dict(run_all(["sleep", "a"], job, 2, limit=20, ray=True))
    assert isinstance(found["sleep"], TimeoutError) and "longer than 20 s" in str(found["sleep"])
    assert str(found["a"]).startswith("a with")


def test_all_are_stopped_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(Stopped):
        list(run_all(["sleep", "sleep"], job, 2, lambda: time.monotonic() > began + 3, ray=True))
    assert time.monotonic() - began < 20


def test_without_ray_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> SimpleNamespace:
        raise ImportError(name)

    monkeypatch.setattr(pool.importlib, "import_module", missing)
    with pytest.raises(UsageError, match="--ray needs Ray: pip install"):
        list(run_all(["a"], partial(job), 1, ray=True))
