"""``lorasweep rank``: the leaderboard of a sweep."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser("rank", "Print the leaderboard of a sweep, running or finished, and write leaderboard.csv again.")
    parser.add_argument("run", metavar="RUN", help="sweep folder, such as runs/quickstart")
    parser.add_argument("--by", metavar="METRIC[,METRIC]", help="sort by these (f1, bias.crows_pairs, …)")
    parser.add_argument("--json", action="store_true", help="print JSON for other programs")
    parser.add_argument("--csv", action="store_true", help="print CSV")
    options = parser.read(arguments)
    from analysis import leaderboard
    from analysis.folder import SweepFolder
    from sweeps.show import show_leaderboard

    folder = SweepFolder.open(options.run)
    ranking = leaderboard.ranked(folder, options.by.split(",") if options.by else [])
    if options.json:
        print(leaderboard.to_json(ranking.rows))
        return 0
    if options.csv:
        print(leaderboard.to_csv(ranking.rows), end="")
        return 0
    show_leaderboard(folder, ranking.rows, ranking.by, ranking.judgement)
    if not options.by:
        leaderboard.write(folder, ranking.rows)
    return 0
