"""JSON in answers against Python's own reader and ``jsonschema``."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from analysis.errors import ConfigError
from trainer.answers.json_answers import field_f1, json_in, keeps, schema_validator


def value(chooser: random.Random, depth: int = 0) -> Any:
    kinds = ["n", "f", "s", "b", "0"] + ["d", "l"] * (3 - depth)
    kind = chooser.choice(kinds)
    if kind == "d":
        return {chooser.choice("abc{"): value(chooser, depth + 1) for _ in range(chooser.randint(0, 3))}
    if kind == "l":
        return [value(chooser, depth + 1) for _ in range(chooser.randint(0, 3))]
    simple = {"n": 3, "f": 1.5, "s": chooser.choice(["x", "日本 🎉", '"]}', "```", ""]), "b": True, "0": None}
    return simple[kind]


def test_what_python_reads_is_read_alone_in_a_fence_and_inside_text() -> None:
    chooser = random.Random(0)
    for _ in range(500):
        given = {"k": value(chooser), "l": [value(chooser)]}
        text = json.dumps(given, ensure_ascii=False, indent=chooser.choice([None, 2]))
        assert json_in(text) == given
        assert json_in(f"Sure [1], here:\n{text}\nThat is all {{}}.") == given
        if "```" not in text:
            assert json_in(f"Sure:\n```json\n{text}\n```\nDone.") == given
        assert json_in(text[:-1]) != given


@pytest.mark.parametrize(
    "text",
    ["", "5", '"a"', "true", '{"a": 1', "{'a': 1}", '{"a": NaN}', '{"a": Infinity}', "[1, 2,]", "[" * 50000],
)
def test_what_is_no_object_or_array_is_none(text: str) -> None:
    assert json_in(text) is None


def test_fences_that_hold_fences_and_long_broken_text() -> None:
    assert json_in('```\n```json\n{"a": "b"}\n```\n```') == {"a": "b"}
    assert json_in("````md\n```json\n[1]\n```\n````") == [1]
    assert json_in("{" * 100000 + '{"a": 1}') is None, "no more than so many beginnings are tried"
    assert json_in('x { y {"a": 1} z') == {"a": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "f", "arguments": {"a": [1, 2]}', None),  # cut off
        ('{"name": "f", "arguments": {"a": [1, 2], "b": "x', None),
        ('{"a": True, "b": [1, 2]}', None),
        ("{'a': [1, 2]}", None),
        ("{a: [1, 2], b: {}}", None),
        ('[{"a": 1}, {"b": 2}', None),
        ("[[1, 2], [3", None),
        ('Sure: {"a": "}", "b": True, "c": [1]} Or rather [2]', [2]),  # a bracket in a string closes nothing
        (r"\boxed{[1, 2]}", [1, 2]),
        ('as {x} said [see above], {"a": 1}', {"a": 1}),
        ("The set {1, 2} as an array: [1, 2]", [1, 2]),
    ],
)
def test_a_part_of_broken_json_is_not_the_json(text: str, value: Any) -> None:
    assert json_in(text) == value


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, 1.0), ({"a": 1}, {"a": 1, "b": 2}, 2 / 3), ({"a": 1.0}, {"a": 1}, 1.0),
        ({"a": True}, {"a": 1}, 0.0), ({"a": "1"}, {"a": 1}, 0.0), ({"a": " x "}, {"a": "x"}, 1.0),
        (None, {"a": 1}, 0.0),
        ({"a": [1, 2]}, {"a": [2, 1]}, 1.0), ({"a": [1, 1]}, {"a": [1]}, 2 / 3), ({}, {}, 1.0), ([], {}, 0.0),
        ({"a": {"b": 1}}, {"a.b": 1}, 0.0), ({"a": None}, {"a": None}, 1.0), ([{"a": 1}], [{"a": 1}, {"a": 2}], 2 / 3),
        ({"a": 1, "b": 2, "c": 3}, {"a": 1}, 0.5), ({"a": []}, {"a": [0]}, 0.0), ({"a": [1]}, {"a": 1}, 0.0),
    ],
)  # fmt: skip
def test_fields_are_compared_by_path_and_value(answer: Any, reference: Any, f1: float) -> None:
    assert field_f1(answer, reference) == pytest.approx(f1)


SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"k": {"$ref": "#/$defs/thing"}, "l": {"type": "array", "items": {"type": ["number", "null"]}}},
    "required": ["l"],
    "$defs": {"thing": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "object", "maxProperties": 1}]}},
}


def test_a_schema_says_what_jsonschema_says(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    validator, reference = schema_validator(str(file)), jsonschema.Draft202012Validator(SCHEMA)
    chooser, seen = random.Random(1), set()
    for _ in range(300):
        given = {"k": value(chooser), "l": [value(chooser)]} if chooser.random() < 0.9 else {"k": "x"}
        assert keeps(json_in(json.dumps(given)), validator) is reference.is_valid(given)
        seen.add(reference.is_valid(given))
    assert seen == {True, False}
    assert keeps(None, validator) is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"), ("{", "cannot be read as JSON"), ("[]", "a list, where a JSON schema is an object"),
        ('{"type": "strin"}', "not a JSON schema: 'strin' is not valid"),
        ('{"$ref": "#/$defs/x"}', "refers to #/$defs/x"),
        ('{"$ref": "http://127.0.0.1:9/s.json"}', "Nothing is fetched"),
        ('{"$ref": "other.json"}', "refers to other.json"),
    ],
)  # fmt: skip
def test_a_schema_that_is_none_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "schema.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as refused:
        schema_validator(str(file))
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"eval.json_schema={file}: ")
