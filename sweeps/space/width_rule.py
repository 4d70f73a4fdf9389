"""How the best learning rate goes with a model's width."""

WIDTH = 2048  # hidden size of the smallest models that the portfolio is learnt from
_EXPONENTS = {"qwen": 0.0775}  # beginning of a model type → exponent
_EXPONENT = 0.781


def rate_factor(hidden_size: int | None, model_type: str = "", than: int | None = WIDTH) -> float:
    """How many times as high the best rate is as that of a model of another width.

    The rule of tinker-cookbook (``get_lr`` in ``hyperparam_utils.py``, until a table took its place): the best rate
    goes with (2000 / hidden size) to the power of 0.0775 for Qwen and 0.781 for Llama, which is taken for all others.

    Args:
        hidden_size: of the model; None where it is not known.
        model_type: as in the model's ``config.json``.
        than: hidden size of the other model. Where either is not known the factor is 1.
    """
    if not hidden_size or not than:
        return 1.0
    family = (exponent for start, exponent in _EXPONENTS.items() if model_type.startswith(start))
    return (than / hidden_size) ** next(family, _EXPONENT)
