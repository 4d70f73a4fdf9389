"""Which GPUs a process of a sweep sees."""

import os

# ROCm's runtime takes an empty HIP_VISIBLE_DEVICES for none given, and shows all; -1 is no GPU's number there.
_NONE = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
# A user's own, by which Ray would leave the numbers out, and every worker would train on the node's first GPU.
_NUMBERED = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "0", "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES": "0"}


def visible_gpus(share: float) -> dict[str, str]:
    """Environment variables for an actor that claims a share of a GPU.

    Ray gives an actor that claims some the number of its own GPU. From one that claims none it hides nothing (since
    2.60: ``ray/_private/utils.py``, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO), and torch would train on the first GPU of the
    node, or hold memory there.

    Args:
        share: GPUs that the actor claims.
    """
    return dict(_NUMBERED if share > 0 else _NONE)


def hide_gpus() -> None:
    """Show this process no GPU, whatever its environment says; before torch looks for them."""
    os.environ.update(_NONE)
