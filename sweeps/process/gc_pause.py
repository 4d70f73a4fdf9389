"""Python's garbage collector run less often while many lasting objects are made."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (100_000, 20, 100)  # of the three generations; Python's own are 700, 10, 10


@contextmanager
def paused() -> Iterator[None]:
    """Collect garbage rarely while modules are imported or a folder is read.

    The collector examines every object there is, again and again, though what is made here stays: that is a fifth of
    the time of importing torch, transformers and PEFT, an eighth of importing Ray or of ranking a thousand trials.
    Afterwards these objects are exempt from collection, and the thresholds are as before.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)
