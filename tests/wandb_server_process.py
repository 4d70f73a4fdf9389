"""A W&B server that is a process of its own, and has what it was told when it is started again after a death.

    python -m tests.wandb_server_process PORT FILE

It serves at the loopback address until it is killed. ``FILE`` holds its state, written before each answer is given.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.process.installation import package_root
from tests.wandb_server import ServedRun, WandbServer

_KEPT = ("runs", "artifacts", "views")


class KeptServer(WandbServer):
    """A server whose state is a file: what it has answered, it still knows after ``kill -9``."""

    def __init__(self, port: int, file: Path):
        super().__init__(port)
        self.file = file
        if file.exists():
            self.__dict__.update(pickle.loads(file.read_bytes()))  # our own

    def answer(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        answer = super().answer(operation, query, variables)
        if query.lstrip().startswith("mutation"):
            self._keep()
        return answer

    def stream(self, run_name: str, body: dict[str, Any]) -> None:
        super().stream(run_name, body)
        self._keep()

    def upload(self, kind: str, owner: str, name: str, content: bytes) -> None:
        super().upload(kind, owner, name, content)
        self._keep()

    def _keep(self) -> None:
        with self.lock:
            beside = self.file.with_suffix(".new")
            beside.write_bytes(pickle.dumps({name: getattr(self, name) for name in _KEPT}))
            os.replace(beside, self.file)


class ServerProcess:
    """The server's process as whoever starts, kills and stops it sees it.

    Args:
        port: to serve at, each time.
        file: its state.
    """

    def __init__(self, port: int, file: Path):
        self.port, self.file, self.url = port, file, f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [sys.executable, "-m", "tests.wandb_server_process", str(self.port), str(self.file)]
        environment = {**os.environ, "PYTHONPATH": package_root()}
        self.process = subprocess.Popen(arguments, cwd=package_root(), env=environment, start_new_session=True)

    def send(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def end(self) -> None:
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.process = None

    def kept(self) -> "Mapping[str, ServedRun]":
        """The runs that it has been told of, by W&B's id."""
        if not self.file.exists():
            return {}
        runs: dict[str, ServedRun] = pickle.loads(self.file.read_bytes())["runs"]
        return runs


def main(arguments: list[str]) -> None:
    with KeptServer(int(arguments[0]), Path(arguments[1])):
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
