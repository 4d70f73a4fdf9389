"""The checks of ``lorasweep stop`` and ``lorasweep enqueue`` before they ask a sweep for something."""

from collections.abc import Sequence

from analysis.errors import ConfigError, FolderError, did_you_mean
from analysis.folder import ENDED, SweepFolder, read_lines
from analysis.leaderboard.ranking import ordered
from sweeps.compose import conf_tree
from sweeps.compose.compose import Composed
from sweeps.compose.overrides import read_overrides
from sweeps.process.installation import program, shell_path
from sweeps.space.dimensions import validate_point
from sweeps.store.control import ENQUEUE, ask_to_stop, ask_to_try, driver, requests
from sweeps.store.manifest import read_manifest


def stop(folder: SweepFolder, trial_id: str = "") -> str:
    """Ask a running sweep to stop, or to end one trial.

    Args:
        folder: of the sweep.
        trial_id: the trial; empty for the whole sweep. Of a configuration of several seeds whose first has ended, the
            others are meant.

    Returns:
        What to tell the user.

    Raises:
        FolderError: where nothing runs, or not this trial.
    """
    process = driver(folder)
    if not process.alive:
        raise FolderError(
            f"{folder.where}: no lorasweep runs this sweep now. See {program()} status {shell_path(folder.where)}"
        )
    if trial_id:
        there = [files.trial_id for files in folder.trials()]
        if trial_id not in there:
            raise FolderError(f"{folder.where}: no trial '{trial_id}' has started. {did_you_mean(trial_id, there)}")
        status = folder.trial(trial_id).read_status()
        rest = status.state in ENDED and _seeds_left(folder, trial_id)
        if status.state in ENDED and not rest:
            raise FolderError(f"{folder.where}: {trial_id} has ended already ({str(status.state).replace('_', ' ')}).")
        what = f"the other seeds of {trial_id} at their next rungs" if rest else f"{trial_id} at its next rung"
    ask_to_stop(folder, trial_id)
    by = f" (process {process.pid} on {process.host})" if process.pid else ""
    if trial_id:
        return f"Asked the sweep{by} to end {what}."
    return f"Asked the sweep{by} to stop. Go on with it: {program()} resume {shell_path(folder.where)}"


def _seeds_left(folder: SweepFolder, trial_id: str) -> bool:
    """Whether a configuration, named by its first seed, has seeds that have not ended."""
    row = next((row for row in ordered(folder).rows if row.kind == "trial" and row.trial_id == trial_id), None)
    return row is not None and row.status not in ENDED


def enqueue(folder: SweepFolder, values: Sequence[str]) -> str:
    """Ask a sweep, running or not, to try a point.

    Args:
        folder: of the sweep.
        values: as the user wrote them: ``KEY=VALUE``.

    Returns:
        What to tell the user.

    Raises:
        ConfigError: for a point that is not in the sweep's space.
    """
    # Nothing of it is run here, and nobody contacted.
    composed = Composed.from_stored(read_manifest(folder)["unresolved"], own_code=True, addresses=True)
    settings = read_overrides(values, conf_tree.groups()).settings
    if len(settings) < len(values) or any(setting.path.startswith("space.") for setting in settings):
        raise ConfigError(f"enqueue: {' '.join(values)}: expected values of the search space, such as lora.rank=16.")
    point = validate_point(composed.space, {setting.path: setting.value for setting in settings}, "enqueue")
    composed.trial("enqueued", point)
    ask_to_try(folder, point)
    total = composed.config.search.trials
    handed_out = len({line["number"] for line in read_lines(folder.asks_file) if line.get("event") == "ask"})
    waiting = sum(request.kind == ENQUEUE for request in requests(folder))
    if handed_out + waiting > total:
        return (
            f"Enqueued, but all {total} trials of the sweep are taken. It is tried after"
            f" {program()} resume {shell_path(folder.where)} search.trials={handed_out + waiting}"
        )
    when = "next" if driver(folder).alive else f"when the sweep goes on: {program()} resume {shell_path(folder.where)}"
    return f"Enqueued as one of the {total - handed_out} trials to come. It is tried {when}."
