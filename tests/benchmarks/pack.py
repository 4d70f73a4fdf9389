"""Packed against alone: tokens a second, memory and utilisation, without Ray.

python tests/benchmarks/pack.py                                   tiny shapes, on a CPU
python tests/benchmarks/pack.py --minutes 5                       the most informative settings first, then it stops
python tests/benchmarks/pack.py --host --shapes smollm2 --slots 8 32      the host's time of a step, needs no GPU
python tests/benchmarks/pack.py --shapes smollm2 llama-1b llama-3b llama-8b --precisions bf16 nf4 \\
    --slots 1 2 4 8 16 32 --rows 1 2 4 8 --tokens 64 256 512 1024       in full, where there is a GPU: over 50 minutes

Models have random weights. A line is one setting: K slots of ranks 4 to 64 in turn, LoRA on all linear layers, so many
rows of so many tokens for each slot and step, the loss on a quarter of them. K = 1 is always among them. Beside it the
same trials one after the other, with PEFT by itself, in two ways:

    PEFT          its own loss, which takes the logits of all positions
    PEFT, some    logits only where the loss is, as a pack has them
    over PEFT     tokens a second of the pack over the first: what a user gains
    by packing    over the second: what packing gives, and scoring fewer logits does not

``used`` is the share of the fastest matrix product measured here in the same precision: 4 operations a base parameter
and token (forward, backward to the activations), 6 an adapter parameter. ``auto`` marks what ``resources.slots=auto``
would choose at most. What runs out of memory is said in its line, and the next follows. Every figure is in a JSON file.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.packs import host_time
from tests.benchmarks.packs.steps import (
    OUT_OF_MEMORY,
    SHAPES,
    Alone,
    Packed,
    Setting,
    alone,
    attempt,
    encoded,
    fastest,
    free,
    load,
    make_trial,
    packed,
)
from trainer.models.base_model import BaseModel, best_device

HEADING = (
    "  K rows tokens  tokens/s     PEFT  PEFT,some  over PEFT  by packing  used"
    "  extra MB a slot: predicted measured  auto"
)


@dataclass
class Line:
    """One setting's figures; None where there is none, and ``failed`` says why.

    Attributes:
        parameters: of the base model.
        peak: operations a second of the fastest matrix product.
        packed: of the pack.
        peft: seconds of a step of all its trials, one after the other.
        peft_loss_positions: the same, with logits only where the loss is.
        failed: stage → why.
        took: seconds that measuring it took.
    """

    shape: str
    precision: str
    device: str
    setting: Setting
    parameters: int | None = None
    peak: float | None = None
    packed: Packed = field(default_factory=Packed)
    peft: float | None = None
    peft_loss_positions: float | None = None
    failed: dict[str, str] = field(default_factory=dict)
    took: float = 0.0

    @property
    def tokens(self) -> int:
        """Of all slots in a step."""
        return self.setting.slots * self.setting.rows * self.setting.tokens

    def rate(self, of_step: float | None) -> float | None:
        """Tokens a second."""
        return None if of_step is None else self.tokens / of_step

    @property
    def over_peft(self) -> float | None:
        return _over(self.peft, self.packed.seconds)

    @property
    def by_packing(self) -> float | None:
        return _over(self.peft_loss_positions, self.packed.seconds)

    @property
    def used(self) -> float | None:
        rate = self.rate(self.packed.seconds)
        if rate is None or self.peak is None or self.parameters is None or self.packed.adapter is None:
            return None
        return rate * (4 * self.parameters + 6 * self.packed.adapter) / self.peak

    @property
    def broken(self) -> bool:
        """Whether something other than memory failed."""
        return any(why != OUT_OF_MEMORY for why in self.failed.values())

    def figures(self) -> dict[str, Any]:
        """Everything, for JSON."""
        computed = {
            "tokens_per_second": self.rate(self.packed.seconds),
            "peft_tokens_per_second": self.rate(self.peft),
            "peft_loss_positions_tokens_per_second": self.rate(self.peft_loss_positions),
            "over_peft": self.over_peft,
            "by_packing": self.by_packing,
            "used": self.used,
        }
        return asdict(self) | computed

    def text(self) -> str:
        """The line of the table."""
        setting, packed = self.setting, self.packed
        shown = f"{setting.slots:3} {setting.rows:4} {setting.tokens:6}"
        shown += _column(self.rate(packed.seconds), 10, ".0f") + _column(self.rate(self.peft), 9, ".0f")
        shown += _column(self.rate(self.peft_loss_positions), 11, ".0f")
        shown += _column(self.over_peft, 11, ".2f") + _column(self.by_packing, 12, ".2f") + _column(self.used, 6, ".0%")
        extra = ""
        if setting.slots > 1:
            megabytes = [None if value is None else value / 1e6 for value in (packed.predicted, packed.measured)]
            extra = _column(megabytes[0], 27, ".1f") + _column(megabytes[1], 9, ".1f")
        auto = "auto" if packed.auto is not None and setting.slots <= packed.auto else ""
        notes = [f"{stage}: {why}" for stage, why in self.failed.items()]
        if packed.pass_tokens is not None:
            notes.append(f"memory made passes smaller: {packed.pass_tokens} tokens")
        return f"{shown}{extra:36}  {auto:4}{'  ' if notes else ''}{'; '.join(notes)}".rstrip()


def _over(alone_seconds: float | None, packed_seconds: float | None) -> float | None:
    return None if alone_seconds is None or packed_seconds is None else alone_seconds / packed_seconds


def _column(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


def informative(settings: Sequence[Setting]) -> list[Setting]:
    """Settings that say most first: the corners, few tokens and many slots before others, then what lies between."""
    ends = [{min(of), max(of)} for of in zip(*((s.slots, s.rows, s.tokens) for s in settings), strict=True)]

    def rank(setting: Setting) -> tuple[int, int, int]:
        values = (setting.slots, setting.rows, setting.tokens)
        between = sum(value not in end for value, end in zip(values, ends, strict=True))
        return between, setting.rows * setting.tokens, -setting.slots

    return sorted(settings, key=rank)


class Clock:
    """Time that may be used; what would not fit is left out, and named.

    Args:
        minutes: None: no limit.
    """

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def share(self, of: int) -> "Clock":
        """A clock with an equal part of what is left, which notes what is left out with this one."""
        part = Clock(None if self.end is None else max(0.0, self.end - time.monotonic()) / 60 / of)
        part.left_out = self.left_out
        return part

    def allows(self, seconds: float, what: str) -> bool:
        """Whether so many seconds are left; where not, it is noted as left out."""
        if self.end is None or time.monotonic() + seconds <= self.end:
            return True
        self.left_out.append(what)
        return False


def lines(
    shape: str, precision: str, settings: Sequence[Setting], folder: Path, least: float, clock: Clock
) -> Iterator[Line]:
    """The lines of a shape and a precision, each as soon as it is measured.

    Args:
        shape: one of SHAPES.
        precision: one of PRECISIONS.
        settings: in the order in which they are measured.
        folder: for the model.
        least: seconds that each figure is measured for.
        clock: what does not fit is left out; a line is taken to need as long as the longest so far.
    """
    failed: dict[str, str] = {}
    device = best_device()
    began = time.monotonic()
    base = attempt("loading", lambda: load(shape, precision, folder), failed, device)
    peak = None
    if base is not None:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        peak = attempt("ceiling", lambda: fastest(device, dtype, least), failed, device)
    if base is None:
        yield Line(shape, precision, str(device), settings[0], failed=failed, took=time.monotonic() - began)
        clock.left_out += [f"{shape} {precision} {_words(setting)}" for setting in settings[1:]]
        return
    known: dict[tuple[int, int, int], Alone | str] = {}  # rows, tokens, rank → seconds, or why there are none
    longest = 0.0
    for setting in settings:
        if not clock.allows(longest, f"{shape} {precision} {_words(setting)}"):
            continue
        began = time.monotonic()
        line = Line(shape, precision, str(device), setting, base.model.num_parameters(), peak, failed=dict(failed))
        _measure(line, base, known, least)
        line.took = time.monotonic() - began
        longest = max(longest, line.took)
        yield line
    del base
    free(device)


def _measure(line: Line, base: BaseModel, known: dict[tuple[int, int, int], Alone | str], least: float) -> None:
    setting = line.setting
    rows = encoded(setting.tokens)
    steps: list[Alone] = []
    for i in range(setting.slots):
        trial = make_trial(i, line.precision, setting)
        place = (setting.rows, setting.tokens, trial.lora.rank)
        if place not in known:
            failed: dict[str, str] = {}
            one = attempt("alone", lambda trial=trial: alone(base, trial, rows, least), failed, base.device)
            known[place] = failed["alone"] if one is None else one
        one = known[place]
        if isinstance(one, str):
            line.failed["alone"] = one
            break
        steps.append(one)
    else:
        line.peft = sum(one.peft for one in steps)
        line.peft_loss_positions = sum(one.loss_positions for one in steps)
    line.packed = packed(base, line.precision, setting, rows, least, line.failed)


def _words(setting: Setting) -> str:
    return f"K={setting.slots} {setting.rows}×{setting.tokens}"


def measure(
    shapes: Sequence[str],
    precisions: Sequence[str],
    settings: Sequence[Setting],
    folder: Path,
    least: float,
    clock: Clock,
) -> Iterator[Line]:
    """All lines; of the time that is left each shape and precision gets an equal share."""
    ordered = informative(settings) if clock.end is not None else list(settings)
    pairs = [(shape, precision) for shape in shapes for precision in precisions]
    for n, (shape, precision) in enumerate(pairs):
        share = clock.share(len(pairs) - n)
        if share.allows(1e-3, f"{shape} {precision}"):
            yield from lines(shape, precision, ordered, folder, least, share)


def all_settings(slots: Sequence[int], rows: Sequence[int], tokens: Sequence[int]) -> list[Setting]:
    """Every combination, K = 1 among them: what a pack of one costs over PEFT by itself is part of the answer."""
    return [Setting(k, n, t) for t in tokens for n in rows for k in sorted({1, *slots})]


def write(out: Path, content: dict[str, Any]) -> None:
    """The JSON file, whole at any time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(out)


def _against_alone(options: argparse.Namespace) -> int:
    clock = Clock(options.minutes)
    settings = all_settings(options.slots, options.rows, options.tokens)
    found: list[Line] = []
    content: dict[str, Any] = {"torch": torch.__version__, "device": str(best_device())}
    with tempfile.TemporaryDirectory(prefix="bench-pack-") as name:
        above = None
        for line in measure(options.shapes, options.precisions, settings, Path(name), options.least, clock):
            found.append(line)
            if above != (line.shape, line.precision):
                above = (line.shape, line.precision)
                of = "not loaded" if line.parameters is None else f"{line.parameters / 1e6:.0f} M parameters"
                peak = "" if line.peak is None else f", peak {line.peak / 1e12:.2f} Top/s"
                print(f"\n{line.shape}, {line.precision}, {line.device}: {of}{peak}\n{HEADING}")
            print(line.text(), flush=True)
            write(options.out, content | {"lines": [each.figures() for each in found], "left_out": clock.left_out})
    if clock.left_out:
        print(f"\nleft out: {', '.join(clock.left_out)}")
    write(options.out, content | {"lines": [each.figures() for each in found], "left_out": clock.left_out})
    print(f"\nfigures: {options.out}")
    return int(any(line.broken for line in found))


def _host(options: argparse.Namespace) -> int:
    clock = Clock(options.minutes)
    settings = all_settings(options.slots, options.rows, options.tokens)
    content: dict[str, Any] = {"torch": torch.__version__, "host": []}
    failed = False
    for shape in options.shapes:
        print(f"\n{shape}, the host's milliseconds of a step\n{host_time.HEADING}")
        slowest = 0.0
        for setting in informative(settings) if clock.end is not None else settings:
            if not clock.allows(slowest, f"{shape} {_words(setting)}"):
                continue
            began = time.monotonic()
            try:
                line = host_time.measure(shape, setting, options.dropout)
                print(line.text(), flush=True)
                content["host"].append(line.figures())
            except Exception:
                failed = True
                print(f"{setting.slots:3} {setting.rows:4} {setting.tokens:6}  failed", flush=True)
                traceback.print_exc()
            slowest = max(slowest, time.monotonic() - began)
            write(options.out, content | {"left_out": clock.left_out})
    if clock.left_out:
        print(f"\nleft out: {', '.join(clock.left_out)}")
    print(f"\nfigures: {options.out}")
    return int(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--least", type=float, default=0.3, help="seconds that each figure is measured for")
    parser.add_argument(
        "--minutes", type=float, help="stop then, the most informative settings first; default: no limit"
    )
    parser.add_argument(
        "--host", action="store_true", help="the host's time of a step instead, on PyTorch's meta device"
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters, with --host")
    parser.add_argument("--threads", type=int, help="of a CPU; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-pack.json"), help="JSON file of all figures")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    return _host(options) if options.host else _against_alone(options)


if __name__ == "__main__":
    sys.exit(main())
