"""Whole sweeps of a tiny model, from the command line to the files they leave."""

import csv
import fcntl
import json
import math
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml

from analysis.folder import ENDED, SweepFolder, read_lines
from analysis.objective import Objective
from sweeps.process.installation import package_root
from trainer.models.base_model import slow_precisions

# One trial at a time: what ASHA decides does not depend on which trial is first at a rung.
SEARCHED = [it for it in ("bf16", "nf4") if it not in slow_precisions(torch.device("cpu"))]  # beside fp32
SETTINGS = [
    "bias.crows_pairs=20",
    "bias.stereoset=0",
    f"precision=choice({','.join(['fp32', *SEARCHED])})",
    "search.start_from=[{precision: fp32}]",
    "resources.slots=1",
]
UNTUNED = ["zero_shot", *(f"zero_shot@{precision}" for precision in SEARCHED)]  # at each precision that is searched
WORDS = ["linear", "majority"]  # baselines without a model
TRIALS = ["t0000", "t0001", "t0002", "t0003", "t0004"]


@pytest.fixture(scope="module")
def finished(lorasweep, tiny, tmp_path_factory):
    """A sweep of five trials that ran undisturbed: its folder and what it printed."""
    command = lorasweep(tmp_path_factory.mktemp("finished"))
    (command.cwd / "test.csv").write_bytes(b"\xff\x00 garbage")  # a sweep never reads the test rows
    settings = [*SETTINGS, f"data.test={command.cwd / 'test.csv'}"]
    done = command("run", *tiny("llama", *settings, "search.trials=5", "sweep.name=tiny"))
    assert done.returncode == 0, done.stderr
    assert command.processes() == []
    return command, SweepFolder(command.cwd / "runs" / "tiny"), done


def board(folder: SweepFolder) -> list[dict[str, str]]:
    with folder.leaderboard_file.open(newline="") as file:
        return list(csv.DictReader(file))


# --- a sweep that ran undisturbed


def test_the_leaderboard_has_every_trial_and_the_untuned_model_with_every_metric(finished):
    _, folder, _ = finished
    rows = board(folder)
    assert sorted(row["trial_id"] for row in rows) == [*WORDS, *TRIALS, *UNTUNED]
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    trials = [row for row in rows if row["kind"] == "trial"]
    assert {row["status"] for row in trials} <= {"completed", "stopped_early"}
    assert any(row["status"] == "completed" for row in trials)
    metrics = ("accuracy", "macro_f1", "log_loss", "perplexity", "bits_per_byte", "bias.crows_pairs.pct", "objective")
    of_models = [row for row in rows if row["trial_id"] not in WORDS]
    assert [name for row in of_models for name in metrics if not math.isfinite(float(row[name]))] == []
    assert [float(row["accuracy"]) > 0.9 for row in rows if row["trial_id"] == "linear"] == [True]
    assert all(row["lora.rank"] and row["optim.lr"] and row["precision"] for row in trials)
    for untuned in [row for row in rows if row["kind"] == "baseline"]:
        assert (untuned["status"], untuned["step"], untuned["n_items"]) == ("completed", "0", "30")
        assert untuned["precision"] == (untuned["trial_id"].partition("@")[2] or "fp32")


def test_a_completed_trial_is_scored_on_all_items_and_a_stopped_one_says_why(finished):
    _, folder, _ = finished
    for row in board(folder):
        if row["kind"] == "trial":
            ended = (row["n_items"], "scheduler" in row["reason"])
            assert ended == (("30", False) if row["status"] == "completed" else ("12", True)), row


def test_the_sampler_is_told_the_best_rungs_objective_not_the_last_ones(finished):
    _, folder, _ = finished
    objective = Objective.from_config(yaml.safe_load(folder.sweep_file.read_text())["config"]["objective"])
    told = {line["trial_id"]: line["objective"] for line in read_lines(folder.asks_file) if line["event"] == "tell"}
    completed = [files for files in folder.trials() if files.read_status().state == "completed"]
    assert completed
    for files in completed:
        rungs = [objective.score(row.metrics) for row in files.read_metrics() if not row.final]
        assert len(rungs) == 2
        assert told[files.trial_id] == pytest.approx(max(rungs))


def test_every_trial_leaves_its_config_status_metrics_items_and_no_checkpoint(finished, reading):
    _, folder, _ = finished
    for files in folder.trials():
        config = yaml.safe_load(files.config_file.read_text())
        values = reading.asked(folder)[files.trial_id]
        assert config["optim"]["lr"] == values["optim.lr"]
        assert (config["lora"]["rank"], config["precision"]) == (values["lora.rank"], values["precision"])
        rows, status = files.read_metrics(), files.read_status()
        assert [row.step for row in rows if not row.final] == ([2, 8] if status.step == 8 else [2])
        assert [row.final for row in rows].count(True) == (1 if status.state == "completed" else 0)
        items = files.read_items("task", "validation", rows[-1].step)
        assert len(set(items["item_id"])) == rows[-1].n_items
        hits = [p == label for p, label in zip(items["prediction"], items["label"], strict=True)]
        assert sum(hits) / len(hits) == pytest.approx(rows[-1].metrics["accuracy"])
        assert not files.checkpoints_dir.exists()


def test_adapters_are_loaded_by_plain_peft_and_give_the_recorded_predictions(finished, tiny_models, tiny_data):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    labels = ["bird", "fruit", "metal"]  # one token each
    with tiny_data[1].open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    for files in folder.trials():
        base = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
        model = PeftModel.from_pretrained(base, files.adapter_dir).eval()
        assert all(bool(p.any()) for name, p in model.named_parameters() if "lora_B" in name), files.trial_id
        if files.trial_id != "t0000":
            continue  # t0000 starts from a point in fp32, and is the first at its rung: it completes
        predicted = []
        for text in texts:
            prompt = torch.tensor([tokenizer(f"{text}\nLabel:").input_ids])
            with torch.no_grad():
                last = model(prompt).logits[0, -1]
            predicted.append(max(labels, key=lambda label: last[tokenizer.convert_tokens_to_ids(label)].item()))
        final = files.read_metrics()[-1]
        items = files.read_items("task", "validation", final.step)
        recorded = dict(zip(items["item_id"], items["prediction"], strict=True))
        by_place = [label for _, label in sorted(recorded.items(), key=lambda item: int(item[0].split("-")[1]))]
        assert (final.final, by_place) == (True, predicted)


def test_sweep_yaml_tells_what_ran(finished, tiny_data):
    _, folder, _ = finished
    manifest = yaml.safe_load(folder.sweep_file.read_text())
    assert manifest["config"]["train"]["rungs"] == [2, 8]
    assert manifest["config"]["data"]["train"] == str(tiny_data[0])
    assert set(manifest["space"]) == {"lora.rank", "lora.alpha_rule", "optim.lr", "precision"}
    assert {"torch", "transformers", "peft", "ray", "optuna", "wandb", "python"} <= set(manifest["versions"])
    assert manifest["versions"]["torch"][0].isdigit()
    assert "commit" in manifest
    assert len(manifest["fingerprints"]["data"]) == 64
    assert manifest["data"]["rows"] == {"train": 60, "validation": 30}
    assert manifest["data"]["labels"] == ["bird", "fruit", "metal"]
    assert manifest["seed"] == 0
    assert manifest["hardware"]["devices"][0]["device"]
    assert manifest["command"][1:3] == ["run", "model=local"]


def test_the_sampler_is_told_of_every_trial_once(finished, reading):
    _, folder, _ = finished
    told = reading.tells(folder)
    assert sorted(told) == TRIALS
    for trial_id, tell in told.items():
        state = folder.trial(trial_id).read_status().state
        assert (tell["state"], tell["told"]) == (state, "COMPLETE" if state == "completed" else "PRUNED")
        rungs = [row.metrics for row in folder.trial(trial_id).read_metrics() if not row.final]
        assert len(rungs) >= 1
        assert math.isfinite(tell["objective"])


def test_every_trial_and_the_untuned_model_is_one_wandb_run_with_the_recorded_curve(finished, wandb_runs):
    _, folder, _ = finished
    runs = wandb_runs(folder)
    assert sorted(runs) == ["linear", "majority", "sweep", *TRIALS, *UNTUNED]
    for files in folder.trials():
        [run] = runs[files.trial_id]
        rows, config = files.read_metrics(), yaml.safe_load(files.config_file.read_text())
        assert run.run["run_group"] == "tiny"
        assert (run.config["lora"], run.config["optim"]) == (config["lora"], config["optim"])
        for name in rows[-1].metrics:
            logged = [(point["step"], point[name]) for point in run.history if name in point]
            assert logged == [(row.step, pytest.approx(row.metrics[name])) for row in rows if not row.final]
            assert run.summary[name] == pytest.approx(rows[-1].metrics[name])
        assert run.summary["state"] == files.read_status().state
    [untuned] = runs["zero_shot"]
    [row] = [row for row in folder.baseline("zero_shot").read_metrics() if row.final]
    assert [point["accuracy"] for point in untuned.history] == [pytest.approx(row.metrics["accuracy"])]
    assert untuned.run["job_type"] == "baseline"
    [whole] = runs["sweep"]
    best = next(row for row in board(folder) if row["kind"] == "trial")
    assert (whole.run["job_type"], whole.summary["best.trial"]) == ("sweep", best["trial_id"])
    assert whole.summary["best.objective"] == pytest.approx(float(best["objective"]))


def test_optuna_dashboard_serves_the_trials_of_the_sweep(finished):
    _, folder, _ = finished
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = str(Path(sys.executable).parent / "optuna-dashboard")
    process = subprocess.Popen([dashboard, str(folder.journal_file), "--port", str(port), "--quiet"])
    try:
        studies = _answer(process, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        [study] = [found for found in studies if found["study_name"] == "tiny"]
        served = _answer(process, f"http://127.0.0.1:{port}/api/studies/{study['study_id']}?after=0")["trials"]
    finally:
        process.terminate()
        process.wait(10)
    assert [trial["number"] for trial in served] == list(range(len(TRIALS)))
    told = {row["trial_id"]: row["status"] for row in board(folder) if row["kind"] == "trial"}
    states = {f"t{trial['number']:04d}": trial["state"] for trial in served}
    assert states == {name: "Complete" if told[name] == "completed" else "Pruned" for name in TRIALS}


def _answer(process, address):
    """What the dashboard answers once it is up."""
    for _ in range(300):
        assert process.poll() is None, "optuna-dashboard ended"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
    pytest.fail("optuna-dashboard did not answer")


def test_the_output_shows_progress_the_ranking_and_the_next_commands(finished):
    _, folder, done = finished
    assert done.stderr == ""
    for trial_id in TRIALS:
        assert f"{trial_id}  step 2/8  accuracy " in done.stdout
    assert "5/5 done" in done.stdout
    best = next(row["trial_id"] for row in board(folder) if row["kind"] == "trial")
    assert "untuned" in done.stdout
    assert "lorasweep finalize runs/tiny --top 3" in done.stdout
    for command in ("lorasweep rank runs/tiny", f"lorasweep export runs/tiny {best} --to", "wandb sync"):
        assert command in done.stdout.split("Next:")[1]
    assert "lorasweep resume" not in done.stdout


def test_what_ranking_imports_is_there_before_the_trials_end(finished):
    _, folder, _ = finished
    code = """
import sys
from analysis.folder import SweepFolder
from analysis.leaderboard import leaderboard
from sweeps.run import import_statistics
assert "scipy.stats" not in sys.modules
import_statistics()
before = set(sys.modules)
leaderboard.ranked(SweepFolder(sys.argv[1]))
print(sorted(name for name in set(sys.modules) - before if name.startswith("scipy")))
"""
    done = subprocess.run([sys.executable, "-c", code, folder.root], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_rank_prints_the_ranking_of_the_sweep_again(finished):
    command, folder, done = finished
    again = command("rank", "runs/tiny")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.strip("\n") in done.stdout
    assert [again.stdout.index(f"{row['trial_id']} ") for row in board(folder)] == sorted(
        again.stdout.index(f"{row['trial_id']} ") for row in board(folder)
    )
    records = json.loads(command("rank", "runs/tiny", "--json").stdout)
    assert [record["trial_id"] for record in records] == [row["trial_id"] for row in board(folder)]


def test_a_folder_that_holds_a_sweep_is_not_run_into_again(finished, tiny):
    command, folder, _ = finished
    before = folder.sweep_file.read_bytes()
    refused = command("run", *tiny("llama", "sweep.name=tiny"))
    assert refused.returncode == 5
    assert "lorasweep resume runs/tiny" in refused.stderr
    assert "sweep.name=tiny-2" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert folder.sweep_file.read_bytes() == before


# --- a sweep that is stopped, and gone on with


def until(process: "subprocess.Popen[str]", *words: str) -> str:
    """What the process printed up to the first line that holds all these words."""
    seen = ""
    for line in process.stdout:
        seen += line
        if all(word in line for word in words):
            return seen
    pytest.fail(f"{words} never came:\n{seen}\n{process.stderr.read()}")


def gone(command) -> bool:
    """Whether every process of the command has ended, or does so within half a minute."""
    deadline = time.monotonic() + 30
    while command.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    return command.processes() == []


@pytest.fixture(scope="module")
def stopped(lorasweep, tiny, tmp_path_factory):
    """The same sweep asked for three trials, stopped by Ctrl-C after its first rung."""
    command = lorasweep(tmp_path_factory.mktemp("stopped"))
    process = command.start("run", *tiny("llama", *SETTINGS, "search.trials=3", "sweep.name=tiny"))
    seen = until(process, "t0000", "step 2/8")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return command, SweepFolder(command.cwd / "runs" / "tiny"), (process.returncode, seen + out, err)


def test_ctrl_c_keeps_everything_and_says_how_to_go_on(stopped):
    command, folder, (code, out, err) = stopped
    assert (code, err) == (130, "")
    assert "Everything scored so far is kept" in out
    assert "lorasweep resume runs/tiny" in out.split("Next:")[1]
    assert gone(command), command.processes()
    assert [row.step for row in folder.trial("t0000").read_metrics()][:1] == [2]
    assert folder.sweep_file.exists()
    assert folder.leaderboard_file.exists()


def test_two_drivers_on_one_folder_are_refused(stopped):
    command, folder, _ = stopped
    with (folder.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first one does
        second = command("resume", "runs/tiny")
    assert second.returncode == 5
    assert "another lorasweep runs this sweep now" in second.stderr


def test_a_stopped_sweep_goes_on_where_it_was_and_ends_like_an_undisturbed_one(stopped, finished, reading):
    command, folder, _ = stopped
    _, whole, _ = finished
    ended_before = {files.trial_id for files in folder.trials() if files.read_status().state in ENDED}

    process = command.start("resume", "runs/tiny")
    until(process, "step 2/8")
    process.send_signal(signal.SIGTERM)
    until(process, "Stopping")
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    assert "Next:" not in rest, "the second signal leaves at once, without the ranking"
    assert gone(command), command.processes()

    resumed = command("resume", "runs/tiny")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["trial_id"] for row in sorted(board(folder), key=lambda row: row["trial_id"])] == [
        *WORDS,
        *TRIALS[:3],
        *UNTUNED,
    ]
    assert sorted(reading.tells(folder)) == TRIALS[:3]
    for trial_id in ended_before:
        assert f"{trial_id}  started" not in resumed.stdout

    extended = command("resume", "runs/tiny", "search.trials=5")
    assert extended.returncode == 0, extended.stderr
    assert "t0002  started" not in extended.stdout
    assert sorted(reading.tells(folder)) == TRIALS
    assert reading.asked(folder) == reading.asked(whole)
    assert reading.curves(folder) == reading.curves(whole)


# --- trials that do not complete

# Runs in every process of the sweep: makes the engine that the device worker imports go wrong for some trials.
FAULTS = """
import importlib.abc, importlib.machinery, os, signal, sys

class Patching(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in ("trainer.engines.pack", "trainer.engines.slot"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        inner = spec.loader.exec_module
        def exec_module(module):
            inner(module)
            patch(module)
        spec.loader.exec_module = exec_module
        return spec

def patch(module):
    if module.__name__ == "trainer.engines.slot":
        initial_values = module.initial_values

        def heavy(settings, *args, **kwargs):
            if settings.rank == 64:
                raise MemoryError("no room for the adapter")
            return initial_values(settings, *args, **kwargs)

        module.initial_values = heavy
        return
    evaluate = module.evaluate

    def faulty(base, model, trial, *args, **kwargs):
        marks = os.path.join({mark!r}, trial.trial_id)  # one byte for each time that the trial was scored
        with open(marks, "a") as file:
            file.write("x")
        times = os.path.getsize(marks)
        if trial.trial_id == "t0001" and times == 2:
            open(os.path.join({mark!r}, "killed"), "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if trial.trial_id == "t0002":
            raise MemoryError("8 GiB were asked for")
        if trial.trial_id == "t0003" and times >= 2:  # also when it is scored again by itself
            raise RuntimeError("something broke")
        return evaluate(base, model, trial, *args, **kwargs)

    module.evaluate = faulty

sys.meta_path.insert(0, Patching())
"""


@pytest.fixture(scope="module")
def disturbed(lorasweep, tiny, tmp_path_factory):
    """A sweep of which only the first trial runs undisturbed, and the second one loses its worker."""
    faults = tmp_path_factory.mktemp("faults")
    (faults / "sitecustomize.py").write_text(FAULTS.replace("{mark!r}", repr(str(faults))))
    command = lorasweep(tmp_path_factory.mktemp("disturbed"), {"PYTHONPATH": f"{package_root()}:{faults}"})
    points = ",".join(
        f"{{lora.alpha_value: {alpha}, lora.rank: {rank}, optim.lr: {lr}}}"
        for alpha, rank, lr in [
            *((2.0, 4, lr) for lr in (1e-3, 1.000000001e-3, 1.000000002e-3, 1.000000003e-3)),
            (1e40, 4, 1e-3),
            (2.0, 64, 1e-3),
        ]
    )
    done = command(
        "run",
        *tiny("llama", "scheduler=fifo", "sweep.name=tiny", "search.trials=6", f"search.start_from=[{points}]"),
        "space=learning_rate",
        "lora.alpha_value=choice(2.0,1e40)",
        "lora.rank=choice(4,64)",
    )
    assert (faults / "killed").exists(), done.stdout + done.stderr
    return SweepFolder(command.cwd / "runs" / "tiny"), done


def test_trials_that_end_badly_are_rows_with_a_reason_and_the_sweep_goes_on(disturbed):
    folder, done = disturbed
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["trial_id"]: row for row in board(folder)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "t0000": "completed",
        "t0001": "completed",
        "t0002": "out_of_memory",
        "t0003": "failed",
        "t0004": "diverged",
        "t0005": "out_of_memory",
        **dict.fromkeys(("linear", "majority", "zero_shot"), "completed"),
    }
    assert "8 GiB" in rows["t0002"]["reason"]
    assert "RuntimeError: something broke" in rows["t0003"]["reason"]
    assert "the loss was" in rows["t0004"]["reason"]
    assert (rows["t0003"]["step"], rows["t0003"]["n_items"]) == ("2", "12"), "the rung before it broke stands"
    assert "no room for the adapter" in rows["t0005"]["reason"]
    scored = {row["trial_id"] for row in list(board(folder))[:5]}
    assert scored == {"t0000", "t0001", "linear", "majority", "zero_shot"}
    for words in ("8 GiB", "something broke", "the loss was"):
        assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [files.trial_id for files in folder.trials() if files.checkpoints_dir.exists()] == []


def test_the_sampler_is_told_how_trials_ended(disturbed, reading):
    folder, _ = disturbed
    told = {trial_id: (tell["told"], tell["state"]) for trial_id, tell in reading.tells(folder).items()}
    assert told == {
        "t0000": ("COMPLETE", "completed"),
        "t0001": ("COMPLETE", "completed"),
        "t0002": ("PRUNED", "out_of_memory"),
        "t0003": ("FAIL", "failed"),
        "t0004": ("FAIL", "diverged"),
        "t0005": ("PRUNED", "out_of_memory"),
    }


def test_a_trial_that_lost_its_worker_goes_on_from_its_checkpoint(disturbed, reading):
    folder, done = disturbed
    curves = reading.curves(folder)
    killed, undisturbed = curves["t0001"], curves["t0000"]  # with the same seed; a point is tried but once, so the
    # rates differ in the tenth digit
    assert [(step, final) for step, final, _ in killed[:2]] == [(2, False), (8, False)]
    assert [(step, final) for step, final, _ in killed] == [(step, final) for step, final, _ in undisturbed]
    for (_, _, found), (_, _, expected) in zip(killed, undisturbed, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert done.stdout.count("t0001  step 2/8") == 1
    assert not folder.trial("t0001").checkpoints_dir.exists()
