"""``lorasweep check``: what a sweep would do, without doing it."""

import json
import sys

from analysis.errors import DataError
from sweeps.commands.composing import composed, composing_parser


def main(arguments: list[str]) -> int:
    description = (
        "Say what a sweep would do: compose and check its config, look at the data, and estimate memory, time and cost"
        " from two probe steps. Nothing is trained and nothing is written.\n\n"
        "exit status: 0; 3 where the data have an error that `lorasweep run` would refuse."
    )
    parser = composing_parser("check", description, arguments)
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="print N sampled configurations in full")
    parser.add_argument("--no-probe", action="store_true", help="load no model: no estimates of memory, time and cost")
    parser.add_json()
    options = parser.read(arguments)
    sweep = composed(options)
    if sweep is None:
        return 0
    from sweeps.checks.show_check import run_check
    from sweeps.tracking.base import check_trackers

    check_trackers(sweep.config.tracking, sweep.raw["tracking"], sweep.explicit)
    check = run_check(sweep, options.samples, probe=not options.no_probe, quiet=options.json)
    if options.json:
        json.dump(check.as_dict(), sys.stdout, indent=1, default=str)
        print()
    return 0 if check.ok else DataError.exit_code
