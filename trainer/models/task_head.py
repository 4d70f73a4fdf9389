"""The head of a classification task: which modules it is, and whether the checkpoint's own one is kept.

A checkpoint that was trained to tell the data's classes apart has a head worth keeping: every trial starts from it, and
the baseline zero_shot is that classifier. Its outputs are put into the order of the data's labels.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_SHOWN = 6  # labels in a message


@dataclass(frozen=True)
class TaskHead:
    """What a classification trial trains in full, beside its adapter.

    Attributes:
        modules: their full names: those that the task adds on top of the backbone, and a pooler that has no weights.
        fresh: those of them that start from seeded random values in each trial, instead of the checkpoint's.
        note: for the user: which head it is.
    """

    modules: frozenset[str] = frozenset()
    fresh: frozenset[str] = frozenset()
    note: str = ""


def order_of(own: Mapping[int, str], labels: Sequence[str]) -> list[int] | None:
    """For each of the data's labels the output of a checkpoint's head that stands for it; None where they do not fit.

    They fit where they are the same words, or the same but for letter case. The names that transformers gives outputs
    without one (``LABEL_0``) stand for their numbers.

    Args:
        own: output → its label (``id2label`` of the checkpoint's config).
        labels: of the data, in its order.
    """
    if len(own) != len(labels):
        return None
    numbers = {i: str(i) if name == f"LABEL_{i}" else str(name) for i, name in own.items()}
    for form in (str, str.casefold):
        places = {form(name): i for i, name in numbers.items()}
        wanted = [form(label) for label in labels]
        if len(places) == len(set(wanted)) == len(labels) and places.keys() == set(wanted):
            return [places[label] for label in wanted]
    return None


def find_head(
    model: Any, lacking: Collection[str], own: Mapping[int, str], labels: Sequence[str], named: frozenset[str]
) -> TaskHead:
    """The head of a model that was loaded for classification; where it fits, its outputs are put in order, in place.

    Args:
        model: with one output for each of the data's labels.
        lacking: names of parameters that the checkpoint does not hold, or in another size.
        own: ``id2label`` of the checkpoint.
        labels: of the data.
        named: what models call a head, for those that do not tell what their backbone is.
    """
    prefix = model.base_model_prefix
    top = {name for name, module in model.named_children() if next(module.parameters(), None) is not None}
    added = top - {prefix} if prefix in top else {key.split(".")[0] for key in lacking} & top or named & top
    modules = frozenset(added | poolers(model, lacking))
    absent = {name for name in modules if any(key.startswith(f"{name}.") for key in lacking)}
    classes = f"the data's labels ({_few(labels)})"
    if absent:
        trained = len(own) != len(labels) and not _unnamed(own)
        why = f"has {len(own)} outputs ({_few(list(own.values()))})" if trained else "has no head"
        return TaskHead(modules, frozenset(absent), f"the model {why}; a new one is trained for {classes}")
    order, last = order_of(own, labels), _output(model, modules, len(labels))
    if order is not None and last is not None and _put_in_order(model, modules, last[1], order):
        return TaskHead(modules, frozenset(), f"the model's own head is kept: its labels are {classes}")
    fresh = frozenset({name for name in modules if last is None or f"{last[0]}.".startswith(f"{name}.")})
    theirs = _few([own[i] for i in sorted(own)])
    return TaskHead(
        modules, fresh, f"the labels of the model's own head ({theirs}) are not {classes}: a new head is trained"
    )


def poolers(model: Any, lacking: Collection[str]) -> set[str]:
    """Full names of the poolers of the backbone that lack weights.

    Args:
        model: of any task.
        lacking: names of parameters that the checkpoint does not hold.
    """
    return {".".join(key.split(".")[:2]) for key in lacking if key.startswith(f"{model.base_model_prefix}.pool")}


def _unnamed(own: Mapping[int, str]) -> bool:
    return all(name == f"LABEL_{i}" for i, name in own.items())


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_SHOWN]) + (", …" if len(labels) > _SHOWN else "")


def _output(model: nn.Module, modules: frozenset[str], n: int) -> tuple[str, nn.Linear] | None:
    """The layer that yields the logits: the last linear one of the head with an output for each label."""
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == n and name.split(".")[0] in modules
    ]
    return layers[-1] if layers else None


@torch.no_grad()
def _put_in_order(model: Any, modules: frozenset[str], layer: nn.Linear, order: list[int]) -> bool:
    """Reorder the outputs of the head, in place. False, and nothing done, where the logits do not follow."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 6, device=model.device)[None] % vocabulary
    before = model(input_ids=ids).logits
    layer.weight.copy_(layer.weight[order].clone())
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[order].clone())
    after = model(input_ids=ids).logits
    if after.shape == before.shape and torch.allclose(after, before[:, order], rtol=1e-3, atol=1e-5):
        return True
    back = torch.tensor(order).argsort()
    layer.weight.copy_(layer.weight[back].clone())
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[back].clone())
    return False
