"""A sweep folder of somebody else: nothing outside of it is read, written or deleted, whatever lies in it."""

import contextlib
import hashlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.buckets.bucket import is_name
from analysis.errors import ConfigError, FolderError, ModelError
from analysis.folder import MetricsRow, State, Status, SweepFolder, append_line, atomic_write
from sweeps.cli import main
from sweeps.compose.compose import Composed, compose
from sweeps.driver.ray_cluster import cluster_address
from sweeps.driver.resume import same_sweep
from sweeps.export import _check_kind
from sweeps.run import resume_sweep, run_sweep
from sweeps.store.folder_lock import locked
from sweeps.store.manifest import make_manifest, read_manifest, write_manifest
from trainer.engines.checkpoints import fault

SECRET = "text-of-the-reader"
SIZED = ["experiment=quickstart", "search.trials=3", "tracking=none", "sweep.name=theirs", "precision=fp32"]
LABELS = ["a", "b"]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Composed:
    return compose([*SIZED, f"sweep.dir={tmp_path_factory.mktemp('composed')}"])


def make(root: Path, composed: Composed, ended: bool) -> SweepFolder:
    """A sweep folder with every file that there is, of a sweep that has ended, or that was left in the middle."""
    folder = SweepFolder(root)
    facts = {"fingerprint": "0" * 64, "labels": LABELS, "rows": {"train": 8, "validation": 4}}
    write_manifest(folder, make_manifest(composed, facts, []) | {"asked": composed.unresolved()})
    config = yaml.safe_dump(asdict(composed.trial("t0000", {})))
    ends = [State.COMPLETED] * 3 if ended else [State.COMPLETED, State.RUNNING]
    for number, state in enumerate(ends):
        files, values = folder.trial(f"t{number:04d}"), {"lora.rank": 8, "optim.lr": 1e-3 * (number + 1)}
        line = {"trial_id": files.trial_id, "number": number, "values": values, "time": 0.0}
        append_line(folder.asks_file, {"event": "ask", **line})
        _trial(files, config, state)
        if state is State.COMPLETED:
            told = {"state": "completed", "objective": 0.8, "step": 48, "told": "COMPLETE"}
            append_line(folder.asks_file, {"event": "tell", **line, **told})
    _trial(folder.baseline("zero_shot"), config, State.COMPLETED)
    _trial(folder.final("t0000-seed1"), config, State.COMPLETED, "test")
    append_line(folder.looks_file, {"look": 1, "event": "began", "test": {"fingerprint": "1", "rows": 4}})
    earlier = {"values": {}, "rate": 1e-3, "rank": 8, "objective": 0.5, "completed": True}
    append_line(folder.transfer_file, {"source": "x/t0000", **earlier})
    for name in (
        "study/journal.log", "study/spent.json", "control/driver.json", "control/enqueue-1-a.json", "report.html",
        "leaderboard.csv", "lorasweep.log", ".lock", ".cluster.json", "wandb/views.json", "mlflow/mlflow.db",
        "wandb/staging/x", "wandb/offline-run-1/files/config.yaml", "mlflow/artifacts/1/charts.html",
    ):  # fmt: skip
        atomic_write(folder.root / name, "{}")
    return folder


def _trial(files: Any, config: str, state: State, split: str = "validation") -> None:
    columns = {
        "item_id": ["i0", "i1"], "group": [None, None], "label": LABELS, "prediction": LABELS,
        "logprobs": [[-0.1, -3.0], [-3.0, -0.1]], "nll": [1.0, 1.0], "n_tokens": [2, 2], "n_bytes": [4, 4],
        "completion_nll": [0.1, 0.1], "completion_tokens": [1, 1],
    }  # fmt: skip
    metrics = {"accuracy": 1.0, "macro_f1": 1.0, "log_loss": 0.1}
    atomic_write(files.config_file, config)
    files.write_items("task", split, 48, columns)
    files.append_metrics(MetricsRow(files.trial_id, 48, 100, 1.0, state is State.COMPLETED, 2, metrics, split))
    files.write_status(Status(state, "", 48))
    append_line(files.lineage_file, {"step": 4, "parent": "t0000", "old": {}, "new": {}})
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter_size.json"):
        atomic_write(files.root / name, "{}")
    if state is State.RUNNING:
        for name in ("counters.json", "adapter_model.safetensors", "parent.json"):
            atomic_write(files.checkpoint_dir(48) / name, "{}")


def entries(folder: SweepFolder) -> list[str]:
    """Every file and folder of a sweep folder."""
    return sorted(path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*"))


def snapshot(*places: Path) -> dict[str, tuple[int, bytes]]:
    """All that lies at some places: when it was changed, and what is in it."""
    paths = [path for place in places for path in (place, *sorted(place.rglob("*")))]
    return {str(path): (path.lstat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes()) for path in paths}


def commands(folder: SweepFolder, composed: Composed, to: Path) -> dict[str, Callable[[], int]]:
    """Each command that names a sweep folder, as it is called on one."""
    where = str(folder.root)
    lines = [
        ["rank", where], ["rank", where, "--json"], ["compare", where, where], ["breakdown", where],
        ["breakdown", where, "t0000"], ["answers", where], ["report", where], ["status", where], ["stop", where],
        ["export", where, "--to", str(to / "exported")], ["export", where, "t0000", "--to", str(to / "exported")],
        ["enqueue", where, "lora.rank=16"], ["resume", where], ["resume", where, "search.trials=9"],
        ["finalize", where, "data.test_rows=4"], ["cluster", "join", where, "--wait", "1s"],
    ]  # fmt: skip
    if _has_workspaces():
        lines.append(["wandb", "report", where, "--print"])
    calls: dict[str, Callable[[], int]] = {" ".join(line[:1] + line[2:]): (lambda it=line: main(it)) for line in lines}
    calls["run"] = lambda: _status_of(lambda: run_sweep(composed))
    return calls


def _has_workspaces() -> bool:
    import importlib.util

    return importlib.util.find_spec("wandb_workspaces") is not None


def _status_of(call: Callable[[], int]) -> int:
    try:
        return call()
    except FolderError as error:
        return error.exit_code


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends what waits for a pipe."""

    def end(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def here(composed: Composed, tmp_path: Path) -> Composed:
    """The same sweep, in ``runs/theirs`` of a folder."""
    raw = composed.unresolved()
    raw["sweep"]["dir"] = str(tmp_path / "runs")
    settings = replace(composed.config.sweep, dir=raw["sweep"]["dir"])
    return replace(composed, config=replace(composed.config, sweep=settings), raw=raw)


@pytest.mark.parametrize(
    "ended", [pytest.param(True, marks=pytest.mark.heavy), False], ids=["ended", "left in the middle"]
)
def test_every_command_refuses_a_folder_in_which_anything_is_a_link(
    composed: Composed, tmp_path: Path, ended: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    own = here(composed, tmp_path)
    folder, outside = make(tmp_path / "runs" / "theirs", own, ended), tmp_path / "outside"
    outside.mkdir()
    calls = commands(folder, own, tmp_path)
    refused = 0
    for name in entries(folder):
        place, target = folder.root / name, outside / "target"
        place.rename(target)
        place.symlink_to(target)
        before = snapshot(target)
        for command, call in calls.items():
            if name.startswith("wandb/offline-run-1/"):  # W&B's own, which no command reads
                if command in ("resume", "resume search.trials=9", "finalize data.test_rows=4", "run"):
                    continue
                if command.startswith("cluster"):
                    continue
                call()
            else:
                assert call() == 5, (name, command)
                refused += 1
                assert name in capsys.readouterr().err or command == "run", (name, command)
            assert snapshot(target) == before, (name, command)
        place.unlink()
        target.rename(place)
    assert refused > 30 * len(calls)
    assert not (tmp_path / "exported").exists()


def test_nothing_of_a_file_that_a_link_leads_to_is_shown(
    composed: Composed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "runs" / "theirs", composed, ended=True)
    (tmp_path / "mine").write_text(f"{SECRET}\n")
    for name in ("trials/t0000/config.yaml", "trials/t0000/status.json", "sweep.yaml", ".cluster.json"):
        kept = (folder.root / name).read_bytes()
        (folder.root / name).unlink()
        (folder.root / name).symlink_to(tmp_path / "mine")
        for command, call in commands(folder, here(composed, tmp_path), tmp_path).items():
            assert call() == 5, (name, command)
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        assert f"is a link to {tmp_path / 'mine'}" in said.err
        (folder.root / name).unlink()
        (folder.root / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["sweep.yaml", "trials/t0001/status.json", ".lock", "study/asks.jsonl"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(
    composed: Composed, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "runs" / "theirs", composed, ended=False)
    (folder.root / name).unlink()
    os.mkfifo(folder.root / name)
    with at_most(60):
        for command, call in commands(folder, here(composed, tmp_path), tmp_path).items():
            assert call() == 5, command
    assert "is neither a file nor a folder" in capsys.readouterr().err


def test_links_to_a_sweep_folder_and_those_of_wandb_are_fine(
    composed: Composed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "scratch" / "theirs", composed, ended=True)
    wandb = folder.root / "wandb"
    (wandb / "latest-run").symlink_to("offline-run-1")
    (wandb / "debug.log").symlink_to("offline-run-1/files/config.yaml")
    (wandb / "offline-run-1" / "files" / "media").symlink_to("/somewhere")
    (folder.root / "study" / "journal.log.lock").symlink_to(folder.journal_file)  # Optuna's, while the sweep runs
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    (tmp_path / "sweep").symlink_to(folder.root)
    for place in (folder.root, tmp_path / "runs" / "theirs", tmp_path / "sweep"):
        assert main(["rank", str(place)]) == 0
        assert main(["status", str(place)]) == 0
    assert "t0000" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["wandb/settings", ".wandb/settings"])
def test_settings_of_wandb_in_a_folder_are_refused(composed: Composed, tmp_path: Path, place: str) -> None:
    folder = make(tmp_path / "theirs", composed, ended=False)
    atomic_write(folder.root / place, "[default]\nbase_url = http://127.0.0.1:1\n")
    with pytest.raises(FolderError, match="to which server it sends runs"):
        SweepFolder.open(folder.root)


def test_a_lock_is_opened_without_touching_what_is_there(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    atomic_write(folder.sweep_file, "{}")
    (folder.root / ".lock").write_text(SECRET)
    with locked(folder):
        pass
    assert (folder.root / ".lock").read_text() == SECRET
    (tmp_path / "mine").write_text(SECRET)
    (folder.root / ".lock").unlink()
    (folder.root / ".lock").symlink_to(tmp_path / "mine")  # put there after the folder was looked through
    with pytest.raises(FolderError), locked(folder):
        pass
    assert (tmp_path / "mine").read_text() == SECRET


def test_a_file_with_another_name_outside_is_not_appended_to(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    append_line(folder.asks_file, {"event": "ask"})
    os.link(folder.asks_file, tmp_path / "snapshot")
    before = (tmp_path / "snapshot").read_bytes()
    append_line(folder.asks_file, {"event": "tell"})
    assert (tmp_path / "snapshot").read_bytes() == before
    assert folder.asks_file.read_bytes() == before + b'{"event": "tell"}\n'


@pytest.mark.parametrize("split", ["../../../mine", "/etc/x", "..", "a/b"])
def test_words_in_a_folder_make_no_paths_out_of_it(tmp_path: Path, split: str) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    with pytest.raises(FolderError):
        folder.trial("t0000").items_file("task", f"/{split}", 3)
    for named in (folder.trial, folder.final, folder.baseline):
        with pytest.raises(FolderError):
            named(split)


# --- a folder that says it is the copy of a bucket


@pytest.fixture
def listening() -> Iterator[tuple[str, Callable[[], bool]]]:
    """An address, and whether anybody has called it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)

        def called() -> bool:
            try:
                server.accept()[0].close()
            except TimeoutError:
                return False
            return True

        yield f"127.0.0.1:{server.getsockname()[1]}", called


@pytest.mark.parametrize("place", [".bucket", "../.bucket", "trials/.bucket", "trials/t0000/items/.bucket"])
def test_no_bucket_is_asked_because_a_folder_names_one(
    composed: Composed, tmp_path: Path, place: str, listening: tuple[str, Callable[[], bool]]
) -> None:
    address, called = listening
    folder = make(tmp_path / "runs" / "theirs", composed, ended=True)
    (folder.root / place).write_text(f"s3://theirs/x?scheme=http&endpoint_override={address}")
    for command, call in commands(folder, here(composed, tmp_path), tmp_path).items():
        assert call() == 5, command
    assert not called()


# --- what is not taken from a stored config


def stored(composed: Composed, **values: Any) -> dict[str, Any]:
    """A stored config with other values: ``ray__address`` stands for ``ray.address``."""
    raw = composed.unresolved()
    for name, value in values.items():
        *sections, leaf = name.split("__")
        part = raw
        for section in sections:
            part = part[section]
        part[leaf] = value
    return raw


CANARY = "LORASWEEP_CANARY"
WAYS = [
    {"tracking__project": f"${{oc.env:{CANARY}}}"},
    {"tracking__tags": [f"a ${{oc.env:{CANARY},x}}"]},
    {"sampler__seed": f"${{oc.env:{CANARY}}}"},
    {"task__prompt": f"{{text}} ${{oc.decode:${{oc.env:{CANARY}}}}}"},
    {"tracking__entity": "env", "tracking__project": f"${{oc.${{tracking.entity}}:{CANARY}}}"},
    {"tracking__entity": "env", "tracking__project": f"${{oc.decode:'\\${{oc.${{tracking.entity}}:{CANARY}}}'}}"},
    {
        "tracking__entity": "{oc",
        "task__prompt": f".env:{CANARY}}}",
        "tracking__tags": "${pick:a,{a: ['$${tracking.entity}${task.prompt}']}}",
    },
]


@pytest.mark.parametrize("values", WAYS)
def test_no_variable_of_the_reader_is_resolved(
    composed: Composed, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CANARY, SECRET)
    with pytest.raises(ConfigError) as refused:
        Composed.from_stored(stored(composed, **values), own_code=True)
    assert SECRET not in str(refused.value)


def test_commands_that_go_on_refuse_a_config_that_reads_the_environment(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CANARY, SECRET)
    own = here(composed, tmp_path)
    folder = make(tmp_path / "runs" / "theirs", own, ended=False)
    manifest = read_manifest(folder)
    write_manifest(folder, manifest | {"unresolved": stored(own, tracking__project=f"${{oc.env:{CANARY}}}")})
    for command, call in commands(folder, own, tmp_path).items():
        if command.split()[0] in ("resume", "finalize", "enqueue"):
            assert call() == 2, command
        elif command == "run":
            with pytest.raises(ConfigError, match="would read this machine's environment"):
                call()
        elif not command.startswith("cluster"):
            call()
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert not [path for path in folder.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_what_the_user_types_is_still_read_from_the_environment(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CANARY, "17")
    raw = composed.unresolved()
    assert Composed.from_stored(raw, [f"search.trials=${{oc.env:{CANARY}}}"]).config.search.trials == 17
    named = compose([*SIZED, f"tracking.project='${{oc.env:{CANARY}}}'"])
    assert named.config.tracking.project == "17"
    inner = compose([*SIZED, "tracking.project='${oc.env:NOT_SET,${task.name}-x}'"])
    assert inner.config.tracking.project == "completion-x"
    assert "oc.env" not in str(inner.unresolved())


def test_a_trials_own_config_is_taken_as_it_stands(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.finalize import _trial_config

    monkeypatch.setenv(CANARY, SECRET)
    prompt = f"{{text}} \\${{oc.env:{CANARY}}} ${{oc.env:{CANARY}}}:"
    trial = asdict(composed.trial("t0000", {}))
    trial["task"]["prompt"] = prompt
    trial["eval"] |= {"metrics": {"x": {"command": "touch /tmp/x"}}, "run_code": True}
    trial["eval"]["judge"] |= {"server": "http://127.0.0.1:1/v1", "key_variable": CANARY}
    files = SweepFolder(tmp_path / "sweep").trial("t0000")
    atomic_write(files.config_file, yaml.safe_dump(trial))
    read = _trial_config(files, composed.config)
    assert read.task.prompt == prompt
    assert (read.eval.metrics, read.eval.run_code) == ({}, False)
    assert (read.eval.judge.server, read.eval.judge.key_variable) == (None, None)


def test_no_address_is_taken_and_a_note_says_so(composed: Composed) -> None:
    raw = stored(composed, ray__address="10.0.0.1:6379", tracking__uri="http://10.0.0.1:5000")
    raw["search"]["warm_start"] = ["s3://theirs/x", "/there"]
    raw["tracking"]["trackers"] = {
        "mlflow": {"_target_": "sweeps.tracking.mlflow_tracker.MlflowTracker", "uri": "http://10.0.0.2:5000"}
    }
    again = Composed.from_stored(raw)
    assert again.config.ray.address is None
    assert again.config.tracking.uri is None
    assert again.config.tracking.trackers["mlflow"]["uri"] is None
    assert again.config.search.warm_start == ["/there"]
    for path in ("ray.address=10.0.0.1:6379", "tracking.uri=http://10.0.0.1:5000", "search.warm_start=[s3://theirs/x]"):
        assert any(note.startswith(f"The stored {path} is not used") for note in again.notes), path
    given = Composed.from_stored(raw, ["ray.address=10.0.0.9:1", "tracking=mlflow", "tracking.uri=/tmp/mine"])
    assert (given.config.ray.address, given.config.tracking.uri) == ("10.0.0.9:1", "/tmp/mine")
    assert [note for note in given.notes if "is not used" in note and "warm_start" not in note] == []


def test_a_judge_is_asked_only_where_it_is_given_again(composed: Composed, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = stored(composed, eval__judge__server="http://10.0.0.1/v1", eval__judge__key_variable="AWS_SECRET_ACCESS_KEY")
    for given in ([], ["eval.judge.server=http://127.0.0.1:8000/v1"], ["eval.judge.key_variable=KEY"]):
        with pytest.raises(ConfigError, match=r"is not used.*Give it again"):
            Composed.from_stored(raw, given)
    again = Composed.from_stored(raw, ["eval.judge.server=http://127.0.0.1:1/v1", "eval.judge.key_variable=null"])
    assert (again.config.eval.judge.server, again.config.eval.judge.key_variable) == ("http://127.0.0.1:1/v1", None)


class Reached(Exception):
    """The sweep would start Ray now, at an address."""


@pytest.fixture
def ray_at(monkeypatch: pytest.MonkeyPatch) -> None:
    import sweeps.run

    def started(config: Any, *_: Any) -> Any:
        address = cluster_address(config)
        if address is not None:
            host, port = address.split(":")
            socket.create_connection((host, int(port)), 5).close()
        raise Reached(str(address))

    monkeypatch.setattr(sweeps.run, "ray_running", started)
    monkeypatch.setattr(sweeps.run, "preflight", lambda *_: None)


def test_a_stored_cluster_is_called_only_where_the_command_names_it(
    composed: Composed, tmp_path: Path, ray_at: None, listening: tuple[str, Callable[[], bool]]
) -> None:
    address, called = listening
    own = here(composed, tmp_path).with_values({"ray.address": address})
    folder = make(tmp_path / "runs" / "theirs", own, ended=False)
    where = str(folder.root)
    with pytest.raises(Reached, match="None"):
        resume_sweep(where, [])
    with pytest.raises(Reached, match="None"):
        run_sweep(own.with_values({"ray.address": None}))
    assert not called()
    with pytest.raises(Reached, match=address):
        resume_sweep(where, [f"ray.address={address}"])
    assert called()
    with pytest.raises(Reached, match=address):  # the command itself says it
        run_sweep(own)
    assert called()


@pytest.fixture
def their_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that notes that it was imported, where Python finds it."""
    mark, file = tmp_path / "imported", tmp_path / "theirs_to_import.py"
    file.write_text(f"open({str(mark)!r}, 'w').close()\nclass T: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark


CODE: list[dict[str, Any]] = [
    {
        "eval__metrics": {
            "x": {"command": "touch {mark}", "function": None, "digest": "0", "figures": {}, "timeout": 1.0}
        }
    },
    {"eval__metrics": {"x": {"function": "theirs_to_import.T", "command": None, "digest": "0", "figures": {}}}},
    {"eval__run_code": True},
    {"eval__run_code": "${oc.select:lora.dora}"},
    {"tracking__trackers": {"x": {"_target_": "theirs_to_import.T"}}},
    {"sampler": {"_target_": "theirs_to_import.T"}},
    {"scheduler": {"_target_": "theirs_to_import.T"}},
    {"scheduler": {"_target_": "${tracking.project}"}, "tracking__project": "theirs_to_import.T"},
]


@pytest.mark.parametrize("values", CODE, ids=lambda values: next(iter(values)))
@pytest.mark.parametrize("command", ["resume", "finalize", "run"])
def test_code_that_a_stored_config_names_is_not_run(
    composed: Composed, tmp_path: Path, their_module: Path, ray_at: None, values: dict[str, Any], command: str
) -> None:
    own = here(composed, tmp_path)
    folder = make(tmp_path / "runs" / "theirs", own, ended=False)
    raw = stored(own, **values)
    write_manifest(folder, read_manifest(folder) | {"unresolved": raw})
    if command == "run":
        if "tracking__trackers" in values:
            pytest.skip("the command's own trackers take their place")
        if any(name.startswith("eval") for name in values):
            manifest = read_manifest(folder)
            assert same_sweep(folder, manifest, own).raw["eval"] == own.raw["eval"]
        else:
            with pytest.raises(ConfigError, match="it is not run"):
                run_sweep(own)
    else:
        assert main([command, str(folder.root), *(["data.test_rows=4"] if command == "finalize" else [])]) == 2
    assert not their_module.exists()


def test_own_code_is_run_where_the_user_says_that_it_is_theirs(
    composed: Composed, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = stored(composed, eval__run_code=True)
    with pytest.raises(ConfigError, match="--own-code"):
        Composed.from_stored(raw)
    assert Composed.from_stored(raw, own_code=True).config.eval.run_code
    theirs = stored(composed, tracking__trackers={"x": {"_target_": "a.B"}})
    assert Composed.from_stored(theirs, ["tracking=none"]).config.tracking.trackers == {}


@pytest.mark.parametrize(
    "config", [{"peft_type": "PROMPT_TUNING"}, {"peft_type": "LORA", "megatron_config": {"a": 1}}, [], {}]
)
def test_export_takes_lora_adapters_only(tmp_path: Path, config: Any) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="adapter_config"):
        _check_kind(file)
    file.write_text(json.dumps({"peft_type": "LORA", "megatron_config": None}))
    _check_kind(file)


def test_a_checkpoint_names_no_file_outside_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(SECRET)
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    for name in ("../mine", str(tmp_path / "mine")):
        atomic_write(tmp_path / "8" / "counters.json", json.dumps({"step": 8, "sha256": {name: digest}}))
        assert fault(tmp_path / "8") == f"{name} is not what was written"


def test_objects_of_a_bucket_are_files_below_a_folder_and_none_is_hidden() -> None:
    assert [name for name in ("sweep.yaml", "trials/t0000/status.json", "wandb/run-1.wandb") if not is_name(name)] == []
    bad = ["../x", "a/../../x", "/etc/x", "a//b", ".bucket", "trials/.bucket", ".lock", "a/./b", "", "a\0b"]
    assert [name for name in bad if is_name(name)] == []
