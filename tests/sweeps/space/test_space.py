"""The search space: what is read, refused, drawn, and made smaller."""

import pickle

import optuna
import pytest

from analysis.errors import ConfigError, HardwareError
from sweeps.space.dimensions import Choices, DefineByRun, Uniform, distributions, suggest, validate_point
from sweeps.space.parse import parse_space, searchable, to_group
from sweeps.space.restrict import fix, restrict_precisions

CONDITIONAL = {
    "lora": {
        "alpha_value": {"low": 1, "high": 32, "log": True, "when": {"lora.alpha_rule": "fixed"}},
        "alpha_rule": {"choices": ["fixed", "ratio"]},
        "rank": {"low": 4, "high": 16, "step": 4},
        "dropout": {"choices": [0, 0.1], "when": {"lora": {"alpha_value": [1.0]}, "lora.rank": [8, 16]}},
    },
    "optim": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    "precision": {"choices": ["fp32", "nf4"]},
}
WRONG = [
    ({"lora": {"ranks": {"choices": [2]}}}, ["'lora.ranks' is not a config path", "'lora.rank'"]),
    ({"lora": {"rank": {"choices": []}}}, ["space.lora.rank", "at least one"]),
    ({"lora": {"rank": {"choices": 4}}}, ["space.lora.rank", "list"]),
    ({"lora": {"rank": {"choices": [4, 4]}}}, ["twice"]),
    ({"lora": {"rank": {"choices": [0]}}}, ["space.lora.rank=0", "at least 1"]),
    ({"lora": {"rank": {"choices": [2.5]}}}, ["2.5 is not a whole number"]),
    ({"lora": {"rank": {"choices": ["8"]}}}, ["'8' is not a whole number"]),
    ({"lora": {"rank": {"choices": [True]}}}, ["True is not a whole number"]),
    ({"lora": {"rank": {"low": 1, "high": 8.5}}}, ["8.5 is not a whole number"]),
    ({"lora": {"rank": {"low": 1}}}, ["both low: and high:"]),
    ({"lora": {"rank": {"low": 1, "high": 8, "choices": [4]}}}, ["choices and low", "lora.rank=choice("]),
    ({"lora": {"rank": {"low": 1, "high": 8, "setp": 2}}}, ["'setp'", "'step'"]),
    ({"lora": {"rank": {"low": 1, "high": 8, "step": 2}}}, ["not reached"]),
    ({"lora": {"rank": {"low": 1, "high": 8, "step": 0}}}, ["step=0"]),
    ({"lora": {"rank": {"low": 1, "high": 8, "step": 1.5}}}, ["whole number"]),
    ({"lora": {"rank": {"low": 1, "high": 8, "step": 1, "log": True}}}, ["log and step"]),
    ({"lora": {"rank": {"low": 8, "high": 8}}}, ["not below"]),
    ({"lora": {"rank": [4, 8]}}, ["expected choices"]),
    ({"lora": 3}, ["space.lora=3", "keys below"]),
    ({"lora": {"dropout": {"low": 0.0, "high": 0.5, "log": True}}}, ["low above 0"]),
    ({"lora": {"dropout": {"low": 0.0, "high": 0.99}}}, ["space.lora.dropout=0.99", "at most 0.95"]),
    ({"lora": {"alpha_rule": {"low": 0, "high": 1}}}, ["for numbers", "choices"]),
    ({"lora": {"alpha_rule": {"choices": ["fixd"]}}}, ["'fixd'", "'fixed'"]),
    ({"optim": {"lr": {"low": 1e-4, "high": 1e-2, "log": "yes"}}}, ["log='yes'", "true or false"]),
    ({"precision": {"choices": ["fp16"]}}, ["'fp16'"]),
    ({"eval": {"rung_items": {"choices": [8, 16]}}}, ["'eval.rung_items' cannot be searched", "same items"]),
    ({"model": {"path": {"choices": ["a", "b"]}}}, ["'model.path' cannot be searched", "one base model"]),
    ({"search": {"trials": {"choices": [8, 16]}}}, ["'search.trials' cannot be searched"]),
    ({"train": {"rungs": {"choices": [8, 16]}}}, ["'train.rungs' cannot be searched"]),
    ({"lora": {"rank": {"choices": [4], "when": 3}}}, ["when=3"]),
    ({"lora": {"rank": {"choices": [4], "when": {"lora.alpha_rul": "fixed"}}}}, ["'lora.alpha_rul'", "not search"]),
]


@pytest.mark.parametrize(("group", "words"), WRONG)
def test_a_wrong_space_is_refused_with_path_place_and_reason(group, words):
    with pytest.raises(ConfigError) as caught:
        parse_space(group, lambda path: f"here: {path}")
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "here: " in message


def test_conditions_that_cannot_hold_are_refused():
    rule = {"choices": ["fixed", "ratio"]}
    with pytest.raises(ConfigError, match=r"never comes: lora\.alpha_rule is one of fixed, ratio"):
        parse_space({"lora": {"rank": {"choices": [4], "when": {"lora.alpha_rule": "sqrt"}}, "alpha_rule": rule}})
    circle = {
        "rank": {"choices": [4], "when": {"lora.alpha_rule": "fixed"}},
        "alpha_rule": {**rule, "when": {"lora.rank": 4}},
    }
    with pytest.raises(ConfigError, match="in a circle"):
        parse_space({"lora": circle})


def test_a_space_is_flat_typed_and_ordered_so_that_conditions_come_first():
    space = parse_space(CONDITIONAL)
    order = list(space)
    assert order.index("lora.alpha_rule") < order.index("lora.alpha_value") < order.index("lora.dropout")
    assert space["lora.rank"] == Uniform(4, 16, step=4, integer=True)
    assert space["lora.dropout"].values == (0.0, 0.1)
    assert type(space["lora.dropout"].values[0]) is float
    shuffled = {
        name: dict(reversed(list(part.items()))) if name == "lora" else part for name, part in CONDITIONAL.items()
    }
    assert list(parse_space(dict(reversed(list(shuffled.items()))))) == order


def test_a_space_survives_the_way_to_the_sweep_folder_and_back():
    space = parse_space(CONDITIONAL)
    assert parse_space(to_group(space)) == space


def test_null_takes_an_entry_out():
    assert list(parse_space({"lora": {"rank": None, "alpha_rule": {"choices": ["fixed"]}}, "optim": None})) == [
        "lora.alpha_rule"
    ]


def test_only_what_leaves_trials_comparable_is_searchable():
    paths = searchable()
    assert {"lora.rank", "optim.lr", "train.batch_size", "precision", "seed", "task.prompt", "data.max_length"} <= set(
        paths
    )
    assert not {path for path in paths if path.startswith(("model.", "eval.", "bias.", "data.t"))}


def draw(space, n=200):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [(suggest(space, trial), trial) for trial in (study.ask() for _ in range(n))]


def test_points_are_drawn_inside_the_space_and_honour_conditions():
    space = parse_space(CONDITIONAL)
    points = draw(space)
    for values, trial in points:
        assert values == trial.params
        assert values["lora.rank"] in (4, 8, 12, 16)
        assert type(values["lora.rank"]) is int
        assert 1e-4 <= values["optim.lr"] <= 1e-2
        assert ("lora.alpha_value" in values) == (values["lora.alpha_rule"] == "fixed")
        assert "lora.dropout" not in values  # alpha_value is never exactly 1.0 here
    assert sum(values["optim.lr"] < 1e-3 for values, _ in points) == pytest.approx(100, abs=30)  # half, on a log scale


def test_a_key_that_depends_on_an_inactive_one_is_inactive():
    space = parse_space(
        {
            "lora": {"alpha_rule": {"choices": ["fixed", "ratio"]}},
            "optim": {
                "schedule": {"choices": ["linear", "constant"], "when": {"lora.alpha_rule": "fixed"}},
                "warmup": {"choices": [0.0, 0.1], "when": {"optim.schedule": "linear"}},
            },
        }
    )
    for values, _ in draw(space, 60):
        assert ("optim.warmup" in values) == (values.get("optim.schedule") == "linear")


def test_the_space_can_be_sent_to_another_process():
    space = parse_space(CONDITIONAL)
    again = pickle.loads(pickle.dumps(DefineByRun(space)))
    trial = optuna.create_study().ask()
    assert again(trial) == trial.params


def test_distributions_accept_what_was_suggested():
    """``study.add_trial`` refuses parameters whose distribution does not hold them."""
    space = parse_space(CONDITIONAL)
    table, study = distributions(space), optuna.create_study()
    for values, trial in draw(space, 20):
        chosen = {path: table[path] for path in values}
        assert chosen == trial.distributions
        study.add_trial(optuna.trial.create_trial(params=values, distributions=chosen, value=0.0))


def test_a_known_good_point_is_checked_against_the_space():
    space = parse_space(CONDITIONAL)
    assert validate_point(space, {"optim": {"lr": 1e-3}, "lora.rank": 8}) == {"lora.rank": 8, "optim.lr": 1e-3}
    read = validate_point(space, {"lora.alpha_value": 4, "lora.alpha_rule": "fixed"})
    assert type(read["lora.alpha_value"]) is float
    for point, words in [
        ({"lora.rank": 6}, "outside the space: expected from 4 to 16 in steps of 4"),
        ({"lora.rank": 8.0}, "outside the space"),
        ({"optim.lr": 1.0}, "outside the space"),
        ({"precision": "int8"}, "one of fp32, nf4"),
        ({"lora.targets": "attention"}, "not in the search space"),
        ({"lora.alpha_value": 4.0}, "only searched when lora.alpha_rule is fixed"),
        ({"lora.alpha_value": 4.0, "lora.alpha_rule": "ratio"}, "only searched when"),
    ]:
        with pytest.raises(ConfigError, match=words):
            validate_point(space, point)


def test_fixing_a_key_decides_the_conditions_on_it():
    space = parse_space(CONDITIONAL)
    assert fix(space, {"lora.alpha_rule": "fixed"})["lora.alpha_value"].when == {}
    left = fix(space, {"lora.alpha_rule": "ratio"})
    assert set(left) == {"lora.rank", "optim.lr", "precision"}  # dropout depended on alpha_value


def test_a_default_space_shrinks_to_the_machine_and_says_so():
    space = parse_space({"precision": {"choices": ["fp32", "bf16", "nf4"]}, "lora": {"rank": {"choices": [4]}}})
    left, note = restrict_precisions(space, ["fp32", "bf16"], explicit=False)
    assert left["precision"] == Choices(("fp32", "bf16"))
    assert "nf4" in note
    assert restrict_precisions(space, ["fp32", "bf16", "int8", "nf4"], explicit=True) == (space, "")
    with pytest.raises(HardwareError, match="cannot do nf4"):
        restrict_precisions(space, ["fp32", "bf16"], explicit=True)
    with pytest.raises(HardwareError, match="cannot do fp32, bf16, nf4"):
        restrict_precisions(space, ["int8"], explicit=False)


def test_what_depends_on_a_precision_that_is_left_out_goes_with_it():
    space = parse_space(
        {
            "precision": {"choices": ["fp32", "nf4"]},
            "lora": {"dropout": {"choices": [0.0, 0.1], "when": {"precision": "nf4"}}},
            "optim": {"lr": {"low": 1e-4, "high": 1e-3, "when": {"precision": ["fp32", "nf4"]}}},
        }
    )
    left, _ = restrict_precisions(space, ["fp32"], explicit=False)
    assert set(left) == {"precision", "optim.lr"}
    assert left["optim.lr"].when == {"precision": ("fp32",)}
