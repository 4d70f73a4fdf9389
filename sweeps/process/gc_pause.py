"""Python's garbage collector, held back while much is made that stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_SELDOM = (100_000, 20, 100)  # instead of 700 new objects, ten times, ten times


@contextmanager
def paused() -> Iterator[None]:
    """While modules are imported or a folder is read: what is made then stays, and is not looked through again.

    The collector looks through every object that there is, again and again: a fifth of the time of importing torch,
    transformers and PEFT, an eighth of importing Ray or of ranking a thousand trials.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)
