"""Final scores: the best trials with other seeds on a test split that the sweep never saw."""

import csv
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from analysis.errors import DataError, FolderError
from analysis.finals import read_finals, read_looks, report
from analysis.folder import MetricsRow, State, SweepFolder, TrialFolder, read_lines
from analysis.leaderboard.ranking import in_order
from analysis.leaderboard.seeds import configurations
from analysis.objective import Objective
from analysis.rows import Row
from sweeps import cli
from sweeps.driver.device_client import DeviceClient, TrialPlacement
from sweeps.finalize import _composed, _finalists, _runs, _test_rows, _train_to_end
from sweeps.run import _require_same_data
from sweeps.store.manifest import read_manifest
from tests.analysis.conftest import OBJECTIVE
from tests.conftest import write_rows
from tests.sweeps.driver.fakes import FakeDispatcher
from trainer.engine import Admitted, Ended, Halted, Requeued, RungResult


@pytest.fixture(scope="module")
def sweep(tiny, tmp_path_factory) -> Path:
    """The folder where a trial was run whose ``data.test`` holds garbage: nothing but a final scoring reads it."""
    where = tmp_path_factory.mktemp("finals")
    (where / "test.csv").write_bytes(b"\xff\xfe\x00garbage")
    more = [f"data.test={where / 'test.csv'}", "optim.lr=2e-2", "sweep.name=tiny", "baselines=[retrieval]"]
    more += ["precision=fp32"]
    more += ["eval.generate=true", "lora.dropout=0.1", "train.max_steps=12", "train.rungs=[3,12]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
        assert cli.main(["trial", *tiny("llama", *more)]) == 0
    return where


@pytest.fixture(scope="module")
def finalized(sweep, lorasweep) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """Finalised with two seeds: killed once the first one is trained, run again, and run a third time."""
    write_rows(sweep / "test.csv", 24, 9)
    command = lorasweep(sweep)
    arguments = (
        "finalize",
        "runs/tiny",
        "--top",
        "1",
        "--seeds",
        "2",
        "bias=none",
        "resources.slots=1",
        "eval.generate=true",
    )
    process = command.start(*arguments)
    said = []
    for line in process.stdout:
        said.append(line)
        if "t0000-seed2  step" in line:
            break
    process.send_signal(signal.SIGKILL)
    rest, err = process.communicate(timeout=60)
    outcomes = [subprocess.CompletedProcess(arguments, process.returncode, "".join(said) + rest, err)]
    outcomes += [command(*arguments) for _ in range(2)]
    return sweep, outcomes


def test_without_test_rows_it_is_refused_with_the_way_out(sweep, monkeypatch, capsys) -> None:
    monkeypatch.chdir(sweep)
    manifest = (sweep / "runs" / "tiny" / "sweep.yaml").read_text()
    bare = sweep / "runs" / "bare"
    bare.mkdir()
    (bare / "sweep.yaml").write_text(manifest.replace(str(sweep / "test.csv"), "null"))
    assert cli.main(["finalize", "runs/bare"]) == 3
    assert "finalize runs/bare data.test=FILE" in capsys.readouterr().err
    assert not (bare / "finals").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lora.rank=2"], "'lora.rank' cannot change when finalists are scored"),
        (["--top", "0"], "--top 0: expected 1 or more"),
        (["--seeds", "x"], "--seeds"),
    ],
)
def test_what_would_change_the_trials_is_refused(sweep, arguments, words, monkeypatch, capsys) -> None:
    monkeypatch.chdir(sweep)
    assert cli.main(["finalize", "runs/tiny", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_finalists_are_trained_with_new_seeds_and_scored_on_the_test_split(finalized) -> None:
    where, outcomes = finalized
    assert outcomes[1].returncode == 0, outcomes[1].stdout + outcomes[1].stderr
    folder = SweepFolder(where / "runs" / "tiny")
    assert [files.trial_id for files in folder.finals()] == ["retrieval", "t0000-seed1", "t0000-seed2"]
    weights = set()
    for name in ("t0000-seed1", "t0000-seed2"):
        files = folder.final(name)
        assert files.read_status().state is State.COMPLETED
        assert not files.checkpoints_dir.exists()
        finals = [row for row in files.read_metrics() if row.final]
        assert [(row.split, row.n_items) for row in finals] == [("validation", 30), ("test", 24)]
        items = files.read_items("task", "test", finals[1].step)
        with (where / "test.csv").open(newline="") as file:
            assert items["label"] == [row["label"] for row in csv.DictReader(file)]
        hits = [p == label for p, label in zip(items["prediction"], items["label"], strict=True)]
        assert sum(hits) / 24 == pytest.approx(finals[1].metrics["accuracy"])
        weights.add((files.adapter_dir / "adapter_model.safetensors").read_bytes())
    assert len(weights) == 2, "another seed is another adapter"


def test_the_test_figures_are_those_of_the_saved_adapter_in_plain_peft(finalized, tiny_models) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, _ = finalized
    files = SweepFolder(where / "runs" / "tiny").final("t0000-seed2")
    base = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    model = PeftModel.from_pretrained(base, files.adapter_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    labels = ["bird", "fruit", "metal"]
    items = files.read_items("task", "test", files.read_metrics()[-1].step)
    with (where / "test.csv").open(newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            prompt = torch.tensor([tokenizer(f"{row['text']}\nLabel:").input_ids])
            with torch.no_grad():
                last = model(prompt).logits[0, -1][tokenizer.convert_tokens_to_ids(labels)]
            assert items["logprobs"][i] == pytest.approx(last.log_softmax(-1).tolist(), abs=1e-4)


def test_what_finalists_trials_and_baselines_write_is_scored_too(finalized) -> None:
    folder = SweepFolder(finalized[0] / "runs" / "tiny")
    by_split = {"test": [folder.final(n) for n in ("retrieval", "t0000-seed1")]}
    by_split["validation"] = [folder.trial("t0000"), folder.baseline("retrieval")]
    for split, all_files in by_split.items():
        for files in all_files:
            row = [row for row in files.read_metrics() if row.final][-1]
            table = files.read_items("generated", split, row.step)
            right = [a == b for a, b in zip(table["constrained"], table["label"], strict=True)]
            assert sum(right) / len(right) == row.metrics["generate.constrained_accuracy"]
            assert row.metrics["generate.constrained_accuracy"] == row.metrics["accuracy"], "labels of one token"
            invalid = [answer is None for answer in table["prediction"]]
            assert sum(invalid) / len(invalid) == row.metrics["generate.invalid"]


def test_what_was_finished_before_the_kill_is_not_done_again(finalized) -> None:
    _, (killed, again, _) = finalized
    assert killed.returncode == -signal.SIGKILL
    assert "t0000-seed1  completed" in killed.stdout
    assert "t0000-seed1  step" not in again.stdout
    assert "t0000-seed1  test" in again.stdout
    assert "t0000-seed2  completed" in again.stdout


def test_the_table_shows_test_beside_validation_and_the_interval_against_the_baseline(finalized) -> None:
    where, (_, again, _) = finalized
    finals = read_finals(SweepFolder(where / "runs" / "tiny"))
    assert report(read_finals(SweepFolder(where / "runs" / "tiny"))).splitlines()[0] in again.stdout
    [finalist] = finals.finalists
    mean, sd = finalist.mean("accuracy"), finalist.sd("accuracy")
    assert f"{mean:.3f} ± {sd:.3f}" in again.stdout
    assert "accuracy in the sweep that chose it" in again.stdout
    assert "baseline retrieval; paired 95 % interval [" in again.stdout


def test_a_resumed_look_is_the_same_look_and_a_second_one_is_recorded_and_shown(finalized) -> None:
    where, (_, again, third) = finalized
    folder = SweepFolder(where / "runs" / "tiny")
    events = [(line["look"], line["event"]) for line in read_lines(folder.looks_file)]
    assert events == [(1, "began"), (1, "resumed"), (1, "finished"), (2, "began"), (2, "finished")]
    first, second = read_looks(folder)
    assert first.finished
    assert second.finished
    assert "@" in first.user
    assert "finalize runs/tiny --top 1 --seeds 2" in first.command
    assert "looked at once" in again.stdout
    assert third.returncode == 0
    assert "all of them have their final scores already" in third.stdout
    assert "The test split was looked at 2 times" in third.stdout


def test_other_test_rows_are_not_mixed_with_these(finalized, monkeypatch, capsys) -> None:
    where, _ = finalized
    monkeypatch.chdir(where)
    other = write_rows(where / "other.csv", 12, 3)
    assert cli.main(["finalize", "runs/tiny", "--top", "1", f"data.test={other}"]) == 5
    assert "other test rows than these" in capsys.readouterr().err


@pytest.mark.parametrize("split", [0, 1], ids=["training", "validation"])
def test_rows_that_trained_or_chose_the_trial_are_no_test_rows(
    split: int, sweep, tiny_data, monkeypatch, capsys, tmp_path
) -> None:
    monkeypatch.chdir(sweep)
    first = tiny_data[split].read_text().splitlines()[1]
    text, label = first.split(",")
    test = write_rows(tmp_path / "test.csv", 6, 9)
    test.write_text(test.read_text() + f"<p>Re: {text.upper()}.</p>,{label}\n")
    assert cli.main(["finalize", "runs/tiny", f"data.test={test}"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "1 test row stands among the training or validation rows too" in said
    assert f"{tiny_data[split]}, line 2" in said
    assert "data.allow_overlap=true" in said


def test_test_rows_may_be_kept_and_near_ones_are_told(sweep, tiny_data, tmp_path) -> None:
    first = tiny_data[0].read_text().splitlines()[1]
    test = write_rows(tmp_path / "test.csv", 6, 9)
    test.write_text(test.read_text() + f"{first}\nthey say that {first}\n")
    folder = SweepFolder.open(sweep / "runs" / "tiny")
    manifest = read_manifest(folder)
    composed = _composed(manifest["unresolved"], [f"data.test={test}", "data.allow_overlap=true"], own_code=False)
    facts, sentences = _test_rows(folder, composed, manifest)
    assert facts["rows"] == 8
    assert "1 test row stands among" in sentences[0]
    assert "nearly repeated among the training or validation rows" in sentences[1]
    manifest["data"]["labels"].reverse()  # as an earlier version stored numbers, which stood in the order of text
    with pytest.raises(DataError, match=r"numbered the classes.*Start a new sweep"):
        _test_rows(folder, composed, manifest)
    with pytest.raises(DataError, match=r"numbered the classes.*Start a new sweep"):
        _require_same_data(folder, manifest, manifest["data"]["fingerprint"], manifest["data"]["labels"][::-1])


def test_a_label_that_no_training_row_has_is_refused(sweep, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(sweep)
    (tmp_path / "odd.csv").write_text("text,label\nthe owl,planet\n")
    assert cli.main(["finalize", "runs/tiny", f"data.test={tmp_path / 'odd.csv'}"]) == 3
    assert "'planet'" in capsys.readouterr().err


def test_seeds_of_one_configuration_are_one_finalist_and_get_seeds_that_the_search_did_not_use(sweep) -> None:
    folder = SweepFolder(sweep / "runs" / "tiny")
    ranked = []
    for name, quality in (("t0003.1", 0.9), ("t0001", 0.7), ("t0003", 0.0), ("t0001.1", 0.6), ("t0002", 0.5)):
        ranked.append(Row("trial", name, "completed", 12, final=True, objective=quality))
    rows = in_order(configurations(ranked), Objective.from_config(OBJECTIVE), [])
    assert [row.trial_id for row in _finalists(folder, rows, 2)] == ["t0001", "t0002"], "not t0003, for its best seed"
    composed = _composed(read_manifest(folder)["unresolved"], ["bias=none"], own_code=False)
    assert [run.trained.seed for run in _runs(folder, composed, "t0000", 2)] == [1, 2]
    repeated = replace(composed, config=replace(composed.config, search=replace(composed.config.search, repeats=3)))
    assert [run.name for run in _runs(folder, repeated, "t0000", 2)] == ["t0000-seed3", "t0000-seed4"]


def scripted(monkeypatch, *events) -> tuple[DeviceClient, list[bool]]:
    """A device worker that admits whatever asks and answers with these events; and what it was asked to do first."""
    told, asked = iter(events), list[bool]()

    def next_event(trial_id: str, proceed: bool) -> object:
        asked.append(proceed)
        return next(told)

    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    calls = {"admit": lambda *_: Admitted(0), "next_event": next_event}
    actor = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})
    return DeviceClient(actor, "here"), asked


def a_run(tmp_path: Path) -> SimpleNamespace:
    trained = SimpleNamespace(trial_id="t0000-seed1", precision="fp32", train=SimpleNamespace(max_steps=4))
    return SimpleNamespace(trained=trained, files=TrialFolder(tmp_path / "t0000-seed1"), name="t0000-seed1")


def test_a_finalist_that_loses_its_slot_or_its_worker_goes_on_from_its_last_rung(tmp_path, monkeypatch) -> None:
    def row(step: int, final: bool = False) -> MetricsRow:
        return MetricsRow("t0000-seed1", step, 0, 0.0, final, 4, {"accuracy": 0.5})

    run, events = a_run(tmp_path), [RungResult("t0000-seed1", row(2)), Requeued("t0000-seed1", "memory ran out"), None]
    events += [RungResult("t0000-seed1", row(4)), Ended("t0000-seed1", State.COMPLETED, "", 4, row(4, True))]
    device, asked = scripted(monkeypatch, *events)
    _train_to_end(run, TrialPlacement(FakeDispatcher(device), run.trained, run.files), lambda line: None)
    assert asked == [False, True, False, False, True]
    assert [(it.step, it.final) for it in run.files.read_metrics()] == [(2, False), (4, False), (4, True)]
    assert run.files.read_status().state is State.COMPLETED


def test_a_full_disk_ends_finalizing_with_the_reason_and_blames_no_finalist(tmp_path, monkeypatch) -> None:
    run = a_run(tmp_path)
    device, _ = scripted(monkeypatch, Halted("t0000-seed1", "node 1: no space left on device"))
    with pytest.raises(FolderError, match=r"node 1: no space left on device.*finalize again"):
        _train_to_end(run, TrialPlacement(FakeDispatcher(device), run.trained, run.files), lambda line: None)
    assert run.files.read_status().state is State.RUNNING
