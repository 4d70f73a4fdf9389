"""Rows of a leaderboard, read from a sweep folder that may be half written.

A trial's files are written one after the other by processes that can die: whatever is missing or torn becomes a
sentence in that row's ``reason``, and never an error that hides the other rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from analysis.errors import FolderError
from analysis.folder import MetricsRow, State, SweepFolder, TrialFolder

UNKNOWN = "unknown"  # the status of a row whose status file cannot be read
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times as fast; not every build has it


@dataclass(frozen=True)
class Row:
    """One trial or baseline.

    Attributes:
        kind: ``trial`` or ``baseline``.
        trial_id: or the baseline's name.
        status: a ``State``, or ``unknown``.
        step: of the checkpoint that was scored; the last one reached where nothing was.
        n_items: validation items that the metrics are from.
        final: whether those are all validation items rather than the rung subset.
        config: dotted path → value of every key that is searched; None where it is not known.
        metrics: name → value, NaN where it could not be computed; empty where nothing was scored.
        objective: higher is better; NaN where it cannot be computed.
        broken: a sentence for each constraint that it does not keep; a trial without any is feasible.
        reason: why it ended so, and what its files lack.
        rank: its place, from 1.
        tokens: training tokens until it was scored, padding not counted.
        seconds: wall time until then, since it was admitted.
        front: its Pareto front, 1 for what no other trial beats; 0 where the objective has one term, or it is in none.
        low, high: 95 % interval of what ranks it; NaN where there is none.
        tied: cannot be told from the best trial (analysis/comparison.py).
        p: of the test against the best trial, corrected for their number; NaN where there is none.
    """

    kind: str
    trial_id: str
    status: str
    step: int
    n_items: int = 0
    final: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    objective: float = math.nan
    broken: tuple[str, ...] = ()
    reason: str = ""
    rank: int = 0
    tokens: int = 0
    seconds: float = math.nan
    front: int = 0
    low: float = math.nan
    high: float = math.nan
    tied: bool = False
    p: float = math.nan


@dataclass(frozen=True)
class Sweep:
    """What ranking needs of ``sweep.yaml``: the objective's config, the paths that are searched, the task's labels."""

    objective: Mapping[str, Any]
    searched: tuple[str, ...]
    labels: tuple[str, ...] = ()


def read_sweep(folder: SweepFolder) -> Sweep:
    """Raises FolderError where ``sweep.yaml`` does not tell how to rank."""
    try:
        content = _yaml(folder.sweep_file.read_bytes())
        objective, space = content["config"]["objective"], content.get("space") or {}
        if not isinstance(objective, Mapping) or not isinstance(space, Mapping):
            raise TypeError("'config.objective' or 'space' is not a mapping")
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(
            f"{folder.sweep_file}: cannot be read as a sweep's record ({_line(error)}). Restore it from a copy."
        ) from None
    data = content.get("data")
    labels = data.get("labels") if isinstance(data, Mapping) else None
    return Sweep(objective, tuple(map(str, space)), tuple(map(str, labels)) if isinstance(labels, list) else ())


def read_rows(folder: SweepFolder, searched: Sequence[str]) -> list[Row]:
    """Every baseline and trial of the folder, not ranked yet."""
    baselines = [_read("baseline", files, searched) for files in folder.baselines()]
    return baselines + [_read("trial", files, searched) for files in folder.trials()]


def adapter_parameters(files: TrialFolder) -> float:
    """Numbers in the adapter's weights, from the head of its file; NaN where there is none."""
    try:
        with (files.adapter_dir / "adapter_model.safetensors").open("rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return float(sum(math.prod(entry["shape"]) for name, entry in head.items() if name != "__metadata__"))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return math.nan


def _read(kind: str, files: TrialFolder, searched: Sequence[str]) -> Row:
    notes: list[str] = []
    status, reached = UNKNOWN, 0
    try:
        told = files.read_status()
        status, reached = str(told.state), told.step
        notes += [str(told.reason)] if told.reason else []
    except (FolderError, OSError) as error:
        notes.append(_line(error))
    config: dict[str, Any] = dict.fromkeys(searched)
    if kind == "trial" and status != State.PENDING:
        config |= _config(files, searched, notes)
    elif kind == "baseline" and "precision" in searched:
        config |= _config(files, ["precision"], [])  # all of a trial's values that it has
    shown = _metrics(files, status, notes)
    if shown is None:
        return Row(kind, files.trial_id, status, reached, config=config, reason="; ".join(notes))
    return Row(
        kind,
        files.trial_id,
        status,
        shown.step,
        shown.n_items,
        shown.final,
        config,
        {str(name): _value(value) for name, value in shown.metrics.items()},
        reason="; ".join(notes),
        tokens=shown.tokens if isinstance(shown.tokens, int) else 0,
        seconds=_value(shown.seconds),
    )


def _metrics(files: TrialFolder, status: str, notes: list[str]) -> MetricsRow | None:
    """The row that stands for a trial: its final scoring, else its last rung."""
    try:
        rows = [row for row in files.read_metrics() if _whole(row)]
    except OSError as error:
        notes.append(f"metrics.jsonl cannot be read ({_line(error)})")
        return None
    finals = [row for row in rows if row.final]
    if finals:
        return finals[-1]
    last = max(reversed(rows), key=lambda row: row.step, default=None)  # of two at a step, the later written
    if status == State.COMPLETED:
        instead = f"shown is the rung at step {last.step}" if last else "nor is a rung's"
        notes.append(f"its final scoring is not in metrics.jsonl, {instead}")
    return last


def _config(files: TrialFolder, searched: Sequence[str], notes: list[str]) -> dict[str, Any]:
    """Values of the searched paths that ``config.yaml`` has."""
    if not searched:
        return {}
    try:
        content = _yaml(files.config_file.read_bytes())
    except FileNotFoundError:
        notes.append("config.yaml is missing")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read ({_line(error)})")
        return {}
    found: dict[str, Any] = {}
    for path in searched:
        at: Any = content
        for part in path.split("."):
            at = at.get(part, _ABSENT) if isinstance(at, Mapping) else _ABSENT
        if at is not _ABSENT:
            found[path] = at
    missing = [path for path in searched if path not in found]
    if missing:
        notes.append(f"config.yaml lacks {', '.join(missing)}")
    return found


_ABSENT = object()


def _whole(row: MetricsRow) -> bool:
    """Whether a record has the types it should: JSON checks none of them."""
    numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in (row.step, row.n_items))
    return numbers and isinstance(row.final, bool) and isinstance(row.metrics, Mapping)


def _value(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _yaml(content: bytes) -> Any:
    return yaml.load(content, Loader=_LOADER)


def _line(error: BaseException) -> str:
    """An error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
