"""Half an hour with a GPU, as far as a CPU can stand in: every part yields its figures, and none stops the others."""

import importlib.metadata
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.benchmarks import pack
from tests.benchmarks.gpu_day import ceilings, day, goals, machine, processes, profiling, real_sweep, throughput
from tests.benchmarks.gpu_day.one_part import Order, perform
from tests.benchmarks.gpu_day.parts import PARTS, Part
from tests.benchmarks.gpu_day.record import COMPLETE, FAILED, LEFT_OUT, NOT_MEASURED, STOPPED, Record
from tests.benchmarks.packs.steps import Setting

HERE = "tests.benchmarks.gpu_day.test_gpu_day"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout is all there is of the project: nothing may ask for its installed version."""
    version = importlib.metadata.version

    def of_others(name: str) -> str:
        assert name != "lorasweep"
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_others)


def dry(number: int, models: Path, out: Path) -> dict[str, Any]:
    """A part's dry run: its JSON file, and its table, which is checked to hold no traceback."""
    part = PARTS[number - 1]
    order = Order(part, str(out), str(models), 9.0, True)
    record = perform(order)
    content: dict[str, Any] = json.loads(order.path.read_text())
    assert content["errors"] == []
    assert content["state"] == COMPLETE
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["machine"]["card_before"] == ({} if machine.device() == "cpu" else machine.card_now())
    assert record.figures
    day.write_tables(out, PARTS)
    table = (out / "tables.md").read_text()
    assert f"## {number}. {part.title}: complete (dry run" in table
    assert "No table" not in table
    return content | {"table": table}


# --- each part


def test_part_1_has_ceilings_tests_and_grouped_products(models: Path, tmp_path: Path) -> None:
    content = dry(1, models, tmp_path)
    figures = content["figures"]
    assert all(value > 0 for value in figures["ceilings"].values())
    [tests] = figures["tests"]
    assert (tests["file"], tests["failed"], tests["error"]) == ("test_lora_kernels.py", [], None)
    assert tests["passed"] > 0
    assert [of["right"] for of in figures["grouped"]] == [True] * 12
    assert any(0 in of["counts"] for of in figures["grouped"])
    assert any(n % 8 for of in figures["grouped"] for n in of["counts"])


def test_part_2_has_both_ratios_beside_their_goals(models: Path, tmp_path: Path) -> None:
    content = dry(2, models, tmp_path)
    lines = content["figures"]["lines"]
    assert [of["setting"]["slots"] for of in lines] == [2, 1]
    assert all(of["over_peft"] > 0 and of["by_packing"] > 0 and of["used"] > 0 for of in lines)
    assert {of["verdict"] for of in lines} == {NOT_MEASURED}, "a CPU's figure says nothing of a GPU"
    assert [of["verdict"] for of in content["figures"]["full"]] == [NOT_MEASURED]
    assert "by packing | goal" in content["table"]


def test_part_3_has_shares_of_a_step_with_and_without_dropout(models: Path, tmp_path: Path) -> None:
    figures = dry(3, models, tmp_path)["figures"]
    assert [(of["slots"], of["dropout"]) for of in figures["steps"]] == [(2, 0.0), (2, 0.1), (1, 0.0), (1, 0.1)]
    for of in figures["steps"]:
        assert 0 < of["busy"] <= 1
        assert 0 < of["optimiser"] < 1
        assert of["launches"] > 0
        assert 0 < of["returned_ms"] <= of["done_ms"] * 1.0001
        assert of["waits"] is None
        assert of["waits_verdict"] == NOT_MEASURED
    assert [of["slots"] for of in figures["dropout"]] == [2, 1]
    assert all(of["launches"] > 0 for of in figures["dropout"]), "dropout has operators of its own"


def test_part_4_has_both_precisions(models: Path, tmp_path: Path) -> None:
    lines = dry(4, models, tmp_path)["figures"]["lines"]
    assert [of["precision"] for of in lines] == ["bf16", "bf16", "nf4", "nf4"]
    assert all(of["by_packing"] > 0 for of in lines)


def test_part_4_goes_on_without_bitsandbytes(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(throughput, "_lines", lambda record, shapes, precisions, settings: record.add("of", precisions))
    content = dry(4, models, tmp_path)
    assert content["figures"] == {"of": ["bf16"]}
    assert [of["what"] for of in content["left_out"]] == ["nf4"]


def test_part_5_is_left_out_where_ray_is_not_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = real_sweep.importlib.util.find_spec
    monkeypatch.setattr(real_sweep.importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    order = Order(PARTS[4], str(tmp_path), str(models), 9.0, True)
    record = perform(order)
    assert (record.content["state"], record.content["errors"]) == (LEFT_OUT, [])
    assert record.content["left_out"] == [{"what": "the sweeps", "why": "not installed here: ray"}]


def test_part_6_runs_out_of_memory_and_shares_a_device(models: Path, tmp_path: Path) -> None:
    figures = dry(6, models, tmp_path)["figures"]
    for of, n in zip(figures["running_out"], (4, 2), strict=True):
        assert (of["states"], of["right"], of["ran_out"]) == ({"completed": n}, True, 1)
    assert len(figures["workers"]) == 2
    for of in figures["workers"]:
        assert (of["share"], of["right"]) == (0.5, True)
        assert of["states"] == {"completed": of["slots"]}


@pytest.mark.heavy
def test_the_whole_day_runs_dry_by_its_command(tmp_path: Path) -> None:
    """`make gpu-day BENCH=--dry`: part 5's two sweeps through Ray among them, from an environment without this path."""
    done = subprocess.run(
        [sys.executable, str(processes.ROOT / "tests/benchmarks/gpu_day"), "--dry", "--out", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    contents = [json.loads((tmp_path / f"part{n}.json").read_text()) for n in range(1, 7)]
    assert [content["state"] for content in contents] == [COMPLETE] * 6
    packed, alone = contents[4]["figures"]["sweeps"]
    assert (packed["exit"], packed["trials"], alone["exit"], alone["trials"]) == (0, 4, 0, 2)
    assert packed["states"].keys() <= {"completed", "stopped_early"}
    assert alone["states"] == {"completed": 2}
    assert packed["tokens_per_second"] > 0


# --- what fails costs only itself


def fails(record: Record) -> None:
    record.add("before", 1)
    with record.trying("a block"):
        raise ValueError("broke off")
    record.add("after", 2)
    raise RuntimeError("broke down")


def test_an_error_is_written_down_and_what_follows_goes_on(tmp_path: Path) -> None:
    order = Order(Part(9, "fails", 1.0, HERE, "fails"), str(tmp_path), str(tmp_path), 1.0, True)
    perform(order)
    content = json.loads(order.path.read_text())
    assert content["figures"] == {"before": 1, "after": 2}
    assert content["state"] == FAILED
    assert [(of["what"], of["error"].splitlines()[-1]) for of in content["errors"]] == [
        ("a block", "ValueError: broke off"),
        ("the part", "RuntimeError: broke down"),
    ]


@pytest.mark.parametrize(
    ("status", "writes", "state", "errors"),
    [
        (0, COMPLETE, COMPLETE, []),
        (0, LEFT_OUT, LEFT_OUT, []),
        (1, FAILED, FAILED, []),  # it has put its error down itself
        (None, STOPPED, STOPPED, ["stopped after 12 s"]),
        (-11, STOPPED, STOPPED, ["the process ended with status -11"]),
        (-9, None, STOPPED, ["the process ended with status -9"]),  # before it wrote anything
    ],
)
def test_a_part_that_breaks_off_keeps_its_figures_and_the_next_goes_on(
    status: int | None,
    writes: str | None,
    state: str,
    errors: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[int] = []

    def process(module: str, arguments: list[str], seconds: float) -> int | None:
        order = Order.from_words(arguments[0])
        ran.append(order.part.number)
        assert 60 * order.minutes < seconds, "it has time to end by itself"
        if order.part.number == 2:
            assert seconds == pytest.approx(12)
            if writes is not None:
                record = order.record()
                record.add("figure", 3)
                record.end(writes)
            return status
        order.record().end(COMPLETE)
        return 0

    monkeypatch.setattr(processes, "run", process)
    given = day.day(["--part", "1", "2", "3", "--minutes", "0.2", "--out", str(tmp_path)], "")
    assert ran == [1, 2, 3]
    assert given == int(status != 0)
    content = json.loads((tmp_path / "part2.json").read_text())
    assert content["state"] == state
    assert content["figures"] == ({} if writes is None else {"figure": 3})
    assert [of["error"] for of in content["errors"]] == errors
    table = (tmp_path / "tables.md").read_text()
    assert f"## 2. {PARTS[1].title}: {state}" in table
    assert all(why in table for why in errors)


def test_a_process_that_takes_too_long_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(other.pid))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pid = tmp_path / "pid"
    limits = iter([2.0, 10.0, 60.0])
    while not pid.exists():  # on a busy machine it may not have started so soon
        assert processes.run("endless", [str(pid)], next(limits)) is None
    time.sleep(0.1)
    assert not psutil.pid_exists(int(pid.read_text())) or psutil.Process(int(pid.read_text())).status() == "zombie"


def test_a_foreign_package_named_tests_does_not_hide_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/__init__.py").write_text("raise ImportError('not ours')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = processes.command("tests.benchmarks.gpu_day.processes")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_parts_of_one_call_end_well_inside_ten_minutes() -> None:
    assert [part.number for part in PARTS] == [1, 2, 3, 4, 5, 6]
    assert sum(part.minutes for part in PARTS[:3]) <= 9
    assert sum(part.minutes for part in PARTS[3:]) <= 9


# --- goals


def line(slots: int, rows: int, tokens: int, parameters: float) -> pack.Line:
    return pack.Line("x", "bf16", "cuda:0", Setting(slots, rows, tokens), int(parameters))


@pytest.mark.parametrize(
    ("of", "goal"),
    [
        (line(32, 1, 64, 1.24e9), goals.TEN_TIMES),
        (line(32, 8, 64, 1.24e9), goals.TEN_TIMES),  # 512 tokens of a trial and step
        (line(32, 8, 65, 1.24e9), goals.NEVER_SLOWER),
        (line(8, 1, 64, 1.24e9), goals.NEVER_SLOWER),
        (line(32, 1, 64, 3.2e9), goals.NEVER_SLOWER),
        (line(1, 1, 64, 1.24e9), goals.NEVER_SLOWER),
    ],
)
def test_the_goal_of_a_line_follows_from_model_tokens_and_slots(of: pack.Line, goal: goals.Goal) -> None:
    assert goals.of_line(of) is goal


@pytest.mark.parametrize(
    ("goal", "value", "device", "verdict"),
    [
        (goals.TEN_TIMES, 10.0, "cuda:0", goals.MET),
        (goals.TEN_TIMES, 9.99, "cuda:0", goals.NOT_MET),
        (goals.TEN_TIMES, 11.0, "cpu", NOT_MEASURED),
        (goals.TEN_TIMES, None, "cuda:0", NOT_MEASURED),
        (goals.TEN_TIMES, math.nan, "cuda:0", goals.NOT_MET),
        (goals.NEVER_SLOWER, 0.98, "cuda:0", goals.MET),  # within the noise of a run
        (goals.NEVER_SLOWER, 0.96, "cuda:0", goals.NOT_MET),
        (goals.FULL, 0.45, "cuda", goals.MET),
        (goals.FULL, 0.44, "cuda", goals.NOT_MET),
        (goals.WAITS, 1.0, "cuda", goals.MET),
        (goals.WAITS, 1.3, "cuda", goals.NOT_MET),
    ],
)
def test_a_goal_is_met_by_the_figure_of_a_gpu_alone(
    goal: goals.Goal, value: float | None, device: str, verdict: str
) -> None:
    assert goal.verdict(value, device) == verdict


def test_the_card_is_full_where_the_best_line_of_a_shape_uses_its_share() -> None:
    lines = [
        {"shape": shape, "precision": "bf16", "used": used, "device": "cuda:0"}
        for shape, used in (("a", 0.1), ("a", 0.5), ("b", 0.3), ("b", None), ("c", None))
    ]
    assert [(of["shape"], of["used"], of["verdict"]) for of in throughput.full(lines)] == [
        ("a", 0.5, goals.MET),
        ("b", 0.3, goals.NOT_MET),
        ("c", None, NOT_MEASURED),
    ]


# --- the trace of a GPU


def trace() -> list[dict[str, Any]]:
    """Two steps of 100 µs on a GPU, each with a pass and an optimiser, as torch.profiler writes them for Chrome."""

    def event(category: str, name: str, start: float, lasts: float, correlation: int = 0) -> dict[str, Any]:
        arguments = {"correlation": correlation}
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": lasts, "tid": 1, "args": arguments}

    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name"}]
    events += [event("cuda_runtime", "cudaDeviceSynchronize", 150, 5), event("kernel", "warm", 20, 30, 99)]
    for k, at in enumerate((1000.0, 1100.0)):
        events += [
            event("user_annotation", profiling.STEP, at, 100),
            event("user_annotation", profiling.BACKWARD, at + 20, 14),
            event("gpu_user_annotation", profiling.BACKWARD, at + 20, 60),
            event("cuda_runtime", "cudaLaunchKernel", at + 5, 1, 10 * k + 1),
            event("kernel", "gemm", at + 10, 52, 10 * k + 1),
            event("cuda_runtime", "cudaLaunchKernel", at + 25, 1, 10 * k + 2),
            event("kernel", "gemm", at + 35, 25, 10 * k + 2),  # within the first, and after the backward has returned
            event("cuda_driver", "cuLaunchKernelEx", at + 45, 1, 10 * k + 3),
            event("kernel", "adamw", at + 80, 10, 10 * k + 3),
            event("cuda_runtime", "cudaMemcpyAsync", at + 50, 1, 10 * k + 4),
            event("gpu_memcpy", "Memcpy DtoH", at + 90, 2, 10 * k + 4),
            event("cuda_runtime", "cudaStreamSynchronize", at + 51, 41),
        ]
    return events


def test_shares_of_a_step_are_read_from_a_gpus_trace() -> None:
    of = profiling.shares(trace(), on_device=True)
    assert of.launches == 4, "what ran before the first step does not count"
    assert of.work_ms == pytest.approx(0.089)
    # in 200 µs busy 10 to 62 and 80 to 92, twice
    assert of.busy == pytest.approx(128 / 200)
    assert of.idle_ms == pytest.approx(0.036)
    assert of.gaps == pytest.approx(1.5), "18 µs within each step, 18 between the two; the edges are 10 and 8"
    assert of.optimiser == pytest.approx(12 / 89), "what was launched after the backward pass"
    assert of.waits == 1
    assert of.longest == pytest.approx({"gemm": 0.077, "adamw": 0.010, "Memcpy DtoH": 0.002})


def test_on_a_cpu_the_innermost_operators_stand_for_kernels() -> None:
    events = [
        {"ph": "X", "cat": "user_annotation", "name": profiling.STEP, "ts": 0, "dur": 100, "tid": 1},
        {"ph": "X", "cat": "user_annotation", "name": profiling.BACKWARD, "ts": 40, "dur": 20, "tid": 1},
        {"ph": "X", "cat": "cpu_op", "name": "aten::linear", "ts": 10, "dur": 30, "tid": 1},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 15, "dur": 20, "tid": 1},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 42, "dur": 10, "tid": 2},
        {"ph": "X", "cat": "cpu_op", "name": "aten::addcdiv_", "ts": 70, "dur": 10, "tid": 1},
    ]
    of = profiling.shares(events, on_device=False)
    assert (of.launches, of.waits) == (3, None)
    assert of.work_ms == pytest.approx(0.040)
    assert of.optimiser == pytest.approx(10 / 40)


def test_dropouts_share_is_the_difference_of_two_steps() -> None:
    steps = [
        {"slots": 8, "dropout": p, "step_ms": ms, "work_ms": ms / 2, "launches": n, "device": "cuda"}
        for p, ms, n in ((0.0, 9.0, 100), (0.1, 10.0, 130))
    ]
    [of] = profiling.of_dropout([*steps, {"slots": 1, "dropout": 0.0}])
    assert (of["slots"], of["launches"]) == (8, 30)
    assert of["share"] == pytest.approx(0.1)
    assert of["verdict"] == (goals.MET if of["share"] <= 0.1 else goals.NOT_MET)


# --- grouped products


def test_a_grouped_product_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.functional.grouped_mm

    def takes_rows_of_the_next(x: torch.Tensor, w: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        return real(x, w, offs=(offs + 1).clamp(max=len(x)).to(torch.int32))

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", takes_rows_of_the_next)
    assert ceilings.grouped("ragged", torch.float32, torch.device("cpu"))["right"] is False
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", lambda x, w, offs: real(x, w, offs=offs) * math.nan)
    assert ceilings.grouped("ragged", torch.float32, torch.device("cpu"))["right"] is False


def test_a_test_that_fails_is_named_with_its_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text("def test_right(): pass\ndef test_wrong(): assert 1 == 2\n")
    of = ceilings.run_tests(str(path), "cpu", 120.0, ["--rootdir", str(tmp_path), "-c", "/dev/null"])
    assert (of["passed"], of["error"]) == (1, None)
    assert [case["test"] for case in of["failed"]] == ["test_wrong"]
    assert "assert 1 == 2" in of["failed"][0]["error"]
