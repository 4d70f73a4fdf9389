"""``lorasweep attach``: the live view of a sweep that runs elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from analysis.buckets.bucket import is_uri
from analysis.errors import INTERRUPTED, FolderError, masked
from sweeps.commands.parser import Parser
from sweeps.commands.viewing import add_view_options, view_of
from sweeps.process import signals
from sweeps.process.installation import program, shell_path

if TYPE_CHECKING:
    from analysis.folder import SweepFolder
    from sweeps.store.control import Driver

_EVERY = 1.0  # seconds between two looks at the folder


def main(arguments: list[str]) -> int:
    parser = Parser(
        "attach",
        "Show the live view of a sweep that runs detached, in another terminal, or on another machine that shares its"
        " folder, until it ends. Ctrl-C leaves the view, and the sweep goes on.",
        "examples:\n  lorasweep attach runs/quickstart\n  lorasweep attach runs/quickstart --view line\n\n"
        "exit status: that of the sweep; 130 where it was stopped, or the view was left.",
    )
    parser.add_sweep_folder()
    add_view_options(parser)
    options = parser.read(arguments)
    view = view_of(options)
    if is_uri(options.run):
        raise FolderError(
            f"{masked(options.run)}: a view is drawn from the files of a folder, and a bucket does not tell of them"
            f" in time. See {program()} status {shell_path(masked(options.run))}, or its output.log on the sweep's own"
            " machine."
        )
    folder = _opened(options.run)
    from sweeps.store.control import driver

    if not driver(folder).alive:
        return _how_it_stands(folder)
    try:
        process = driver(folder)
        while process.alive:
            process = _watch(folder, process, view)
    except KeyboardInterrupt:
        if signals.came() is None or signals.came() == signals.STOPPING[0]:
            print(f"\nThe sweep goes on. Stop it: {program()} stop {shell_path(folder.where)}", file=sys.stderr)
        return INTERRUPTED
    return _ended(folder)


def _opened(run: str) -> "SweepFolder":
    """The folder of a sweep; of one that is starting, once it has begun. Raises FolderError where there is none."""
    from analysis.folder import SweepFolder
    from sweeps.store.control import driver

    folder = SweepFolder(run)
    _wait_while(lambda: not folder.sweep_file.exists() and driver(folder).alive)
    return SweepFolder.open(run)


def _wait_while(starting: Callable[[], bool]) -> None:
    if starting():
        print("The sweep is starting.", flush=True)
    while starting():
        time.sleep(_EVERY)


def _watch(folder: "SweepFolder", process: "Driver", view: str) -> "Driver":
    """Show what a process does until it ends. Returns who runs the sweep then."""
    from sweeps.display.follower import Follower
    from sweeps.display.progress import Progress
    from sweeps.store.control import driver
    from sweeps.store.manifest import read_manifest

    _wait_while(lambda: driver(folder).alive and not driver(folder).started)
    process = driver(folder)
    if not process.alive:
        return process
    follower = Follower(folder, read_manifest(folder), process)
    with Progress(follower.state, sys.stdout, view) as progress:
        state = follower.state
        progress.event(f"{state.name}: {state.ended}/{state.total} done, {len(state.running)} running")
        while (now := driver(folder)).alive and now.started == process.started:
            follower.look(progress)
            time.sleep(_EVERY)
        follower.look(progress)
    return now


def _how_it_stands(folder: "SweepFolder") -> int:
    """Say how a sweep stands that nobody runs. Returns its exit status."""
    from sweeps.display.status import lines, overview

    facts = overview(folder)
    print("\n".join(lines(facts, folder)))
    if facts["state"] == "finished":
        print(f"ranked:  {program()} rank {shell_path(folder.where)}")
    return _status(folder, facts["state"])


def _ended(folder: "SweepFolder") -> int:
    """Print what the sweep's own process prints at its end. Returns its exit status."""
    from analysis.leaderboard import leaderboard
    from sweeps.display.status import FINISHED, lines, overview
    from sweeps.display.summary import exit_status, show_leaderboard, show_next

    ranking = leaderboard.ranked(folder)
    facts = overview(folder)
    show_leaderboard(folder, ranking.rows, judgement=ranking.judgement)
    if facts["state"] != FINISHED:
        print(f"\n{lines(facts, folder)[0]}")
    show_next(folder, ranking.rows, facts["state"] != FINISHED)
    status = _status(folder, facts["state"])
    return status or exit_status(ranking.rows)


def _status(folder: "SweepFolder", state: str) -> int:
    """The exit status of the process that ran a sweep last, as far as it is known."""
    from sweeps.display.status import FINISHED, STOPPED
    from sweeps.store.control import driver

    if (recorded := driver(folder).status) is not None:
        return recorded
    return {FINISHED: 0, STOPPED: INTERRUPTED}.get(state, 1)
