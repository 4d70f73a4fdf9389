"""The learning rate without the adapter's scale in it, which is nearly the same for every rank and alpha rule.

With Adam an adapter's update grows with rate · scale · rank, and scale · rank is alpha. "LoRA Without Regret" (Thinking
Machines 2025) finds the best rate independent of the rank where alpha is 32 throughout: so rates are compared as what
they would be at that alpha.
"""

ALPHA = 32.0  # of the published sweeps


def alpha(rule: str, value: float, rank: float) -> float:
    """Scale times rank: what alpha would be with the rule ``fixed`` at this rank.

    Args:
        rule: ``lora.alpha_rule``.
        value: ``lora.alpha_value``.
        rank: ``lora.rank``.
    """
    return {"fixed": value, "ratio": value * rank, "sqrt": value * rank**0.5}[rule]


def effective_rate(lr: float, rule: str, value: float, rank: float) -> float:
    """The learning rate that does at alpha 32 what ``lr`` does with these settings of ``lora``."""
    return lr * alpha(rule, value, rank) / ALPHA
