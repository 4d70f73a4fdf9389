"""Which GPUs the process of a device worker sees."""


def visible_gpus(share: float) -> dict[str, str]:
    """Environment variables for a worker that claims a share of a GPU.

    Ray gives a worker that claims some the number of its own GPU. From one that claims none it hides nothing (since
    2.60: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO), and torch would train on the first GPU of the node.

    Args:
        share: GPUs that the worker claims.
    """
    return {} if share > 0 else {"CUDA_VISIBLE_DEVICES": ""}
