"""Requests to a running sweep, and who drives it."""

import fcntl
import json
import threading
import time
from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from sweeps.store import control
from sweeps.store.control import Heartbeat, ask_to_stop, ask_to_try, driver, remove_request, requests, spent


def test_requests_of_many_terminals_all_arrive_whole_and_once(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    seen: list[int] = []

    def ask(first: int) -> None:
        for number in range(first, first + 25):
            ask_to_try(folder, {"lora.rank": number})

    threads = [threading.Thread(target=ask, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or requests(folder):
        for request in requests(folder):
            assert request.point
            seen.append(request.point["lora.rank"])
            remove_request(folder, request)
    assert sorted(seen) == [100 * k + n for k in range(4) for n in range(25)]
    for k in range(4):
        assert [n for n in seen if n // 100 == k] == [100 * k + n for n in range(25)], "each terminal's in its order"


def test_what_is_no_request_is_passed_over(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.control_dir.mkdir()
    for name, text in (("stop-1", "{"), ("enqueue-2", '{"kind": "enqueue", "point": 3}'), ("x-3", "[]")):
        (folder.control_dir / f"{name}.json").write_text(text)
    assert requests(folder) == []
    assert [request.trial_id for request in [ask_to_stop(folder, "t0003")]] == ["t0003"]
    assert [(request.kind, request.trial_id) for request in requests(folder)] == [("stop", "t0003")]


def test_a_request_to_stop_is_for_the_driver_that_ran_then_but_a_point_is_kept(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    ask_to_stop(folder)
    ask_to_try(folder, {"lora.rank": 4})
    Heartbeat(folder, 1)
    assert [request.kind for request in requests(folder)] == ["enqueue"]


def test_what_was_spent_survives_a_kill_and_a_clock_that_goes_back_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, now = SweepFolder(tmp_path), [50.0]
    monkeypatch.setattr(control.time, "monotonic", lambda: now[0])
    wall = [1e9]
    monkeypatch.setattr(control.time, "time", lambda: wall[0])
    first = Heartbeat(folder, devices=2)
    for _ in range(100):
        now[0] += 1.0
        wall[0] -= 3600.0
        first.beat()
    assert (first.seconds, first.device_seconds) == (100.0, 200.0)
    killed = spent(folder)  # nobody called end
    assert 100 - Heartbeat.BEAT <= killed.seconds <= 100
    now[0] = 7.0  # another process, another clock
    second = Heartbeat(folder, devices=1)
    now[0] += 10
    second.end("finished")
    assert spent(folder).seconds == pytest.approx(killed.seconds + 10)
    assert spent(folder).device_seconds == pytest.approx(killed.device_seconds + 10)


def test_who_drives_a_sweep_is_told_by_its_lock(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    assert driver(folder).alive is False
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (driver(folder).alive, driver(folder).pid) == (True, 0), "it has not said yet who it is"
        heartbeat = Heartbeat(folder, 1)
        who = driver(folder)
        assert (who.alive, who.pid > 0, who.ended) == (True, True, "")
        assert abs(who.seen - time.time()) < 30
    assert (driver(folder).alive, driver(folder).ended) == (False, ""), "killed: it has not said how it ended"
    heartbeat.end("finished")
    assert (driver(folder).alive, driver(folder).ended) == (False, "finished")
    (folder.control_dir / "driver.json").write_text("{")
    assert driver(folder).pid == 0


def test_amounts_that_cannot_be_read_count_as_nothing(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "spent.json").write_text(json.dumps({"seconds": "many"}))
    assert spent(folder).seconds == 0
