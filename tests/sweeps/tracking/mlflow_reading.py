"""What MLflow holds, read back with its own client, and a real server of it on the loopback address."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# For the tests' own process, before anything imports mlflow.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@dataclass(frozen=True)
class MlflowRun:
    """One run: ``history`` is metric → (step, value) in the order of logging."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    history: dict[str, list[tuple[int, float]]]
    artifacts: dict[str, bytes]

    def last(self, metric: str) -> float:
        return self.history[metric][-1][1]


def mlflow_runs(uri: str, experiment: str, files: Path, only: list[str] | None = None) -> dict[str, MlflowRun]:
    """The runs of an experiment by name; fails where two have one name.

    Args:
        files: artifacts are downloaded to it.
        only: these metrics; None: all.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None, [one.name for one in client.search_experiments()]
    runs: dict[str, MlflowRun] = {}
    for run in client.search_runs([found.experiment_id]):
        run_id, name = run.info.run_id, run.info.run_name
        assert name not in runs
        history = {
            key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
            for key in (run.data.metrics if only is None else only)
        }
        artifacts = {path: _content(client, run_id, path, files) for path in _paths(client, run_id, None)}
        runs[name] = MlflowRun(run_id, run.info.status, run.data.tags, run.data.params, history, artifacts)
    return runs


def _paths(client: Any, run_id: str, below: str | None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, below):
        if entry.is_dir:
            yield from _paths(client, run_id, entry.path)
        else:
            yield entry.path


def _content(client: Any, run_id: str, path: str, files: Path) -> bytes:
    target = files / run_id
    target.mkdir(parents=True, exist_ok=True)
    return Path(client.download_artifacts(run_id, path, str(target))).read_bytes()


class MlflowServer:
    """``mlflow server`` as a process of its own, with all its children."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "MlflowServer":
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment |= {"MLFLOW_CONFIGURE_LOGGING": "true", "OMP_NUM_THREADS": "1"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=1):
                return self
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # a session of its own: its children only
            self.process.wait()
            self.process = None
