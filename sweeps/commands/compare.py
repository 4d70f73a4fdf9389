"""``lorasweep compare``: sweeps side by side."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "compare",
        "Print sweeps side by side: their best trials, whether these can be told apart, and what their configs differ"
        " in.",
        "example:\n  lorasweep compare runs/first runs/second\n",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="sweep folders, at least two")
    options = parser.read(arguments)
    from analysis.errors import ConfigError
    from analysis.folder import SweepFolder
    from analysis.leaderboard.compare_sweeps import compare
    from sweeps.display.summary import show_comparison

    if len(options.runs) < 2:
        raise ConfigError("compare: give two sweep folders or more. `lorasweep rank RUN` shows one.")
    show_comparison(compare([SweepFolder.open(run) for run in options.runs]))
    return 0
