"""From a W&B project to a sweep folder, so that sweeps run elsewhere can be ranked, compared and reported on here."""

import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis import fast_yaml
from analysis.errors import ConfigError, FetchError, FolderError, did_you_mean, first_line
from analysis.folder import (
    FORMAT_VERSION,
    MetricsRow,
    State,
    Status,
    SweepFolder,
    TrialFolder,
    append_line,
    atomic_write,
)
from analysis.metrics import METRICS, ranking_metrics
from sweeps.tracking.base import SWEEP_RUN

# W&B's state → ours, where the run's summary does not say.
_STATES = {"finished": State.COMPLETED, "running": State.RUNNING}
_PREFIX = re.compile(r"^(?:eval|val|valid|validation|test)[/_.]")  # eval/accuracy, eval_accuracy → accuracy


@dataclass(frozen=True)
class PulledRun:
    """One run, as W&B's public API gives it.

    Attributes:
        state: W&B's.
        kind: its job type.
        summary, config: plain; ``history`` are the logged points in order.
    """

    run_id: str
    name: str
    state: str
    kind: str
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]


def fetch_runs(path: str, group: str | None) -> list[PulledRun]:
    """The runs of ``ENTITY/PROJECT``, those of a group where one is given, oldest first.

    Raises:
        FetchError: where W&B cannot be asked: no login, no network, no such project.
    """
    import wandb

    try:
        runs = wandb.Api().runs(path, filters={"group": group} if group else None, order="+created_at", lazy=False)
        return [_pulled(run) for run in runs]
    except Exception as error:  # its API raises requests', its own and ValueErrors alike
        line = first_line(error)[:200]
        raise FetchError(
            f"W&B: {path} cannot be read ({line}). Log in (`wandb login`), and give the project as ENTITY/PROJECT."
        ) from None


def _pulled(run: Any) -> PulledRun:
    history = run.history(samples=1000, pandas=False)
    summary = dict(getattr(run.summary, "_json_dict", run.summary))
    return PulledRun(
        run.id, run.name or run.id, run.state, run.job_type or "", dict(run.config), summary, list(history)
    )


def write_folder(
    runs: Sequence[PulledRun], to: Path, origin: str, renamed: Mapping[str, str], objective: str | None
) -> SweepFolder:
    """Write runs as a sweep folder that ``rank``, ``report`` and ``compare`` read.

    Args:
        runs: of one sweep. Runs of lorasweep bring their objective along; others are ranked by ``objective``.
        to: the folder; must not hold a sweep yet.
        origin: where they are from, for ``sweep.yaml``.
        renamed: a metric's name at W&B → its name here; ``eval/accuracy`` and the like need none.
        objective: metric to rank by; by default that of the sweep, else the first metric here that ranks.

    Raises:
        ConfigError: where no run has a metric that trials can be ranked by, or not the one that was asked for.
        FolderError: where a sweep is at ``to`` already.
    """
    folder = SweepFolder(to)
    folder.check_plain()
    if folder.sweep_file.exists():
        raise FolderError(f"{folder.where}: there is a sweep here. Give another folder: --to DIR")
    whole = next((run for run in runs if run.kind == "sweep" and run.name == SWEEP_RUN), None)
    trials = [run for run in runs if run is not whole]
    measured = [_metrics(run.summary, renamed) for run in trials]
    there = [name for name in ranking_metrics() if any(name in metrics for metrics in measured)]
    if not there:
        seen = sorted({name for run in trials for name, value in run.summary.items() if _is_number(value)})
        raise ConfigError(
            f"{origin}: none of {len(trials)} runs has a metric to rank by"
            f" ({', '.join(ranking_metrics()[:5])}, …). They have: {', '.join(seen[:15]) or 'none'}."
            " Name one: --metric accuracy=THEIR_NAME"
        )
    if objective is not None and objective not in there:
        raise ConfigError(f"--objective: no run has '{objective}'. {did_you_mean(objective, there)}")
    config = dict(whole.config) if whole else {}
    if objective is not None or "objective" not in config:
        config["objective"] = _single(objective or there[0], measured)
    searched = config.get("searched") or _varied([run.config for run in trials if run.kind != "baseline"])
    ids = _ids(trials)
    for run, metrics in zip(trials, measured, strict=True):
        name = ids[run.run_id]
        _write(folder.baseline(name) if run.kind == "baseline" else folder.trial(name), run, metrics, renamed)
    manifest = {
        "format_version": FORMAT_VERSION,
        "uid": uuid.uuid4().hex[:8],
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "origin": {"wandb": origin},
        "config": config,
        "space": {path: {} for path in searched},
    }
    atomic_write(folder.sweep_file, fast_yaml.dump(_plain(manifest)))
    return folder


def _write(files: TrialFolder, run: PulledRun, metrics: dict[str, float], renamed: Mapping[str, str]) -> None:
    summary = run.summary
    told = summary.get("state")
    state = State(told) if told in list(State) else _STATES.get(run.state, State.FAILED)
    reason = str(summary.get("reason") or ("" if told else f"W&B says {run.state}" if state is State.FAILED else ""))
    step = _count(summary.get("step", summary.get("_step")))
    atomic_write(files.config_file, fast_yaml.dump(_plain(run.config)))
    for row in _rungs(files.trial_id, run, renamed):
        append_line(files.metrics_file, row.__dict__)
    if state is State.COMPLETED and metrics:
        tokens, seconds = _count(summary.get("tokens")), float(summary.get("seconds") or summary.get("_runtime") or 0)
        n_items = _count(summary.get("n_items"))
        final = MetricsRow(files.trial_id, step, tokens, seconds, True, n_items, metrics)
        append_line(files.metrics_file, final.__dict__)
    files.write_status(Status(state, reason, step, f"W&B run {run.run_id}"))


def _rungs(trial_id: str, run: PulledRun, renamed: Mapping[str, str]) -> Iterator[MetricsRow]:
    for point in run.history:
        metrics = _metrics(point, renamed)
        if metrics:
            step = _count(point.get("step", point.get("_step")))
            seconds = float(point.get("seconds") or point.get("_runtime") or 0)
            tokens, n_items = _count(point.get("tokens")), _count(point.get("n_items"))
            yield MetricsRow(trial_id, step, tokens, seconds, False, n_items, metrics)


def _metrics(values: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, float]:
    """The metrics that are known here; a name that the user gave wins over one that only looks alike."""
    metrics: dict[str, float] = {}
    for name, value in values.items():
        short = _PREFIX.sub("", name)
        known = short if short in METRICS or short.startswith("bias.") else ""
        if known and _is_number(value) and (known not in metrics or name == known):
            metrics[known] = float(value)
    return metrics | {ours: float(values[theirs]) for theirs, ours in renamed.items() if _is_number(values.get(theirs))}


def _single(metric: str, measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """An objective of one metric. Its range only scales the score: with one term it does not change the order."""
    better = METRICS[metric].better
    finite = [m[metric] for m in measured if metric in m and math.isfinite(m[metric])]
    term: dict[str, Any] = {"metric": metric, "direction": {"high": "max", "low": "min"}.get(str(better), "target")}
    if isinstance(better, float):
        term["target"] = better
    low, high = min([0.0, *finite]), max([1.0, *finite])
    return {"name": "single", "rho": 0.0, "terms": {"quality": term | {"range": [low, high], "weight": 1.0}}}


def _varied(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted paths whose values differ between runs."""
    flat = [dict(_flat(config)) for config in configs]
    paths = dict.fromkeys(path for one in flat for path in one)
    return [path for path in paths if len({repr(one.get(path)) for one in flat}) > 1]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif not str(name).startswith("_"):
            yield f"{prefix}{name}", value


def _ids(runs: Sequence[PulledRun]) -> dict[str, str]:
    """W&B's run id → trial id: the run's name where it can be one and no other run has it."""
    names = [run.name for run in runs]
    usable = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
    return {
        run.run_id: run.name if usable.fullmatch(run.name) and names.count(run.name) == 1 else run.run_id
        for run in runs
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> int:
    return int(value) if _is_number(value) and math.isfinite(value) else 0


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
