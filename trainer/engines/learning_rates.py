"""The peak learning rate of each trained parameter, and an optimiser's groups by it; the same for all engines.

The schedule multiplies the rate of every group by the same factor.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import get_scheduler

from trainer.config import OptimConfig
from trainer.models.lora import within

PREFIX = "base_model.model."  # PEFT's, before the base model's own names


def peak_rate(optim: OptimConfig, name: str, dimensions: int, heads: frozenset[str]) -> float:
    """A parameter's peak learning rate.

    A task head has ``head_lr``, or ``head_ratio`` times ``lr``. B has ``b_ratio`` times ``lr``, and so has what else
    has one dimension (DoRA's magnitudes, trained biases): LoRA+ (Hayou et al. 2024, arXiv 2402.12354) as its authors'
    code and PEFT's ``create_loraplus_optimizer`` have it.

    Args:
        optim: the trial's.
        name: PEFT's of the parameter.
        dimensions: of the parameter.
        heads: full names of the model's task heads.
    """
    if within(name.removeprefix(PREFIX), heads):
        return optim.lr * optim.head_ratio if optim.head_lr is None else optim.head_lr
    if ".lora_B." in name or dimensions == 1:
        return optim.lr * optim.b_ratio
    return optim.lr


def split_by_rate(groups: Iterable[Mapping[str, Any]], rates: Mapping[int, float]) -> list[dict[str, Any]]:
    """An optimiser's parameter groups, each cut into one for every rate in it; empty ones are left out.

    Args:
        groups: ``params`` and options.
        rates: ``id`` of a parameter → its peak learning rate.
    """
    split = []
    for group in groups:
        by_rate: dict[float, list[Any]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates[id(parameter)], []).append(parameter)
        split += [{**group, "params": own, "lr": rate} for rate, own in by_rate.items()]
    return split


def schedule(optim: OptimConfig, max_steps: int) -> Callable[[int], float]:
    """The schedule: optimiser steps done → the factor on every peak learning rate in the next one.

    Args:
        optim: its schedule and warm-up.
        max_steps: of the trial.
    """
    named = "constant_with_warmup" if optim.schedule == "constant" else optim.schedule
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warmup = math.ceil(optim.warmup * max_steps)
    scheduler = get_scheduler(named, stand_in, num_warmup_steps=warmup, num_training_steps=max_steps)
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor
