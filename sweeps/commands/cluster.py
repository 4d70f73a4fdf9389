"""``lorasweep cluster``: check the nodes of a Ray cluster (``check``), or be one of a sweep (``join``).

``announce`` is for the scripts that start a head, such as ``cluster/slurm/head.sbatch``.
"""

import argparse
import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.buckets.bucket import is_uri
from analysis.errors import ConfigError, HardwareError, masked, refuse_uri
from analysis.folder import SweepFolder
from sweeps.commands.composing import composed, composing_parser
from sweeps.commands.parser import Parser
from sweeps.commands.viewing import add_detach, add_view_options

if TYPE_CHECKING:
    from sweeps.compose.compose import Composed
    from sweeps.driver.cluster_check import CheckedNode

_COLOURS = {"ok": "green", "wrong": "red", "busy": "yellow", "unused": "dim"}


_USAGE = "lorasweep cluster check [ADDRESS] [OVERRIDES], or lorasweep cluster join RUN [--wait 15m] [--cpus N]"
_JOIN_WAIT = "20s"


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["join"]:
        return _join(arguments[1:])
    if arguments[:1] == ["announce"]:
        return _announce(arguments[1:])
    description = (
        "Check every node of a running Ray cluster as a sweep does when it starts: code and library versions, the"
        " device, the sweep folder (sweep.dir), the clock, and the files that overrides name (data.train, model.path,"
        " …). Starts one worker a node and ends it; nothing is trained, and nothing is left behind.\n\n"
        "usage: lorasweep cluster check [ADDRESS] [OVERRIDE …], ADDRESS being auto (default) or HOST:PORT\n"
        "       lorasweep cluster join RUN [--wait 15m] [--cpus N]: be a node of a running sweep's own cluster (see"
        " lorasweep cluster join --help)\n\n"
        "exit status of check: 0 where every node that was checked is in order; 7 where one is not, or none could be"
        " checked."
    )
    parser = composing_parser("cluster", description, arguments)
    parser.add_json()
    options = parser.read(arguments)
    options.overrides = _with_address(options.overrides)
    sweep = composed(options)
    if sweep is None:
        return 0
    return _check(sweep, options)


def _with_address(words: list[str]) -> list[str]:
    """The overrides behind ``check [ADDRESS]``, the address being one of them. Raises ConfigError."""
    if words[:1] != ["check"]:
        given = f"'cluster {words[0]}' is not a command" if words else "what about the cluster"
        raise ConfigError(f"{given}. Use: {_USAGE}")
    rest = words[1:]
    addressed = bool(rest) and "=" not in rest[0] and not rest[0].startswith("~")
    address, overrides = (rest[0], rest[1:]) if addressed else ("auto", rest)
    named = [word for word in overrides if word.startswith("ray.address=")]
    if named and addressed:
        raise ConfigError(f"{address} and {named[0]}: give one of them.")
    return overrides if named else [f"ray.address={address}", *overrides]


def _join(arguments: list[str]) -> int:
    parser = Parser(
        "cluster join",
        "Be a node of the Ray cluster of a running sweep, whose head said in the sweep folder where it is"
        " (cluster/slurm/head.sbatch), until the sweep is over. On SIGTERM or SIGUSR1 the trials here are saved and go"
        " on elsewhere.\n\nexit status: 0 when the sweep is over, 130 after a signal.",
    )
    parser.add_sweep_folder()
    parser.add_argument(
        "--wait", default=_JOIN_WAIT, metavar="TIME", help=f"for a head, such as 90s or 15m (default: {_JOIN_WAIT})"
    )
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs to offer (default: those that it may use)")
    parser.add_argument("--name", metavar="NAME", help="of the node (default: the host's name and a number)")
    options = parser.read(arguments)
    _refuse_bucket(options.run)
    refuse_uri("", options.run)
    cpus = len(os.sched_getaffinity(0)) if options.cpus is None else options.cpus
    if cpus < 1:
        raise ConfigError(f"--cpus {cpus}: a node needs one at least.")
    from sweeps.config import seconds_of
    from sweeps.driver.joining_node import join_sweep

    name = options.name or f"{socket.gethostname()}-{os.getpid()}"
    wait = seconds_of(options.wait, "--wait")
    folder = SweepFolder(options.run)
    folder.check_plain()
    return join_sweep(folder, cpus, name, wait, lambda line: print(f"{name}: {line}", flush=True))


def _announce(arguments: list[str]) -> int:
    """``announce ADDRESS run OVERRIDES…`` (or ``resume RUN …``): write where workers find the head; print the file."""
    if len(arguments) < 2:
        raise ConfigError("Use: lorasweep cluster announce HOST:PORT run [OVERRIDES], or … resume RUN")
    from sweeps.store.cluster_file import ClusterHead, write_head

    address, command, *words = arguments
    folder = _folder_of(command, words)
    if folder is None:
        return 0
    write_head(folder, ClusterHead(address, _token()))
    print(folder.cluster_file)
    return 0


def _folder_of(command: str, words: list[str]) -> SweepFolder | None:
    """The sweep folder that a command works on; None where it only shows a config."""
    if command != "run":
        run = next((word for word in words if "=" not in word and not word.startswith("-")), "")
        if not run:
            raise ConfigError(f"{command}: which sweep? Give its folder.")
        _refuse_bucket(run)
        return SweepFolder.open(run)
    parser = composing_parser("run", "", words)
    add_view_options(parser)
    add_detach(parser)
    sweep = composed(parser.read(words))
    if sweep is None:
        return None
    _refuse_bucket(sweep.config.sweep.dir, "sweep.dir=")
    folder = SweepFolder(Path(sweep.config.sweep.dir) / str(sweep.config.sweep.name))
    folder.check_plain()
    return folder


def _refuse_bucket(place: str, key: str = "") -> None:
    """Raises ConfigError for a bucket: who reads it would have the token of the sweep's Ray."""
    if is_uri(place):
        raise ConfigError(
            f"{key}{masked(place)}: workers find the head by a file in the sweep folder, which holds the token of its"
            f" Ray and goes into no bucket. Give a folder that all hosts share, such as {key}/shared/runs, or run the"
            " sweep in one job: cluster/slurm/lorasweep.sbatch"
        )


def _token() -> str:
    """The one that Ray's own processes here use. Raises ConfigError."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        token = os.environ.get("RAY_AUTH_TOKEN") or (Path(path).read_text().strip() if path else "")
    except OSError as error:
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH={path}: no token there ({error.strerror}).") from None
    if not token:
        raise ConfigError(
            "no token: workers join by the one of the head. Give its file in RAY_AUTH_TOKEN_PATH, as"
            " cluster/slurm/head.sbatch does."
        )
    return token


def _check(sweep: "Composed", options: argparse.Namespace) -> int:
    from sweeps.driver.cluster_check import check_cluster
    from trainer.models.model_files import check_folder

    if sweep.config.ray.address is None:
        raise ConfigError("ray.address=null: there is no cluster to check. Give auto or HOST:PORT.")
    if sweep.config.model.source == "local" and sweep.config.model.path:
        check_folder(sweep.config.model.path)
    nodes = check_cluster(sweep, lambda line: print(line, file=sys.stderr, flush=True))
    if options.json:
        print(json.dumps([asdict(node) for node in nodes], indent=1))
    else:
        _show(nodes)
    fine = all(node.state != "wrong" for node in nodes) and any(node.state == "ok" for node in nodes)
    return 0 if fine else HardwareError.exit_code


def _show(nodes: "list[CheckedNode]") -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from sweeps.process.console import SafeConsole

    console = SafeConsole(width=None if sys.stdout.isatty() else 160)
    files = list(dict.fromkeys(key for node in nodes for key in node.faults.files))
    heads = ["node", "address", "state", "CPUs", "GPUs", "device", "memory", "torch", "code", "folder", "clock", *files]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for node in nodes:
        facts, faults = node.facts, node.faults
        asked = node.clock is not None
        cells: list[str | Text] = [
            node.name,
            node.address,
            Text(node.state, _COLOURS[node.state]),
            f"{node.cpus:g}",
            f"{node.gpus:g}",
            facts.device if facts else "–",
            f"{facts.memory / 1e9:.1f} GB" if facts else "–",
            facts.torch if facts else "–",
            _cell(asked, faults.code),
            _cell(asked, faults.folder),
            "–" if node.clock is None else "ok" if abs(node.clock) < 1 else f"{node.clock:+.0f} s",
            *(_cell(asked, faults.files.get(key, "")) for key in files),
        ]
        table.add_row(*cells)
    console.print(table)
    for sentence in (sentence for node in nodes for sentence in node.said):
        console.print(f"\n{sentence}", soft_wrap=not sys.stdout.isatty())
    n_ok, n = sum(node.state == "ok" for node in nodes), len(nodes)
    console.print(f"\n{n_ok} of {n} node{'s' if n > 1 else ''} can run a sweep now.")


def _cell(asked: bool, fault: str) -> str:
    return "–" if not asked else "✗" if fault else "ok"
