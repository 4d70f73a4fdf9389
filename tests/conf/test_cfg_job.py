"""What ``--cfg job`` prints is what version 0.1.0 printed: every key, with the same value, and no other key.

``before_rooms/`` holds what that version printed for every experiment and for some other choices of groups, with the
command in the first line; of an experiment that came later, what was printed when it came. A change of a default, or a
new key, is named here.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps import cli
from sweeps.compose import conf_tree
from sweeps.compose.stored import current_target

STORED = sorted((Path(__file__).parent / "before_rooms").glob("*.yaml"))
NEW = (  # keys that 0.1.0 did not have, and what is below them
    "tracking.trackers",
    "tracking.uri",
    "search.time",
    "search.transfer_from",
    "scheduler.keep_best",
    "train.epochs",
    "train.patience",
    "lora.init",
    "optim.head_lr",
    "optim.head_ratio",
    "optim.b_ratio",
    "train.class_weight",
    "resources.max_devices",
    "resources.wait",
    "resources.idle_seconds",
    "resources.niceness",
    "data.tools",
    "engine.sharding",
    "engine.pass_cost",
    "resources.workers_per_trial",
    "bias.group_rows",
    "data.extra_columns",
    "tracking.answers",
    "objective.terms.written",
    "eval.generate_items",
    "eval.generate_final_items",
    "eval.stop",
    "eval.temperature",
    "eval.top_p",
    "eval.turns",
    "eval.references",
    "eval.number_tolerance",
    "eval.regex",
    "eval.json_schema",
    "eval.choices",
    "eval.run_code",
    "eval.code_tests",
    "eval.metrics",
    "eval.judge",
)
CHANGED = [  # key, what it was in 0.1.0, and what it is now
    ("data.max_length", 128, 0),
    ("train.max_steps", 48, 0),
    ("precision", "fp32", "auto"),
    ("train.rungs", [5, 20], [10, 20, 40]),  # of the quickstart
    ("train.max_steps", 20, 40),
    ("objective.ties", "cost", "score"),
    # of the quickstart's classifier, whose head has twenty times the adapters' rate now
    ("space.optim.lr.low", 5e-4, 2e-4),
    ("space.optim.lr.high", 8e-3, 4e-3),
    (
        "search.start_from",
        [{"lora.rank": 8, "lora.alpha_rule": "ratio", "optim.lr": 2e-3}],
        [{"lora.rank": 8, "lora.alpha_rule": "ratio", "optim.lr": 1e-3}],
    ),
]
_DECODER = "${pick:${task.name},{completion:%s,classification:0.0}}"
_SCHEMA = "${pick:${data.schema},{label:%s,completion:%s,chat:%s,text:%s}}"
_BIAS = "${pick:${bias.name},{fast:%s,full:%s,none:0.0}}"
_LIGHT = _SCHEMA % ("0.05", "0.05", "0.05", "0.25")
CHANGED += [  # of objective=balanced: what perplexity and bias weigh where there are labels
    (
        "objective.terms.language.weight",
        *(_DECODER % (_SCHEMA % (weight, weight, weight, "1.0")) for weight in ("0.25", "0.05")),
    ),
    ("objective.terms.bias.weight", *(_DECODER % (_BIAS % (weight, weight)) for weight in ("0.25", _LIGHT))),
]
_BY_SCHEMA = "${pick:${data.schema},{label:%s,completion:%s,chat:%s,text:%s}}"
_TO_8 = "[0.0,8.0]"
CHANGED += [  # of objective=single: they come from the metric
    ("objective.terms.quality.direction", _BY_SCHEMA % ("max", "min", "min", "min"), "max"),
    ("objective.terms.quality.range", _BY_SCHEMA % ("[0.0,1.0]", _TO_8, _TO_8, _TO_8), [0.0, 1.0]),
]
_WRITTEN = "${pick:${eval.references},{auto:%s,short:%s,long:%s}}"
_TOKEN_F1 = _WRITTEN % ("generate.token_f1", "generate.token_f1", "completion_loss")
_LOSS = _WRITTEN % ("0.0", "0.0", "1.0")
CHANGED += [  # answers are written
    ("eval.generate", False, "auto"),
    ("eval.max_new_tokens", 32, None),
    (
        "objective.terms.quality.metric",
        _BY_SCHEMA % ("macro_f1", "completion_loss", "completion_loss", "bits_per_byte"),
        _BY_SCHEMA % ("macro_f1", _TOKEN_F1, _TOKEN_F1, "bits_per_byte"),
    ),
    (
        "objective.terms.continuation.weight",
        _BY_SCHEMA % ("0.0", "1.0", "1.0", "0.0"),
        _BY_SCHEMA % ("0.0", _LOSS, _LOSS, "0.0"),
    ),
]
GONE = {"space.precision.choices"}  # of the default space; experiments that had it have it still
# What it was in 0.1.0 where it depends on other keys now: tests of their own say on which.
OTHER = [
    ("baselines", ["zero_shot"]),
    ("search.start_from", []),
    ("search.start_from", [{"lora.rank": 8, "lora.alpha_rule": "ratio", "optim.lr": 1e-3, "precision": "fp32"}]),
]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", current_target(value) if name == "_target_" else value


def test_every_experiment_is_compared() -> None:
    assert {path.stem for path in STORED} >= set(conf_tree.groups()["experiment"])


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.stem)
def test_the_same_is_composed(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, _, text = stored.read_text().partition("\n")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(command.removeprefix("# lorasweep ").split()) == 0
    now = dict(flat(yaml.safe_load(printed.getvalue())))
    before = dict(flat(yaml.safe_load(text.replace("HERE", str(tmp_path)))))
    before = {key: value for key, value in before.items() if not key.startswith(NEW)}  # an experiment that came later
    for key, then, since in CHANGED:
        if before.get(key) == then and now[key] == since:
            before[key] = since
    for key in GONE - now.keys():
        before.pop(key, None)
    for key, then in OTHER:
        if before[key] == then:
            before[key] = now[key]
    assert {key: value for key, value in now.items() if not key.startswith(NEW)} == before
