"""Every format gives the same rows of every schema, and says so where it cannot."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.errors import ConfigError, DataError
from trainer.config import DataConfig, SplitConfig
from trainer.data.dataset import load_dataset, load_test, schema_of

LABELLED = [{"text": f'{word} "x",\n\té', "label": label} for word, label in zip("abcd", "yynn", strict=True)]
PAIRS = [{"prompt": f"what is {i}?", "completion": f" it is {i}"} for i in range(4)]
CHATS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}", "name": None}]}
    for i in range(4)
]
TEXTS = [{"text": f"one long text {i}"} for i in range(4)]
ROWS = {"label": LABELLED, "completion": PAIRS, "chat": CHATS, "text": TEXTS}


def write(path: Path, source: str, rows: list[dict[str, Any]]) -> Path:
    """Rows in a format; ``save_to_disk``'s folder for ``hub``."""
    if source in ("csv", "tsv"):
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="," if source == "csv" else "\t")
            cells = [[v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows]
            writer.writerows([list(rows[0]), *cells])
    elif source == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif source == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif source in ("arrow", "stream"):
        table = pa.Table.from_pylist(rows)
        make = pa.ipc.new_file if source == "arrow" else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


def of(source: str, train: Path, validation: Path, **keys: Any) -> DataConfig:
    return DataConfig(
        source={"stream": "arrow"}.get(source, source), train=str(train), validation=str(validation), **keys
    )


@pytest.mark.parametrize("schema", list(ROWS))
def test_all_formats_give_the_same_rows_ids_and_fingerprint(schema: str, tmp_path: Path) -> None:
    found = []
    for source in ("csv", "tsv", "jsonl", "parquet", "arrow", "stream"):
        file = write(tmp_path / f"rows.{source}", source, ROWS[schema])
        found.append(load_dataset(of(source, file, file)))
    assert all(dataset == found[0] for dataset in found)
    assert found[0].schema == schema
    assert len(found[0].train) == 4
    first = found[0].train[0]
    if schema == "label":
        assert (first.text, first.label) == ('a "x",\n\té', "y")
    elif schema == "completion":
        assert (first.text, first.completion) == ("what is 0?", " it is 0")
    elif schema == "chat":
        assert [message["content"] for message in first.messages] == ["q0", "a0"]
    else:
        assert (first.text, found[0].labels) == ("one long text 0", ())


def test_a_folder_of_texts_is_texts_and_in_subfolders_classes(tmp_path: Path) -> None:
    for name in ("pos/1.txt", "pos/2.txt", "neg/3.txt", "neg/deep/4.txt", "neg/notes.md"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(f"text of {name}\n", encoding="utf-8")
    dataset = load_dataset(of("folder", tmp_path / "d", tmp_path / "d"))
    assert [(row.label, row.text) for row in dataset.train] == [
        ("neg", "text of neg/3.txt\n"), ("neg", "text of neg/deep/4.txt\n"),
        ("pos", "text of pos/1.txt\n"), ("pos", "text of pos/2.txt\n"),
    ]  # fmt: skip
    assert dataset.train[1].place.endswith("d/neg/deep/4.txt")
    plain = load_dataset(of("folder", tmp_path / "d" / "pos", tmp_path / "d" / "neg"))
    assert (plain.schema, len(plain.train), len(plain.validation)) == ("text", 2, 2)
    (tmp_path / "d" / "pos" / "0.txt").write_bytes(b"\xff\xfebad")
    with pytest.raises(DataError, match=r"pos/0\.txt: not UTF-8 \(byte 0xff\)"):
        load_dataset(of("folder", tmp_path / "d" / "pos", tmp_path / "d" / "neg"))


def test_data_sets_that_were_saved_or_can_be_loaded_are_used_by_folder(tmp_path: Path, monkeypatch: Any) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    split = datasets.Dataset.from_dict({"text": list("abcd"), "label": [1, 1, 0, 0]}, features=features)
    datasets.DatasetDict(train=split, valid=split).save_to_disk(tmp_path / "saved")
    (tmp_path / "loadable").mkdir()
    write(tmp_path / "loadable" / "train.jsonl", "jsonl", LABELLED)
    write(tmp_path / "loadable" / "validation.jsonl", "jsonl", LABELLED)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    saved = load_dataset(DataConfig("hub", train="train", validation="valid", name=str(tmp_path / "saved")))
    assert [row.label for row in saved.train] == ["yes", "yes", "no", "no"]  # the classes' names, not their numbers
    assert saved.train[1].place.endswith("saved (train), row 2")
    loaded = load_dataset(DataConfig("hub", train="train", validation="validation", name=str(tmp_path / "loadable")))
    assert [row.text for row in loaded.validation] == [row["text"] for row in LABELLED]
    with pytest.raises(DataError, match=r"data\.validation=test: .* has no such split.*train, valid"):
        load_dataset(DataConfig("hub", train="train", validation="test", name=str(tmp_path / "saved")))


def test_without_a_network_a_data_set_that_is_not_there_is_refused_at_once(monkeypatch: Any) -> None:
    config = DataConfig("hub", train="train", validation="test", name="nobody/nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"data\.name=nobody/nothing: cannot be loaded .*HF_HUB_OFFLINE is set.*data=parquet"
    ):
        load_dataset(config)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(DataError, match=r"cannot be loaded .*The hub cannot be reached"):
        load_dataset(config)
    assert time.monotonic() - began < 5


# --- schemas


@pytest.mark.parametrize(
    ("columns", "keys", "schema"),
    [
        (["text", "label"], {}, "label"),
        (["text", "label", "id"], {}, "label"),
        (["prompt", "completion"], {}, "completion"),
        (["messages", "id"], {}, "chat"),
        (["text"], {}, "text"),
        (["question", "answer"], {"prompt": "question", "completion": "answer"}, "completion"),
        (["question", "label"], {"template": "Q: {{ question }}"}, "label"),
        (["question", "completion"], {"template": "Q: {{ question }}"}, "completion"),
        (["question", "answer"], {"template": "{{ question }} {{ answer }}"}, "text"),
    ],
)
def test_the_columns_tell_the_schema(columns: list[str], keys: dict[str, str], schema: str, tmp_path: Path) -> None:
    rows = [dict.fromkeys(columns, "x")] * 2
    file = write(tmp_path / "a.csv", "csv", rows)
    assert schema_of(of("csv", file, file, **keys))[0] == schema


@pytest.mark.parametrize(
    ("columns", "keys", "words"),
    [
        (["text", "label", "prompt", "completion"], {}, "fit more than one schema: label and completion"),
        (["prompt", "completion", "messages"], {}, "fit more than one schema: completion and chat"),
        (["text", "topic"], {}, r"no column 'label' \(data\.label\).*'text', 'topic'.*Or data\.schema=text"),
        (["text", "labels"], {}, r"no column 'label' .*Did you mean 'labels'"),
        (["prompt", "answer"], {}, r"no column 'completion' \(data\.completion\)"),
        (["a", "b"], {}, r"no column 'text' \(data\.text\)\. Its columns: 'a', 'b'\..*data\.template"),
        (["a", "b"], {"answer_template": "{{ a }}"}, r"no column 'text'"),
    ],
)
def test_columns_that_tell_no_schema_are_refused(columns: Any, keys: Any, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "csv", [dict.fromkeys(columns, "x")] * 2)
    with pytest.raises(DataError, match=words):
        load_dataset(of("csv", file, file, **keys))


def test_templates_stand_in_for_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "which?", "choices": ["a", "b"], "answer": 1, "input text": None},
        {"question": "who?", "choices": ["c"], "answer": 0, "input text": "more"},
    ]
    template = (
        "{{ question }}\n{% for c in choices %}\n{{ 'AB'[loop.index0] }} {{ c }}\n{% endfor %}\n{{ row['input text'] }}"
    )
    file = write(tmp_path / "a.jsonl", "jsonl", rows)
    keys = {"template": template, "answer_template": " {{ 'AB'[answer] }}", "schema": "completion"}
    dataset = load_dataset(of("jsonl", file, file, **keys))
    assert [(row.text, row.completion) for row in dataset.train] == [
        ("which?\nA a\nB b\n", " B"),
        ("who?\nA c\nmore", " A"),
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{% macro again() %}{{ again() + prompt }}{% endmacro %}{{ again() }}",
        "{{ prompt * 10 ** 18 }}",
        "{% for i in range(10 ** 9) %}{{ prompt }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_or_takes_all_memory_is_named(tmp_path: Path, template: str) -> None:
    file = write(tmp_path / "a.jsonl", "jsonl", PAIRS)
    with pytest.raises(DataError, match=r"line 1: data\.template cannot be filled in \((Rec|Mem|Over)"):
        load_dataset(of("jsonl", file, file, template=template, schema="completion"))
    with pytest.raises(ConfigError, match=r"data\.template: not a Jinja template \(nested too deep"):
        load_dataset(of("jsonl", file, file, template="{{ " + "(" * 5_000 + "prompt" + ")" * 5_000 + " }}"))


def test_a_template_in_a_config_runs_no_code(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "jsonl", PAIRS)
    evil = "{{ prompt.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match=r"line 1: data\.template cannot be filled in \(SecurityError"):
        load_dataset(of("jsonl", file, file, template=evil, schema="completion"))


def test_a_column_that_some_json_rows_lack_is_empty_in_a_template(tmp_path: Path) -> None:
    rows = [{"q": "a", "completion": "x", "hint": "h"}, {"q": "b", "completion": "y"}]
    file = write(tmp_path / "a.jsonl", "jsonl", rows)
    dataset = load_dataset(of("jsonl", file, file, template="{{ q }}{% if hint %} ({{ hint }}){% endif %}:"))
    assert [row.text for row in dataset.train] == ["a (h):", "b:"]
    with pytest.raises(DataError, match=r"no column 'hnit' \(data\.template\).*Did you mean 'hint'"):
        load_dataset(of("jsonl", file, file, template="{{ q }}{{ hnit }}"))


# --- rows that cannot be used


BROKEN = {
    "csv": b'text,label\nfine,y\ntoo,many,cells\nb\xe9d,y\n,y\nfine too,y\nno label,\n"x" y,n\na,n\nb,n\n',
    "jsonl": b'{"text": "fine", "label": "y"}\n{"text": 1}\n{"text": "b\xe9d", "label": "y"}\n'
    b'{"text": "", "label": "y"}\n{"text": "fine too", "label": "y"}\n["no"]\n{oops\n'
    b'{"text": "a", "label": "n"}\n{"text": "b", "label": "n"}\n',
}


@pytest.mark.parametrize("source", ["csv", "jsonl"])
def test_broken_rows_are_left_out_and_named_where_asked(source: str, tmp_path: Path) -> None:
    good = write(tmp_path / f"good.{source}", source, LABELLED)
    file = tmp_path / f"rows.{source}"
    file.write_bytes(BROKEN[source])
    with pytest.raises(DataError, match=r"line [23]: .*leave such rows out: data\.on_error=skip"):
        load_dataset(of(source, file, good))
    dataset = load_dataset(of(source, file, good, on_error="skip"))
    assert [row.text for row in dataset.train] == ["fine", "fine too", "a", "b"]
    assert len(dataset.skipped) == 5
    lines = sorted(int(said.split(", line ")[1].split(":")[0]) for said in dataset.skipped)
    assert lines == ([3, 4, 5, 7, 8] if source == "csv" else [2, 3, 4, 6, 7])
    numbers = [row.item_id.split("-")[1] for row in dataset.train]
    assert numbers == ["0", "4", "7", "8"]  # in the file: the same once the others are mended
    assert dataset.facts()["skipped"]["rows"] == 5
    assert "5 rows" not in dataset.facts()["skipped"]["first"][0]


def test_conversations_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", "jsonl", CHATS)
    user = {"role": "user", "content": "q"}
    for messages, words in [
        ([user], "no message of the assistant with content"),
        ([], "holds an empty list"),
        ("hello", "holds a str: expected a list of messages"),
        ([user, {"role": "asistant", "content": "x"}], r"message 2: role 'asistant' .*'assistant'"),
        ([{"speaker": "human", "text": "q"}], "message 1: found keys speaker, text, expected role and content"),
        ([{"from": "humn", "value": "q"}], "message 1: from 'humn' is not one of human.*'human'"),
        ([user, {"from": "function_call", "value": "{"}], "message 2: a function_call is not valid JSON"),
        ([user, {"role": "assistant", "content": "x", "weight": 0}], "no message of the assistant with content"),
        ([user, {"role": "assistant", "content": "x", "weight": 0.5}], "message 2: weight 0.5: expected 0 or 1"),
        (
            [user | {"train": True}, {"role": "assistant", "content": "x"}],
            "message 1: train True of a turn of the user",
        ),
        ([user, {"role": "assistant", "content": [{"type": "image"}]}], "message 2: content is a list, expected text"),
        ([user, {"role": "assistant", "content": "  "}], "no message of the assistant with content"),
    ]:
        file = write(tmp_path / "a.jsonl", "jsonl", [{"messages": messages}])
        with pytest.raises(DataError, match=words):
            load_dataset(of("jsonl", file, good))


_CALLED: list[tuple[str, dict[str, Any]]] = [
    ("add", {"a": 0, "b": 1}), ("weather", {"city": "Lund"}), ("add", {"b": 2, "a": 3}), ("weather", {"city": "Lens"}),
]  # fmt: skip


def tool_rows() -> list[dict[str, Any]]:
    """Chats with calls of different functions, whose arguments and schemas have different keys."""
    made = []
    for i, (name, arguments) in enumerate(_CALLED):
        properties = {key: {"type": "string" if key == "city" else "number"} for key in arguments}
        function = {"name": name, "parameters": {"type": "object", "properties": properties}}
        made.append({
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": None,
                 "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]},
                {"role": "tool", "name": name, "content": "3"},
                {"role": "assistant", "content": f"a{i}", "weight": 1},
            ],
            "tools": [{"type": "function", "function": function}],
        })  # fmt: skip
    return made


def test_tools_and_arguments_are_the_same_in_all_formats(tmp_path: Path) -> None:
    """Arrow's structs have every key in every row: those that a row did not have are null."""
    found = {}
    for source in ("jsonl", "csv", "parquet", "arrow", "stream"):
        file = write(tmp_path / f"rows.{source}", source, tool_rows())
        dataset = load_dataset(of(source, file, file, allow_overlap=True))
        found[source] = [(row.item_id, row.messages, row.tools) for row in dataset.train]
    assert found["parquet"] == found["arrow"] == found["stream"] == found["csv"] == found["jsonl"]
    _, messages, tools = found["parquet"][1]
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Lund"}
    assert messages[1]["content"] == ""
    assert tools is not None
    assert tools[0]["function"]["parameters"]["properties"] == {"city": {"type": "string"}}


def test_a_null_that_json_writes_in_an_argument_stays(tmp_path: Path) -> None:
    rows = tool_rows()
    rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"a": None}
    file = write(tmp_path / "rows.jsonl", "jsonl", rows)
    [first, *_] = load_dataset(of("jsonl", file, file, allow_overlap=True)).train
    assert first.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": None}


def test_the_tools_of_a_hub_data_set_have_no_invented_keys(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(tool_rows())
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "saved"))
    config = DataConfig("hub", name=str(tmp_path / "saved"), train="train", validation="validation")
    row = load_dataset(config).train[1]
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Lund"}


def test_tools_are_read_where_they_are_unless_that_is_not_wanted(tmp_path: Path) -> None:
    rows = tool_rows()
    file = write(tmp_path / "rows.jsonl", "jsonl", rows)
    assert load_dataset(of("jsonl", file, file, tools=None)).train[0].tools is None
    with pytest.raises(DataError, match=r"no column 'functions' \(data\.tools\).*'tools'"):
        load_dataset(of("jsonl", file, file, tools="functions"))
    named = write(tmp_path / "named.jsonl", "jsonl", [{**row, "functions": row["tools"]} for row in rows])
    assert load_dataset(of("jsonl", named, named, tools="functions")).train[0].tools == tuple(rows[0]["tools"])
    for value, words in [("{", "not valid JSON"), ({"a": 1}, "expected a list of functions"), ([1], "expected a list")]:
        bad = write(tmp_path / "bad.jsonl", "jsonl", [{**rows[0], "tools": value}, rows[1]])
        with pytest.raises(DataError, match=rf"line 1: column 'tools' \(data\.tools\): {words}"):
            load_dataset(of("jsonl", bad, file))
    bare = write(tmp_path / "bare.jsonl", "jsonl", [{**rows[0], "tools": ""}, {**rows[1], "tools": []}])
    assert [row.tools for row in load_dataset(of("jsonl", bare, file)).train] == [None, ()]


def test_openais_old_calls_and_functions_are_tools(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": '{"city": "Lund"}'}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "It rains.", "function_call": None},
    ]
    row = {"messages": messages, "functions": [{"name": "weather", "parameters": {}}]}
    for source in ("jsonl", "csv"):
        file = write(tmp_path / f"rows.{source}", source, [row, row])
        [first, _] = load_dataset(of(source, file, file, allow_overlap=True)).train
        assert first.messages == (
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "name": "weather", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
        )
        assert first.tools == ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
        assert load_dataset(of(source, file, file, allow_overlap=True, tools=None)).train[0].tools is None


def test_arguments_of_the_chat_template_are_refused_rather_than_left_out(tmp_path: Path) -> None:
    rows = [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in CHATS]
    file = write(tmp_path / "rows.jsonl", "jsonl", rows)
    with pytest.raises(DataError, match=r"line 1: column 'chat_template_kwargs' has arguments for the chat template"):
        load_dataset(of("jsonl", file, file, allow_overlap=True))


def test_content_of_text_parts_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": " more"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    for source in ("jsonl", "parquet"):
        rows = [{"messages": [{"role": "user", "content": parts}, answer]}] * 2
        file = write(tmp_path / f"rows.{source}", source, rows)
        [row, _] = load_dataset(of(source, file, file, allow_overlap=True)).train
        assert [message["content"] for message in row.messages] == ["q more", "a"]


# --- splits


def numbered(tmp_path: Path, n: int = 100) -> Path:
    rows = [{"text": f"text {i}", "label": "abc"[i % 10 // 4], "author": f"w{i // 7}"} for i in range(n)]
    return write(tmp_path / "all.csv", "csv", rows)


def made(file: Path, **split: Any) -> DataConfig:
    return DataConfig("csv", train=str(file), split=SplitConfig(**split))


def test_made_splits_hold_each_row_once_each_label_in_proportion_and_keep_ids(tmp_path: Path) -> None:
    file = numbered(tmp_path)
    config = made(file, validation=0.2, test=0.1)
    dataset, test = load_dataset(config), load_test(config)
    ids = [row.item_id for row in [*dataset.train, *dataset.validation, *test]]
    assert (len(dataset.train), len(dataset.validation), len(test), dataset.n_test) == (70, 20, 10, 10)
    assert len(set(ids)) == 100
    for rows, counts in ((dataset.validation, [8, 8, 4]), (test, [4, 4, 2])):
        assert [sum(row.label == label for row in rows) for label in "abc"] == counts
    again, other = load_dataset(config), load_dataset(made(file, validation=0.2, test=0.1, seed=1))
    assert again == dataset
    assert other.validation != dataset.validation
    assert {row.item_id for row in other.validation} <= set(ids)  # a row's id does not say where it fell


def labelled(folder: Path, counts: dict[str, int]) -> Path:
    file = folder / "labelled.csv"
    with file.open("w", newline="") as out:
        rows = [(f"text {label} {n}", label) for label, count in counts.items() for n in range(count)]
        csv.writer(out).writerows([("text", "label"), *rows])
    return file


@pytest.mark.parametrize("seed", range(5))
def test_every_label_of_two_rows_is_trained_on_and_ranked_by_whatever_the_share(tmp_path: Path, seed: int) -> None:
    counts = {"many": 40} | {f"rare {n}": 2 for n in range(20)} | {f"few {n}": 3 for n in range(5)}
    dataset = load_dataset(made(labelled(tmp_path, counts), validation=0.1, test=0.2, seed=seed))
    assert {row.label for row in dataset.train} == {row.label for row in dataset.validation} == set(counts)
    assert len(dataset.train) + len(dataset.validation) + dataset.n_test == 95


def test_a_label_of_one_row_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 8: the label 'single' has one row \(1 of 2 labels"):
        load_dataset(made(labelled(tmp_path, {"many": 6, "single": 1}), validation=0.2))


def test_rows_that_say_the_same_are_never_in_two_splits(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    same = ("Text {} end.", "Re:  text {}   END", "<b>text</b> {} end")
    rows = [(same[n % 3].format(n // 3), "ab"[n // 3 % 2]) for n in range(90)]
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *rows])
    config = made(file, validation=0.3, test=0.2)
    dataset, test = load_dataset(config), load_test(config)
    said = [{re.findall(r"\d+", row.text)[0] for row in part} for part in (dataset.train, dataset.validation, test)]
    assert [len(part) for part in said] == [15, 9, 6]
    assert [len(part) for part in (dataset.train, dataset.validation, test)] == [45, 27, 18]
    assert not said[0] & said[1] | said[0] & said[2] | said[1] & said[2]


def test_a_group_is_never_in_two_splits(tmp_path: Path) -> None:
    config = made(numbered(tmp_path), validation=0.2, test=0.2, group="author")
    dataset, test = load_dataset(config), load_test(config)
    authors = [{int(row.text.split()[1]) // 7 for row in rows} for rows in (dataset.train, dataset.validation, test)]
    assert not authors[0] & authors[1]
    assert not authors[0] & authors[2]
    assert not authors[1] & authors[2]
    assert [14 <= len(rows) <= 26 for rows in (dataset.validation, test)] == [True, True]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"split": SplitConfig(validation=0.2), "validation": "b.csv"}, "both say which rows are for validation"),
        ({"split": SplitConfig(test=0.2)}, "without validation rows"),
        ({"split": SplitConfig(test=0.2), "validation": "b.csv"}, "splits are made of data.train alone"),
        ({"split": SplitConfig(validation=0.2, group="sex")}, r"no column 'sex' \(data\.split\.group\)"),
        ({"split": SplitConfig(group="author")}, "no split is made"),
        ({"split": SplitConfig(validation=0.6, test=0.5)}, "leave no rows to train on"),
        ({"split": SplitConfig(validation=0.001)}, "is none"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(DataConfig("csv", train=str(numbered(tmp_path)), **keys))


def test_the_same_split_is_made_in_another_process(tmp_path: Path) -> None:
    file = numbered(tmp_path, 30)
    code = (
        "from trainer.data.dataset import load_dataset; from trainer.config import DataConfig, SplitConfig;"
        f"c = DataConfig('csv', train={str(file)!r}, split=SplitConfig(validation=0.3));"
        "print(*[row.item_id for row in load_dataset(c).validation])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[3])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = [row.item_id for row in load_dataset(made(file, validation=0.3)).validation]
    assert out.stdout.split() == expected
