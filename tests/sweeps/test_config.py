"""Composing: precedence, names, paths, interpolations after sampling, storing and restoring."""

import dataclasses
import pickle
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import yaml

import conf
from analysis.errors import ConfigError, HardwareError
from sweeps.compose.compose import Composed, compose
from sweeps.compose.trial_template import TrialTemplate
from sweeps.config import SweepConfig, schema
from sweeps.space.dimensions import Choices, suggest
from sweeps.space.parse import searchable

SIZED = ["train.max_steps=48", "data.max_length=128", "precision=fp32"]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's config folder with one experiment."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "lora:\n  rank: 3\n  alpha_value: ${mul:2,${lora.rank}}\n"
        "data:\n  topics: {sci.med: medicine, sci.space: space}\n"
        "search:\n  trials: 5\n"
    )
    return tmp_path


def test_command_line_beats_experiment_beats_defaults(mine):
    composed = compose(["experiment=mine", "search.trials=6"], str(mine))
    assert composed.config.search.trials == 6
    assert composed.config.lora.rank == 3
    assert composed.config.optim.lr == 1e-3


def test_every_key_of_the_schema_can_be_overridden_without_a_plus():
    composed = compose(["model.revision=abc", "optim.beta2=0.99", "data.group=gender"])
    assert composed.config.model.revision == "abc"
    assert composed.config.optim.beta2 == 0.99
    assert composed.config.data.group == "gender"


def test_plus_signs_are_accepted_where_hydra_users_put_them():
    assert compose(["+experiment=quickstart", "++lora.dropout=0.1"]).config.lora.dropout == 0.1


def test_interpolations_are_resolved_after_sampling(mine):
    composed = compose(["experiment=mine", *SIZED], str(mine))
    assert composed.config.lora.alpha_value == 6.0
    assert composed.trial("t0001", {"lora.rank": 32}).lora.alpha_value == 64.0
    assert composed.trial("t0002", {"lora.rank": 4}).lora.alpha_value == 8.0


@pytest.mark.parametrize("rule", ["fixed", "ratio", "sqrt"])
def test_the_default_alpha_value_follows_the_sampled_rule(rule):
    """Whatever the rule, the adapter's factor at rank 8 is about 2."""
    lora = compose(SIZED).trial("t0000", {"lora.alpha_rule": rule, "lora.rank": 8}).lora
    factor = {"fixed": lora.alpha_value / 8, "ratio": lora.alpha_value, "sqrt": lora.alpha_value / 8**0.5}[rule]
    assert factor == pytest.approx(2, abs=0.2)


def test_a_trial_is_independent_of_the_one_before():
    composed = compose(SIZED)
    composed.trial("t0000", {"lora.rank": 32, "optim.lr": 0.5})
    assert composed.trial("t0001", {"lora.rank": 4}).optim.lr == 1e-3


def test_rungs_follow_the_number_of_steps():
    assert compose(["train.max_steps=100"]).config.train.rungs == [25, 50, 100]
    assert compose(["train.max_steps=10"]).config.train.rungs == [5, 10]
    assert compose(["train.max_steps=7"]).config.train.rungs == [7]


def test_the_length_is_named_once():
    with pytest.raises(ConfigError, match=r"train\.epochs=3 and train\.max_steps=10 both"):
        compose(["train.epochs=3", "train.max_steps=10"])
    with pytest.raises(ConfigError, match=r"Use train\.max_steps=12"):
        compose(["train.epochs=3", "train.rungs=[4,12]"])
    assert compose(["train.rungs=[4,12]"]).config.train.max_steps == 12


@pytest.mark.parametrize("time", ["soon", "15", "m", "0m"])
def test_a_time_that_cannot_be_read_is_refused(time):
    with pytest.raises(ConfigError, match=rf"search\.time={time}: expected a time such as 90s, 15m"):
        compose([f"search.time={time}"])


def test_a_sampled_value_is_checked_like_any_other():
    with pytest.raises(ConfigError, match=r"lora\.rank=0 .*at least 1.*sampled for t0003"):
        compose(SIZED).trial("t0003", {"lora.rank": 0})
    with pytest.raises(ConfigError, match=r"'lora\.ranks'.*'lora\.rank'"):
        compose(SIZED).trial("t0003", {"lora.ranks": 4})
    with pytest.raises(ConfigError, match="accumulation=3 does not divide"):
        compose(SIZED).trial("t0003", {"train.accumulation": 3})


def test_the_seed_of_the_sweep_is_the_seed_of_its_trials_unless_searched():
    composed = compose(["sweep.seed=7", *SIZED])
    assert composed.trial("t0000", {}).seed == 7
    assert composed.trial("t0000", {"seed": 9}).seed == 9


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["experiment=quickstart"], "quickstart"),
        ([], "completion-smollm2-newsgroups"),
        (["task=classification", "model=minilm"], "classification-minilm-newsgroups"),
        (["model=local", "model.path=/x/my model"], "completion-my_model-newsgroups"),
        (["data=csv", "data.train=/x/reviews.csv", "data.validation=b"], "completion-smollm2-reviews"),
        (["experiment=quickstart", "sweep.name=second"], "second"),
    ],
)
def test_the_sweep_has_a_stable_name_that_tells_what_it_is(overrides, name):
    assert compose(overrides).config.sweep.name == name
    assert compose(overrides).config.sweep.name == name


def test_relative_paths_start_where_the_command_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["model=local", "model.path=m", "data=csv", "data.train=a.csv", "data.validation=/b.csv", *SIZED]
    composed = compose(overrides)
    monkeypatch.chdir("/")
    trial = composed.trial("t0000", {})
    assert (trial.model.path, trial.data.train, trial.data.validation) == (
        str(tmp_path / "m"),
        str(tmp_path / "a.csv"),
        "/b.csv",
    )
    assert composed.config.sweep.dir == str(tmp_path / "runs")


def test_environment_variables_are_read_once_where_the_command_is_run(monkeypatch):
    monkeypatch.setenv("MY_PROJECT", "alpha")
    composed = compose(["tracking.project=${oc.env:MY_PROJECT}-x", "tracking.entity=${oc.env:NOT_SET,me}", *SIZED])
    monkeypatch.delenv("MY_PROJECT")
    assert composed.trial("t0000", {}).trial_id == "t0000"
    assert composed.config.tracking.project == "alpha-x"
    assert composed.config.tracking.entity == "me"


def test_a_mapping_on_the_command_line_replaces():
    topics = "data.topics={sci.med: medicine, sci.space: space}"
    assert compose(["experiment=quickstart", topics]).config.data.topics == {
        "sci.med": "medicine",
        "sci.space": "space",
    }


def test_a_composed_sweep_is_plain_data(mine):
    composed = compose(["experiment=mine", *SIZED], str(mine))
    again = pickle.loads(pickle.dumps(composed))
    assert again == composed
    assert again.trial("t0000", {"lora.rank": 4}) == composed.trial("t0000", {"lora.rank": 4})
    assert type(composed.config.data.topics) is dict
    assert type(composed.config.train.rungs) is list
    assert yaml.safe_load(yaml.safe_dump(composed.resolved())) == composed.resolved()


def test_the_printed_config_holds_every_key_and_keeps_interpolations():
    composed = compose(["experiment=quickstart"])
    printed = yaml.safe_load(composed.yaml())
    for path in schema():
        value = printed
        for part in path.split("."):
            value = value[part]
    assert "pick:" in printed["lora"]["alpha_value"]
    assert yaml.safe_load(composed.yaml(resolve=True))["lora"]["alpha_value"] == 2.0


def test_a_stored_sweep_comes_back_with_its_interpolations(mine):
    composed = compose(["experiment=mine", "lora.alpha_rule=fixed", *SIZED], str(mine))
    stored = yaml.safe_load(yaml.safe_dump(composed.unresolved()))
    again = Composed.from_stored(stored)
    assert again.config == composed.config
    assert again.space == composed.space
    assert again.trial("t1", {"lora.rank": 16}) == composed.trial("t1", {"lora.rank": 16})


def test_resume_changes_how_much_and_where_but_not_what():
    stored = compose(["experiment=quickstart"]).unresolved()
    overrides = ["search.trials=20", "tracking=none", "ray.address=auto", "resources.threads=2"]
    config = Composed.from_stored(stored, overrides).config
    assert (config.search.trials, config.tracking.mode, config.ray.address) == (20, "disabled", "auto")
    for override in (
        "lora.rank=8",
        "space.lora.rank.choices=[2]",
        "model=minilm",
        "sweep.name=x",
        "optim.lr=choice(1,2)",
    ):
        with pytest.raises(ConfigError, match="cannot change when a sweep is resumed"):
            Composed.from_stored(stored, [override])


def test_a_key_set_on_the_command_line_is_not_searched():
    composed = compose(["experiment=quickstart_classifier", "lora.rank=8", "precision=bf16"])
    assert set(composed.space) == {"lora.alpha_rule", "optim.lr"}
    assert composed.trial("t0", {}).precision == "bf16"
    assert composed.start == [{"lora.alpha_rule": "ratio", "optim.lr": 1e-3}]
    assert any("lora.rank=8" in note for note in composed.notes)


def test_searched_values_on_the_command_line_replace_the_entry_of_the_space():
    composed = compose(["lora.rank=choice(2,4)", "optim.lr=interval(0.001,0.01)", "lora.dropout=range(0,0.3,0.1)"])
    assert composed.space["lora.rank"] == Choices((2, 4))
    assert (composed.space["optim.lr"].low, composed.space["optim.lr"].log) == (0.001, False)
    assert composed.space["lora.dropout"].high == pytest.approx(0.2)
    assert compose(["optim.lr=tag(log,interval(1e-5,1e-2))"]).space["optim.lr"].log is True


@pytest.mark.parametrize("removal", ["~space.lora.rank", "space.lora.rank=null"])
def test_an_entry_can_be_taken_out_of_the_space(removal):
    composed = compose(["experiment=quickstart", removal])
    assert "lora.rank" not in composed.space
    assert "lora.rank" not in composed.start[0]


def test_start_points_are_adapted_when_the_command_line_changes_the_space_but_not_otherwise():
    composed = compose(["experiment=quickstart_classifier", "space.lora.rank.choices=[2]"])
    assert composed.start == []
    assert any("Left out" in note and "lora.rank=8" in note for note in composed.notes)
    with pytest.raises(ConfigError, match=r"start_from\[0\]: lora\.rank=5 is outside the space"):
        compose(["experiment=quickstart", "search.start_from=[{lora.rank: 5}]"])
    with pytest.raises(ConfigError, match=r"'lora\.ranks' is not in the search space.*'lora\.rank'"):
        compose(["search.start_from=[{lora.ranks: 8}]"])
    with pytest.raises(ConfigError, match="counts them too"):
        compose(["search.trials=1", "search.start_from=[{lora.rank: 8}, {lora.rank: 16}]"])


def test_nested_start_points_are_read_like_dotted_ones():
    assert compose(["search.start_from=[{lora: {rank: 8}}]"]).start == [{"lora.rank": 8}]


def test_precisions_are_restricted_to_the_machine_with_a_note_unless_asked_for():
    composed = compose(["space.precision.choices=[fp32,bf16,nf4]", "search.start_from=[{precision: fp32}]"])
    composed = replace(composed, explicit=()).on_machine(["bf16"])
    assert composed.space["precision"] == Choices(("bf16",))
    assert composed.start == []  # the point asked fp32
    assert any("fp32, nf4" in note for note in composed.notes)
    assert composed.resolved()["space"]["precision"] == {"choices": ["bf16"]}
    with pytest.raises(HardwareError, match="cannot do nf4"):
        compose(["space.precision.choices=[fp32,nf4]"]).on_machine(["fp32", "bf16"])
    with pytest.raises(HardwareError, match="precision=nf4"):
        compose(["precision=nf4"]).on_machine(["fp32", "bf16"])
    with pytest.raises(HardwareError, match="can do none"):
        compose([]).on_machine([])


def test_a_precision_that_takes_many_times_as_long_is_searched_only_where_it_is_asked_for():
    able, slow = ["fp32", "bf16", "nf4"], {"bf16": 33.0}
    composed = compose(
        ["space.precision.choices=[fp32,bf16,nf4]", "search.start_from=[{precision: bf16}, {precision: nf4}]"]
    )
    left = replace(composed, explicit=()).on_machine(able, slow)
    assert left.space["precision"] == Choices(("fp32", "nf4"))
    assert left.start == [{"precision": "nf4"}]
    assert left.notes[-1] == (
        "Not searched: precision bf16, which takes 33 times as long as fp32 on this machine (precision=bf16 takes it)."
    )
    for asked in ("precision=bf16", "precision=choice(fp32,bf16)", "space.precision.choices=[bf16]"):
        kept = compose([asked]).on_machine(able, slow)
        assert kept.space == compose([asked]).space, asked
        assert kept.notes[-1] == "precision=bf16 takes 33 times as long as fp32 on this machine."
    searched = compose(["space=precision"])
    assert searched.on_machine(["bf16"], slow).space["precision"] == Choices(("bf16",))


def test_auto_is_bf16_where_the_machine_is_fast_at_it():
    def chosen(available, slow=None):
        return compose(SIZED[:2]).on_machine(available, slow or {}).trial("t0000", {}).precision

    assert chosen(["fp32", "bf16", "nf4"]) == "bf16"
    assert chosen(["fp32", "bf16"], {"bf16": 33.0}) == "fp32"
    assert chosen(["fp32"]) == "fp32"


def terms(*overrides: str) -> set[str]:
    return set(compose(overrides).config.objective.terms)


def test_bias_is_measured_and_weighed_where_it_can_be():
    assert compose([]).config.bias.crows_pairs > 0
    assert compose(["task=classification", "model=minilm"]).config.bias.crows_pairs == 0
    assert "bias" in terms()
    assert "bias" not in terms("task=classification", "model=minilm")
    assert terms("bias=none") == terms() - {"bias"}
    assert terms("objective.terms.bias.weight=0") == terms() - {"bias"}


def test_a_user_s_folder_adds_options_and_hides_none(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "tiny.yaml").write_text("lora:\n  rank: {choices: [1, 2]}\n")
    assert compose(["space=tiny"], str(tmp_path)).space == {"lora.rank": Choices((1, 2))}
    (tmp_path / "space" / "lora.yaml").write_text("lora:\n  rank: {choices: [1, 2]}\n")
    with pytest.raises(ConfigError, match="Rename it"):
        compose([], str(tmp_path))


def test_the_dataclass_defaults_alone_make_the_same_keys_as_the_files():
    assert set(dataclasses.asdict(SweepConfig())) == set(compose([]).resolved())


@pytest.mark.parametrize("space", sorted(path.stem for path in (Path(conf.__file__).parent / "space").glob("*.yaml")))
def test_a_trials_config_is_the_same_the_short_way_and_the_long_way(space, monkeypatch):
    """The short way puts plain values in; the long way resolves the whole config with all sampled values."""
    composed = compose([f"space={space}", *SIZED, *(["task=classification"] if space == "classifier" else [])])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    sampled = [suggest(composed.space, study.ask()) for _ in range(8)]
    short = [composed.trial("t0000", values) for values in sampled]
    assert len(composed.template._resolved) < len(sampled)
    monkeypatch.setattr(TrialTemplate, "_followed", frozenset(searchable()))
    assert [replace(composed).trial("t0000", values) for values in sampled] == short


def test_an_adapters_settings_alone_are_those_of_the_trial_whatever_was_asked_before():
    relative = ["lora.alpha_rule=fixed", "lora.alpha_value=${.rank}"]
    for words in ([], relative):
        template = compose(["space=wide", *words, *SIZED]).template
        rules = ["fixed"] if words else ["fixed", "ratio", "sqrt"]
        asked = [{"lora.rank": rank, "lora.alpha_rule": rule} for rank in (4, 16) for rule in rules]
        alone = [template.lora(values) for values in (*asked, *reversed(asked))]
        whole = [template.trial("t0000", values).lora for values in asked]
        assert alone == [*whole, *reversed(whole)]
        assert len({(it.rank, it.alpha_value) for it in whole}) == len(asked)
        assert template.lora({}) == template.config.lora, "as if nothing had been asked"


def test_what_follows_a_sampled_key_follows_it_relatively_too():
    assert (
        compose(["lora.rank=choice(4,8)", "train.batch_size=${lora.rank}", *SIZED])
        .trial("t0000", {"lora.rank": 8})
        .train.batch_size
        == 8
    )
    assert (
        compose(["lora.rank=choice(4,8)", "lora.alpha_value=${.rank}", *SIZED])
        .trial("t0000", {"lora.rank": 4})
        .lora.alpha_value
        == 4
    )


def test_a_term_without_a_range_has_the_metrics_own():
    def range_of(metric: str, more: str = "") -> list[float]:
        return compose([f"+objective.terms.x={{metric: {metric}{more}}}"]).config.objective.terms["x"].range

    assert range_of("bias.crows_pairs.distance", ", direction: min") == [0.0, 50.0]
    assert range_of("mcc") == [-1.0, 1.0]
    assert range_of("accuracy") == [0.0, 1.0]
    assert range_of("perplexity") == [1.0, 100.0]
    assert range_of("mcc", ", range: [0.2, 0.9]") == [0.2, 0.9]
