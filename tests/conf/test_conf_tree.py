"""The shipped config files: each composes, says what it is, and fits the code that reads it."""

import re

import pytest
import yaml
from hydra.utils import instantiate

from analysis.objective import Objective
from sweeps.checks.length import asked_about
from sweeps.compose import conf_tree
from sweeps.compose.compose import compose
from sweeps.search.scheduler import build_scheduler
from trainer.config import PRECISIONS

OPTIONS = [(group, option) for group, options in conf_tree.groups().items() for option in options]
NEEDED = {
    ("model", "local"): ["model.path=DIR"],
    ("model", "hub"): ["model.name=owner/name"],
    **{
        ("data", kind): ["data.train=a", "data.validation=b"]
        for kind in ("csv", "tsv", "jsonl", "parquet", "arrow", "folder")
    },
    ("experiment", "llama3_qlora"): ["data.train=a", "data.validation=b"],
    ("data", "hub"): ["data.name=owner/name", "data.validation=b"],
    ("space", "classifier"): ["task=classification"],
    ("scheduler", "pbt"): ["space=optimizer", "sampler=random"],
}


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if len(conf_tree.groups()[g]) > 1])
def test_every_option_composes_into_a_valid_sweep(group, option):
    composed = compose([f"{group}={option}", *NEEDED.get((group, option), [])])
    assert composed.space
    assert asked_about(composed.on_machine(PRECISIONS)).trial_id == "t0000"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_file_opens_with_what_it_is_and_the_command_that_uses_it(group, option):
    lines = (conf_tree.SHIPPED / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    opening = [line for line in lines[:4] if line.startswith("#")]
    assert conf_tree.summary(group, option).endswith((".", "?"))
    assert any(re.search(rf"lorasweep run .*\b{group}[=.]", line) for line in opening)


def commands() -> list[str]:
    """The commands in the heads of the files, those aside that only name their own option."""
    found = []
    for group, option in OPTIONS:
        text = (conf_tree.SHIPPED / group / f"{option}.yaml").read_text(encoding="utf-8")
        found += re.findall(r"^#\s+lorasweep run (\S+ .*?)(?:\s{4,}.*)?$", text, re.M)
    return found


@pytest.mark.parametrize("command", commands())
def test_the_command_in_the_head_of_a_file_composes(command):
    words = re.findall(r"\$'[^']*'|'[^']*'|\S+", command)
    arguments = [word.removeprefix("$").strip("'").replace("\\n", "\n") for word in words]
    assert compose(arguments).space


PLAIN = ("_target_", "name", "source", "mode", "project", "tags", "metric", "weight", "stop_last_trials", "seed")
SELF_EXPLAINING = {*PLAIN, "rank", "weight_decay", "beta1", "beta2"}


def test_keys_that_configs_hold_are_explained():
    """A key with a single value has a comment on its line or above it, or was explained earlier in the file."""
    silent = []
    for group, option in OPTIONS:
        lines = (conf_tree.SHIPPED / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
        explained = set(SELF_EXPLAINING)
        for above, line in zip(["", *lines], lines, strict=False):
            plain = re.match(r"\s*(\w+): +[^\s{#]", line)
            if not plain or group == "experiment":
                continue
            if "#" in line or "#" in above:
                explained.add(plain[1])
            elif plain[1] not in explained:
                silent.append(f"{group}/{option}: {line}")
    assert not silent


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=quickstart"],
        ["experiment=quickstart_classifier"],
        ["train.max_steps=100"],
        ["train.max_steps=7"],
        ["train.max_steps=81", "train.rungs=[1,3,9,27,81]"],
    ],
)
def test_asha_decides_at_exactly_the_rungs(overrides):
    config = compose(overrides).config
    scheduler = build_scheduler(config.scheduler, config.train.rungs).inner
    milestones = {milestone for milestone, _ in scheduler._brackets[0]._rungs}
    assert milestones | {config.train.max_steps} == set(config.train.rungs)


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_samplers_are_built_from_their_config_with_the_sweep_s_seed(name):
    config = compose([f"sampler={name}", "sweep.seed=11"]).config
    assert config.sampler["seed"] == 11
    assert type(instantiate(config.sampler)).__module__.startswith("optuna.samplers")


def test_fifo_is_built_from_its_config():
    assert type(instantiate(compose(["scheduler=fifo"]).config.scheduler)).__name__ == "FIFOScheduler"


def test_the_quickstart_is_the_sweep_that_the_readme_describes():
    composed = compose(["experiment=quickstart"])
    config = composed.config
    assert (config.search.trials, config.sweep.name) == (8, "quickstart")
    assert len(config.train.rungs) > 1  # ASHA has somewhere to stop a trial early
    assert config.task.prompt == "{text}\nTopic:"
    assert set(composed.space) == {"lora.rank", "lora.alpha_rule", "optim.lr"}
    assert 3 <= len(composed.start) < config.search.trials  # known good points first, and some of its own


def test_files_are_plain_yaml_that_any_reader_opens():
    for group, option in OPTIONS:
        assert isinstance(
            yaml.safe_load((conf_tree.SHIPPED / group / f"{option}.yaml").read_text(encoding="utf-8")), dict
        )


@pytest.mark.parametrize(("trials", "drawn"), [(8, 4), (24, 6), (60, 10), (2000, 10)])
def test_a_quarter_of_the_trials_and_at_most_ten_are_drawn_before_tpe_models_them(trials, drawn):
    assert compose([f"search.trials={trials}"]).config.sampler["n_startup_trials"] == drawn


@pytest.mark.parametrize(("space", "group"), [("lora", False), ("wide", True)])
def test_tpe_groups_keys_only_where_the_space_has_conditions(space: str, group: bool) -> None:
    assert compose([f"space={space}"]).config.sampler["group"] is group


def test_where_there_are_labels_the_better_labels_win_and_perplexity_and_bias_decide_between_equals():
    objective = Objective.from_config(compose(["experiment=quickstart"]).resolved()["objective"])

    def score(quality, bits, distance):
        return objective.score(
            {"accuracy": quality, "macro_f1": quality, "bits_per_byte": bits, "bias.crows_pairs.distance": distance}
        )

    assert score(0.944, 4.97, 8.0) > score(0.861, 4.63, 7.0)  # rungs of a real trial
    assert score(0.944, 4.63, 8.0) > score(0.944, 4.97, 8.0)
    assert score(0.944, 4.97, 7.0) > score(0.944, 4.97, 8.0)
