"""Parts 2 and 4: packed against alone on the card, each line beside its goal."""

from typing import Any

from tests.benchmarks import pack
from tests.benchmarks.gpu_day import goals
from tests.benchmarks.gpu_day.record import Record, markdown, number

_SPARE = 20.0  # seconds before the part's end
_LEAST = 0.3  # seconds of each figure


def small_models(record: Record) -> None:
    """Part 2: SmolLM2-135M and Llama-1B in bf16."""
    if record.dry:
        _lines(record, ["dry"], ["bf16"], pack.all_settings([2], [1], [16]))
    else:
        _lines(record, ["llama-1b", "smollm2"], ["bf16"], pack.all_settings([8, 32], [1, 8], [64, 256]))


def large_model(record: Record) -> None:
    """Part 4: Llama-8B in bf16 and nf4."""
    precisions = ["bf16", "nf4"]
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        record.leave_out("nf4", f"bitsandbytes: {error}")
        precisions = ["bf16"]
    if record.dry:
        _lines(record, ["dry"], precisions, pack.all_settings([2], [1], [16]))
    else:
        _lines(record, ["llama-8b"], precisions, pack.all_settings([4, 8], [1], [256]))


def _lines(record: Record, shapes: list[str], precisions: list[str], settings: list[pack.Setting]) -> None:
    clock = pack.Clock(max(1.0, record.seconds_left - _SPARE) / 60)
    found: list[dict[str, Any]] = []
    for line in pack.measure(shapes, precisions, settings, record.models, 0.02 if record.dry else _LEAST, clock):
        print(f"{line.shape} {line.precision} {line.text()}", flush=True)
        for stage, why in line.failed.items():
            if why != pack.OUT_OF_MEMORY:
                record.fail(f"{line.shape} {line.precision} {line.setting}: {stage}", why)
        goal = goals.of_line(line)
        found.append(line.figures() | {"goal": str(goal), "verdict": goal.verdict(line.by_packing, line.device)})
        record.add("lines", found)
    for what in clock.left_out:
        record.leave_out(what, "no time left")
    record.add("full", full(found))


def full(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each shape and precision the most that was used of the card, and whether that is the goal's share."""
    pairs = dict.fromkeys((line["shape"], line["precision"]) for line in lines)
    found = []
    for shape, precision in pairs:
        used = [
            line["used"]
            for line in lines
            if (line["shape"], line["precision"]) == (shape, precision) and line["used"] is not None
        ]
        most = max(used, default=None)
        verdict = goals.FULL.verdict(most, lines[0]["device"])
        found.append(
            {"shape": shape, "precision": precision, "used": most, "goal": str(goals.FULL), "verdict": verdict}
        )
    return found


def tables(figures: dict[str, Any]) -> list[str]:
    rows = []
    for line in figures.get("lines", []):
        setting, packed = line["setting"], line["packed"]
        failed = "; ".join(f"{stage}: {why}" for stage, why in line["failed"].items())
        rows.append(
            [
                *(line["shape"], line["precision"], setting["slots"], f"{setting['rows']} × {setting['tokens']}"),
                *(number(line[name], ",.0f") for name in ("tokens_per_second", "peft_tokens_per_second")),
                number(line["peft_loss_positions_tokens_per_second"], ",.0f"),
                *(number(line["over_peft"], ".2f"), number(line["by_packing"], ".2f"), line["goal"], line["verdict"]),
                number(line["used"], ".0%"),
                number(None if packed["peak"] is None else packed["peak"] / 2**30, ".1f", " GiB"),
                failed,
            ]
        )
    headings = ["shape", "precision", "K", "rows × tokens", "tokens/s", "PEFT", "PEFT, logits at the loss only"]
    headings += ["over PEFT", "by packing", "goal", "", "used", "peak", "failed"]
    lines = [*markdown(headings, rows), ""]
    best = [
        [of["shape"], of["precision"], number(of["used"], ".0%"), of["goal"], of["verdict"]]
        for of in figures.get("full", [])
    ]
    return [*lines, *markdown(["shape", "precision", "most used of the card", "goal", ""], best), ""]
