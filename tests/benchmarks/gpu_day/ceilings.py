"""Part 1: what the card can do, the packs' tests on it, and grouped products against float64."""

import glob
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu_day import machine, processes
from tests.benchmarks.gpu_day.record import Record, markdown, number
from tests.benchmarks.packs.steps import fastest, seconds

_LEAST = 0.3  # seconds of each figure
# Rows of each group. An empty group, and counts that are no multiple of 8, have been wrong in grouped_mm before.
GROUPS = {
    "multiples of 8": (8, 16, 8, 32),
    "ragged": (5, 1, 17, 3),
    "first group empty": (0, 5, 17, 3),
    "a group empty": (5, 0, 17, 3),
    "last group empty": (5, 17, 3, 0),
    "all but one empty": (0, 0, 13, 0),
}
# Relative distance from float64 that rounding explains, of a product's norm.
_CLOSE = {torch.bfloat16: 1e-2, torch.float32: 1e-3}
_TESTS = (
    *("test_lora_kernels.py", "test_pack_stack.py", "test_pack.py", "test_pack_equivalence.py"),
    *("test_pack_memory.py", "test_slot_budget.py", "test_pack_lengths.py", "test_keyed_dropout.py"),
    "triton_kernels/test_*.py",
)


def measure(record: Record) -> None:
    device = torch.device(machine.device())
    with record.trying("copy bandwidth and matrix product"):
        record.add("ceilings", ceilings(device, record.dry))
    with record.trying("tests on the device"):
        cuda_tests(record, device.type)
    with record.trying("grouped products"):  # last: what they may do wrong can end the process
        record.add("grouped", [grouped(name, dtype, device) for name in GROUPS for dtype in _CLOSE])


def ceilings(device: torch.device, dry: bool) -> dict[str, float]:
    """Bytes a second of copies (read and written), operations a second, microseconds of a launch."""
    n = 1 << 22 if dry or device.type == "cpu" else 1 << 30
    a = torch.randn(n // 4, device=device)
    b = torch.empty_like(a)
    kept = torch.empty(n // 16, pin_memory=device.type == "cuda")
    part = a[: n // 16]
    little = torch.zeros(8, device=device)

    def many() -> None:
        for _ in range(1000):
            little.add_(1.0)

    return {
        "copy_bytes_per_second": 2 * n / seconds(lambda: b.copy_(a), device, _LEAST),
        "to_device_bytes_per_second": n / 4 / seconds(lambda: part.copy_(kept, non_blocking=True), device, _LEAST),
        "to_host_bytes_per_second": n / 4 / seconds(lambda: kept.copy_(part, non_blocking=True), device, _LEAST),
        "bf16_operations_per_second": fastest(device, torch.bfloat16, _LEAST),
        "fp32_operations_per_second": fastest(device, torch.float32, _LEAST),
        "launch_microseconds": 1e3 * seconds(many, device, _LEAST),
    }


def grouped(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """A grouped product, forward and backward, against the same group by group in float64.

    Returns:
        The largest relative distance of output and gradients, in norms; ``right`` where rounding explains it.
    """
    draw = torch.Generator().manual_seed(1)
    counts = GROUPS[name]
    ends = torch.tensor(counts).cumsum(0)
    x, w = torch.randn(sum(counts), 64, generator=draw), torch.randn(len(counts), 64, 32, generator=draw)
    back = torch.randn(sum(counts), 32, generator=draw)
    found: dict[str, Any] = {"groups": name, "counts": list(counts), "dtype": str(dtype).removeprefix("torch.")}
    x, w, back = (tensor.to(dtype) for tensor in (x, w, back))
    exact = [tensor.double().requires_grad_(tensor is not back) for tensor in (x, w)]
    pieces = [rows @ exact[1][k] for k, rows in enumerate(exact[0].split(list(counts)))]
    expected = torch.cat(pieces)
    expected.backward(back.double())
    try:
        given = [tensor.to(device).requires_grad_() for tensor in (x, w)]
        out = torch.nn.functional.grouped_mm(given[0], given[1], offs=ends.to(device, torch.int32))
        out.backward(back.to(device))
        pairs = [(out, expected), (given[0].grad, exact[0].grad), (given[1].grad, exact[1].grad)]
        distance = max(_distance(here, there) for here, there in pairs)
    except RuntimeError as error:
        return found | {"distance": None, "right": None, "error": str(error).splitlines()[0]}
    return found | {"distance": distance, "right": distance <= _CLOSE[dtype]}  # NaN is not right


def _distance(here: Any, there: Any) -> float:
    return float((here.detach().double().cpu() - there.detach()).norm() / there.detach().norm())


def cuda_tests(record: Record, device: str) -> None:
    """The tests of packs on the device, a process for each file: one that breaks the device spoils no other."""
    folder = processes.ROOT / "tests/trainer/engines"
    files = sorted(path for name in _TESTS for path in glob.glob(str(folder / name)))
    if record.dry:
        files = [str(folder / "test_lora_kernels.py")]
    found: list[dict[str, Any]] = []
    try:
        import pytest  # noqa: F401
    except ImportError:
        record.leave_out("tests on the device", "pytest is not installed here")
        return
    for path in files:
        if record.seconds_left < 20:
            record.leave_out(Path(path).name, "no time left")
            continue
        few = ["-k", "gradients_of_bmm"] if record.dry else []
        found.append(run_tests(path, device, record.seconds_left - 10, few))
        record.add("tests", found)
        print(f"{Path(path).name}: {found[-1]['passed']} passed, {len(found[-1]['failed'])} failed", flush=True)


def run_tests(path: str, device: str, limit: float, more: Sequence[str] = ()) -> dict[str, Any]:
    """One file of tests.

    Args:
        path: of the file.
        device: on which they run.
        limit: seconds.
        more: arguments of pytest.
    """
    found: dict[str, Any] = {"file": Path(path).name, "passed": 0, "skipped": 0, "failed": [], "error": None}
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        plain = ["-q", "--maxfail=8", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = processes.command("pytest", *plain, f"--basetemp={name}/temporary", *more, path)
        environment = processes.environment(LORASWEEP_TEST_DEVICE=device)
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=processes.ROOT, env=environment, capture_output=True, text=True, timeout=max(limit, 1)
            )
            if done.returncode not in (0, 1):
                found["error"] = f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
        except subprocess.TimeoutExpired:
            found["error"] = f"stopped after {limit:.0f} s"
        found["seconds"] = round(time.monotonic() - began, 1)
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):
                _count(case, found)
    return found


def _count(case: ElementTree.Element, found: dict[str, Any]) -> None:
    wrong = [part for part in case if part.tag in ("failure", "error")]
    if wrong:
        said = "\n".join((wrong[0].text or "").splitlines()[-6:])
        found["failed"].append({"test": case.get("name"), "error": said})
    elif any(part.tag == "skipped" for part in case):
        found["skipped"] += 1
    else:
        found["passed"] += 1


def tables(figures: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if "ceilings" in figures:
        of = figures["ceilings"]
        rows = [
            ["copy on the device", number(of["copy_bytes_per_second"] / 1e9, ".0f", " GB/s, read and written")],
            ["to the device, pinned", number(of["to_device_bytes_per_second"] / 1e9, ".1f", " GB/s")],
            ["to the host, pinned", number(of["to_host_bytes_per_second"] / 1e9, ".1f", " GB/s")],
            ["matrix product, bf16", number(of["bf16_operations_per_second"] / 1e12, ".2f", " Top/s")],
            ["matrix product, float32", number(of["fp32_operations_per_second"] / 1e12, ".2f", " Top/s")],
            ["a launch", number(of["launch_microseconds"], ".1f", " µs")],
        ]
        lines += [*markdown(["ceiling", "figure"], rows), ""]
    if "tests" in figures:
        rows = [
            [of["file"], of["passed"], len(of["failed"]), of["skipped"], of["error"] or "", f"{of['seconds']} s"]
            for of in figures["tests"]
        ]
        lines += [*markdown(["tests", "passed", "failed", "skipped", "error", "took"], rows), ""]
        for of in figures["tests"]:
            lines += [f"- {of['file']}::{case['test']}: {case['error'].splitlines()[-1:]}" for case in of["failed"]]
    if "grouped" in figures:
        rows = [
            [
                *(of["groups"], of["counts"], of["dtype"], number(of["distance"], ".1e")),
                of.get("error") or ("right" if of["right"] else "WRONG"),
            ]
            for of in figures["grouped"]
        ]
        lines += ["", *markdown(["grouped product", "rows", "dtype", "from float64", ""], rows), ""]
    return lines
