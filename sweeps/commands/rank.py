"""``lorasweep rank``: the leaderboard of a sweep, or of several as one."""

import argparse
import sys

from sweeps.commands.parser import Parser
from sweeps.process import gc_pause


def main(arguments: list[str]) -> int:
    parser = Parser(
        "rank",
        "Print the leaderboard of a sweep, running or finished, and write leaderboard.csv again. With several sweeps,"
        " rank the trials of all.",
        "examples:\n  lorasweep rank runs/quickstart\n  lorasweep rank runs/quickstart --by f1,bias.crows_pairs\n"
        "  lorasweep rank runs/first runs/second --csv\n",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="sweep folder, such as runs/quickstart")
    parser.add_argument("--by", metavar="METRIC[,METRIC]", help="sort by these (f1, bias.crows_pairs, …)")
    parser.add_json()
    parser.add_argument("--csv", action="store_true", help="print CSV")
    options = parser.read(arguments)
    with gc_pause.paused():
        return _rank(options)


def _rank(options: argparse.Namespace) -> int:
    from analysis.errors import ConfigError
    from analysis.folder import SweepFolder, disk_fault
    from analysis.leaderboard import leaderboard
    from sweeps.display.summary import show_leaderboard

    if options.json and options.csv:
        raise ConfigError("--json and --csv: give one of them.")
    folders = [SweepFolder.open(run) for run in options.runs]
    by = options.by.split(",") if options.by else []
    folder = folders[0]
    if len(folders) == 1:
        ranking = leaderboard.ranked(folder, by)
    else:
        from analysis.leaderboard.compare_sweeps import rank_together

        together = rank_together(folders, by)
        folder, ranking = together.folders, together.ranking
    for note in ranking.notes:
        print(f"{note}\n", file=sys.stderr)
    if options.json:
        print(leaderboard.to_json(ranking.rows))
    elif options.csv:
        print(leaderboard.to_csv(ranking.rows), end="")
    else:
        show_leaderboard(folder, ranking.rows, ranking.by, ranking.judgement)
        finals = [] if len(folders) > 1 else folder.finals()
        if finals:
            from analysis.finals import read_finals, report

            print("\nFinal scores (lorasweep finalize):\n\n" + report(read_finals(folder)))
        if not by and len(folders) == 1:
            try:
                leaderboard.write(folder, ranking.rows)
            except OSError as error:
                if not disk_fault(error):
                    raise
                print(f"\n{folder.leaderboard_file}: not written ({error.strerror}).", file=sys.stderr)
    nothing = leaderboard.nothing_scored(ranking.rows, ranking.by)
    if nothing:
        print(f"\n{nothing}", file=sys.stderr)
    return 1 if nothing else 0
