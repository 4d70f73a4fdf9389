"""MLflow: one run per trial in an experiment named like the sweep, in a local database or at a server.

Every call only changes what a run is to hold; then all that is not there yet is sent. So a server that is lost and
comes back misses nothing. While it is away, it is left in peace for ``PAUSE_SECONDS`` after each attempt.
"""

import csv
import importlib.util
import io
import logging
import math
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.errors import ConfigError
from analysis.folder import State
from sweeps.process.installation import program
from sweeps.tracking.base import Hint, Outcome, Run, Table, TrackedSweep, Tracker

log = logging.getLogger(__name__)

PAUSE_SECONDS = 30.0  # without an attempt after one that failed
HUNG_SECONDS = 5.0  # an attempt that took longer before it failed is not repeated when the sweep is over
# MLflow itself waits for up to two minutes, seven times. Read at each request; the user's own settings win.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # it would write to the terminal
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# MLflow's limits (mlflow/utils/validation.py). Databases of before 2.10 hold 500 characters of a parameter.
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 1000, 100, 500, 5000, 250

UID, NAME = "lorasweep.uid", "lorasweep.run"  # tags by which experiment and runs are found again

_SERVERS = ("http", "https", "databricks", "databricks-uc")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_STATUS = {State.COMPLETED: "FINISHED", State.STOPPED_EARLY: "FINISHED", State.RUNNING: "KILLED"}  # others: FAILED
_CAUSE = re.compile(r"(Connection refused|timed out|Name or service not known|No route to host|Connection reset)")
_REFUSED = re.compile(r"[^A-Za-z0-9_\-./ ]")  # in names of metrics, parameters and tags


@dataclass
class _TrackedRun:
    """What a run is to hold, less what MLflow has already.

    Attributes:
        run_id: MLflow's; None until it is created or found.
        metrics: name, value, milliseconds since 1970, step.
        steps: metric and step of every point so far: none is logged twice.
        files: an artifact's path → its content, or a folder.
        ended: MLflow's status once it is finished.
        refused: MLflow takes no more of it, such as after it was deleted there.
    """

    name: str
    kind: str
    params: dict[str, str]
    tags: dict[str, str]
    began: int
    run_id: str | None = None
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    steps: set[tuple[str, int]] = field(default_factory=set)
    files: dict[str, str | Path] = field(default_factory=dict)
    ended: str | None = None
    closed: bool = False
    refused: bool = False

    def add(self, key: str, value: float, step: int, again: bool = False) -> None:
        """A point of a curve, once; ``again``: even where there is one at that step."""
        key = _name(key)
        if again or (key, step) not in self.steps:
            self.steps.add((key, step))
            self.metrics.append((key, value, _now(), step))

    @property
    def complete(self) -> bool:
        """Whether there is nothing to send."""
        waiting = self.params or self.tags or self.metrics or self.files or (self.ended and not self.closed)
        return self.refused or not (waiting or self.run_id is None)


class MlflowTracker(Tracker):
    """Runs in MLflow, found again by tags: a sweep that is run again goes on in the same runs.

    Args:
        sweep: without a ``uri``, database and artifacts are in ``mlflow/`` of its folder.
        uri: a server (http://host:5000), a folder (it gets ``mlflow.db`` and ``artifacts/``), or a database as
            SQLAlchemy writes it. None: ``MLFLOW_TRACKING_URI`` in the environment, else the sweep's folder.
        tags: of every run, in its tag ``tags``.
        predictions: rows of each completed trial's ``predictions.csv``; 0: no file.
        answers: rows of ``answers.csv`` of each completed trial and baseline, which holds texts; 0: no file.
        adapter_mb: a completed trial's adapter is an artifact where its files are not larger, in MB; 0: never.
    """

    title = "MLflow"
    writes_earlier = True

    def __init__(
        self,
        sweep: TrackedSweep,
        uri: str | None = None,
        tags: Sequence[str] = (),
        predictions: int = 0,
        answers: int = 0,
        adapter_mb: float = 200,
    ) -> None:
        super().__init__(sweep)
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self._uri, self._artifacts = _store(uri, sweep.folder.root / "mlflow")
        self._tags, self._adapter_mb = tags, adapter_mb
        self._most = {"predictions": predictions, "answers": answers}
        self._client: Any = None
        self._experiment: str | None = None  # its id
        self._runs: dict[str, _TrackedRun] = {}
        self._lost_at = -math.inf  # of time.monotonic(): the last attempt that failed
        self._hung = False  # it took long to fail
        self._noted = False

    @classmethod
    def check(cls, **keywords: Any) -> None:
        uri, _ = _store(keywords.get("uri"), Path("mlflow"))
        if "://" in uri and urlsplit(uri).password:
            raise ConfigError(
                "tracking.uri holds a password, which would be stored in sweep.yaml. Put it into the environment:"
                " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or for a database MLFLOW_TRACKING_URI."
            )
        size = keywords.get("adapter_mb", 0)
        if isinstance(size, bool) or not isinstance(size, int | float) or size < 0:
            raise ConfigError(f"tracking.trackers.mlflow.adapter_mb={size!r}: expected megabytes, 0 or more.")
        needed = ["mlflow"] if _scheme(uri) in _SERVERS else ["mlflow", "sqlalchemy", "alembic"]
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            raise ConfigError(
                f"tracking=mlflow: {missing[0]} is not installed. pip install 'lorasweep[mlflow]', or choose another"
                " tracker, such as tracking=wandb_offline."
            )

    def connect(self) -> None:
        self._send()

    def start_run(self, run: Run) -> None:
        tracked = self._runs.get(run.name)
        if tracked is not None:  # it ended in this process, and goes on
            tracked.ended, tracked.closed = None, False
            return
        tags = {"mlflow.runName": run.name, NAME: run.name, UID: self.sweep.uid, "kind": run.kind}
        tags |= {"tags": ", ".join(self._tags)} if self._tags else {}
        tags |= {"searched": ", ".join(run.values)} if run.values else {}
        tracked = _TrackedRun(run.name, run.kind, dict(_params(run.config)), _cut(tags), _now())
        self._runs[run.name] = tracked
        for step, values in run.earlier:  # what an earlier process may not have sent
            self._add(tracked, step, values)
        self._send()

    def log_point(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        self._add(self._runs[name], step, values)
        self._send()

    @staticmethod
    def _add(run: _TrackedRun, step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float):
                run.add(key, float(value), step)
            else:
                run.tags |= _cut({f"{key}.at_step_{step}": value})

    def finish_run(self, name: str, outcome: Outcome) -> None:
        """Scores as ``final.<metric>``, the outcome as status and tags; tables, charts and the adapter as artifacts."""
        run = self._runs[name]
        step = int(outcome.facts.get("step", 0))
        run.tags |= _cut({key: value for key, value in outcome.facts.items() if isinstance(value, str)})
        if run.kind == "sweep":
            counts = {key: value for key, value in outcome.facts.items() if isinstance(value, int | float)}
            for key, value in (counts | dict(outcome.metrics)).items():
                run.add(key, float(value), step, again=True)  # of a sweep that goes on, they change
        elif outcome.state is not State.RUNNING:  # else these are not its last
            for key, value in outcome.metrics.items():
                run.add(f"final.{key}", float(value), step)
        run.ended = _STATUS.get(outcome.state, "FAILED")
        try:
            for key, table in outcome.tables.items():
                most = self._most.get(key)
                if most != 0 and (content := _csv(table(most))):
                    run.files[f"{key}.csv"] = content
            if outcome.charts:
                run.files["charts.html"] = _page(outcome.charts)
            if outcome.adapter is not None and outcome.adapter.folder.is_dir():
                run.tags |= _cut({"adapter": outcome.adapter.folder})
                if _megabytes(outcome.adapter.folder) <= self._adapter_mb:
                    run.files["adapter"] = outcome.adapter.folder
        finally:  # an artifact that cannot be made does not keep the run open
            self._send()

    def kept(self, name: str) -> str | None:
        return self._uri if self._runs[name].complete else None

    def holds(self, name: str, place: str) -> bool:
        return place == self._uri

    def close(self) -> None:
        if not self._hung:
            self._lost_at = -math.inf
            self._send()
        if lacking := [run.name for run in self._runs.values() if not run.complete]:
            log.warning("MLflow: not complete there: %s", ", ".join(lacking))

    def hint(self, cut_short: bool = False) -> Hint | None:
        file = _sqlite_file(self._uri)
        if file is None or not file.exists():
            return None
        uri = min(self._uri, f"sqlite:///{os.path.relpath(file)}", key=len)
        command = f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"
        return Hint(command, "look at the MLflow runs (where the whole of mlflow is installed)")

    # --- sending

    def _send(self) -> None:
        """Send everything that MLflow lacks, unless an attempt failed a moment ago."""
        if time.monotonic() - self._lost_at < PAUSE_SECONDS:
            return
        began = time.monotonic()
        try:
            if self._experiment is None:
                self._experiment = self._open_experiment()
            for run in self._runs.values():
                if not run.complete:
                    self._send_run(run)
        except Exception as error:
            self._lost_at = time.monotonic()
            self._hung = self._lost_at - began > HUNG_SECONDS
            self._trouble(f"{self._uri} cannot be used", error, "It is tried again now and then; results are")
        else:
            self._hung = False

    def _open_experiment(self) -> str:
        """The experiment's id. It is named like the sweep, and by its uid too where another sweep has that name."""
        from mlflow import MlflowClient

        if (file := _sqlite_file(self._uri)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(self._uri)
        name, uid = self.sweep.folder.name, self.sweep.uid
        for candidate in (name, f"{name}-{uid}"):
            known = self._client.get_experiment_by_name(candidate)
            if known is None:
                where = str(self._artifacts) if self._artifacts else None
                return str(self._client.create_experiment(candidate, artifact_location=where, tags={UID: uid}))
            if known.tags.get(UID) == uid:
                return str(known.experiment_id)
        raise RuntimeError(f"the experiments {name} and {name}-{uid} belong to other sweeps")

    def _send_run(self, run: _TrackedRun) -> None:
        """Send what a run lacks. Raises what MLflow raises, unless it refuses just this run."""
        try:
            if run.run_id is None:
                self._find_or_create(run)
            self._send_values(run)
            for path in list(run.files):
                self._send_file(run, path)
                del run.files[path]
            if run.ended is not None and not run.closed:
                self._client.set_terminated(run.run_id, run.ended)
                run.closed = True
        except Exception as error:
            if not _is_refusal(error):
                raise
            run.refused = True
            self._trouble(f"{run.name} is not tracked any further", error)

    def _find_or_create(self, run: _TrackedRun) -> None:
        """The run that an earlier process began, less what it holds; else a new one."""
        query = f"tags.`{NAME}` = '{run.name}' and tags.`{UID}` = '{self.sweep.uid}'"
        found = self._client.search_runs([self._experiment], filter_string=query, max_results=1)
        if not found:
            made = self._client.create_run(self._experiment, run.began, dict(run.tags), run.name)
            run.run_id = made.info.run_id
            return
        run_id, data = found[0].info.run_id, found[0].data
        there = {(key, point.step) for key in data.metrics for point in self._client.get_metric_history(run_id, key)}
        if run.kind != "sweep":
            run.metrics = [point for point in run.metrics if (point[0], point[3]) not in there]
        run.steps |= there
        run.params = {key: value for key, value in run.params.items() if key not in data.params}  # they cannot change
        self._client.update_run(run_id, status="RUNNING")
        run.run_id = run_id

    def _send_values(self, run: _TrackedRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        while run.params or run.tags:
            params, tags = list(run.params.items())[:MOST_PARAMS], list(run.tags.items())[:MOST_PARAMS]
            self._client.log_batch(
                run.run_id, params=[Param(*pair) for pair in params], tags=[RunTag(*pair) for pair in tags]
            )
            for key, _ in params:
                del run.params[key]
            for key, _ in tags:
                del run.tags[key]
        while run.metrics:
            batch = run.metrics[:MOST_METRICS]
            self._client.log_batch(run.run_id, metrics=[Metric(*point) for point in batch])
            del run.metrics[: len(batch)]

    def _send_file(self, run: _TrackedRun, path: str) -> None:
        content = run.files[path]
        if isinstance(content, Path):
            try:
                if content.is_dir():  # a better trial may have taken its place: search.keep_adapters
                    self._client.log_artifacts(run.run_id, str(content), path)
            except FileNotFoundError:
                log.warning("MLflow: %s was removed while it was read", content)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / path).write_text(content, encoding="utf-8")
            self._client.log_artifact(run.run_id, str(Path(folder) / path))

    def _trouble(self, what: str, error: Exception, then: str = "Results are") -> None:
        log.warning("MLflow: %s", what, exc_info=error)
        if not self._noted:
            self._noted = True
            self.sweep.note(f"MLflow: {what} ({_reason(error)}). {then} in the sweep folder all the same.")


def _store(uri: str | None, default: Path) -> tuple[str, Path | None]:
    """MLflow's tracking URI, and the folder for artifacts where MLflow has none of its own.

    Args:
        uri: as configured; None: as the environment says, else a database in ``default``.

    Raises:
        ConfigError: for what is no server, folder or database.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or str(default.absolute())
    scheme = _scheme(uri)
    if scheme in _SERVERS:
        return uri, None
    if scheme in _DATABASES:
        file = _sqlite_file(uri)
        return uri, (file.absolute().parent if file is not None else default.absolute()) / "artifacts"
    path = urlsplit(uri).path if scheme == "file" else uri
    if scheme not in ("", "file") or (not path.startswith(("/", ".", "~")) and "/" not in path):
        raise ConfigError(
            f"tracking.uri={uri}: expected a server (http://host:5000), a folder (./mlflow), or a database"
            " (sqlite:////path/mlflow.db, postgresql://…)."
        )
    folder = Path(path).expanduser().absolute()
    return f"sqlite:///{folder}/mlflow.db", folder / "artifacts"


def _scheme(uri: str) -> str:
    """Such as http, or postgresql for postgresql+psycopg2://…; '' for a path."""
    return uri if uri in _SERVERS else uri.partition("://")[0].partition("+")[0] if "://" in uri else ""


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow answered, and does not want this, rather than being away, busy, or closed to us as a whole."""
    response = getattr(error, "response", None)
    ask = getattr(error, "get_http_status_code", None)
    status = ask() if ask is not None else getattr(response, "status_code", 500)
    return 400 <= int(status) < 500 and status not in (401, 403, 408, 429)


def _reason(error: Exception) -> str:
    """The last cause of an error, in one short line: MLflow wraps that of a connection several times."""
    text = " ".join(str(error).split())
    cause = _CAUSE.search(text)
    return cause[1] if cause else text[:160] or type(error).__name__


def _params(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested config as MLflow's parameters: dotted path and text. Keys without a value are left out."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _params(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()):
            yield _name(f"{prefix}{name}"), str(value)[:LONGEST_PARAM]


def _cut(tags: Mapping[str, Any]) -> dict[str, str]:
    return {_name(key): str(value)[:LONGEST_TAG] for key, value in tags.items()}


def _name(name: str) -> str:
    """A name that MLflow takes for a metric, parameter or tag."""
    return _REFUSED.sub("_", name).strip("./ ")[:LONGEST_KEY]


def _csv(table: Table) -> str:
    columns, rows = table
    text = io.StringIO(newline="")
    if rows:
        csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def _page(charts: Mapping[str, Mapping[str, Any]]) -> str:
    """All charts in one HTML page that needs no network."""
    import plotly.graph_objects as go
    from plotly.io import to_html

    parts = [
        f"<h2>{name.removeprefix('chart/')}</h2>{to_html(go.Figure(figure), full_html=False, include_plotlyjs=i == 0)}"
        for i, (name, figure) in enumerate(charts.items())
    ]
    return f"<!doctype html><meta charset=utf-8>{''.join(parts)}"


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _now() -> int:
    return int(time.time() * 1000)
