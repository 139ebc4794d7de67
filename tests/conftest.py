"""What holds for every test: one thread of arithmetic, no display, examples that repeat."""

from __future__ import annotations

import os

# before NumPy and torch are imported: the workers of pytest-xdist are the parallelism here
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis

hypothesis.settings.register_profile("etude", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("etude")
