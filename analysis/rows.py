"""Rows of a leaderboard, read from a sweep folder that may be half written.

A trial's files are written one after the other by processes that can die: whatever is missing or torn becomes a
sentence in that row's ``reason``, and never an error that hides the other rows.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from analysis import fast_yaml
from analysis.errors import FolderError, parsed_json
from analysis.folder import (
    FORMAT_VERSION,
    MetricsRow,
    State,
    SweepFolder,
    TrialFolder,
    atomic_write,
    fetch_missing,
    read_lines,
)
from analysis.metrics import METRICS, own_metrics
from analysis.searched_values import ConfigReader

UNKNOWN = "unknown"  # the status of a row whose status file cannot be read


@dataclass(frozen=True)
class Row:
    """One trial or baseline.

    Attributes:
        kind: ``trial`` or ``baseline``; ``seed`` where a table lists the seeds below their configuration.
        trial_id: the trial's, or the baseline's name.
        status: a ``State``, or ``unknown``; a configuration runs until all its seeds have ended.
        step: of the checkpoint that was scored; the last one reached where nothing was.
        n_items: validation items that the metrics are from.
        final: whether those are all validation items rather than the rung subset.
        config: dotted path → value of every key that is searched; None where it is not known.
        metrics: name → value, NaN where it could not be computed; empty where nothing was scored.
        objective: higher is better; NaN where it cannot be computed.
        broken: a sentence for each constraint that it does not keep; a trial without any is feasible.
        reason: why it ended so, and what its files lack.
        rank: from 1.
        tokens: training tokens until it was scored, padding not counted.
        seconds: wall time until then, since it was admitted.
        front: number of its Pareto front, 1 for rows that none beats; 0 with one term, or where it is on no front.
        low, high: 95 % interval of what ranks it; NaN where there is none.
        tied: cannot be told from the best trial (analysis/statistics/comparison.py).
        p: of the test against the best trial, corrected for their number; NaN where there is none.
        seeds: of a configuration that was trained with several seeds: a row for each that completed, the first seed
            first. Its own metrics, objective, tokens and seconds are then their means, and its id, step and files are
            the first seed's (analysis/leaderboard/seeds.py).
        uncounted: its other seeds: those that failed, diverged or have not ended.
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
    seeds: tuple["Row", ...] = ()
    uncounted: tuple["Row", ...] = ()


def row_files(folder: SweepFolder, row: Row) -> TrialFolder:
    """The files that a row was read from.

    Args:
        folder: of the sweep.
        row: of a trial or baseline.
    """
    return folder.baseline(row.trial_id) if row.kind == "baseline" else folder.trial(row.trial_id)


def configuration_id(trial_id: str) -> str:
    """The id of a trial's configuration, which is its first seed's: of ``t0003.1`` it is ``t0003``."""
    sweep, slash, own = trial_id.rpartition("/")
    return sweep + slash + own.partition(".")[0]


def best_trial(rows: Iterable[Row], by: Sequence[str] = ()) -> Row | None:
    """The best trial of a ranking: whatever names one asks here. None where no completed trial has a finite number.

    Args:
        rows: ranked (``analysis/leaderboard/ranking.py``).
        by: metrics that they are ranked by instead of the objective.
    """
    return next((row for row in rows if row.kind == "trial" and rankable(row, by)), None)


def leading_trial(rows: Iterable[Row], by: Sequence[str] = ()) -> Row | None:
    """While no trial has completed: the first that has a number at its last rung. Arguments as of ``best_trial``."""
    scored = (row for row in rows if row.kind == "trial" and row.status in (State.RUNNING, State.STOPPED_EARLY))
    return next((row for row in scored if math.isfinite(_number(row, by))), None)


def rankable(row: Row, by: Sequence[str] = ()) -> bool:
    """Whether a row was scored on all validation items, and has what ranks. Arguments as of ``best_trial``."""
    return row.status == State.COMPLETED and row.final and math.isfinite(_number(row, by))


def _number(row: Row, by: Sequence[str]) -> float:
    return row.metrics.get(by[0], math.nan) if by else row.objective


@dataclass(frozen=True)
class Sweep:
    """What ranking needs of ``sweep.yaml``.

    Attributes:
        objective: its config.
        searched: dotted paths that are searched.
        labels: of the task; empty without labels.
        repeats: seeds of each configuration.
        note: says that another version wrote the folder, whose files may hold what this version does not know.
    """

    objective: Mapping[str, Any]
    searched: tuple[str, ...]
    labels: tuple[str, ...] = ()
    repeats: int = 1
    note: str = ""


def sweep_yaml(folder: SweepFolder) -> dict[str, Any]:
    """The content of ``sweep.yaml``; empty where it is no mapping. Raises FolderError where it cannot be read."""
    try:
        content = fast_yaml.load(folder.sweep_file.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FolderError(f"{folder.sweep_file}: cannot be read ({_line(error)}).") from None
    _declare(content)
    return content if isinstance(content, dict) else {}


def _declare(content: Any) -> None:
    """Make a stored sweep's own metrics known: which way they are better, and their ranges."""
    try:
        METRICS.declare(own_metrics(content["config"]["eval"]["metrics"]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return  # an older version's, or edited by hand


def read_sweep(folder: SweepFolder) -> Sweep:
    """Raises FolderError where ``sweep.yaml`` does not tell how to rank."""
    try:
        content = fast_yaml.load(folder.sweep_file.read_bytes())
        objective, space = content["config"]["objective"], content.get("space") or {}
        if not isinstance(objective, Mapping) or not isinstance(space, Mapping):
            raise TypeError("'config.objective' or 'space' is not a mapping")
        _declare(content)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(
            f"{folder.sweep_file}: cannot be read as a sweep's record ({_line(error)}). Restore it from a copy."
        ) from None
    data = content.get("data")
    labels = data.get("labels") if isinstance(data, Mapping) else None
    version = content.get("format_version", FORMAT_VERSION)
    note = ""
    if version != FORMAT_VERSION:
        note = (
            f"{folder.name} has format {version}, and this lorasweep reads {FORMAT_VERSION}: it is ranked by what of it"
            " is understood. The version under 'versions' in its sweep.yaml reads all."
        )
    named = tuple(map(str, labels)) if isinstance(labels, list) else ()
    return Sweep(objective, tuple(map(str, space)), named, _repeats(content["config"]), note)


def _repeats(config: Mapping[str, Any]) -> int:
    search = config.get("search")
    repeats = search.get("repeats") if isinstance(search, Mapping) else None
    return repeats if isinstance(repeats, int) and repeats > 1 else 1


def read_rows(folder: SweepFolder, searched: Sequence[str]) -> list[Row]:
    """Every baseline and trial of the folder, not ranked yet.

    Args:
        folder: may be half written.
        searched: dotted paths whose values each row gets.
    """
    reader = ConfigReader(searched)
    baselines = [_read("baseline", files, reader) for files in folder.baselines()]
    trials = [_read("trial", files, reader) for files in folder.trials()]
    return [*baselines, *trials, *_missing(folder, {row.trial_id for row in trials}, searched)]


def _missing(folder: SweepFolder, with_folder: Collection[str], searched: Sequence[str]) -> list[Row]:
    """Trials that ended, as the search wrote down, and whose folders are not there."""
    rows = []
    for record in read_lines(folder.asks_file, having=b'"tell"'):
        name, values = record.get("trial_id"), record.get("values")
        if record.get("event") == "tell" and isinstance(name, str) and name not in with_folder:
            config = {path: values.get(path) if isinstance(values, Mapping) else None for path in searched}
            reason = f"its folder is missing (it ended as {record.get('state')}): restore trials/{name} from a copy"
            rows.append(Row("trial", name, UNKNOWN, 0, config=config, reason=reason))
    return rows


def adapter_parameters(files: TrialFolder) -> float:
    """Numbers in the adapter's weights, from the head of its file or as ``keep_size`` kept it; NaN without either."""
    try:
        return float(parsed_json(files.adapter_size_file.read_text())["parameters"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        pass  # the adapter is there
    weights = files.adapter_dir / "adapter_model.safetensors"
    fetch_missing([weights])
    try:
        with weights.open("rb") as file:
            head = parsed_json(file.read(int.from_bytes(file.read(8), "little")))
        return float(sum(math.prod(entry["shape"]) for name, entry in head.items() if name != "__metadata__"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        return math.nan


def keep_size(files: TrialFolder) -> None:
    """Write down how large an adapter is before it is removed: ``objective.ties=cost`` ranks by it."""
    size = adapter_parameters(files)
    if math.isfinite(size):
        atomic_write(files.adapter_size_file, json.dumps({"parameters": size}))


def _read(kind: str, files: TrialFolder, reader: ConfigReader) -> Row:
    notes: list[str] = []
    status, reached = UNKNOWN, 0
    try:
        last = files.read_status()
        status, reached = str(last.state), last.step
        notes += [str(last.reason)] if last.reason else []
    except (FolderError, OSError) as error:
        notes.append(_line(error))
    config: dict[str, Any] = dict.fromkeys(reader.searched)
    if kind == "trial" and status != State.PENDING:
        config |= _config(files, reader, notes)
    elif kind == "baseline" and "precision" in reader.searched:
        config |= _config(files, ConfigReader(["precision"]), [])  # a baseline has no other searched value
    shown = _metrics(files, status, notes)
    if shown is None:
        return Row(kind, files.trial_id, status, reached, config=config, reason="; ".join(notes))
    missing = shown.missing if isinstance(shown.missing, Mapping) else {}
    if status != State.FAILED:  # whose reason says it
        notes += [f"{name} is missing: {why}" for name, why in missing.items()]
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
        tokens=shown.tokens if isinstance(shown.tokens, int) and abs(shown.tokens) < 2**63 else 0,
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


def _config(files: TrialFolder, reader: ConfigReader, notes: list[str]) -> dict[str, Any]:
    """Values of the searched paths that ``config.yaml`` has."""
    if not reader.searched:
        return {}
    try:
        values = reader.read(files.config_file.read_bytes())
    except FileNotFoundError:
        notes.append("config.yaml is missing")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read ({_line(error)})")
        return {}
    missing = [path for path in reader.searched if path not in values]
    if missing:
        notes.append(f"config.yaml lacks {', '.join(missing)}")
    return values


def _whole(row: MetricsRow) -> bool:
    """Whether a record has the types it should: JSON checks none of them."""
    numbers = all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        for value in (row.step, row.n_items)
    )
    return numbers and isinstance(row.final, bool) and isinstance(row.metrics, Mapping)


def _value(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _line(error: BaseException) -> str:
    """An error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
