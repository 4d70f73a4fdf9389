"""A sweep in a bucket whose machines die: what is in the bucket after any upload ends like an undisturbed sweep.

Driver and device worker are on two machines, which share nothing but the bucket. ``make test-all`` tries every upload.
"""

import errno
import importlib.util
import json
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sweeps.driver.device_client
import sweeps.store.bucket_lease
from analysis.buckets.bucket import Bucket, Entry
from analysis.buckets.local_copy import LocalCopy, copy_at, place
from analysis.errors import FolderError
from analysis.folder import SweepFolder, append_line, atomic_write, fetch_folder, remove_tree
from sweeps.compose.compose import Composed, compose
from sweeps.compose.trial_template import TrialTemplate
from sweeps.store.bucket_lease import Lease
from sweeps.store.bucket_upload import Upload, saved, uploading
from sweeps.store.control import ask_to_stop, driver, requests
from sweeps.store.folder_lock import open_to_drive
from sweeps.store.node_copy import NodeCopy

_spec = importlib.util.spec_from_file_location("reconcile", Path(__file__).with_name("test_reconcile.py"))
assert _spec
assert _spec.loader
reconcile: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reconcile)

URI = "s3://bucket/runs/sweep"


class Store:
    """The objects of a bucket, and what was written and removed, in order; in the place of ``Bucket``'s calls."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.times: dict[str, float] = {}
        self.log: list[tuple[str, bytes | None]] = []
        self.fails = False
        self.lock = threading.Lock()

    def read(self, bucket: Bucket, name: str) -> bytes:
        self._answer()
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]

    def write(self, bucket: Bucket, name: str, content: bytes) -> None:
        self._answer()
        with self.lock:
            self.log.append((name, content))
            self.objects[name], self.times[name] = content, time.time()

    def remove(self, bucket: Bucket, names: Iterable[str]) -> None:
        self._answer()
        with self.lock:
            for name in [name for name in names if name in self.objects]:
                self.log.append((name, None))
                del self.objects[name]

    def remove_folder(self, bucket: Bucket, name: str) -> None:
        self.remove(bucket, [it for it in self.objects if it.startswith(f"{name}/")])

    def listing(self, bucket: Bucket, prefix: str = "") -> dict[str, Entry]:
        self._answer()
        with self.lock:
            known = {name: Entry(len(it), self.times.get(name, 0.0)) for name, it in self.objects.items()}
        return {name: it for name, it in known.items() if not prefix or name.startswith(f"{prefix}/")}

    def entry(self, bucket: Bucket, name: str) -> Entry | None:
        return self.listing(bucket).get(name)

    def now(self, bucket: Bucket, nonce: str) -> float | None:
        return time.time()

    def _answer(self) -> None:
        if self.fails:
            raise OSError(errno.EIO, "the store does not answer", URI)

    def after(self, writes: int) -> dict[str, bytes]:
        """The objects after so many of the writes."""
        objects: dict[str, bytes] = {}
        for name, content in self.log[:writes]:
            if content is None:
                objects.pop(name, None)
            else:
                objects[name] = content
        return objects


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    made = Store()
    for name in ("read", "write", "remove", "remove_folder", "listing", "entry", "now"):
        inner = getattr(made, name)
        monkeypatch.setattr(Bucket, name, lambda self, *args, inner=inner: inner(self, *args))
    monkeypatch.setenv("LORASWEEP_STAGING", str(tmp_path / "head"))
    monkeypatch.setattr(sweeps.store.bucket_lease, "_SETTLE", 0.0)
    return made


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Composed:
    few = ["search.trials=5", "scheduler.keep_best=2"]
    return compose([*reconcile.simulated.overrides(tmp_path_factory.mktemp("simulated")), *few])


@pytest.fixture(autouse=True)
def _plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.driver.device_client.ray, "get", lambda answer, timeout=None: answer)
    made, inner = {}, TrialTemplate.trial

    def trial(self: TrialTemplate, trial_id: str, values: dict[str, Any]) -> Any:
        key = trial_id + json.dumps(values)
        if key not in made:
            made[key] = inner(self, trial_id, values)
        return made[key]

    monkeypatch.setattr(TrialTemplate, "trial", trial)


def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[SweepFolder, NodeCopy]:
    """The driver's folder and the worker's copy on two new machines."""
    monkeypatch.setenv("LORASWEEP_STAGING", str(tmp_path / name / "node"))
    node = copy_at(URI, "staging")
    monkeypatch.setenv("LORASWEEP_STAGING", str(tmp_path / name / "head"))
    head = copy_at(URI, "staging")
    return SweepFolder(head.root), NodeCopy(str(head.root), node, shared=False)


def whole_state(folder: SweepFolder) -> dict[str, Any]:
    assert folder.copy
    for files in folder.trials():
        fetch_folder(files.adapter_dir)
        fetch_folder(files.checkpoints_dir)
    state: dict[str, Any] = reconcile.state(folder)
    return state


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.heavy)])
def test_machines_that_die_after_any_upload_leave_a_sweep_that_ends_like_an_undisturbed_one(
    step: int, composed: Composed, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SweepFolder(tmp_path / "plain")
    reconcile.Sweep(composed, plain).run()
    folder, node = machines(tmp_path, monkeypatch, "whole")
    assert folder.copy
    with uploading(folder.copy):
        reconcile.Sweep(composed, folder, node).run()
        saved(folder)
        assert whole_state(folder) == reconcile.state(plain)
    log = list(store.log)
    assert len(log) > 100
    for writes in range(1, len(log) + 1, step):
        store.log = log
        store.objects = store.after(writes)
        folder, node = machines(tmp_path, monkeypatch, f"after-{writes}")
        assert folder.copy
        folder.copy.fetch_to_drive()
        try:
            with Driving(folder):
                reconcile.Sweep(composed, folder, node).run()
        except Exception as error:
            raise AssertionError(f"after {writes}: {log[writes - 1][0]}") from error
        assert whole_state(folder) == reconcile.state(plain), f"after {writes}: {log[writes - 1][0]}"


class Driving:
    """``uploading`` without waiting for the signs of life of the driver that died."""

    def __init__(self, folder: SweepFolder):
        assert folder.copy
        self.copy = folder.copy

    def __enter__(self) -> None:
        Bucket.remove(self.copy.bucket, ["control/driver.json"])
        self.inner = uploading(self.copy)
        self.inner.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.inner.__exit__(*raised)


def test_what_makes_a_folder_count_is_uploaded_last(
    composed: Composed, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, node = machines(tmp_path, monkeypatch, "whole")
    assert folder.copy
    with uploading(folder.copy):
        reconcile.Sweep(composed, folder, node).run()
    seen = 0
    for writes, (name, content) in enumerate(store.log):
        place, _, last = name.rpartition("/")
        inside, marker = Path(place), "adapter_config.json" if place.endswith("/adapter") else "counters.json"
        if content is None or ("checkpoint" not in inside.parts[-2:] and inside.name != "adapter"):
            continue
        objects = store.after(writes)
        if last == marker:
            weights = "adapter_model.safetensors" if inside.name == "adapter" else "best.safetensors"
            assert f"{place}/{weights}" in objects, name
            seen += 1
        elif objects.get(name) not in (None, content):  # driver and worker both write a stopped trial's adapter
            assert f"{place}/{marker}" not in objects, f"{name} changes in a folder that counts"
    assert seen > 10


def test_what_the_driver_records_of_a_trial_is_in_the_bucket_before(
    composed: Composed, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, node = machines(tmp_path, monkeypatch, "whole")
    assert folder.copy
    with uploading(folder.copy):
        reconcile.Sweep(composed, folder, node).run()
    recorded = 0
    for writes in range(len(store.log)):
        name, content = store.log[writes]
        if name.endswith("metrics.jsonl") and content:
            place, row = name.rpartition("/")[0], json.loads(content.splitlines()[-1])
            objects = store.after(writes)
            if row["final"]:
                assert f"{place}/adapter/adapter_config.json" in objects
            else:
                assert f"{place}/checkpoint/{row['step']}/counters.json" in objects
            recorded += 1
    assert recorded > 10
    order = [name for name, _ in store.log if "t0000" in name or name == "study/asks.jsonl"]
    assert order.index("study/asks.jsonl") < order.index("trials/t0000/config.yaml")


# --- the uploader


@pytest.fixture
def drives(store: Store) -> Iterator[SweepFolder]:
    copy = copy_at(URI, "staging")
    with uploading(copy):
        yield SweepFolder(copy.root)


def test_a_line_is_uploaded_with_what_stood_before_it_alone(store: Store) -> None:
    copy = copy_at(URI, "staging")
    upload = Upload(copy, Lease(copy))  # its thread has not begun yet: it lags behind
    upload.lease.acquire()
    folder = SweepFolder(copy.root)
    from analysis.buckets.writes import observe

    observe(copy.root, upload)
    try:
        append_line(folder.asks_file, {"n": 1})
        atomic_write(folder.sweep_file, "a")
        append_line(folder.asks_file, {"n": 2})
    finally:
        observe(copy.root, None)
    upload.start()
    upload.close()
    written = [(name, content) for name, content in store.log if not name.startswith("control/")]
    first, second = b'{"n": 1}\n', b'{"n": 1}\n{"n": 2}\n'
    assert written[:3] == [("study/asks.jsonl", first), ("sweep.yaml", b"a"), ("study/asks.jsonl", second)]


def test_a_bucket_that_does_not_answer_for_a_while_loses_nothing(store: Store, drives: SweepFolder) -> None:
    store.fails = True
    append_line(drives.asks_file, {"n": 1})
    append_line(drives.asks_file, {"n": 2})
    remove_tree(drives.trial("t0000").checkpoints_dir)
    time.sleep(0.7)
    store.fails = False
    saved(drives)
    assert store.objects["study/asks.jsonl"] == b'{"n": 1}\n{"n": 2}\n'


def test_a_bucket_that_takes_nothing_any_more_is_a_disk_that_is_broken(store: Store) -> None:
    copy = copy_at(URI, "staging")
    lease = Lease(copy)
    lease.acquire()
    upload = Upload(copy, lease, patience=0.6)
    upload.start()
    store.fails = True
    upload.written(copy.root / "sweep.yaml", b"a", 1)
    with pytest.raises(FolderError, match="does not answer"):
        upload.flush()
    with pytest.raises(OSError, match="does not answer") as raised:
        upload.written(copy.root / "sweep.yaml", b"b", 1)
    from analysis.folder import disk_fault

    assert disk_fault(raised.value)


# --- one driver at a time


def test_a_second_driver_is_refused_while_the_first_gives_signs_of_life_and_may_have_it_after(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.store.bucket_lease, "BEAT", 0.5)
    monkeypatch.setattr(sweeps.store.bucket_lease, "_POLL", 0.1)
    first = copy_at(URI, "staging")
    with uploading(first):
        monkeypatch.setenv("LORASWEEP_STAGING", str(tmp_path / "another machine"))
        monkeypatch.setattr(time, "time", lambda real=time.time: real() - 3600)  # whose clock is an hour behind
        second = uploading(copy_at(URI, "staging"))
        with pytest.raises(FolderError, match=r"another lorasweep runs this sweep now: process \d+ on "):
            second.__enter__()
        assert driver(SweepFolder(copy_at(URI, "view").root)).alive


def test_a_driver_that_finds_another_ones_sign_writes_no_more(store: Store) -> None:
    copy = copy_at(URI, "staging")
    lease = Lease(copy)
    lease.acquire()
    lease.check()
    store.write(copy.bucket, "control/driver.json", b'{"id": "other", "host": "beta", "pid": 7}')
    lease._confirmed = -float("inf")  # it has not been heard of for a while
    with pytest.raises(OSError, match=r"on beta \(process 7\), has taken this sweep over"):
        lease.check()
    writes = len(store.log)
    lease.end()
    assert len(store.log) == writes


def test_the_next_driver_on_the_same_machine_need_not_wait(store: Store) -> None:
    copy = copy_at(URI, "staging")
    Lease(copy).acquire()  # and is killed
    began = time.monotonic()
    Lease(copy).acquire()
    assert time.monotonic() - began < 5


def test_a_request_of_another_terminal_reaches_the_driver_once(store: Store, drives: SweepFolder) -> None:
    atomic_write(drives.sweep_file, "{}")
    saved(drives)
    request = ask_to_stop(SweepFolder.open(URI))
    until = time.monotonic() + 10
    while not requests(drives) and time.monotonic() < until:
        time.sleep(0.1)
    assert [it.name for it in requests(drives)] == [request.name]
    from sweeps.store.control import remove_request

    remove_request(drives, request)
    saved(drives)
    assert f"control/{request.name}.json" not in store.objects
    time.sleep(2.5)
    assert requests(drives) == []


# --- the copy


def test_a_copy_becomes_what_the_bucket_holds(store: Store, tmp_path: Path) -> None:
    bucket = Bucket(URI)
    for name in (
        "sweep.yaml",
        "study/asks.jsonl",
        "trials/t0000/status.json",
        "trials/t0000/items/task-validation-2.parquet",
    ):
        store.write(bucket, name, b"1")
    store.times = dict.fromkeys(store.times, 100.0) | {"sweep.yaml": 200.0}
    folder = open_to_drive(URI)
    assert folder.where == URI
    assert (folder.root / "trials/t0000/status.json").read_bytes() == b"1"
    assert not (folder.root / "trials/t0000/items").exists()  # fetched where it is needed
    (folder.root / "trials/t0000/status.json").write_text("2")  # by a driver that died before it had uploaded it
    atomic_write(folder.root / "trials/t0001/status.json", "2")
    folder = open_to_drive(URI)
    assert (folder.root / "trials/t0000/status.json").read_bytes() == b"1"
    assert not (folder.root / "trials/t0001").exists()


def test_a_sweep_that_is_not_there_is_no_sweep(store: Store) -> None:
    with pytest.raises(FolderError, match=r"s3://bucket/runs/none: no sweep here"):
        SweepFolder.open("s3://bucket/runs/none")


def test_copies_of_two_places_are_two(store: Store) -> None:
    assert place("s3://a/x", "view") != place("s3://b/x", "view") != place("s3://b/x", "staging")
    assert isinstance(copy_at("s3://a/x", "view"), LocalCopy)
    shutil.rmtree(place("s3://a/x", "view"))
