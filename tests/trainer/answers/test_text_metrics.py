"""The columns, figures and refusals of all metrics of written answers together."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import ConfigError
from analysis.metrics import METRICS
from trainer.answers.answer import Answer
from trainer.answers.labels_in_text import label_in
from trainer.answers.style import REFUSALS, refusal, repetition
from trainer.answers.text_metrics import absent, check, columns, figures
from trainer.config import EvalConfig


def answers_of(pairs: Sequence[tuple[str, str]], **row: Any) -> list[Answer]:
    return [Answer(f"i{i}", "", reference, text, 3, True, row) for i, (text, reference) in enumerate(pairs)]


@pytest.fixture
def settings(tmp_path: Path) -> EvalConfig:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["a"]}')
    return EvalConfig(regex=r"(\d+)", json_schema=str(schema), run_code=True, code_tests="tests")


def test_which_items_have_a_value_is_decided_by_the_reference_alone(
    odd: list[tuple[str, str]], settings: EvalConfig
) -> None:
    given = columns(answers_of(odd), settings)
    others = columns(answers_of([("", reference) for _, reference in odd]), settings)
    assert given.keys() == others.keys()
    for name in given.keys() - {"bleu", "chrf"}:
        there = [not math.isnan(x) for x in given[name]]
        assert there == [not math.isnan(x) for x in others[name]], name
        assert all(0.0 <= x <= 1.0 for x in given[name] if not math.isnan(x)), name


def test_every_metric_of_the_table_has_its_column_and_a_figure(settings: EvalConfig) -> None:
    pairs = [("The answer is B. 5", "B) 5"), ('{"a": 5}', '{"a": 5}'), ("x = 1", "x = 1")]
    table: dict[str, list[Any]] = {"n_tokens": [3, 4, 5], "finished": [True, True, False]}
    table |= columns(answers_of(pairs, tests="assert x == 1"), settings)
    found = figures(table)
    assert set(found) == {
        name for name, m in METRICS.items() if name.startswith("generate.") and "chat" in m.tasks and not m.own
    } - {"generate.judge", "generate.judge.consistency"}
    assert all(map(math.isfinite, found.values()))
    expected = {"choice": 1.0, "number": 1.0, "regex": 1.0, "json_valid": 1 / 3, "json_schema": 1 / 3, "json_f1": 1.0}
    expected |= {"code": 1 / 3, "length": 4.0, "finished": 2 / 3, "exact_match": 2 / 3}
    assert {name: found[f"generate.{name}"] for name in expected} == pytest.approx(expected)


def test_the_text_of_the_right_option_counts_as_its_letter() -> None:
    pairs = [("Paris.", "B) Paris"), ("Bern", "B) Paris"), ("A", "B) Paris"), ("Paris", "B")]
    assert columns(answers_of(pairs), EvalConfig())["choice"] == [1.0, 0.0, 0.0, 0.0]


def test_rows_with_labels_have_the_label_that_stands_in_the_text() -> None:
    given = columns(
        answers_of([("It is sport.", "sport"), ("art", "sport"), ("none", "art")]), EvalConfig(), ("sport", "art")
    )
    assert given == {"label_in_text": [1.0, 0.0, 0.0], "no_label": [0.0, 0.0, 1.0]}
    assert figures({"n_tokens": [1, 1, 1], **given}) == pytest.approx(
        {"generate.label_in_text": 1 / 3, "generate.no_label": 1 / 3, "generate.length": 1.0}
    )


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I would say Sport.", "sport"), ("sports", None), ("winter sport it is", "winter sport"),
        ("sport or art", None),
        ("art\nsport", "art"), ("", None), ("US", "US"), ("us", "us"), ("Us", None), ("C++ of course", "C++"),
        ("C+", None),
        ("sport, sport", "sport"),
    ],
)  # fmt: skip
def test_the_one_label_in_the_first_line(text: str, label: str | None) -> None:
    assert label_in(text, ("sport", "winter sport", "art", "US", "us", "C++")) == label


def test_what_rows_and_config_cannot_give_is_told() -> None:
    why = absent(["日本", "はい"], [{}, {}], EvalConfig(run_code=True, code_tests="tests", regex="(x)"))
    assert why == {
        "generate.choice": "no reference names one of A … J",
        "generate.number": "no reference has a number",
        "generate.regex": "eval.regex=(x) finds nothing in any reference",
        "generate.json_valid": "no reference is a JSON object or array, and eval.json_schema is not given",
        "generate.json_schema": "eval.json_schema is not given",
        "generate.json_f1": "no reference is a JSON object or array",
        "generate.rouge_1": "no reference has words of ASCII letters or digits, which ROUGE counts",
        "generate.rouge_2": "no reference has two words of ASCII letters or digits",
        "generate.rouge_l": "no reference has words of ASCII letters or digits, which ROUGE counts",
        "generate.code": "no row has tests in its column tests, eval.code_tests",
    }
    pairs = [("x", "日本"), ("y", "はい")]
    found = figures(columns(answers_of(pairs), EvalConfig()))
    gone = {name for name, value in found.items() if math.isnan(value)}
    assert gone == set(why) - {"generate.regex", "generate.json_schema", "generate.code"}
    assert absent(
        ["日本", 'B) {"a": 1} b'], [{}, {"t": "assert 1"}], EvalConfig(run_code=True, code_tests="t", regex="(a)")
    ) == {"generate.json_schema": "eval.json_schema is not given"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"regex": "("}, "eval.regex='(': not a regular expression"), ({"regex": "x"}, "eval.regex='x' has no group"),
        ({"json_schema": "/no/such"}, "eval.json_schema=/no/such: no such file"),
        ({"code_tests": "t"}, "eval.code_tests=t with eval.run_code=false"),
        ({"run_code": True}, "eval.run_code=true without eval.code_tests"),
        ({"choices": ["A"]}, "eval.choices=['A']: expected at least two"),
        ({"choices": ["yes", "Yes"]}, "expected at least two different options"),
    ],
)  # fmt: skip
def test_what_no_row_can_mend_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(EvalConfig(**keys))
    assert message in str(refused.value)


def test_repetition_is_the_share_of_runs_of_four_that_stood_before() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("go " * 100) == pytest.approx(1 - 1 / 97)
    assert (repetition(""), repetition("a b c"), repetition("a b c d e")) == (0.0, 0.0, 0.0)
    assert repetition("我们我们我们我们") == pytest.approx(1 - 2 / 5), "characters of scripts without spaces"


def test_a_refusal_begins_with_a_phrase_of_the_list() -> None:
    assert refusal("I’m sorry, but I can’t help with that.") == refusal("对不起，我无法回答。") == 1.0
    assert refusal("I’m unable to say.") == 1.0
    assert refusal("Es tut mir leid,\naber das geht nicht.") == 1.0
    assert refusal("Paris.") == refusal("") == refusal("x" * 300 + " I cannot help with that") == 0.0
    assert all(phrase == phrase.lower().replace("’", "'") for phrase in REFUSALS)
