"""``lorasweep run``: composes the config of a sweep, and hands it to ``sweeps/run.py``."""

from analysis.errors import ConfigError
from sweeps.commands.composing import composed, composing_parser
from sweeps.commands.viewing import add_view_options, view_of
from sweeps.process import gc_pause


def main(arguments: list[str]) -> int:
    description = "Run a sweep. Ctrl-C stops it cleanly; `lorasweep resume` goes on with it."
    parser = composing_parser("run", description, arguments)
    add_view_options(parser)
    options = parser.read(arguments)
    sweep = composed(options)
    if sweep is None:
        return 0
    if not sweep.space:
        raise ConfigError(
            "Nothing is searched: the space is empty. Use `lorasweep trial` for one configuration,"
            " or search something, such as 'optim.lr=tag(log,interval(1e-4,1e-2))'."
        )
    if sweep.config.eval.generate:
        raise ConfigError(
            "eval.generate=true: the trials of a sweep are ranked by likelihood. What the best of them write is for"
            " `lorasweep finalize RUN eval.generate=true`, or for `lorasweep trial`."
        )
    with gc_pause.paused():
        from sweeps.run import run_sweep

    return run_sweep(sweep, view=view_of(options))
