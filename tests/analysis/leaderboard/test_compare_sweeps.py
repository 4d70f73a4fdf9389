"""Sweeps side by side: one ranking where the data is the same, and a refusal where figures say nothing."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.errors import ConfigError, DataError, FolderError
from analysis.leaderboard.compare_sweeps import compare, rank_together
from sweeps.cli import main


@pytest.fixture
def two(make_sweep: Any) -> Any:
    """Two sweeps on the same data, and the setting of a value in the second one's ``sweep.yaml``."""

    def make(**second: Any) -> Any:
        fakes = [make_sweep(name=name) for name in ("first", "second")]
        for fake, shift in zip(fakes, (0, 2), strict=True):
            fake.trial("t0000", 0.9 - shift / 100, hits=144 - shift)
            fake.trial("t0001", 0.5, hits=80 + shift)
            told = yaml.safe_load(fake.folder.sweep_file.read_text())
            told["config"] |= {"model": {"package": "smollm2"}, "train": {"max_steps": 20 + shift}}
            told |= {"data": {"fingerprint": "a" * 64, "labels": ["science", "sport"]}}
            if shift:
                told["config"] |= second.pop("config", {})
                told |= second
            fake.folder.sweep_file.write_text(yaml.safe_dump(told))
        return [fake.folder for fake in fakes]

    return make


def test_trials_of_two_sweeps_are_one_ranking_with_ties_across_them(two: Any) -> None:
    together = rank_together(two())
    rows = together.ranking.rows
    assert [row.trial_id for row in rows] == ["first/t0000", "second/t0000", "first/t0001", "second/t0001"]
    assert [row.rank for row in rows] == [1, 2, 3, 4]
    assert [row.tied for row in rows] == [True, True, False, False]
    assert together.ranking.notes == ()
    by = rank_together(two_again := [together.folders.by_name[name] for name in ("second", "first")], ["acc"]).ranking
    assert by.rows[0].trial_id == "first/t0000"
    assert len(two_again) == 2


def test_sweeps_on_other_data_are_refused_by_rank_and_warned_of_by_compare(two: Any) -> None:
    folders = two(data={"fingerprint": "b" * 64})
    with pytest.raises(DataError, match=r"not run on the same data \(fingerprints: first aaaaaaaaaaaa, second bbbb"):
        rank_together(folders)
    found = compare(folders)
    assert found.sentences == ["The sweeps were not run on the same data: their figures say nothing about each other."]


def test_perplexity_ranks_within_one_tokenizer_only(two: Any) -> None:
    folders = two(config={"model": {"package": "minilm"}})
    with pytest.raises(ConfigError, match=r"perplexity counts by token.*Use --by bits_per_byte"):
        rank_together(folders, ["ppl"])
    assert rank_together(folders, ["bpb"]).ranking.by == ("bits_per_byte",)
    found = compare(folders)
    heads = [head for head, _ in found.table]
    assert "ppl" not in heads
    assert "bits/B" in heads
    assert any("perplexity is left out" in sentence for sentence in found.sentences)


def test_another_objective_is_said_and_the_first_ones_ranks(two: Any) -> None:
    other = {"name": "x", "rho": 0.0, "terms": {"a": {"metric": "log_loss", "direction": "min", "range": [0, 5]}}}
    together = rank_together(two(config={"objective": other}))
    assert together.ranking.notes == ("Ranked by the objective of first; second had another one.",)
    assert [row.trial_id for row in together.ranking.rows[:2]] == ["first/t0000", "second/t0000"]


def test_compare_shows_what_differs_and_whether_the_bests_can_be_told_apart(two: Any) -> None:
    found = compare(two())
    assert found.names == ["first", "second"]
    assert dict(found.table)["best"] == ["t0000", "t0000"]
    assert dict(found.table)["acc"] == ["0.900", "0.880"]
    assert found.changed == [("train.max_steps", ["20", "22"])]
    assert found.sentences[0].startswith("first/t0000 and second/t0000 cannot be told apart: +1.2 points of accuracy")


def test_a_clear_difference_is_told_with_its_interval(two: Any) -> None:
    folders = two()
    items = folders[1].trial("t0001").read_items("task", "validation", 24)
    folders[1].trial("t0000").write_items("task", "validation", 24, items)
    [sentence] = compare(folders).sentences
    assert sentence.startswith(
        "first/t0000 is better than second/t0000: +38.8 points of accuracy, paired 95 % interval ["
    )


def test_the_same_folder_twice_is_refused(two: Any) -> None:
    folder = two()[0]
    with pytest.raises(FolderError, match="given more than once"):
        rank_together([folder, folder])


def test_a_folder_that_cannot_be_read_is_left_out_with_a_word_and_the_rest_is_ranked(two: Any) -> None:
    first, second = two()
    first.sweep_file.write_text("config: [")
    together = rank_together([first, second])
    assert [row.trial_id for row in together.ranking.rows] == ["second/t0000", "second/t0001"]
    assert together.ranking.notes[0].startswith("first is left out: ")
    assert "sweep.yaml: cannot be read" in together.ranking.notes[0]
    second.sweep_file.write_text("")
    with pytest.raises(FolderError, match="None of the sweeps can be ranked"):
        rank_together([first, second])


def test_a_folder_of_another_format_is_ranked_by_what_is_understood(
    two: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two(format_version=0)
    assert rank_together([first, second]).ranking.notes[0].startswith("second has format 0, and this lorasweep reads 1")
    assert main(["rank", str(second.root)]) == 0
    told = capsys.readouterr()
    assert "second has format 0" in told.err
    assert "t0000" in told.out


def test_folders_of_one_name_are_told_apart_by_where_they_lie(two: Any, tmp_path: Path) -> None:
    import shutil

    from analysis.folder import SweepFolder

    folder = two()[0]
    other = tmp_path / "elsewhere" / "first"
    shutil.copytree(folder.root, other)
    rows = rank_together([folder, SweepFolder(other)]).ranking.rows
    assert {row.trial_id.split("/")[0] for row in rows} == {"runs:first", "elsewhere:first"}


def test_the_commands_print_it(two: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (str(folder.root) for folder in two())
    assert main(["compare", first, second]) == 0
    assert "cannot be told apart" in capsys.readouterr().out
    assert main(["rank", first, second, "--csv", "--by", "f1,bias.crows_pairs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rank,kind,trial_id,status")
    assert len(lines) == 5
    assert main(["rank", first, "--by", "f2"]) == 2
    assert "'f2' is not a metric to rank by" in capsys.readouterr().err
    assert main(["compare", first]) == 2
    assert main(["rank", first, "--csv", "--json"]) == 2


def test_sweeps_without_labels_are_compared_by_the_loss_that_ranks(make_sweep: Any) -> None:
    term = {"metric": "completion_loss", "direction": "min", "target": None, "range": [0.0, 8.0], "weight": 1.0}
    folders = []
    for name, loss in (("first", 2.5), ("second", 2.0)):
        sweep = make_sweep({"name": "single", "rho": 0.0, "terms": {"loss": term}}, name=name)
        files = sweep.trial("t0000", {"completion_loss": loss})
        nll = [10 * loss * (1 + 0.1 * (i % 3 - 1)) for i in range(159)]
        items = {"item_id": [f"item-{i}" for i in range(159)], "nll": nll, "n_tokens": [10] * 159}
        files.write_items("task", "validation", 24, items | {"completion_nll": nll, "completion_tokens": [10] * 159})
        folders.append(sweep.folder)
    [sentence] = compare(folders).sentences
    assert sentence.startswith(
        "first/t0000 is worse than second/t0000: 0.500 nats a token worse, paired 95 % interval [-0.5"
    )
    assert sentence.endswith("] nats a token on 159 items.")
