"""Whole sweeps on tiny models, as in ``tests/sweeps/``."""

from tests.sweeps.conftest import lorasweep, reading, tiny

__all__ = ["lorasweep", "reading", "tiny"]
