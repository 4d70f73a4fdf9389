"""Breaks a scoring off between two forward passes, where the device worker has to leave."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from trainer.models.ranks import Interrupted


@contextlib.contextmanager
def interruptible(model: nn.Module, asked: Callable[[], bool]) -> Iterator[None]:
    """Raise ``Interrupted`` before a forward pass where ``asked`` is true.

    Args:
        model: a base model of transformers; each of its passes begins at its input embeddings.
        asked: whether to break off.
    """

    def look(*_: Any) -> None:
        if asked():
            raise Interrupted

    embeddings: Any = model
    hook = embeddings.get_input_embeddings().register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
