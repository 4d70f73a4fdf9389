"""Whole sweeps whose folder is a bucket: the real command, and an S3 server (moto's) on the loopback address.

The heavy ones kill drivers and delete their machine's copy: ``pytest -m heavy tests/sweeps/test_bucket_sweep.py``.
"""

import contextlib
import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from analysis.buckets.bucket import Bucket
from analysis.folder import SweepFolder
from tests.bucket_server import BUCKET, SECRET, BucketServer

URI = f"s3://{BUCKET}/runs"
SETTINGS = ["resources.slots=1", "search.trials=4", "precision=fp32", "search.keep_adapters=2", "baselines=[zero_shot]"]
TIMES = ("seconds", "created", "time")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = BucketServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def here(server, monkeypatch, tmp_path):
    """This process reads the server's buckets."""
    for name, value in {**server.environment, "LORASWEEP_STAGING": str(tmp_path / "staging")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def finished(lorasweep, tiny, server, tmp_path_factory):
    """A sweep in a bucket that ran undisturbed: the command, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    command = lorasweep(folder, {**server.environment, "LORASWEEP_STAGING": str(folder / "staging")})
    done = command("run", *tiny("llama", *SETTINGS, "sweep.name=tiny", f"sweep.dir={URI}"))
    assert done.returncode == 0, done.stderr
    return command, done


@pytest.fixture(scope="module")
def plain(lorasweep, tiny, tmp_path_factory):
    """The same sweep in a folder."""
    command = lorasweep(tmp_path_factory.mktemp("plain"))
    done = command("run", *tiny("llama", *SETTINGS, "sweep.name=tiny"))
    assert done.returncode == 0, done.stderr
    return SweepFolder(command.cwd / "runs" / "tiny")


def synced(to: Path, name: str = "tiny") -> SweepFolder:
    """All objects of a sweep as files, as ``aws s3 sync`` makes them."""
    bucket = Bucket(f"{URI}/{name}")
    for path in bucket.listing():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_bytes(bucket.read(path))
    return SweepFolder.open(to)


def board(folder: SweepFolder) -> list[dict[str, str]]:
    with folder.leaderboard_file.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def require_same(of: SweepFolder, wanted: SweepFolder, reading) -> None:
    """Fails unless two sweeps asked the same, have the same curves and the same leaderboard."""
    assert reading.asked(of) == reading.asked(wanted)
    reading.require_same_curves(of, wanted, 1e-6)
    told, before = reading.tells(of), reading.tells(wanted)
    assert {k: (v["state"], v["step"]) for k, v in told.items()} == {
        k: (v["state"], v["step"]) for k, v in before.items()
    }
    kept = ("rank", "trial_id", "status", "step", "n_items", "tied", "reason")
    assert [[row[k] for k in kept] for row in board(of)] == [[row[k] for k in kept] for row in board(wanted)]
    assert of.with_adapter() == wanted.with_adapter()


def test_what_is_in_the_bucket_is_the_sweep_folder_of_an_ordinary_sweep(finished, plain, here, tmp_path, reading):
    _, done = finished
    assert f"Results: {URI}/tiny/" in done.stdout
    folder = synced(tmp_path / "synced")
    require_same(folder, plain, reading)
    for files in folder.trials():
        assert not files.checkpoints()
        rows = files.read_metrics()
        assert len(files.read_items("task", "validation", rows[-1].step)["item_id"]) == rows[-1].n_items
    assert (folder.root / "study/journal.log").exists()
    assert list(folder.root.glob("wandb/*/*.wandb"))


def test_files_are_uploaded_before_the_driver_records_them(finished, server):
    names = [name.removeprefix("runs/tiny/") for method, name in server.journal() if method == "PUT"]
    trial = "trials/t0000"
    first_rung, first_row = f"{trial}/checkpoint/2/counters.json", f"{trial}/metrics.jsonl"
    assert names.index(f"{trial}/checkpoint/2/optimizer.safetensors") < names.index(first_rung)
    assert names.index(first_rung) < names.index(first_row)
    assert names.index("study/asks.jsonl") < names.index(f"{trial}/config.yaml") < names.index(f"{trial}/status.json")


@pytest.mark.parametrize("command", ["rank", "status", "report", "breakdown"])
def test_commands_take_the_uri(command, finished):
    run, _ = finished
    done = run(command, f"{URI}/tiny")
    assert (done.returncode, done.stderr) == (0, "")
    shown = {"rank": "# trial", "status": "tiny: finished", "report": f"{URI}/tiny/report.html", "breakdown": "class"}
    assert shown[command] in done.stdout


def test_what_a_command_writes_is_in_the_bucket(finished, here):
    run, _ = finished
    assert run("report", f"{URI}/tiny").returncode == 0
    assert Bucket(f"{URI}/tiny").read("report.html").startswith(b"<!")
    assert run("enqueue", f"{URI}/tiny", "lora.rank=8").returncode == 0
    [request] = [it for it in Bucket(f"{URI}/tiny").listing("control") if "enqueue" in it]
    assert json.loads(Bucket(f"{URI}/tiny").read(request))["point"] == {"lora.rank": 8}
    Bucket(f"{URI}/tiny").remove([request])


def test_the_best_adapter_is_exported_from_the_bucket(finished):
    run, _ = finished
    done = run("export", f"{URI}/tiny", "--to", "adapter")
    assert done.returncode == 0, done.stderr
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {it.name for it in (run.cwd / "adapter").iterdir()}


def test_an_ended_sweep_says_how_it_is_extended(finished):
    run, _ = finished
    done = run("resume", f"{URI}/tiny")
    assert done.returncode == 0
    assert f"resume {URI}/tiny search.trials=6" in done.stdout


def test_no_key_is_in_any_file_of_the_sweep(finished):
    run, _ = finished
    found = subprocess.run(["grep", "-rlF", SECRET, str(run.cwd)], capture_output=True, text=True)
    assert found.stdout == ""
    assert SECRET not in finished[1].stdout + finished[1].stderr


# --- bad input


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3://none/runs", ["s3://none/runs/tiny", "there is no bucket of that name"]),
        ("s4://bucket/runs", ["s4://bucket/runs", "not a scheme"]),
        (
            "s3://KEY:hidden@bucket/runs",
            ["s3://***@bucket/runs", "a key or a password in this URI", "AWS_ACCESS_KEY_ID"],
        ),
        ("s3://bucket/runs?secret_key=hidden", ["secret_key=***", "a key or a password"]),
        ("https://bucket/runs", ["https://", "cannot be written"]),
        ("s3://bucket/runs?region_=x", ["region_", "endpoint_override"]),
        ("s3://sweeps/runs?endpoint_override=127.0.0.1:1&scheme=http", ["does not answer", "endpoint_override"]),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_sentence_within_seconds(place, words, lorasweep, tiny, server, tmp_path):
    command = lorasweep(tmp_path, server.environment)
    began = time.monotonic()
    done = command("run", *tiny("llama", "sweep.name=tiny", f"sweep.dir={place}"))
    assert time.monotonic() - began < 30
    assert done.returncode in (2, 5), done.stderr
    said = " ".join(done.stderr.split())
    assert [word for word in words if word not in said] == [], said
    assert "hidden" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("status", "word"), [("403 Forbidden", "access is denied"), ("503 Slow Down", "the store does not answer")]
)
def test_a_store_that_refuses_is_a_sentence(status, word, finished, server):
    run, _ = finished
    server.trouble(status)
    try:
        for command in (["rank", f"{URI}/tiny"], ["resume", f"{URI}/tiny"]):
            done = run(*command)
            assert done.returncode == 5
            assert word in " ".join(done.stderr.split())
    finally:
        server.trouble()


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_running_sweep_is_seen_and_stopped_from_elsewhere_and_driven_by_one(lorasweep, tiny, server, tmp_path):
    place = f"{URI}/running"
    settings = tiny("llama", *SETTINGS, "train.max_steps=600", "sweep.name=running", f"sweep.dir={URI}")
    run = lorasweep(tmp_path, {**server.environment, "LORASWEEP_STAGING": str(tmp_path / "head")})
    other = lorasweep(tmp_path, {**server.environment, "LORASWEEP_STAGING": str(tmp_path / "elsewhere")})
    process = run.start("run", *settings, "train.rungs=[2,600]")
    gives_up = time.monotonic() + 200
    while "runs/running/trials/t0000/metrics.jsonl" not in [path for _, path in server.journal()]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < gives_up
        time.sleep(0.1)
    assert f"running: running (process {process.pid} on " in other("status", place).stdout
    refused = other("resume", place)
    assert refused.returncode == 5
    assert f"another lorasweep runs this sweep now: process {process.pid} on" in " ".join(refused.stderr.split())
    asked = other("stop", place)
    assert asked.returncode == 0, asked.stderr
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "as `lorasweep stop` asks" in out
    assert other("status", place).stdout.startswith("running: stopped: ")


# --- a lost head


def kill_machine(process: "subprocess.Popen[str]") -> None:
    """The driver, its Ray and its workers are gone, all at once."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGSTOP)
    for it in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            it.kill()
    process.kill()
    process.communicate()


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", ["resume", "run"])
def test_a_head_that_is_lost_with_its_disk_goes_on_from_the_bucket(
    command, lorasweep, tiny, server, plain, here, tmp_path, reading
):
    """Killed at several points, each time with its copy deleted: as undisturbed."""
    name = f"lost-{command}"
    settings = tiny("llama", *SETTINGS, f"sweep.name={name}", f"sweep.dir={URI}")
    began = len(server.journal())
    points = ("trials/t0000/checkpoint/2/counters.json", "trials/t0001/metrics.jsonl", "trials/t0003/status.json")
    for kills, wanted in enumerate(points):
        head = tmp_path / f"head{kills}"
        run = lorasweep(tmp_path, {**server.environment, "LORASWEEP_STAGING": str(head)})
        go_on = ("resume", f"{URI}/{name}") if kills and command == "resume" else ("run", *settings)
        process = run.start(*go_on)
        gives_up = time.monotonic() + 200
        while f"runs/{name}/{wanted}" not in [path for _, path in server.journal()[began:]]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < gives_up
            time.sleep(0.05)
        kill_machine(process)
        shutil.rmtree(head)
    run = lorasweep(tmp_path, {**server.environment, "LORASWEEP_STAGING": str(tmp_path / "last")})
    done = run("resume", f"{URI}/{name}") if command == "resume" else run("run", *settings)
    assert done.returncode == 0, done.stderr
    require_same(synced(tmp_path / "synced", name), plain, reading)
