"""Padding that the host knows of: transformers need not look at a mask's values, for which it would wait for a GPU."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import masking_utils

# Each asks whether nothing is padded, by the values of the mask it is given first, if any.
_ASKS = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")
_PACKED = "find_packed_sequence_indices"  # asks whether a row holds several texts, by the values of the positions


@contextlib.contextmanager
def padding_is_known() -> Iterator[None]:
    """A context for passes that get a mask only where something is padded, and one text a row.

    A model that builds its masks elsewhere asks as ever.
    """
    before = {name: getattr(masking_utils, name) for name in (*_ASKS, _PACKED) if hasattr(masking_utils, name)}
    for name in before:
        setattr(masking_utils, name, _no_text_behind_another if name == _PACKED else _without_a_look(before[name]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)


def _without_a_look(ask: Callable[..., bool]) -> Callable[..., bool]:
    def known(padding_mask: torch.Tensor | None, *args: Any, **named: Any) -> bool:
        return padding_mask is None and ask(None, *args, **named)

    return known


def _no_text_behind_another(position_ids: torch.Tensor) -> None:
    return None
