"""``lorasweep rank``: the leaderboard of a sweep."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser("rank", "Print the leaderboard of a sweep, running or finished, and write leaderboard.csv again.")
    parser.add_argument("run", metavar="RUN", help="sweep folder, such as runs/quickstart")
    parser.add_argument("--by", metavar="METRIC[,METRIC]", help="sort by these instead of the objective")
    parser.add_argument("--json", action="store_true", help="print JSON for other programs")
    options = parser.read(arguments)
    from analysis import leaderboard
    from analysis.folder import SweepFolder
    from sweeps.show import show_leaderboard

    folder, by = SweepFolder.open(options.run), options.by.split(",") if options.by else []
    rows = leaderboard.build(folder, by)
    if options.json:
        print(leaderboard.to_json(rows))
        return 0
    show_leaderboard(folder, rows, by)
    if not by:
        leaderboard.write(folder, rows)
    return 0
