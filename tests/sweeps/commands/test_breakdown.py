"""``lorasweep breakdown``: the parts of a scored row, from item tables."""

import math
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len
from sklearn.metrics import classification_report

from analysis.errors import ConfigError, FolderError
from analysis.folder import MetricsRow, State, Status, SweepFolder
from sweeps.commands.breakdown import main
from sweeps.commands.breakdown_tables import categories, classes
from trainer.config import BiasConfig

GOLD = ["a", "a", "a", "b", "b", "c"]
PREDICTED = ["a", "b", "a", "b", "a", "a"]
ONE = BiasConfig(group_rows=1)
PAIRS = {
    "group": ["age", "age", "gender"],
    "logprobs": [[-1.0, -2.0], [-2.0, -1.0], [-1.0, -3.0]],
}
CLUSTERS = {
    "group": ["race", "race", "religion"],
    "target": ["x", "y", "z"],
    "logprobs": [[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-1.0, -2.0, -0.5]],
}


@pytest.fixture
def scored(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "runs" / "x")
    folder.root.mkdir(parents=True)
    term = {"metric": "accuracy", "direction": "max", "range": [0.0, 1.0], "weight": 1.0}
    content = {
        "format_version": 1,
        "config": {"objective": {"name": "o", "terms": {"q": term}}, "bias": {"group_rows": 1}},
        "space": {},
    }
    folder.sweep_file.write_text(yaml.safe_dump(content))
    for files, step in ((folder.trial("t0000"), 8), (folder.baseline("zero_shot"), 0)):
        files.root.mkdir(parents=True)
        files.config_file.write_text("{}")
        files.append_metrics(MetricsRow(files.trial_id, step, 0, 0.0, True, 6, {"accuracy": 0.5}))
        files.write_status(Status(State.COMPLETED, "", step))
    task = {"item_id": list("123456"), "label": GOLD, "prediction": PREDICTED, "group": list("xyxyxy")}
    folder.trial("t0000").write_items("task", "validation", 8, task)
    folder.trial("t0000").write_items("crows_pairs", "validation", 8, PAIRS)
    folder.trial("t0000").write_items("stereoset", "validation", 8, CLUSTERS)
    folder.baseline("zero_shot").write_items("crows_pairs", "validation", 0, PAIRS | {"logprobs": [[0.0, -1.0]] * 3})
    return folder


def test_each_class_is_as_scikit_learn_reports_it_with_what_it_is_mistaken_for() -> None:
    found = classes({"label": GOLD, "prediction": PREDICTED, "group": list("xyxyxx")}, ONE)
    report = classification_report(GOLD, PREDICTED, output_dict=True, zero_division=0)
    for row in found:
        expected = report[row.label]
        assert (row.n, row.precision, row.recall, row.f1) == (
            expected["support"], expected["precision"], expected["recall"], expected["f1-score"]
        )  # fmt: skip
    assert found[0].predicted_as == {"a": 2, "b": 1, "c": 0}
    assert found[2].predicted_as == {"a": 1, "b": 0, "c": 0}
    assert [row.tpr_gap for row in found[:2]] == [1.0, 1.0]  # a: x finds both, y none; b: y finds its one, x does not
    assert math.isnan(found[2].tpr_gap)  # only x has it


def test_rows_without_groups_have_no_gaps() -> None:
    found = classes({"label": GOLD, "prediction": PREDICTED, "group": [None] * 6}, BiasConfig())
    assert all(math.isnan(row.tpr_gap) and math.isnan(row.fair_gap) for row in found)


def test_each_category_has_the_figures_of_its_own_items() -> None:
    pairs = categories("crows_pairs", PAIRS, ONE)
    assert (pairs["age"][0], pairs["age"][1]["pct"]) == (2, (50.0, 50.0))
    assert pairs["gender"][1]["pct"][0] == 100.0
    clusters = categories("stereoset", CLUSTERS, ONE)
    assert clusters["race"][1]["ss"][0] == 50.0
    assert clusters["race"][1]["lms"][0] == 100.0
    assert clusters["religion"][1]["lms"][0] == 0.0


def test_the_command_shows_the_best_trial_beside_the_untuned_model(
    scored: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(scored.root)]) == 0
    shown = capsys.readouterr().out
    assert "t0000, step 8, 6 items" in shown
    assert "class  n  precision  recall     F1  TPR gap  if fair  predicted as:  a  b  c" in shown
    assert "category  n  t0000 pct ±  zero_shot pct ±" in shown
    assert "age       2  50.0 ± 50.0" in shown
    assert "gender    1    100.0 ± -" in shown
    assert "religion" in shown
    assert main([str(scored.root), "zero_shot"]) == 0
    assert "StereoSet" not in capsys.readouterr().out
    with pytest.raises(FolderError, match=r"t0009 has no scores to break down. Scored are: t0000, zero_shot"):
        main([str(scored.root), "t0009"])
    with pytest.raises(ConfigError, match="--trial is not an option"):
        main([str(scored.root), "--trial"])


LONG = [f"a label of more than sixty characters, which tells at length of class {i:02d} of them all" for i in range(37)]
LONG += [
    "多言語の分類ラベルで、とても長い名前を持つもの、端末では二倍の幅になる文字列です",
    "a\nb \x1b[31mred",
    "\u202ertl",
]


@pytest.mark.parametrize("columns", [80, 120])
def test_forty_classes_with_long_names_fit_a_terminal(
    columns: int, scored: SweepFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    gold = LONG * 5
    predicted = [LONG[(7 * i) % 40] if i % 3 else label for i, label in enumerate(gold)]
    task = {"item_id": [*map(str, range(200))], "label": gold, "prediction": predicted, "group": ["x", "y"] * 100}
    scored.trial("t0000").write_items("task", "validation", 8, task)
    main([str(scored.root)])
    shown = capsys.readouterr().out.split("CrowS-Pairs")[0].rstrip()
    assert max(map(cell_len, shown.split("\n"))) <= columns
    assert all(char == "\n" or char.isprintable() for char in shown)
    table, legend = shown.split("\n\n")[1:3]
    assert [line.split()[0] for line in table.split("\n")] == ["#", *(f"#{i}" for i in range(1, 41))]
    whole = " ".join(legend.split())
    assert all(" ".join(label.split()) in whole for label in LONG[:37])
