"""Which of W&B's environment variables a sweep follows."""

import pytest
from wandb import Settings

from sweeps.tracking import wandb_environment
from sweeps.tracking.wandb_environment import set_aside, switched_off

AGENT = {
    "WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "WANDB_RUN_GROUP": "g", "WANDB_NAME": "n", "WANDB_RESUME": "must",
    "WANDB_RESUME_FROM": "a?_step=1", "WANDB_FORK_FROM": "a?_step=1", "WANDB_JOB_TYPE": "j", "WANDB_TAGS": "x",
    "WANDB_DIR": "/elsewhere", "WANDB_SERVICE": "3-1-tcp-localhost-1", "WANDB_SWEEP_PARAM_PATH": "/p.yaml",
    "WANDB_LAUNCH": "true", "WANDB__FILES_DIR": "/f", "WANDB_X_SKIP_TRANSACTION_LOG": "true",
}  # fmt: skip
OF_THE_USER = {
    "WANDB_API_KEY": "k", "WANDB_BASE_URL": "http://host", "WANDB_MODE": "offline", "WANDB_ENTITY": "team",
    "WANDB_PROJECT": "p", "WANDB_HTTP_TIMEOUT": "3", "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1", "PATH": "/bin",
}  # fmt: skip


def test_what_names_another_run_is_set_aside_and_account_server_and_mode_stay() -> None:
    environment = AGENT | OF_THE_USER
    assert set_aside(environment) == sorted(AGENT)
    assert environment == OF_THE_USER
    assert set_aside(environment) == []


def test_the_settings_that_are_ours_are_settings_of_this_wandb() -> None:
    assert Settings.model_fields.keys() >= wandb_environment._OURS
    settings = Settings()
    settings.update_from_env_vars({"WANDB_DIR": "/a", "WANDB_NAME": "n", "WANDB_JOB_TYPE": "j", "WANDB_TAGS": "t"})
    read = (settings.root_dir, settings.run_name, settings.run_job_type, settings.run_tags)
    assert read == ("/a", "n", "j", ("t",))


@pytest.mark.parametrize(
    ("given", "off"), [("true", True), ("1", True), (" TRUE ", True), ("false", False), ("", False)]
)
def test_wandb_disabled_switches_it_off(given: str, off: bool) -> None:
    assert switched_off({"WANDB_DISABLED": given}) is off
    assert switched_off({}) is False
