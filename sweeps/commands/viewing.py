"""The options of commands that run a sweep: what to show meanwhile, and where."""

import argparse

from analysis.errors import ConfigError
from sweeps.commands.parser import Parser
from sweeps.process.detached import Started
from sweeps.process.installation import program, shell_path

CHOICES = ("auto", "table", "line", "plain")


def add_view_options(parser: Parser) -> None:
    """Take ``--view``, ``--quiet`` and ``--verbose``."""
    parser.add_argument(
        "--view",
        choices=CHOICES,
        default="auto",
        help="table: redrawn in place; line: one line, redrawn; plain: a line for each event; auto: table on a"
        " terminal, plain elsewhere",
    )
    parser.add_argument("--quiet", action="store_true", help="print only the leaderboard and errors")
    parser.add_argument("--verbose", action="store_true", help="plain, with every metric and what the libraries log")


def view_of(options: argparse.Namespace) -> str:
    """One of ``sweeps.display.live_view.VIEWS``. Raises ConfigError for options that contradict each other."""
    named = [name for name in ("quiet", "verbose") if getattr(options, name)]
    named += [f"view {options.view}"] if options.view != "auto" else []
    if len(named) > 1:
        raise ConfigError(f"--{named[0]} and --{named[1]} contradict each other. Give one of them.")
    return named[0].removeprefix("view ") if named else "auto"


def add_detach(parser: Parser) -> None:
    """Take ``--detach``."""
    parser.add_argument(
        "--detach",
        action="store_true",
        help="go on without this terminal once the sweep has begun; `lorasweep attach` shows it again",
    )


def detached(options: argparse.Namespace) -> bool:
    """Whether the sweep is to go on without this terminal. Raises ConfigError for options that do not go with that."""
    if options.detach and options.view in ("table", "line"):
        raise ConfigError(
            f"--view {options.view} needs a terminal, and --detach leaves it: what the sweep prints goes into its"
            " output.log, in plain lines. Leave --view out, and watch it with `lorasweep attach`."
        )
    return bool(options.detach)


def wait_for(started: Started) -> int:
    """Wait until a detached sweep has begun, and say how to go on. Returns the exit status: its own where it failed.

    Args:
        started: its process.
    """
    where = started.wait()
    if isinstance(where, int):
        return where
    call, run = program(), shell_path(where)
    commands = {
        f"{call} attach {run}": "watch it; Ctrl-C leaves the view, and the sweep goes on",
        f"{call} status {run}": "how it stands",
        f"{call} stop {run}": "stop it, as Ctrl-C would",
    }
    widest = max(map(len, commands))
    print(f"\nThe sweep goes on without this terminal (process {started.pid}); it prints into its output.log.\n\nNext:")
    print(*(f"  {command:<{widest}}  # {what}" for command, what in commands.items()), sep="\n")
    return 0
