"""Reading a task: what is kept as it is, what is refused and in which words."""

import bz2
import csv
import gzip
import json
import lzma
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.errors import DataError
from trainer.config import DataConfig
from trainer.data.audit import Entry, audit, warnings
from trainer.data.dataset import Dataset, Row, check_test, load_dataset, rung_subset
from trainer.data.likeness import lookalikes

GOOD = [("good film", "yes"), ("fine film", "yes"), ("bad film", "no"), ("poor film", "no")]


def write_csv(path: Path, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Task:
    """A folder with good validation rows in every format; loads them with the training file a test gives."""

    def __init__(self, folder: Path):
        self.folder = folder
        records = [dict(zip(("text", "label"), row, strict=True)) for row in GOOD]
        self.validation = {
            "csv": write_csv(folder / "validation.csv", GOOD),
            "jsonl": write_jsonl(folder / "validation.jsonl", records),
            "parquet": folder / "validation.parquet",
        }
        pq.write_table(pa.Table.from_pylist(records), self.validation["parquet"])

    def load(self, train: str | Path, source: str = "csv", **keys: Any) -> Dataset:
        keys = {"validation": str(self.validation[source])} | keys
        return load_dataset(DataConfig(source=source, train=str(train), **keys))

    def load_text(self, text: str | bytes, source: str = "csv", **keys: Any) -> Dataset:
        path = self.folder / f"train.{source}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.load(path, source, **keys)

    def refusal(self, text: str | bytes, source: str = "csv", **keys: Any) -> str:
        with pytest.raises(DataError) as caught:
            self.load_text(text, source, **keys)
        return str(caught.value).replace(f"{self.folder}/", "")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


def test_rows_come_in_the_order_of_the_file_with_sorted_labels(task: Task) -> None:
    dataset = task.load(task.validation["csv"])
    assert [(row.text, row.label) for row in dataset.train] == GOOD
    assert dataset.labels == ("no", "yes")


def test_the_three_formats_give_the_same_rows_ids_and_fingerprint(task: Task) -> None:
    of_csv, of_jsonl, of_parquet = (task.load(task.validation[s], s) for s in ("csv", "jsonl", "parquet"))
    assert of_csv == of_jsonl == of_parquet


def test_the_fingerprint_changes_with_any_text_label_group_or_order(task: Task) -> None:
    text = "text,label,sex\na,yes,f\nb,yes,f\nc,no,f\nd,no,f\ne,yes,f\n"
    write_csv(task.validation["csv"], [(*row, "m") for row in GOOD], ("text", "label", "sex"))
    lines = text.splitlines(keepends=True)
    variants = [
        text,
        text.replace("a,yes", "A,yes"),
        text.replace("b,yes", "b,no"),
        text.replace("c,no,f", "c,no,m"),
        "".join([lines[0], lines[2], lines[1], *lines[3:]]),
    ]
    assert len({task.load_text(variant, group="sex").fingerprint for variant in variants}) == len(variants)


def test_item_ids_say_split_and_row_and_change_with_the_content(task: Task) -> None:
    first = task.load_text("text,label\na,yes\nb,yes\nc,no\nd,no\n").train
    second = task.load_text("text,label\na,yes\nB,yes\nc,no\nd,no\n").train
    assert re.fullmatch(r"train-0-[0-9a-f]{12}", first[0].item_id)
    assert [a.item_id == b.item_id for a, b in zip(first, second, strict=True)] == [True, False, True, True]


def test_same_rows_twice_have_different_ids(task: Task) -> None:
    dataset = task.load_text("text,label\na,yes\na,yes\na,yes\nb,no\nb,no\n")
    assert len({row.item_id for row in dataset.train + dataset.validation}) == 9


def test_the_test_file_is_never_opened(task: Task) -> None:
    assert len(task.load(task.validation["csv"], test=str(task.folder / "not-there.csv")).train) == 4


def test_groups_are_kept_and_an_empty_group_is_none(task: Task) -> None:
    rows = [(*row, group) for row, group in zip(GOOD, ["f", "m", "", "f"], strict=True)]
    path = write_csv(task.folder / "g.csv", rows, ("text", "label", "sex"))
    assert [row.group for row in task.load(path, group="sex", validation=str(path)).train] == ["f", "m", None, "f"]


def test_other_columns_are_named_by_the_config(task: Task) -> None:
    path = write_csv(task.folder / "r.csv", [("1", *row) for row in GOOD], ("id", "review", "sentiment"))
    dataset = task.load(path, text="review", label="sentiment", validation=str(path))
    assert dataset.train[0].text == "good film"


@pytest.mark.parametrize(
    "labels",
    [
        ["10", "2", "0", "1", "11"],
        ["-1", "0", "1", "-10"],
        ["0.5", "10", "1.5", "2"],
        ["1e3", "20", "3"],
        ["b", "a", "10"],
    ],
)
@pytest.mark.parametrize("source", ["csv", "jsonl"])
def test_classes_are_numbered_as_pandas_and_scikit_learn_number_them(
    task: Task, source: str, labels: list[str]
) -> None:
    import pandas as pd
    from sklearn.preprocessing import LabelEncoder

    rows = [(f"row {i} of {label}", label) for i in range(2) for label in labels]
    path = task.folder / f"numbers.{source}"
    if source == "csv":
        write_csv(path, rows)
    else:
        write_jsonl(path, [dict(zip(("text", "label"), row, strict=True)) for row in rows])
    dataset = task.load(path, source, validation=str(path))
    frame = pd.read_csv(write_csv(task.folder / "same.csv", rows))
    numbers = LabelEncoder().fit_transform(frame["label"])
    assert [dataset.labels.index(row.label) for row in dataset.train] == numbers.tolist()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["billing", "Billing", "bug"], "Labels 'billing' and 'Billing' differ only by letter case."),
        (["bug", "bug\u200b"], r"Labels 'bug' and 'bug\u200b' differ only by invisible characters."),
        (["pag\xf3", "pago\u0301"], r"Labels 'pag\xf3' and 'pago\u0301' differ only by Unicode form."),
        (["no go", "no  go"], "Labels 'no go' and 'no  go' differ only by white space."),
        (["no go", "no\xa0go"], r"Labels 'no go' and 'no\xa0go' differ only by signs that are not seen."),
        (["pop", "\u0440op"], r"Labels 'pop' and '\u0440op' differ only by alphabet."),
        (["7", "007", "7.0"], "Labels '7' and '007' and '7.0' differ only by how a number is written."),
        (["Bug", "bug\ufeff"], r"Labels 'Bug' and 'bug\ufeff' differ only by invisible characters and letter case."),
        (["bug", "bugs", "1", "10", "1.5", "a-1", "no"], ""),
    ],
)
def test_labels_that_look_alike_are_told_with_what_they_differ_in(labels: list[str], said: str) -> None:
    sentences = lookalikes([*labels, *labels])
    assert sentences == ([f"{said} If they are one class, write them alike."] if said else [])
    entries = [Entry(f"text {i} {label}", label, "") for i in range(5) for label in labels]
    told = [sentence for _, sentence in warnings(audit(entries, []), allow_overlap=False)]
    assert [sentence for sentence in told if sentence.startswith("Labels")] == sentences


def test_a_label_that_only_one_split_has_is_told_beside_the_one_that_it_looks_like(task: Task) -> None:
    validation = str(write_csv(task.folder / "v.csv", [("new", "Yes"), ("other", "no")]))
    with pytest.raises(DataError, match=r"no training row has: 'Yes'.*'Yes' and 'yes' differ only by letter case"):
        task.load(task.validation["csv"], validation=validation)
    with pytest.raises(DataError, match=r"'yes\\u200b' has one training row.*differ only by invisible characters"):
        task.load(write_csv(task.folder / "t.csv", [*GOOD, ("x", "yes\u200b")]))
    with pytest.raises(DataError, match=r"data\.test: labels that no training row has.*only by letter case"):
        check_test([Row("", "a", "NO")], ("no", "yes"))


def test_labels_that_look_like_missing_values_stay_words(task: Task) -> None:
    words = ["None", "NA", "nan", "null", "yes", "no"]
    text = "text,label\n" + "".join(f"{i},{word}\n{i},{word}\n" for i, word in enumerate(words))
    assert task.load_text(text).labels == ("NA", "None", "nan", "no", "null", "yes")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], ["0", "1"]),
        ([True, False], ["true", "false"]),
        ([1.0, 0.0], ["1", "0"]),
        ([0.5, 1.5], ["0.5", "1.5"]),
        (["None", "NA"], ["None", "NA"]),
    ],
)
@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_typed_labels_become_text(task: Task, source: str, values: list[Any], labels: list[str]) -> None:
    records = [{"text": f"row {i}", "label": value} for i, value in enumerate(values * 2)]
    path = task.folder / f"typed.{source}"
    write_jsonl(path, records) if source == "jsonl" else pq.write_table(pa.Table.from_pylist(records), path)
    dataset = task.load(path, source, validation=str(path))
    assert [row.label for row in dataset.train] == labels * 2
    assert dataset.labels == tuple(sorted(labels))


def test_categorical_parquet_columns_are_read(task: Task) -> None:
    path = task.folder / "c.parquet"
    labels = pa.array([label for _, label in GOOD]).dictionary_encode()
    pq.write_table(pa.table({"text": [text for text, _ in GOOD], "label": labels}), path)
    assert [row.label for row in task.load(path, "parquet").train] == ["yes", "yes", "no", "no"]


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_long_and_odd_texts_pass_unchanged(task: Task, source: str) -> None:
    odd = ['said "no", twice\r\nthen\nleft', "naïve 🙂 \u2028 \x00 \ufeff \u202e", "  spaces  ", "=1+1"]
    texts = ["x" * 50_000, "y" * 200_000, *odd]
    records = [{"text": text, "label": "yes" if i % 2 else "no"} for i, text in enumerate(texts)]
    path = task.folder / f"odd.{source}"
    if source == "csv":
        write_csv(path, [(r["text"], r["label"]) for r in records])
    elif source == "jsonl":
        write_jsonl(path, records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    csv.field_size_limit(131_072)  # Python's own, which others in the process may rely on
    assert [row.text for row in task.load(path, source).train] == texts
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize("source", ["csv", "jsonl"])
def test_a_byte_order_mark_and_blank_lines_are_no_content(task: Task, source: str) -> None:
    content = task.validation[source].read_text().replace("\n", "\n\n")
    dataset = task.load_text("\ufeff" + content, source)
    assert dataset.fingerprint == task.load(task.validation[source], source).fingerprint


def test_white_space_around_labels_is_no_other_class(task: Task) -> None:
    assert task.load_text("text,label\na, yes\nb,yes \nc,no\nd,no\n").labels == ("no", "yes")


def test_a_hundred_thousand_rows_are_read(task: Task) -> None:
    rows = [(f"text number {i}", str(i % 5)) for i in range(100_000)]
    path = write_csv(task.folder / "big.csv", rows)
    dataset = task.load(path, validation=str(path))
    assert len({row.item_id for row in dataset.train}) == 100_000
    assert len(rung_subset(dataset.validation, 96, 0)) == 96


# --- what is refused


def test_files_that_are_not_given_are_asked_for() -> None:
    with pytest.raises(
        DataError,
        match=r"data\.train is not given: data=csv needs data\.train=FILE, and may have data\.validation=FILE",
    ):
        load_dataset(DataConfig(source="csv"))


def test_a_missing_validation_file_is_named(task: Task) -> None:
    with pytest.raises(DataError, match=r"data\.validation is not given"):
        task.load(task.validation["csv"], validation=None)


def test_a_missing_file_names_the_nearest_one(task: Task) -> None:
    with pytest.raises(DataError, match=r"data\.train=.*validaton\.csv: no such file .*Did you mean 'validation\.csv'"):
        task.load(task.folder / "validaton.csv")


def test_a_relative_path_is_shown_with_where_it_was_looked_for(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task.folder)
    assert len(task.load("validation.csv").train) == 4
    with pytest.raises(
        DataError, match=re.escape(f"data.train=no/x.csv: no such file (looked for {task.folder}/no/x.csv)")
    ):
        task.load("no/x.csv")


def test_a_directory_is_no_file(task: Task) -> None:
    with pytest.raises(DataError, match="is a directory: expected one file"):
        task.load(task.folder)


def test_a_pipe_is_refused_instead_of_waited_for(task: Task) -> None:
    os.mkfifo(task.folder / "pipe")
    with pytest.raises(DataError, match="is a pipe or device"):
        task.load(task.folder / "pipe")


def test_a_file_that_may_not_be_read_is_named(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # the tests may run as root, whom no mode bits stop
    with pytest.raises(DataError, match=r"validation\.csv: cannot be read \(Permission denied\)"):
        task.load(task.validation["csv"])


def test_a_path_that_the_system_refuses_is_an_error_about_the_path(task: Task) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*too long"):
        task.load("x" * 5000)


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_an_empty_file_is_called_empty(task: Task, source: str) -> None:
    assert f"train.{source}: the file is empty (0 bytes)" in task.refusal("", source)


@pytest.mark.parametrize(("source", "text"), [("csv", "text,label\n"), ("jsonl", "\n\n")])
def test_a_file_without_rows_is_refused(task: Task, source: str, text: str) -> None:
    assert f"train.{source}: no rows in it" in task.refusal(text, source)


@pytest.mark.parametrize("source", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"PK\x03\x04....", mtime=0), "an Excel workbook"),
        (b"PK\x03\x04....", "an Excel workbook"),
        (b"PAR1........PAR1", "a Parquet file: use data=parquet"),
        ("text,label\n".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    ],
)
def test_another_format_under_a_wrong_name_is_recognised(task: Task, source: str, content: bytes, what: str) -> None:
    assert what in task.refusal(content, source)


@pytest.mark.parametrize("source", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "pack",
    [gzip.compress, bz2.compress, lzma.compress, lambda raw: pa.compress(raw, "zstd", asbytes=True)],
    ids=["gzip", "bzip2", "xz", "zstd"],
)
def test_packed_text_is_read_whatever_its_name_and_a_cut_archive_is_told(
    task: Task, source: str, pack: Callable[[bytes], bytes]
) -> None:
    raw = task.validation[source].read_bytes() * (1 if source == "csv" else 500)
    assert task.load_text(pack(raw), source).train == task.load_text(raw, source).train
    assert "train." + source + ": not a complete" in task.refusal(pack(raw)[: len(pack(raw)) * 3 // 4], source)


def test_a_json_document_is_read_as_its_rows(task: Task) -> None:
    lines = task.validation["jsonl"].read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    dataset = task.load_text(json.dumps(records, indent=1), "jsonl")
    assert dataset.train[1].place.endswith("train.jsonl, row 2")
    assert dataset == task.load_text(lines, "jsonl")
    assert task.load_text("\ufeff \n" + json.dumps(records), "jsonl").train[1].place.endswith("train.jsonl, row 2")
    assert "row 2: no 'label' (data.label)" in task.refusal(json.dumps([records[0], {"text": "b"}]), "jsonl")


def test_a_broken_encoding_is_named_with_its_line_and_byte(task: Task) -> None:
    filler = "".join(f"line {i},yes\n" for i in range(5000)).encode()
    message = task.refusal(b"text,label\n" + filler + b"caf\xe9,no\n")
    assert message.startswith("train.csv, line 5002: not UTF-8 (byte 0xe9). Save the file as UTF-8")
    assert "train.jsonl, line 2: not UTF-8 (byte 0xe9)" in task.refusal(
        b'{"text": "a", "label": "b"}\n"\xe9"\n', "jsonl"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,yes\nb,yes,x\n", "line 3: 3 cells, but the header has 2"),
        ('text,label\n"a\nb",yes\n\nc\n', "line 5: 1 cell, but the header has 2"),
        ('text,label\na,yes\n"b,yes\nc,no\n', "line 3: a double quote is opened in this row and never closed"),
        ('text,label\na,yes\n"b" c,yes\n', "line 3: not valid CSV"),
    ],
)
def test_malformed_csv_is_named_with_its_line(task: Task, text: str, message: str) -> None:
    assert f"train.csv, {message}" in task.refusal(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a", "label": "yes"}\n{"text": "b"\n', "line 2: not valid JSON"),
        ('[{"text": "a"}, "yes"]\n', "line 1: found a list, expected an object"),
        ('{\n "text": "a"}\n', "Is it one JSON document? Then write each row as one object on one line."),
        ('{"text": "a", "label": "yes"}\n{"text": "b"}\n', "line 2: no 'label' (data.label), which the first row has"),
        ('{"text": ["a"], "label": "yes"}\n', "line 1: column 'text' holds a list: expected text"),
        ('{"text": "a", "label": null}\n', "line 1: column 'label' (data.label) is empty"),
        ('{"text": NaN, "label": "yes"}\n', "line 1: column 'text' (data.text) is empty"),
        ('{"text": "\\ud83d", "label": "yes"}\n', "line 1: half of a surrogate pair"),
        ("[" * 100_000 + "\n", "line 1: not valid JSON"),
    ],
)
def test_malformed_json_lines_are_named(task: Task, text: str, message: str) -> None:
    assert message in task.refusal(text, "jsonl")


def test_a_damaged_or_wrong_parquet_file_is_refused(task: Task) -> None:
    assert "train.parquet: not a Parquet file" in task.refusal("text,label\n", "parquet")
    whole = task.validation["parquet"].read_bytes()
    assert "train.parquet: not a complete Parquet file" in task.refusal(whole[:-20], "parquet")


def test_empty_parquet_cells_are_named_by_row(task: Task) -> None:
    path = task.folder / "n.parquet"
    pq.write_table(pa.table({"text": ["a", None], "label": ["yes", "no"]}), path)
    with pytest.raises(DataError, match=r"n\.parquet, row 2: column 'text' \(data\.text\) is empty"):
        task.load(path, "parquet")


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_a_missing_column_lists_those_there_and_the_nearest(task: Task, source: str) -> None:
    with pytest.raises(
        DataError, match=r"no column 'lable' \(data\.label\)\. Its columns: 'text', 'label'\. Did you mean 'label'"
    ):
        task.load(task.validation[source], source, label="lable")
    with pytest.raises(DataError, match=r"no column 'sex' \(data\.group\)"):
        task.load(task.validation[source], source, group="sex")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
def test_a_csv_file_may_have_another_separator(task: Task, separator: str, start: str) -> None:
    rows = [(f"a, {n}", f'"b{separator}b"' if n % 2 else "c") for n in range(4)]
    text = start + "".join(f"{text}{separator}{label}\n" for text, label in [('"text, all"', "label"), *rows])
    path = task.folder / "other.csv"
    path.write_text(text)
    dataset = task.load(path, validation=str(path), text="text, all")
    assert [row.text for row in dataset.train] == [f"a, {n}" for n in range(4)]
    assert dataset.labels == (f"b{separator}b", "c")


def test_excel_s_line_that_names_the_separator_is_no_row(task: Task) -> None:
    path = task.folder / "excel.csv"
    path.write_text("sep=;\r\ntext;label\r\na;yes\r\nb;yes\r\nc;no\r\nd;no\r\n")
    dataset = task.load(path, validation=str(path))
    assert [(row.text, row.label) for row in dataset.train] == [("a", "yes"), ("b", "yes"), ("c", "no"), ("d", "no")]
    assert dataset.train[0].place.endswith("excel.csv, line 3")


def test_rows_of_empty_cells_are_blank_lines(task: Task) -> None:
    path = task.folder / "blank.csv"
    path.write_text('text,label\n\n"a\n1",yes\nb,yes\n,\nc,no\nd,no\n,\n')
    dataset = task.load(path, validation=str(path))
    assert [row.text for row in dataset.train] == ["a\n1", "b", "c", "d"]


def test_a_tsv_file_with_another_separator_is_csv(task: Task) -> None:
    path = task.folder / "a.tsv"
    path.write_text("text;label\na;yes\n")
    with pytest.raises(DataError, match="looks separated by ';': use data=csv"):
        load_dataset(DataConfig("tsv", train=str(path), validation=str(path)))


def test_a_column_that_stands_twice_is_refused(task: Task) -> None:
    assert "column 'text' (data.text) stands there more than once" in task.refusal("text,text,label\na,b,yes\n")


def test_text_and_label_in_one_column_are_refused(task: Task) -> None:
    assert "both name the column 'text'" in task.refusal("text,label\na,yes\n", label="text")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('text,label\n"a\nb",yes\n  ,no\n', "train.csv, line 4: column 'text' (data.text) is empty"),
        ("text,label\na,yes\nb, \n", "train.csv, line 3: column 'label' (data.label) is empty"),
    ],
)
def test_an_empty_cell_is_named_with_its_line(task: Task, text: str, message: str) -> None:
    assert message in task.refusal(text)


def test_a_single_class_is_refused(task: Task) -> None:
    assert "train.csv: every row has the label 'yes'" in task.refusal("text,label\na,yes\nb,yes\n")


def test_a_class_with_one_training_row_is_refused_with_its_line(task: Task) -> None:
    message = task.refusal("text,label\na,yes\nb,yes\nc,maybe\nd,no\n")
    assert message.startswith(
        "train.csv, line 4: the label 'maybe' has one training row (2 of 3 labels have: 'maybe', 'no')"
    )


def test_a_label_column_of_free_text_does_not_flood_the_message(task: Task) -> None:
    message = task.refusal("text,label\n" + "".join(f"a,{'w' * 100}{i}\n" for i in range(1000)))
    assert "and 990 more" in message
    assert len(message) < 1500


def test_validation_labels_unseen_in_training_are_listed(task: Task) -> None:
    path = write_csv(task.folder / "v.csv", [*GOOD, ("x", "perhaps"), ("y", "maybe"), ("z", "perhaps")])
    with pytest.raises(DataError) as caught:
        task.load(task.validation["csv"], validation=str(path))
    assert "v.csv, line 6: validation labels that no training row has: 'perhaps', 'maybe'." in str(caught.value)
    assert "Training labels: 'no', 'yes'" in str(caught.value)


@pytest.mark.parametrize("keys", [{"topics": {"sci.med": "medicine"}}, {"train_rows": 5}, {"validation_rows": 5}])
def test_keys_of_newsgroups_are_refused_elsewhere(task: Task, keys: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=rf"data\.{next(iter(keys))}=.* is only for data=newsgroups"):
        task.load(task.validation["csv"], **keys)


# --- the rung subset


def rows_of(sizes: dict[str, int]) -> list[Row]:
    return [Row(f"validation-{label}-{i}", "text", label) for label, size in sizes.items() for i in range(size)]


def test_the_rung_subset_keeps_proportions_and_every_label() -> None:
    rows = rows_of({"many": 800, "some": 190, "few": 10})
    chosen = rung_subset(rows, 50, 0)
    assert Counter(rows[i].label for i in chosen) == {"many": 40, "some": 9, "few": 1}
    assert chosen == sorted(set(chosen))


def test_the_rung_subset_is_fixed_by_its_seed_and_differs_between_seeds() -> None:
    rows = rows_of({"a": 100, "b": 100})
    assert rung_subset(rows, 20, 0) == rung_subset(list(rows), 20, 0)
    assert rung_subset(rows, 20, 0) != rung_subset(rows, 20, 1)


def test_a_rung_subset_of_all_rows_or_more_is_all_rows() -> None:
    rows = rows_of({"a": 3, "b": 2})
    assert rung_subset(rows, 5, 0) == rung_subset(rows, 99, 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_extra_columns_are_kept_with_rows_and_item_ids_stay_as_they_are(source: str, task: Task) -> None:
    records = [{"text": text, "label": label, "level": i, "unused": "x"} for i, (text, label) in enumerate(GOOD)]
    path = task.folder / f"extra.{source}"
    if source == "csv":
        write_csv(path, [tuple(map(str, row.values())) for row in records], tuple(records[0]))
    elif source == "jsonl":
        write_jsonl(path, records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    plain = task.load(path, source, validation=str(path))
    kept = task.load(path, source, validation=str(path), extra_columns=["level"])
    assert [row.extra for row in kept.validation] == [{"level": str(i) if source == "csv" else i} for i in range(4)]
    assert [row.item_id for row in kept.train] == [row.item_id for row in plain.train]
    assert kept.fingerprint == plain.fingerprint
    with pytest.raises(DataError, match=r"no column 'levels' \(data.extra_columns\).*Did you mean 'level'"):
        task.load(path, source, validation=str(path), extra_columns=["levels"])
