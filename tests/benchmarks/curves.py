"""Learning curves of LoRA trials that cost nothing, in the shapes that were published.

- *Plateau and cliff*: the final score over the learning rate follows the table of arXiv 2602.04998 (Qwen3-0.6B on
  MetaMath, rank 128): flat over a decade, gone within a factor of three above it.
- *Rank*: matters little at low rates and much at high ones; the slopes are those of tinker-cookbook's sweep
  (Llama-3.2-1B, Tulu 3): 0.35 % of the loss between rank 4 and 128 at 4e-5, 4.9 % at 1e-3.
- *Alpha rule*: with alpha proportional to the rank the best rate falls as the rank grows, with constant alpha it
  hardly depends on it; rsLoRA is between the two.
- *Over steps*: a power law; a low rate is slow, so curves cross, and the ranking at an early rung misleads.
- What is left (targets, dropout, batch size, weight decay, warm-up) moves the score by 0.5 to 3 %.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

BEST_LR = 2e-4  # with alpha = 2 · rank at rank 8, on the table's scale
# log10(rate / best rate) → share of the best score
TABLE = [
    (-2.5, 0.30),
    (-1.26, 0.808),
    (-1.0, 0.965),
    (-0.5, 0.991),
    (0.0, 1.0),
    (0.5, 0.997),
    (0.74, 0.906),
    (1.0, 0.02),
]
NOISE = 0.004  # standard deviation of a rung's score, as of some thousand validation items
START = 0.25  # score of the untuned model


def off(values: Mapping[str, Any]) -> float:
    """Decades between a trial's learning rate and the best one for its rank and alpha rule."""
    rank = values.get("lora.rank", 8)
    slope = {"fixed": 0.1, "ratio": 0.5, "sqrt": 0.25}[values.get("lora.alpha_rule", "ratio")]
    best = math.log10(5 * BEST_LR) - slope * math.log10(rank / 8)
    return math.log10(values["optim.lr"]) - best


def final(values: Mapping[str, Any]) -> float:
    """The score after the last step, without noise."""
    x = off(values)
    share = float(np.interp(x, [at for at, _ in TABLE], [y for _, y in TABLE]))
    heat = min(max((x + 1.4) / 1.4, 0.0), 1.0)  # 0 at a low rate, 1 at the best one
    rank = 1 + (0.0035 + 0.0455 * heat) * (math.log2(values.get("lora.rank", 8) / 4) / 5 - 1)
    rest = 1.0
    rest -= 0.03 * (values.get("lora.targets", "all_linear") == "attention")
    rest -= 0.01 * abs(values.get("lora.dropout", 0.05) - 0.05) / 0.05
    rest -= {8: 0.0, 16: 0.003, 32: 0.01}[values.get("train.batch_size", 8)]
    rest -= {0.0: 0.002, 0.01: 0.0, 0.1: 0.005}[values.get("optim.weight_decay", 0.01)]
    rest -= 0.004 * (values.get("optim.warmup", 0.1) == 0.0)
    return START + (0.85 - START) * share * rank * rest


def diverges(values: Mapping[str, Any]) -> bool:
    return off(values) > 1.0


def score(values: Mapping[str, Any], step: int, max_steps: int, seed: int) -> float | str:
    """What a rung reports: the score, or ``diverged``."""
    if diverges(values):
        return "diverged"
    reached, speed = final(values), 25 * 10 ** (0.7 * min(off(values), 0.3))
    share = 1 - (1 + speed * step / max_steps) ** -1.2
    whole = 1 - (1 + speed) ** -1.2
    key = zlib.crc32(f"{sorted(values.items())} {step} {seed}".encode())
    return START + (reached - START) * share / whole + NOISE * float(np.random.default_rng(key).standard_normal())
