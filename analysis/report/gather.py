"""Facts for the report: cost, data, run, bias by category, confusion matrices."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from analysis.bias_sets import HEADLINE
from analysis.errors import FolderError
from analysis.folder import MetricsRow, State, SweepFolder, read_lines
from analysis.leaderboard.seeds import runs
from analysis.metric_types import in_order
from analysis.rows import Row, row_files
from analysis.searched_values import at
from analysis.shares import share_error
from analysis.statistics.items import read_table

Facts = list[tuple[str, str]]


def evaluations(folder: SweepFolder, rows: Sequence[Row]) -> dict[str, list[MetricsRow]]:
    """Trial id → its evaluations. Trials whose files cannot be read are left out.

    Args:
        folder: of the sweep.
        rows: of trials and baselines; baselines are skipped. Each seed of a configuration has its own.
    """
    by_trial = {}
    for row in runs(rows):
        try:
            own = folder.trial(row.trial_id).read_metrics()
        except (OSError, FolderError):
            continue
        by_trial[row.trial_id] = [e for e in own if isinstance(e.step, int) and isinstance(e.final, bool)]
    return by_trial


def cost(
    folder: SweepFolder, manifest: Mapping[str, Any], rows: Sequence[Row], curves: Mapping[str, Sequence[MetricsRow]]
) -> Facts:
    """Time, device-hours, tokens and memory of the whole sweep, as (head, value).

    Args:
        folder: of the sweep.
        manifest: ``sweep.yaml``.
        rows: of the leaderboard.
        curves: from ``evaluations``.
    """
    devices = max(1, len(at(manifest, "hardware", "devices") or [None]))
    last = {name: own[-1] for name, own in curves.items() if own}
    in_slots = sum(e.seconds for e in last.values() if isinstance(e.seconds, int | float) and math.isfinite(e.seconds))
    facts: Facts = []
    times = [r["time"] for r in read_lines(folder.asks_file) if isinstance(r.get("time"), int | float)]
    if len(times) > 1:
        spent = _working_time(sorted(times))
        facts += [
            ("Searching and training", duration(spent)),
            ("Device-hours", f"{devices * spent / 3600:.2f} h on {devices} device{'s' * (devices > 1)}"),
        ]
    facts.append(("Trial-hours, summed over slots", f"{in_slots / 3600:.2f} h"))
    tokens = sum(e.tokens for e in last.values() if isinstance(e.tokens, int))
    facts.append(("Training tokens", f"{tokens:,}".replace(",", " ")))
    steps = sum(row.step for row in runs(rows))
    facts.append(("Optimiser steps", f"{steps:,}".replace(",", " ")))
    memory = max((e.memory for own in curves.values() for e in own if isinstance(e.memory, int)), default=0)
    facts.append(("Peak memory of a device worker", f"{memory / 1e9:.2f} GB" if memory else "not recorded"))
    stopped = [row for row in rows if row.status == State.STOPPED_EARLY]
    longest = max((row.step for row in rows if row.status == State.COMPLETED), default=0)
    if stopped and longest:
        saved = sum(max(longest - row.step, 0) for row in stopped)
        facts.append(("Steps that early stopping saved", f"{saved:,} of {saved + steps:,}".replace(",", " ")))
    return facts


def _working_time(times: Sequence[float]) -> float:
    """Seconds from the first to the last event, pauses of over an hour (until a resume) left out."""
    return sum(b - a for a, b in pairwise(times) if b - a < 3600)


def data_card(
    folder: SweepFolder, manifest: Mapping[str, Any], best: Row | None
) -> tuple[Facts, list[tuple[str, int]]]:
    """Facts about the data, and the number of validation items of each label.

    Args:
        folder: of the sweep.
        manifest: ``sweep.yaml``.
        best: a scored row, whose item table has the labels; None leaves them out.
    """
    data, config = manifest.get("data") or {}, at(manifest, "config", "data") or {}
    facts: Facts = []
    source = config.get("source")
    if source:
        facts.append(("Source", str(source)))
    for split in ("train", "validation", "test"):
        rows, path = at(data, "rows", split), config.get(split)
        if rows is not None or path:
            facts.append(
                (
                    split.capitalize(),
                    " · ".join([*([f"{rows} rows"] if rows is not None else []), *([str(path)] if path else [])]),
                )
            )
    for name in ("text", "label", "group", "max_length"):
        if config.get(name):
            facts.append((f"data.{name}", str(config[name])))
    if data.get("fingerprint"):
        facts.append(("Fingerprint (sha256)", str(data["fingerprint"])))
    counts: list[tuple[str, int]] = []
    if best is not None:
        try:
            table = read_table(row_files(folder, best), "task", best.step)
        except FolderError:
            return facts, counts
        labels = list(map(str, table["label"].to_pylist())) if "label" in table.column_names else []
        counts = [(label, labels.count(label)) for label in in_order(labels)]
        if "n_tokens" in table.column_names:
            lengths = sorted(table["n_tokens"].to_pylist())
            middle, high = lengths[len(lengths) // 2], lengths[int(0.95 * (len(lengths) - 1))]
            facts.append(("Tokens a validation item", f"median {middle}, 95 % below {high}"))
    return facts, counts


def run_facts(manifest: Mapping[str, Any]) -> Facts:
    """Model, engine, versions and machine, as (head, value)."""
    facts: Facts = []
    for head, path in (
        ("Task", ("config", "task", "name")),
        ("Engine", ("config", "engine", "name")),
        ("Seed", ("seed",)),
        ("Started", ("created",)),
        ("Commit", ("commit",)),
        ("Host", ("hardware", "host")),
    ):
        value = at(manifest, *path)
        if value is not None:
            facts.append((head, str(value)))
    model = at(manifest, "config", "model") or {}
    name = model.get("package") or model.get("path") or model.get("name")
    if name:
        facts.insert(0, ("Base model", " @ ".join(str(x) for x in (name, model.get("revision")) if x)))
    devices = at(manifest, "hardware", "devices")
    if isinstance(devices, list):
        facts.append(("Devices", "; ".join(str(d.get("device", "?")) for d in devices if isinstance(d, Mapping))))
    versions = manifest.get("versions")
    if isinstance(versions, Mapping):
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return facts


def confusion(folder: SweepFolder, row: Row, labels: Sequence[str]) -> tuple[list[list[int]], list[str]]:
    """How often each label was predicted for each label.

    Args:
        folder: of the sweep.
        row: of the leaderboard.
        labels: of the task; empty: those in the table.

    Returns:
        (labels, labels): items by label and prediction, and the labels.

    Raises:
        FolderError: where there is no item table, or the rows have no labels.
    """
    table = read_table(row_files(folder, row), "task", row.step)
    if "prediction" not in table.column_names:
        raise FolderError(f"{row.trial_id} was scored on rows without labels: there is nothing to confuse.")
    gold, predicted = ([str(x) for x in table[name].to_pylist()] for name in ("label", "prediction"))
    names = list(labels) or in_order([*gold, *predicted])
    place = {name: i for i, name in enumerate(names)}
    counts = [[0] * len(names) for _ in names]
    for a, b in zip(gold, predicted, strict=True):
        if a in place and b in place:
            counts[place[a]][place[b]] += 1
    return counts, names


def bias_shares(folder: SweepFolder, row: Row) -> dict[str, tuple[float, float, int]]:
    """The headline bias set by category.

    Args:
        folder: of the sweep.
        row: of the leaderboard.

    Returns:
        Category → (percent of pairs whose more stereotypical sentence is likelier, its standard error, pairs).

    Raises:
        FolderError: where there is no item table.
    """
    table = read_table(row_files(folder, row), HEADLINE.item_table, row.step)
    hits: dict[str, list[bool]] = {}
    for group, preferred in zip(table["group"].to_pylist(), table["prediction"].to_pylist(), strict=True):
        hits.setdefault(str(group), []).append(preferred == "more")
    shares = {}
    for group, own in hits.items():
        n, more = len(own), sum(own)
        shares[group] = (100 * more / n, 100 * share_error(more, n, ddof=0), n)
    return shares


def duration(seconds: float) -> str:
    """Such as ``2 h 5 min``, ``3 min 10 s`` or ``40 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
