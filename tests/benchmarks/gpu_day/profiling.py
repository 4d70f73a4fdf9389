"""Part 3: where a step's time goes: how busy the device is, launches, gaps, the optimiser's and dropout's share, waits.

From torch.profiler's trace. On a CPU, operators that call no other stand for kernels, so that the same is computed.
"""

import bisect
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tests.benchmarks.gpu_day import goals
from tests.benchmarks.gpu_day.record import Record, markdown, number
from tests.benchmarks.packs import host_time
from tests.benchmarks.packs.steps import Setting, free, load, seconds, step
from trainer.engines.pack import Pack

STEP, BACKWARD = "lorasweep step", "lorasweep backward"
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_STEPS = 3
_GAP = 10.0  # microseconds: the device idles, as the host is late
_SPARE = 25.0  # seconds that a setting needs at least

Event = dict[str, Any]


@dataclass(frozen=True)
class Shares:
    """What a trace says of a step, in the mean over its steps.

    Attributes:
        busy: share of the time in which the device works; the profiler makes the host slower, and this smaller.
        launches: kernels, copies and fills of a step.
        gaps: idle stretches of more than 10 µs in a step.
        idle_ms: milliseconds of a step in which the device is idle.
        work_ms: milliseconds of a step in which it works.
        optimiser: share of that work which follows the last backward pass: clipping, AdamW, zeroing.
        waits: times that the host waits for the device in a step; None on a CPU.
        longest: the kernels that take most, with milliseconds of a step.
    """

    busy: float
    launches: float
    gaps: float
    idle_ms: float
    work_ms: float
    optimiser: float
    waits: float | None
    longest: dict[str, float]


def shares(events: Sequence[Event], on_device: bool) -> Shares:
    """Read a trace in Chrome's format, with times in microseconds.

    Args:
        events: ``traceEvents``; steps and backward passes are marked by annotations.
        on_device: whether kernels of a device count, or else the CPU's innermost operators.
    """
    whole = [event for event in events if event.get("ph") == "X"]
    steps = sorted(_span(event) for event in whole if _is(event, "user_annotation", STEP))
    backward = sorted(_span(event)[1] for event in whole if _is(event, "user_annotation", BACKWARD))
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in whole
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    if on_device:
        work = [event for event in whole if event.get("cat") in _ON_DEVICE]
        starts = [launched.get(event.get("args", {}).get("correlation"), event["ts"]) for event in work]
    else:
        work = list(_innermost(event for event in whole if event.get("cat") == "cpu_op"))
        starts = [event["ts"] for event in work]
    of_step = [_within(steps, start) for start in starts]
    chosen = [(event, start, k) for event, start, k in zip(work, starts, of_step, strict=True) if k is not None]
    if not chosen:
        raise RuntimeError("the trace has no work inside a step")
    began = steps[0][0]
    spans = sorted(_span(event) for event, _, _ in chosen)
    ended = max(steps[-1][1], max(end for _, end in spans))
    idle = _gaps(spans, began, ended)
    total = sum(event["dur"] for event, _, _ in chosen)
    last_backward = [max((end for end in backward if first <= end <= last), default=last) for first, last in steps]
    after = sum(event["dur"] for event, start, k in chosen if start >= last_backward[k])
    waits = [event for event in whole if event.get("name") in _WAITS and _within(steps, event["ts"]) is not None]
    by_name = Counter[str]()
    for event, _, _ in chosen:
        by_name[event["name"][:80]] += event["dur"]
    n = len(steps)
    return Shares(
        busy=1 - sum(idle) / (ended - began),
        launches=len(chosen) / n,
        gaps=sum(gap > _GAP for gap in idle) / n,
        idle_ms=sum(idle) / 1e3 / n,
        work_ms=total / 1e3 / n,
        optimiser=after / total,
        waits=len(waits) / n if on_device else None,
        longest={name: duration / 1e3 / n for name, duration in by_name.most_common(12)},
    )


def _is(event: Event, category: str, name: str) -> bool:
    return event.get("cat") == category and event.get("name") == name


def _span(event: Event) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _within(spans: Sequence[tuple[float, float]], at: float) -> int | None:
    """Which of the sorted spans holds a time."""
    k = bisect.bisect_right(spans, (at, float("inf"))) - 1
    return k if k >= 0 and at <= spans[k][1] else None


def _gaps(spans: Sequence[tuple[float, float]], began: float, ended: float) -> list[float]:
    """Lengths of what no span covers, between two times."""
    gaps, at = [], began
    for start, end in spans:
        if start > at:
            gaps.append(start - at)
        at = max(at, end)
    return [*gaps, ended - at] if ended > at else gaps


def _innermost(operators: Iterator[Event]) -> Iterator[Event]:
    """Those that hold no other of the same thread."""
    threads: dict[Any, list[Event]] = {}
    for event in operators:
        threads.setdefault(event.get("tid"), []).append(event)
    for of_thread in threads.values():
        of_thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        for event, following in zip(of_thread, [*of_thread[1:], None], strict=True):
            if following is None or following["ts"] >= event["ts"] + event["dur"]:
                yield event


@contextmanager
def backward_marked() -> Iterator[None]:
    real = torch.autograd.backward

    def marked(*arguments: Any, **options: Any) -> Any:
        with record_function(BACKWARD):
            return real(*arguments, **options)

    with patch.object(torch.autograd, "backward", marked):
        yield


def traced(pack: Pack) -> Shares:
    """A few steps of a pack, profiled."""
    on_device = pack.base.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with backward_marked(), profile(activities=activities) as profiler:
        step(pack)  # not marked, so that what the first one loads does not count
        for _ in range(_STEPS):
            with record_function(STEP):
                step(pack)
        if on_device:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return shares(json.loads(path.read_text())["traceEvents"], on_device)


def waiting_places(pack: Pack) -> dict[str, int]:
    """Where in the code a step waits for the device, by PyTorch's own warnings; how often. Empty on a CPU."""
    if pack.base.device.type != "cuda":
        return {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(pack)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in said if "synchroniz" in str(one.message)]
    return dict(Counter(places))


def measure(record: Record) -> None:
    shape, all_slots, tokens = ("dry", (2, 1), 16) if record.dry else ("llama-1b", (32, 8, 1), 64)
    base = load(shape, "bf16", record.models)
    found: list[dict[str, Any]] = []
    for slots in all_slots:
        for dropout in (0.0, 0.1):
            what = f"{shape} K={slots} dropout {dropout}"
            if record.seconds_left < (1.0 if record.dry else _SPARE):
                record.leave_out(what, "no time left")
                continue
            with record.trying(what), host_time.filled(base, Setting(slots, 1, tokens), dropout, "auto") as pack:
                found.append(_one(pack, shape, slots, tokens, dropout, record.dry))
                record.add("steps", found)
                print(f"{what}: {found[-1]['step_ms']:.1f} ms, busy {found[-1]['busy_unprofiled']:.0%}", flush=True)
            free(base.device)
    record.add("dropout", of_dropout(found))


def _one(pack: Pack, shape: str, slots: int, tokens: int, dropout: float, dry: bool) -> dict[str, Any]:
    device = pack.base.device
    step_ms = 1e3 * seconds(lambda: step(pack), device, 0.02 if dry else 0.5)
    launching = host_time.launches(pack)
    of_step = traced(pack)
    return {
        "shape": shape,
        "device": device.type,
        "slots": slots,
        "tokens": tokens,
        "dropout": dropout,
        "step_ms": step_ms,
        **launching,
        **asdict(of_step),
        "busy_unprofiled": min(1.0, of_step.work_ms / step_ms),
        "waits_goal": str(goals.WAITS),
        "waits_verdict": goals.WAITS.verdict(of_step.waits, device.type),
        "waiting_places": waiting_places(pack),
    }


def of_dropout(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each number of slots: the share of a step that dropout takes, by the clock and by the device's work."""
    rows = []
    for slots in dict.fromkeys(of["slots"] for of in found):
        steps = {of["dropout"]: of for of in found if of["slots"] == slots}
        if len(steps) == 2:
            without, with_it = steps[0.0], steps[0.1]
            share = 1 - without["step_ms"] / with_it["step_ms"]
            rows.append(
                {
                    "slots": slots,
                    "share": share,
                    "of_work": 1 - without["work_ms"] / with_it["work_ms"],
                    "launches": with_it["launches"] - without["launches"],
                    "goal": str(goals.DROPOUT),
                    "verdict": goals.DROPOUT.verdict(share, with_it["device"]),
                }
            )
    return rows


def tables(figures: dict[str, Any]) -> list[str]:
    rows = [
        [
            *(of["shape"], of["slots"], of["dropout"], number(of["step_ms"], ".1f"), number(of["returned_ms"], ".1f")),
            *(
                number(of["busy_unprofiled"], ".0%"),
                number(of["busy"], ".0%"),
                number(of["launches"], ",.0f"),
                number(of["gaps"], ".0f"),
            ),
            *(number(of["idle_ms"], ".1f"), number(of["optimiser"], ".1%"), number(of["waits"], ".1f")),
            *(of["waits_goal"], of["waits_verdict"]),
        ]
        for of in figures.get("steps", [])
    ]
    headings = ["shape", "K", "dropout", "step, ms", "launched after, ms", "busy", "profiled", "launches", "gaps"]
    lines = [*markdown([*headings, "idle, ms", "optimiser's share", "waits", "goal", ""], rows), ""]
    rows = [
        [
            *(of["slots"], number(of["share"], ".1%"), number(of["of_work"], ".1%"), number(of["launches"], ",.0f")),
            *(of["goal"], of["verdict"]),
        ]
        for of in figures.get("dropout", [])
    ]
    headings = ["K", "dropout's share of a step", "of the device's work", "launches it adds", "goal", ""]
    return [*lines, *markdown(headings, rows), ""]
