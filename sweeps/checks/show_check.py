"""``lorasweep check`` on a terminal: each part is printed as soon as it is known."""

import textwrap
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from analysis import fast_yaml
from sweeps.checks.estimate import Check, audited, drawn, estimate, plan
from sweeps.checks.length import shown_time
from sweeps.checks.preflight import check_rung, preflight_assets, try_metrics
from sweeps.compose.compose import Composed
from sweeps.process.console import SafeConsole
from trainer.config import PRECISIONS
from trainer.data.audit import Audit
from trainer.data.dataset import check_test, has_test, load_dataset, load_test
from trainer.evaluation.bias.items import load_bias
from trainer.evaluation.metric_names import task_kind

_NAME = 11  # columns
_MARKS = {"error": ("✗", "red"), "warning": ("!", "yellow")}


def run_check(composed: Composed, samples: int, probe: bool, quiet: bool) -> Check:
    """Find everything, and print it unless ``quiet``. Raises LorasweepError for what cannot be composed or read."""
    console = SafeConsole(quiet=quiet)
    check = Check(plan=plan(composed))
    _show_plan(console, check.plan)
    report = (lambda line: None) if quiet else print
    dataset = load_dataset(composed.config.data, report)
    check_rung(composed.config.eval.rung_items, dataset)
    try_metrics(composed.config.eval.metrics, dataset)
    config = composed.config
    bias = load_bias(config.bias, task_kind(config.task, dataset.schema), report)
    test = load_test(config.data, report) if has_test(config.data) else []
    check_test(test, dataset.labels)
    check.audit, problems = audited(dataset, config.data, bias, test)
    check.problems += problems
    if dataset.skipped:
        check.problems.append(
            ("warning", f"{len(dataset.skipped)} rows left out (data.on_error=skip), the first: {dataset.skipped[0]}")
        )
    _show_data(console, check.audit)
    preflight_assets(composed.config, composed.space, report)
    notes = composed.notes
    if probe:
        with console.status("probing: a base model at each precision, two steps, a scoring"):
            probed = estimate(composed, dataset)
        check.lengths, check.precisions, check.estimate = probed.lengths, probed.precisions, probed.figures
        check.problems += probed.problems
        composed = probed.composed
        check.plan = plan(composed)
        if probed.chosen:
            _line(console, "length", probed.chosen)
        cut = {split: found for split, found in check.lengths.items() if found["cut"] >= 0.05}
        for split, found in cut.items():
            check.problems.append(
                (
                    "warning",
                    f"{split}: {found['cut']:.0%} of the rows are longer than data.max_length="
                    f"{check.plan['max_length']} and are cut; 95 % have at most {found['p95']:,} tokens.",
                )
            )
        _show_estimate(console, check)
    elif samples:
        composed = composed.on_machine(PRECISIONS)
    check.problems.sort(key=lambda problem: problem[0] != "error")
    check.samples = [asdict(trial) for trial in drawn(composed, samples)] if samples else []
    for sample in check.samples:
        console.print(Text(f"\n# {sample['trial_id']}", "bold"))
        console.print(Text(fast_yaml.dump(sample).rstrip()), soft_wrap=True)
    _show_problems(console, [*[("warning", note) for note in notes], *check.problems])
    return check


def _line(console: Console, name: str, text: str) -> None:
    filled = textwrap.fill(
        f"{name:<{_NAME}}{text}",
        min(console.width, 120),
        subsequent_indent=" " * _NAME,
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(Text(filled[:_NAME], "bold") + Text(filled[_NAME:]), soft_wrap=True)


def _show_plan(console: Console, found: dict[str, Any]) -> None:
    given = f"{found['given']} known or given first, the others suggested by" if found["given"] else "suggested by"
    _line(console, "sweep", f"{found['name']}, in {found['folder']}")
    rungs = ", ".join(map(str, found["rungs"]))
    _line(console, "trials", f"{found['trials']} ({given} {found['sampler']}); {found['scheduler']}")
    if found["max_steps"]:
        _line(console, "steps", f"{found['max_steps']} of {found['batch_size']} rows; scored at {rungs}")
    for number, (path, dimension) in enumerate(found["space"].items()):
        _line(console, "" if number else "searched", f"{path}: {dimension}")
    if found["space"] and found["points"] is not None:
        _line(console, "", f"{found['points']:,} point{'s' if found['points'] != 1 else ''} in all")
    if not found["space"]:
        _line(console, "searched", "nothing: `lorasweep trial` runs one configuration")


def _show_data(console: Console, found: Audit) -> None:
    rows = f"{found.rows['train']:,} to train on, {found.rows['validation']:,} to rank by"
    rows += f", {found.rows['test']:,} kept for the final scores" if "test" in found.rows else ""
    labels = found.labels["train"]
    if labels:
        shown = ", ".join(f"{label} {n:,}" for label, n in list(labels.items())[:8])
        rows += f"; {len(labels)} labels: {shown}" + (", …" if len(labels) > 8 else "")
    _line(console, "rows", rows)


def _show_estimate(console: Console, check: Check) -> None:
    for split, found in check.lengths.items():
        text = f"median {found['median']:,}, 95 % at most {found['p95']:,}, longest {found['longest']:,}"
        more = f" (of {found['rows']:,} rows)" if check.audit and found["rows"] < check.audit.rows[split] else ""
        _line(console, "tokens" if split == "train" else "", f"{split}: {text}{more}")
    for number, (precision, found) in enumerate(check.precisions.items()):
        text = (
            f"{precision}: model {_bytes(found['base_bytes'])}, a trial {_bytes(found['trial_bytes'])},"
            f" {found['slots']:.0f} side by side; a step alone {shown_time(found['step_seconds'])}"
            f" ({found['tokens_per_second']:,.0f} tokens/s), a rung's scoring {shown_time(found['score_seconds'])}"
        )
        if found["answer_seconds"]:
            text += f", of which an answer takes {shown_time(found['answer_seconds'])} at most"
        _line(console, "" if number else "probed", text)
    estimate = check.estimate
    _line(
        console,
        "time",
        f"about {shown_time(estimate['seconds'])} ({shown_time(estimate['low'])} to {shown_time(estimate['high'])}) on"
        f" {estimate['devices']} × {estimate['device']}, {estimate['slots']} trials side by side; about"
        f" {estimate['completed']} of {estimate['trials']} reach their last step",
    )
    work = (
        f"{estimate['steps']:,} steps, {estimate['tokens']:,.0f} tokens trained on, {_flops(estimate['flops'])},"
        f" {estimate['device_hours']:.2g} device-hours"
    )
    _line(console, "work", work)
    if estimate["cost"] is not None:
        _line(console, "cost", f"about {estimate['cost']:.2f}, at resources.price_per_hour for each device")


def _show_problems(console: Console, problems: list[tuple[str, str]]) -> None:
    if not problems:
        console.print("\nNothing to complain of.")
        return
    console.print()
    for kind, text in problems:
        mark, colour = _MARKS[kind]
        filled = textwrap.fill(text, min(console.width, 120) - 2, subsequent_indent="  ", break_long_words=False)
        console.print(Text(f"{mark} ", colour) + Text(filled), soft_wrap=True)


def _bytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _flops(n: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if n >= size:
            return f"{n / size:.2g} {unit}"
    return f"{n / 1e9:.2g} GFLOP"
