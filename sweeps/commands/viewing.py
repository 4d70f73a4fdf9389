"""The options of commands that run a sweep: what to show meanwhile."""

import argparse

from analysis.errors import ConfigError
from sweeps.commands.parser import Parser

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
