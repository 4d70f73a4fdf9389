"""``lorasweep resume``: go on with a sweep that was stopped, or extend it."""

from sweeps.commands.parser import Parser
from sweeps.commands.viewing import add_view_options, view_of
from sweeps.process import gc_pause


def main(arguments: list[str]) -> int:
    parser = Parser(
        "resume",
        "Go on with a sweep that was stopped, or extend it. Finished trials are kept.",
        "examples:\n  lorasweep resume runs/quickstart\n  lorasweep resume runs/quickstart search.trials=16\n",
    )
    parser.add_sweep_folder()
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of search.*, tracking.*, ray.*, resources.*")
    parser.add_own_code()
    add_view_options(parser)
    options = parser.read(arguments)
    with gc_pause.paused():
        from sweeps.process.installation import package_root
        from sweeps.run import resume_sweep

    package_root()
    return resume_sweep(options.run, options.overrides, view=view_of(options), own_code=options.own_code)
