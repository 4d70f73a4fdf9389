"""``lorasweep run``: composes the config of a sweep, and hands it to ``sweeps/run.py``."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from analysis.errors import ConfigError
from sweeps.commands.composing import composed, composing_parser
from sweeps.commands.viewing import add_detach, add_view_options, detached, view_of, wait_for
from sweeps.process import gc_pause
from sweeps.process.detached import detach

if TYPE_CHECKING:
    from sweeps.compose.compose import Composed
    from sweeps.config import SweepConfig
    from sweeps.process.fork_server import ForkServer


def main(arguments: list[str]) -> int:
    description = "Run a sweep. Ctrl-C stops it cleanly, as a closed terminal does; `lorasweep resume` goes on with it."
    parser = composing_parser("run", description, arguments)
    add_view_options(parser)
    add_detach(parser)
    options = parser.read(arguments)
    if options.cfg and options.detach:
        raise ConfigError("--cfg prints the config and runs nothing: there is nothing to --detach. Give one of them.")
    view = view_of(options)
    if detached(options) and (started := detach()) is not None:
        return wait_for(started)
    from sweeps.driver.worker_forks import forked_ahead

    with forked_ahead() if not options.cfg else contextlib.nullcontext() as forks:
        sweep = composed(options)
        return _run(sweep, view, forks) if sweep is not None and forks is not None else 0


def _run(sweep: "Composed", view: str, forks: "Callable[[SweepConfig], ForkServer | None]") -> int:
    """Raises ConfigError for a config that is no sweep's."""
    if not sweep.space:
        raise ConfigError(
            "Nothing is searched: the space is empty. Use `lorasweep trial` for one configuration,"
            " or search something, such as 'optim.lr=tag(log,interval(1e-4,1e-2))'."
        )
    server = forks(sweep.config)
    with gc_pause.paused():
        from sweeps.run import run_sweep

    return run_sweep(sweep, view=view, forks=server)
