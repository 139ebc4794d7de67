"""What holds for every test: one thread of arithmetic, no display, draws that repeat."""

from __future__ import annotations

import os

# before NumPy and torch are imported: the workers of pytest-xdist are the parallelism here
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
import sys

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("etude", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("etude")


@pytest.fixture(autouse=True)
def _global_generators() -> None:
    """Models of others, made without a seed, are the same ones every time."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (theirs is the legacy one)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
