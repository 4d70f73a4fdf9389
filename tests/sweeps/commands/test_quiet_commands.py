"""Nothing but the answer: no library's warning stands above a leaderboard, whatever the sweep is like."""

import contextlib
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.folder import MetricsRow, State, Status, SweepFolder
from analysis.leaderboard import leaderboard
from sweeps import cli
from sweeps.compose.compose import Composed, compose
from sweeps.process.logs import of_command, to_file
from sweeps.store.manifest import make_manifest, write_manifest
from trainer.config import BiasConfig
from trainer.evaluation.evaluate import metrics_of

Table = dict[str, list[Any]]
SIZED = ["train.max_steps=16", "train.rungs=[4,16]", "data.max_length=128", "precision=fp32", "search.start_from=[]"]
BY = ("log_loss", "mcc", "ece", "perplexity", "bias.crows_pairs.pct", "bias.crows_pairs.signed")
LABELS = ("cat", "dog", "eel")


def task_table(gold: list[str], predicted: list[str], *, sure: float = 0.8) -> Table:
    """An item table as scoring writes it; ``sure``: probability of the predicted label."""
    other = (1.0 - sure) / (len(LABELS) - 1)
    logprobs = [[math.log(max(sure if label == said else other, 1e-300)) for label in LABELS] for said in predicted]
    n = len(gold)
    return {
        "item_id": [f"i{i}" for i in range(n)],
        "group": [("a", "b")[i % 2] for i in range(n)],
        "label": gold,
        "prediction": predicted,
        "logprobs": logprobs,
        "nll": [20.0] * n,
        "n_tokens": [10] * n,
        "n_bytes": [40] * n,
        "completion_nll": [-row[LABELS.index(label)] for row, label in zip(logprobs, gold, strict=True)],
        "completion_tokens": [1] * n,
    }


def text_table(n: int, nll: float) -> Table:
    return {
        "item_id": [f"i{i}" for i in range(n)],
        "group": [None] * n,
        "nll": [nll] * n,
        "n_tokens": [10] * n,
        "n_bytes": [40] * n,
        "completion_nll": [nll / 2] * n,
        "completion_tokens": [5] * n,
    }


def pair_table(pairs: list[list[float]]) -> Table:
    n = len(pairs)
    return {
        "item_id": [f"p{i}" for i in range(n)],
        "group": ["age"] * n,
        "label": ["stereo"] * n,
        "prediction": ["more" if more > less else "less" for more, less in pairs],
        "logprobs": pairs,
        "nll": [20.0] * n,
        "n_tokens": [10] * n,
        "n_bytes": [40] * n,
    }


def labelled(gold: list[str], *answers: list[str], pairs: list[list[float]] | None = None) -> list[dict[str, Table]]:
    bias = {"crows_pairs": pair_table(pairs)} if pairs else {}
    return [{"task": task_table(gold, predicted), **bias} for predicted in answers]


_HALF = ["cat", "dog"] * 8
_PAIRS = [[-20.0, -21.0], [-22.0, -20.5], [-19.0, -19.5], [-18.0, -18.5]]
# What a sweep can be like → the item tables of its trials. The last is the untuned model's.
SWEEPS: dict[str, Callable[[], list[dict[str, Table]]]] = {
    "no trial": lambda: labelled(_HALF, _HALF),
    "one trial": lambda: labelled(_HALF, _HALF, ["cat"] * 16),
    "trials that are alike": lambda: labelled(_HALF, ["cat"] * 16, ["cat"] * 16, ["cat"] * 16, ["cat"] * 16),
    "all right": lambda: labelled(_HALF, _HALF, _HALF, ["dog"] * 16, pairs=_PAIRS),
    "one class": lambda: labelled(["cat"] * 16, ["cat"] * 16, ["dog"] * 16, ["eel"] * 16),
    "one item": lambda: labelled(["cat"], ["cat"], ["dog"], ["dog"], pairs=_PAIRS[:1]),
    "two items": lambda: labelled(["cat", "dog"], ["cat", "dog"], ["dog", "dog"], ["dog", "dog"], pairs=_PAIRS[:2]),
    "equal pairs": lambda: labelled(_HALF, _HALF, ["cat"] * 16, ["dog"] * 16, pairs=[[-20.0, -20.0]] * 4),
    "never sure": lambda: [{"task": task_table(_HALF, _HALF, sure=sure)} for sure in (1.0, 1 / 3, 0.0)],
    "texts": lambda: [{"task": text_table(8, nll)} for nll in (20.0, 22.0, 30.0)],
    "texts that are alike": lambda: [{"task": text_table(8, nll)} for nll in (20.0, 20.0, 20.0)],
    "one text": lambda: [{"task": text_table(1, nll)} for nll in (20.0, 22.0, 30.0)],
    "not a number": lambda: [{"task": text_table(8, nll)} for nll in (math.nan, math.nan, math.nan)],
    "endless": lambda: [{"task": text_table(8, nll)} for nll in (math.inf, 1e5, 30.0)],
}


@cache
def composed_of(objective: str, labelled: bool, bias: bool) -> Composed:
    sources = ["data=csv", "data.train=x.csv", "data.validation=x.csv"]
    completion = ["data.schema=completion", "data.prompt=prompt", "data.completion=answer"]
    rows = ["data.schema=label", "data.text=text", "data.label=label"] if labelled else completion
    settings = [*sources, *rows, *SIZED, f"bias={'fast' if bias else 'none'}", f"objective={objective}"]
    return compose(["model=smollm2", *settings])


def made(root: Path, tables_of: list[dict[str, Table]], objective: str) -> SweepFolder:
    """A sweep folder of trials with these item tables, the last one's the baseline's."""
    labels = LABELS if "label" in tables_of[0]["task"] else ()
    folder = SweepFolder(root)
    root.mkdir(parents=True)
    composed = composed_of(objective, bool(labels), "crows_pairs" in tables_of[0])
    write_manifest(folder, make_manifest(composed, {"fingerprint": "f", "labels": list(labels)}, []))
    *trials, untuned = tables_of
    for number, tables in enumerate([untuned, *trials]):
        name = f"t{number - 1:04d}" if number else "zero_shot"
        files = folder.trial(name) if number else folder.baseline(name)
        step = 16 if number else 0
        if number:
            files.root.mkdir(parents=True)
            files.config_file.write_text(f"lora: {{rank: {4 * number}}}\noptim: {{lr: 0.00{number}}}\n")
        with np.errstate(all="ignore"):
            metrics = metrics_of(tables, labels, BiasConfig())
        n_items = len(tables["task"]["item_id"])
        for rung, final in ((4, False), (16, False), (16, True)) if number else ((0, True),):
            files.append_metrics(MetricsRow(name, rung, 100, 1.0 + rung, final, n_items, metrics))
        for dataset, table in tables.items():
            files.write_items(dataset, "validation", step, table)
        files.write_status(Status(State.COMPLETED, "", step))
    return folder


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every warning that is given, those that Python would show once too, as if nothing were kept off the terminal."""
    given: list[str] = []

    def show(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        given.append(f"{filename}:{lineno}: {category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # for those who write code
        monkeypatch.setattr(cli, "of_command", lambda path, debug: contextlib.nullcontext())
        monkeypatch.setattr(warnings, "showwarning", show)
        yield given


@pytest.mark.parametrize("name", SWEEPS)
def test_commands_give_no_warning_whatever_the_sweep_is_like(
    name: str, tmp_path: Path, heard: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tables = SWEEPS[name]()
    for objective in ("balanced", "quality_first", "pareto") if "label" in tables[0]["task"] else ("balanced",):
        run, other = tmp_path / objective, tmp_path / f"{objective}2"
        folder = made(run, tables, objective)
        commands = [["rank", str(run)]]
        if objective == "balanced":
            shutil.copytree(run, other)
            commands += [["status", str(run)], ["compare", str(run), str(other)], ["report", str(run)]]
            commands += [["rank", str(run), str(other)], ["breakdown", str(run)]]
            measured = {key for row in leaderboard.build(folder) for key in row.metrics}
            commands += [["rank", str(run), "--by", key] for key in BY if key in measured]
        for command in commands:
            code = cli.main(command)
            shown = capsys.readouterr()
            if code == 1 and shown.err.lstrip().startswith("No trial has"):  # our own sentence, and true
                assert name in ("not a number", "endless"), command
                code, shown = 0, shown._replace(err="")
            assert (code, shown.err, heard) == (0, "", []), command
            assert shown.out, command


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A sweep folder; libraries have much to say when it is ranked."""
    folder = made(tmp_path / "sweep", SWEEPS["all right"](), "single")
    ranked = leaderboard.ranked

    def loud(*arguments: Any) -> Any:
        np.mean([])
        warnings.warn("experimental", UserWarning, stacklevel=1)
        logging.getLogger("optuna").warning("a new study")
        logging.getLogger("some.library").warning("no handler of its own")
        return ranked(*arguments)

    monkeypatch.setattr(leaderboard, "ranked", loud)
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache" / "lorasweep"))
    return folder.root


WORDS = ("Mean of empty slice", "experimental", "a new study", "no handler of its own")


def test_what_libraries_say_is_in_a_log_and_not_above_the_leaderboard(
    noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown_by = warnings.showwarning
        assert cli.main(["rank", str(noisy)]) == 0
        assert warnings.showwarning is shown_by
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines()[1].split()[:2] == ["#", "trial"]
    log = tmp_path / "cache" / "lorasweep" / "warnings.log"
    assert [word for word in WORDS if word not in log.read_text()] == []
    log.write_text("x" * 1_100_000)  # it does not grow for ever
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["rank", str(noisy)]) == 0
    assert "xxx" not in log.read_text()


def test_debug_and_pythons_own_option_show_them(
    noisy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["rank", str(noisy), "--debug"]) == 0
        shown = capsys.readouterr().err
        assert [word for word in WORDS if word not in shown] == []
    monkeypatch.setattr(sys, "warnoptions", ["always"])
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"), pytest.warns(UserWarning, match="experimental"):
        assert cli.main(["rank", str(noisy)]) == 0


def test_a_log_that_cannot_be_written_is_no_matter(
    noisy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", "/proc/lorasweep")
    assert cli.main(["rank", str(noisy)]) == 0
    assert capsys.readouterr().err == ""


def test_within_a_command_a_sweeps_own_log_takes_over_and_gives_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(), of_command(tmp_path / "outer"):
        warnings.simplefilter("always")
        with to_file(tmp_path / "inner"):
            warnings.warn("while it runs", UserWarning, stacklevel=1)
        warnings.warn("when it is ranked", UserWarning, stacklevel=1)
    assert "while it runs" in (tmp_path / "inner").read_text()
    assert "when it is ranked" in (tmp_path / "outer").read_text()
    assert "while it runs" not in (tmp_path / "outer").read_text()
    assert capsys.readouterr().err == ""
