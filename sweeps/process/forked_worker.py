"""Run by Ray in the place of its own ``setup_worker.py``: has the fork server start a worker, and ends.

A script: Ray starts it for each worker, so it imports no library. Where no fork server
answers, or the worker is to run in a way that a fork cannot, Ray's own script starts it.
"""

import array
import json
import os
import socket
import sys
from typing import Any

VARIABLE = "LORASWEEP_FORK_SERVER"  # path of the socket


def main(arguments: list[str]) -> None:
    """``arguments``: those that Ray gives its own script: the worker's command among two options of the script's."""
    options = ("--language=", "--serialized-runtime-env-context=")
    command = [it for it in arguments if not it.startswith(options)]
    told = dict(it.split("=", 1) for it in arguments if it.startswith(options))
    if not forked(command, json.loads(told.get(options[1][:-1], "{}"))):
        script = os.path.join(os.path.dirname(command[0]), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, script, *arguments])


def forked(command: list[str], context: dict[str, Any]) -> bool:
    """Whether the fork server started this worker.

    Args:
        command: script and arguments of the worker.
        context: Ray's ``RuntimeEnvContext``: environment variables, and other ways to start a worker.
    """
    if context.get("command_prefix") or context.get("override_worker_entrypoint"):
        return False
    if context.get("py_executable") not in (None, sys.executable):
        return False
    with open("/proc/self/oom_score_adj") as file:
        oom_score = file.read().strip()
    request = {
        "command": command,
        "environment": dict(os.environ),
        "more": context.get("env_vars") or {},
        "folder": os.getcwd(),
        "oom_score": oom_score,
    }
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(os.environ[VARIABLE])
            server.sendmsg([b"w"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
            server.sendall(json.dumps(request).encode())
            server.shutdown(socket.SHUT_WR)
            return server.recv(1) == b"f"  # of the worker itself, which goes on when this socket is closed
    except (OSError, KeyError):
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
