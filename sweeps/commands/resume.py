"""``lorasweep resume``: go on with a sweep that was stopped, or extend it."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "resume",
        "Go on with a sweep that was stopped, or extend it. Finished trials are kept.",
        "examples:\n  lorasweep resume runs/quickstart\n  lorasweep resume runs/quickstart search.trials=16\n",
    )
    parser.add_argument("run", metavar="RUN", help="sweep folder, such as runs/quickstart")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of search.*, tracking.*, ray.*, resources.*")
    parser.add_argument("--quiet", action="store_true", help="print only the leaderboard and errors")
    options = parser.read(arguments)
    from sweeps.place import package_root
    from sweeps.run import resume_sweep

    package_root()
    return resume_sweep(options.run, options.overrides, quiet=options.quiet)
