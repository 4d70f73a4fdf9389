"""What of W&B's environment variables is the user's to say, and what of a sweep's runs is ours.

An agent, a launch job or another W&B job leaves variables for the one run that it started. A sweep has many: with them
all its trials would be one run, or belong to somebody else's.
"""

import os
from collections.abc import MutableMapping

# Settings that say which run is written, of what, where and how: by their names in wandb/sdk/wandb_settings.py.
_OURS = frozenset({
    "run_id", "run_name", "run_group", "run_job_type", "run_tags", "resume", "resumed", "resume_from", "fork_from",
    "sweep_id", "sweep_param_path", "config_paths", "launch", "launch_config_path", "x_runqueue_item_id",
    "root_dir", "use_dot_wandb", "x_files_dir", "x_sync_dir_suffix", "x_start_time", "sync_tensorboard",
    "x_label", "x_primary", "x_update_finish_state", "x_skip_transaction_log", "x_sync",
})  # fmt: skip
_NAMES = {"DIR": "root_dir", "NAME": "run_name", "TAGS": "run_tags", "JOB_TYPE": "run_job_type"}
_SERVICE = "WANDB_SERVICE"  # of a process above us: its end would take our runs along, and ours its
_PREFIX = "WANDB_"
_YES = ("1", "true", "yes", "y", "on", "t")


def switched_off(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether ``WANDB_DISABLED`` is set, which other libraries follow, though W&B itself does not."""
    return environment.get("WANDB_DISABLED", "").strip().lower() in _YES


def set_aside(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Remove what would change which runs are written. Returns the names that were set, sorted.

    Account, server and mode (``WANDB_API_KEY``, ``WANDB_BASE_URL``, ``WANDB_MODE``, ``WANDB_ENTITY``) stay.
    """
    found = sorted(name for name in environment if name == _SERVICE or _setting(name) in _OURS)
    for name in found:
        del environment[name]
    return found


def _setting(name: str) -> str:
    """The setting that W&B reads from a variable; empty for another program's."""
    if not name.startswith(_PREFIX):
        return ""
    rest = name.removeprefix(_PREFIX)
    return _NAMES.get(rest) or (f"x_{rest[1:]}" if rest.startswith("_") else rest).lower()
