"""Written answers as they are read from a sweep folder, ordered, compared and made safe to show."""

import difflib
import math
from pathlib import Path
from typing import Any

import pytest

from analysis.answers import (
    ADDED,
    MISSING,
    Written,
    better_or_worse,
    differences,
    ranking_figure,
    shortened,
    worst_first,
)
from analysis.errors import ConfigError, FolderError
from analysis.folder import State, SweepFolder
from analysis.leaderboard import leaderboard
from tests.analysis.answers import PROMPTS, REFERENCES, TUNED, make, score, table
from tests.analysis.test_light_imports import imported


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return of(make(tmp_path / "runs" / "x"))


def of(folder: SweepFolder) -> Written:
    return Written(folder, leaderboard.build(folder))


def test_the_best_trial_stands_beside_the_untuned_model_the_worst_items_first(written: Written) -> None:
    shown = written.shown(None)
    [untuned] = written.against(shown, None)
    assert (shown.name, untuned.name) == ("t0000", "zero_shot")
    items = worst_first(shown, "exact_match", [untuned])
    # two are wrong; on the last one the untuned model is right
    assert [item.item_id for item in items] == ["validation-2", "validation-0", "validation-1"]
    assert (items[0].prompt, items[0].reference, items[0].places) == (PROMPTS[2], REFERENCES[2], (2, 2))
    assert better_or_worse(shown, untuned, "exact_match") == (1, 1, 1)


def test_the_order_is_by_any_figure_and_what_has_none_comes_last(written: Written) -> None:
    shown = written.shown("t0000")
    figure = ranking_figure(shown, ["generate.exact_match"], "overlap")
    assert [item.item_id[-1] for item in worst_first(shown, figure)] == ["2", "0", "1"]
    assert math.isnan(shown.figures["overlap"][1])
    assert "overlap" not in shown.values(1)
    with pytest.raises(ConfigError, match=r"--by rouge: .*exact_match, overlap"):
        ranking_figure(shown, [], "rouge")
    assert ranking_figure(shown, ["accuracy", "generate.overlap"]) == "overlap"
    assert ranking_figure(shown, ["generate.bleu"]) == "exact_match"  # of which items have no number


def test_less_is_worse_or_better_as_the_metric_table_says(tmp_path: Path) -> None:
    folder = make(tmp_path / "x")
    folder.trial("t0000").write_items("generated", "validation", 8, table(TUNED, invalid=[0.0, 1.0, 0.0]))
    shown = of(folder).shown("t0000")
    assert worst_first(shown, "invalid")[0].item_id == "validation-1"


def test_a_trial_that_was_stopped_early_shows_the_items_of_its_rung(written: Written) -> None:
    shown = written.shown("t0001")
    assert (shown.step, len(shown)) == (4, 2)
    [few] = written.against(shown, ["few_shot"])
    assert [item.places for item in worst_first(shown, "exact_match", [few])] == [(0, 0), (1, 1)]
    # where it did not write at the step that was scored last, the last answers that there are
    score(written.folder.trial("t0001"), State.STOPPED_EARLY, 6, 0.4, False)
    assert of(written.folder).shown("t0001").step == 4


def test_finalists_wrote_to_the_test_rows(written: Written) -> None:
    shown = written.shown("t0000-seed1")
    assert (shown.split, shown.columns["item_id"][0]) == ("test", "test-0")
    assert written.against(shown, None) == []
    with pytest.raises(FolderError, match="few_shot answered no item that t0000-seed1 did"):
        written.against(shown, ["few_shot"])


def test_without_answers_a_sentence_says_how_to_get_them(written: Written, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"majority wrote no answers. With answers: t0000, t0001"):
        written.shown("majority")
    with pytest.raises(FolderError, match=r"there is no t0009"):
        written.shown("t0009")
    empty = make(tmp_path / "empty")
    for path in empty.root.rglob("generated-*"):
        path.unlink()
    with pytest.raises(FolderError, match=r"`lorasweep finalize .*empty eval.generate=true`.*eval.generate=rung"):
        of(empty).shown(None)
    classifier = make(tmp_path / "head", task="classification")
    for path in classifier.root.rglob("generated-*"):
        path.unlink()
    with pytest.raises(FolderError, match="a classification head writes no answers"):
        of(classifier).shown(None)


def test_answers_to_rows_with_labels_have_accuracy_as_their_figure(tmp_path: Path) -> None:
    folder = make(tmp_path / "x")
    columns: dict[str, list[Any]] = {
        "item_id": ["a", "b"], "label": ["cat", "dog"], "generated": ["Cat.", "cow"], "prediction": ["cat", None],
        "constrained": ["cat", "cat"],
    }  # fmt: skip
    folder.trial("t0000").write_items("generated", "validation", 8, columns)
    shown = of(folder).shown("t0000")
    assert shown.figures == {"accuracy": [1.0, 0.0], "constrained_accuracy": [1.0, 0.0]}
    assert worst_first(shown, "accuracy")[0].item_id == "b"


def test_a_folder_of_an_earlier_version_has_exact_match_and_no_prompts(tmp_path: Path) -> None:
    folder = make(tmp_path / "x")
    kept = {"item_id": ["a", "b"], "label": ["x", "y"], "generated": ["x ", "z"], "rouge_l": [1.0, 0.0]}
    folder.trial("t0000").write_items("generated", "validation", 8, kept)
    shown = of(folder).shown("t0000")
    assert shown.figures == {"exact_match": [1.0, 0.0], "rouge_l": [1.0, 0.0]}
    assert worst_first(shown, "rouge_l")[0].prompt == ""


@pytest.mark.parametrize(
    ("reference", "answer", "missing", "added"),
    [
        ("in Paris, France", "in Paris, Spain", ["France"], ["Spain"]),
        ("a b c d", "a d", ["b c"], []),
        ("日本の首都です", "日本の東です", ["首都"], ["東"]),
        ("same  text\n here ", "same text here", [], []),
        ("", "one two", [], ["one two"]),
        ("It's 3.5%", "It's 4.5%", ["3"], ["4"]),
    ],
)
def test_words_that_differ_are_marked_and_the_texts_stay_whole(
    reference: str, answer: str, missing: list[str], added: list[str]
) -> None:
    ours, theirs = differences(reference, answer)
    assert [part for kind, part in ours if kind == MISSING] == missing
    assert [part for kind, part in theirs if kind == ADDED] == added
    assert "".join(part for _, part in ours) == reference
    assert "".join(part for _, part in theirs) == answer


def test_what_is_alike_is_what_difflib_finds() -> None:
    reference, answer = "the cat sat on the mat today", "a cat on the big mat sat"
    blocks = difflib.SequenceMatcher(None, reference.split(), answer.split(), autojunk=False).get_matching_blocks()
    alike = " ".join(" ".join(reference.split()[b.a : b.a + b.size]) for b in blocks).strip()
    ours, _ = differences(reference, answer)
    assert "".join(part for kind, part in ours if kind != MISSING).split() == alike.split()


def test_a_long_text_keeps_its_beginning_and_more_of_its_end() -> None:
    text = "".join(f"{i} " for i in range(1000))
    short = shortened(text, 300)
    assert len(short) <= 310
    assert short.startswith("0 1 2")
    assert short.endswith("998 999 ")
    assert shortened("short", 300) == "short"


def test_reading_answers_imports_nothing_heavy() -> None:
    assert imported("analysis.answers") & {"ray", "torch", "pandas", "numpy", "pyarrow", "rich"} == set()
