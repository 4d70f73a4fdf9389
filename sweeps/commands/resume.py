"""``lorasweep resume``: go on with a sweep that was stopped, or extend it."""

from sweeps.commands.parser import Parser
from sweeps.commands.viewing import add_detach, add_view_options, detached, view_of, wait_for
from sweeps.process import gc_pause
from sweeps.process.detached import detach


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
    add_detach(parser)
    options = parser.read(arguments)
    view = view_of(options)
    if detached(options) and (started := detach()) is not None:
        return wait_for(started)
    with gc_pause.paused():
        from sweeps.process.installation import package_root
        from sweeps.run import resume_sweep

    package_root()
    return resume_sweep(options.run, options.overrides, view=view, own_code=options.own_code)
