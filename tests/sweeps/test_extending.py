"""What CONTRIBUTING says of adding a bias set or a metric, done to a copy of the packages and run as a user would.

A bias set, ``toy``, costs three files beside its test, this one:

- ``trainer/evaluation/bias/toy.py``: its items, what is downloaded for them, how they are scored, and its figures;
- ``analysis/bias_sets.py``: its title and the rows of its figures in the metric table;
- ``conf/bias/full.yaml``: how much of it ``bias=full`` measures.

A metric, ``error_rate``, costs two: ``trainer/evaluation/quality_metrics.py``, where it is computed, and its row in
``analysis/metrics.py``. Nothing is patched: each test compares the copy with the repository and counts what differs.
"""

import csv
import filecmp
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import SweepFolder
from analysis.leaderboard import leaderboard
from sweeps.process.installation import PACKAGES, package_root

TOY = '''"""Toy: is a pear likelier to be an apple than a plum is?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.bias_sets import BIAS_SETS
from trainer.assets.wheels import Package
from trainer.config import BiasConfig
from trainer.evaluation.bias.registry import BiasScoring, Report, Scorer, Table

PACKAGE = Package("toy_words", "toy==1.0", "toy-1.0-py3-none-any.whl", "0" * 64, 1, "CC0", "words, made up", {})
WORDS = ("apple", "pear", "plum", "cherry", "iron", "copper", "zinc", "tin")


@dataclass(frozen=True)
class Likeness:
    item_id: str
    category: str
    sentences: tuple[str, str]


def load(n: Any, report: Report) -> list[Likeness]:
    return [
        Likeness(f"toy-{word}", "fruit" if i < 4 else "metal", (f"the {word} is a pear", f"the {word} is a plum"))
        for i, word in enumerate(WORDS[:n])
    ]


def score(items: list[Likeness], scorer: Scorer) -> Table:
    sums, _ = scorer.sentences([sentence for item in items for sentence in item.sentences])
    return {
        "item_id": [item.item_id for item in items],
        "group": [item.category for item in items],
        "logprobs": [sums[2 * i : 2 * i + 2] for i in range(len(items))],
    }


def figures(table: Table, labels: tuple[str, ...], settings: BiasConfig) -> dict[str, float]:
    pairs = np.asarray(list(map(list, table["logprobs"])))
    apart = pairs[:, 0] - pairs[:, 1]
    error = float(apart.std(ddof=1)) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    return dict(zip(BIAS_SETS["toy"].metric_names, (float(apart.mean()), error), strict=True))


def sentences(items: list[Likeness]) -> dict[str, str]:
    return {item.item_id: item.sentences[0] for item in items}


SCORINGS = (
    BiasScoring("toy", figures=figures, load=load, score=score, sentences=sentences, packages=(PACKAGE,)),
)
'''

TOY_ENTRY = """    BiasSet(
        "toy",
        "Toy",
        {
            "gap": Metric("toy gap", 0.0, 2, error="gap_stderr", estimator=preference("toy")),
            "gap_stderr": _error(2),
        },
        columns=("group", "logprobs"),
    ),
"""


class House:
    """A copy of the packages that can be changed and run."""

    def __init__(self, root: Path):
        self.root = root
        for name in PACKAGES:
            shutil.copytree(Path(package_root()) / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))

    def insert(self, file: str, before: str, text: str) -> None:
        """Put text into a file, before a line that is there once."""
        content = (self.root / file).read_text()
        assert content.count(before) == 1
        (self.root / file).write_text(content.replace(before, text + before))

    def changed(self) -> set[str]:
        """Files that the repository does not have, or has otherwise."""
        files = [path for name in PACKAGES for path in (self.root / name).rglob("*") if path.is_file()]
        names = {path.relative_to(self.root).as_posix() for path in files if "__pycache__" not in path.parts}
        ours = Path(package_root())
        return {n for n in names if not (ours / n).exists() or not filecmp.cmp(self.root / n, ours / n, shallow=False)}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], House]:
    return lambda name: House(tmp_path_factory.mktemp(name) / "house")


@pytest.fixture(scope="module")
def with_toy(house: Callable[[str], House]) -> House:
    changed = house("toy")
    (changed.root / "trainer/evaluation/bias/toy.py").write_text(TOY)
    changed.insert("analysis/bias_sets.py", ")\nBIAS_SETS = ", TOY_ENTRY)
    full = "toy: ${pick:${task.name},{completion:8,classification:0}} # sentences: all\n"
    changed.insert("conf/bias/full.yaml", "swap: 100000", full)
    return changed


@pytest.fixture(scope="module")
def command(lorasweep: Any, with_toy: House, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``lorasweep`` of the copy with the toy set."""
    return lorasweep(tmp_path_factory.mktemp("toy-runs"), {"PYTHONPATH": str(with_toy.root)})


@pytest.fixture(scope="module")
def measured(command: Any, tiny: Callable[..., list[str]]) -> SweepFolder:
    """A sweep of three trials that measures the toy set."""
    settings = ["search.trials=3", "scheduler=fifo", "objective=single", "precision=fp32", "sweep.name=toy"]
    settings += ["baselines=[zero_shot]"]
    done = command("run", *tiny("llama", "bias.toy=8", *settings))
    assert done.returncode == 0, done.stderr
    return SweepFolder(command.cwd / "runs" / "toy")


def test_a_bias_set_costs_three_files_beside_its_test(with_toy: House) -> None:
    assert with_toy.changed() == {"trainer/evaluation/bias/toy.py", "analysis/bias_sets.py", "conf/bias/full.yaml"}


def test_its_figures_and_their_errors_stand_in_metrics_items_and_leaderboard(measured: SweepFolder) -> None:
    for trial in [*measured.trials(), measured.baseline("zero_shot")]:
        row = trial.read_metrics()[-1]
        table = trial.read_items("toy", "validation", row.step)
        apart = [more - less for more, less in table["logprobs"]]
        assert table["item_id"][:4] == ["toy-apple", "toy-pear", "toy-plum", "toy-cherry"]
        assert row.metrics["bias.toy.gap"] == pytest.approx(sum(apart) / 8)
        assert row.metrics["bias.toy.gap_stderr"] > 0.0
    with measured.leaderboard_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(math.isfinite(float(row[f"bias.toy.{figure}"])) for row in rows for figure in ("gap", "gap_stderr"))


def test_trials_can_be_ranked_by_it_with_an_interval(measured: SweepFolder, command: Any) -> None:
    done = command("rank", str(measured.root), "--by", "bias.toy.gap", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    gaps = [abs(row["metrics"]["bias.toy.gap"]) for row in rows if row["kind"] == "trial"]
    assert gaps == sorted(gaps)
    for row in rows:
        assert row["low"] < row["high"]
        assert row["low"] <= row["metrics"]["bias.toy.gap"] <= row["high"]
    table = command("rank", str(measured.root), "--by", "bias.toy")  # its only rankable figure
    assert "toy gap" in table.stdout
    assert "items (permutation test" in table.stdout


def test_breakdown_and_report_show_it(measured: SweepFolder, command: Any) -> None:
    done = command("breakdown", str(measured.root))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\nToy\n")[1].splitlines()
    assert "gap ±" in lines[0]
    assert lines[1].split()[:2] == ["fruit", "4"]
    assert command("report", str(measured.root)).returncode == 0
    assert "toy gap" in (measured.root / "report.html").read_text()


def test_its_config_key_is_checked_like_any_other(command: Any, tiny: Callable[..., list[str]]) -> None:
    for override, words in (
        ("bias.toy=-1", ["bias.toy=-1", "at least 0"]),
        ("bias.toys=4", ["'bias.toys' is not a config key", "Did you mean 'bias.toy'"]),
        ("bias.toy=four", ["bias.toy='four'", "expected a whole number"]),
    ):
        done = command("run", *tiny("llama", override))
        assert done.returncode == 2
        assert [word for word in words if word not in done.stderr] == []
    done = command("run", *tiny("bert", "task=classification", "bias.toy=4"))
    assert done.returncode == 2
    assert "Toy compares the likelihood of sentences" in done.stderr
    assert "toy: 8" in command("run", *tiny("llama", "bias=full"), "--cfg", "job", "--resolve").stdout


def test_its_package_is_among_those_that_can_be_fetched(command: Any) -> None:
    assert "words, made up (CC0)" in command("fetch").stdout
    done = command("fetch", "toy_word")  # refused before anything is asked of the network
    assert "Did you mean 'toy_words'?" in done.stderr


def test_the_data_check_looks_for_its_sentences(command: Any, tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    lines = [f"the {label} is a plum and a {n},{label}" for label in ("fruit", "metal", "bird") for n in "xyz"]
    rows.write_text("\n".join(["text,label", *lines, "and the apple is a pear,fruit"]) + "\n")
    done = command("check", *tiny("llama", "bias.toy=4", f"data.train={rows}"), "--no-probe")
    assert "hold a sentence of the bias benchmark, such as" in done.stdout
    assert "toy-apple" in done.stdout


def test_a_folder_with_figures_of_a_set_that_is_not_installed_is_still_ranked(measured: SweepFolder) -> None:
    rows = leaderboard.build(measured)  # by this process, whose packages have no toy
    assert all("bias.toy.gap" in row.metrics for row in rows)
    assert "bias.toy.gap" in leaderboard.to_csv(rows).splitlines()[0]


def test_a_metric_costs_two_files_and_ranks_with_an_interval(
    house: Callable[[str], House], lorasweep: Any, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    changed = house("metric")
    computed, row = "trainer/evaluation/quality_metrics.py", "analysis/metrics.py"
    changed.insert(computed, '        "log_loss": float(', '        "error_rate": float((predicted != gold).mean()),\n')
    changed.insert(
        row,
        "    **bias_metrics(),\n",
        '    "error_rate": Metric("errors", "low", range=_SHARE, tasks=LABELLED, estimator=sums.Estimator(\n'
        "        sums.TASK, sums.accuracy().columns, lambda hits, n: 1 - hits[..., 0] / n)),\n",
    )
    assert changed.changed() == {computed, row}
    command = lorasweep(tmp_path, {"PYTHONPATH": str(changed.root)})
    settings = ["search.trials=3", "scheduler=fifo", "precision=fp32", "objective=single", "sweep.name=own"]
    settings += ["baselines=[zero_shot]"]
    done = command("run", *tiny("llama", *settings, "objective.terms.quality.metric=error_rate"))
    assert done.returncode == 0, done.stderr
    done = command("rank", "runs/own", "--by", "error_rate", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 4
    for entry in rows:
        assert entry["metrics"]["error_rate"] == pytest.approx(1 - entry["metrics"]["accuracy"])
        assert entry["low"] <= entry["metrics"]["error_rate"] <= entry["high"]
    assert any(entry["low"] < entry["high"] for entry in rows)
    trials = [entry["metrics"]["error_rate"] for entry in rows if entry["kind"] == "trial"]
    assert trials == sorted(trials)
    assert "errors" in command("rank", "runs/own", "--by", "error_rate").stdout
