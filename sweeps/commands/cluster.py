"""``lorasweep cluster check``: whether the nodes of a running Ray cluster can run a sweep."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from analysis.errors import ConfigError, HardwareError
from sweeps.commands.composing import composed, composing_parser

if TYPE_CHECKING:
    from sweeps.compose.compose import Composed
    from sweeps.driver.cluster_check import CheckedNode

_COLOURS = {"ok": "green", "wrong": "red", "busy": "yellow", "unused": "dim"}


def main(arguments: list[str]) -> int:
    description = (
        "Check every node of a running Ray cluster as a sweep does when it starts: code and library versions, the"
        " device, the sweep folder (sweep.dir), the clock, and the files that overrides name (data.train, model.path,"
        " …). Starts one worker a node and ends it; nothing is trained, and nothing is left behind.\n\n"
        "usage: lorasweep cluster check [ADDRESS] [OVERRIDE …], ADDRESS being auto (default) or HOST:PORT\n\n"
        "exit status: 0 where every node that was checked is in order; 7 where one is not, or none could be checked."
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
        given = f"'cluster {words[0]}' is not a command" if words else "what about the cluster?"
        raise ConfigError(f"{given}. Use: lorasweep cluster check [ADDRESS] [OVERRIDES]")
    rest = words[1:]
    addressed = bool(rest) and "=" not in rest[0] and not rest[0].startswith("~")
    address, overrides = (rest[0], rest[1:]) if addressed else ("auto", rest)
    named = [word for word in overrides if word.startswith("ray.address=")]
    if named and addressed:
        raise ConfigError(f"{address} and {named[0]}: give one of them.")
    return overrides if named else [f"ray.address={address}", *overrides]


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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
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
