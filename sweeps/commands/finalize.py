"""``lorasweep finalize``: the best trials of a sweep, trained with other seeds and scored on the test split."""

from sweeps.commands.parser import Parser
from sweeps.process import gc_pause


def main(arguments: list[str]) -> int:
    parser = Parser(
        "finalize",
        "Train the best trials of a sweep again with other seeds, and score them once on the test split, with the full"
        " bias sets. Run it again after an interruption: what is finished is kept.",
        "examples:\n  lorasweep finalize runs/tickets --top 3\n"
        "  lorasweep finalize runs/tickets --top 1 --seeds 5 data.test=test.csv\n",
    )
    parser.add_sweep_folder()
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="of data.test, bias, eval.*, ray.*, resources.*"
    )
    parser.add_argument("--top", type=int, default=3, metavar="N", help="trials, from the top of the leaderboard (3)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds for each of them (3)")
    parser.add_own_code()
    parser.add_argument("--quiet", action="store_true", help="print only the final scores and errors")
    options = parser.read(arguments)
    with gc_pause.paused():
        from sweeps.finalize import finalize
        from sweeps.process.installation import package_root

    package_root()
    return finalize(
        options.run, options.top, options.seeds, options.overrides, quiet=options.quiet, own_code=options.own_code
    )
