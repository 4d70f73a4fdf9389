"""``lorasweep stop``: stop a sweep that runs elsewhere, or one of its trials."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "stop",
        "Stop a running sweep as Ctrl-C does (`lorasweep resume` goes on with it), or end one of its trials.",
        "A trial ends at its next rung, as stopped early; the sweep goes on without it.\n\n"
        "examples:\n  lorasweep stop runs/quickstart\n  lorasweep stop runs/quickstart t0003\n",
    )
    parser.add_sweep_folder()
    parser.add_argument("trial", metavar="TRIAL", nargs="?", default="", help="such as t0003; none: the whole sweep")
    options = parser.read(arguments)
    from analysis.folder import SweepFolder
    from sweeps.commands.steering import stop

    print(stop(SweepFolder.open(options.run), options.trial))
    return 0
