"""A command that names a sweep that is there already: the same one, which goes on, or another, which is refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.errors import FolderError
from analysis.folder import ENDED, SweepFolder, read_lines
from analysis.leaderboard.seeds import all_ended
from analysis.rows import configuration_id
from analysis.searched_values import leaves
from sweeps.compose.compose import RESUMABLE, Composed
from sweeps.config import SearchConfig
from sweeps.driver.baseline_runner import missing, planned, settings_of
from sweeps.driver.stop_budget import StopBudget
from sweeps.process.installation import program, shell_path
from sweeps.store.control import ENQUEUE, requests, spent
from sweeps.tracking.from_folder import Due, PastRuns
from trainer.config import Baseline

# fitted to the machine and the data
_FITTED = {"search": ("start_from", "trials", "time"), "ray": ("max_concurrent_trials",)}
_SHOWN = 12  # differences in a message


def same_sweep(folder: SweepFolder, manifest: Mapping[str, Any], composed: Composed) -> Composed:
    """What to go on with where ``composed`` asks for the sweep that the folder holds.

    The stored config, with those parts of the given one that a resume may change.

    Raises:
        FolderError: with the differences, where it is another sweep.
    """
    as_given = manifest.get("asked", manifest["unresolved"])  # as composed, before it was fitted to the machine
    different = list(differences(as_given, composed.unresolved()))
    if not manifest["space"]:
        different = ["it holds a single trial, of `lorasweep trial`"]
    if different:
        more = f"\n  and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        listed = "".join(f"\n  {line}" for line in different[:_SHOWN]) + more
        raise FolderError(
            f"{folder.where} already holds a sweep, and not this one:{listed}\n"
            f"Go on with that one: {program()} resume {shell_path(folder.where)}"
            f" — or give this one another name: sweep.name={folder.name}-2"
        )
    stored = dict(manifest["unresolved"])
    before = {part: stored.get(part, {}) for part in _FITTED}
    stored |= {part: composed.raw[part] for part in RESUMABLE if part in composed.raw}
    for part, names in _FITTED.items():  # unless the command asks for others now
        given, asked, fitted = stored.get(part, {}), as_given.get(part, {}), before[part]
        kept = {name: fitted[name] for name in names if name in fitted and given.get(name) == asked.get(name)}
        stored[part] = {**given, **kept}
    again = Composed.from_stored(stored)
    return replace(again, notes=[*again.notes, f"{shell_path(folder.where)} holds this sweep: going on with it."])


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Lines ``key: there … , here …`` for what differs between two nested configs and no resume may change."""
    before, after = dict(leaves(stored)), dict(leaves(given))
    for path in sorted(before.keys() | after.keys()):
        top = path.split(".", 1)[0]
        if top in RESUMABLE or path in ("sweep.dir", "sweep.name"):
            continue
        if before.get(path, _ABSENT) != after.get(path, _ABSENT):
            yield f"{path}: there {_shown(before, path)}, here {_shown(after, path)}"


def nothing_left(folder: SweepFolder, search: SearchConfig, baselines: Sequence[Baseline]) -> str:
    """Why a sweep that was asked to go on has nothing to do, in a sentence; empty where it has.

    Args:
        folder: of the sweep.
        search: how much it may do.
        baselines: all that it has.
    """
    records = list(read_lines(folder.asks_file))
    runs = {str(record.get("trial_id")) for record in records if record.get("event") == "ask"}
    told = {str(record.get("trial_id")) for record in records if all_ended(record)}
    suggested, answered = set(map(configuration_id, runs)), set(map(configuration_id, told))
    open_trials = any(folder.trial(name).read_status().state not in ENDED for name in runs)
    if missing(folder, baselines):
        return ""
    waiting = any(request.kind == ENQUEUE for request in requests(folder))
    everything_ended = suggested and not open_trials and suggested == answered
    if everything_ended and len(suggested) >= search.trials:
        further = len(suggested) + max(1, len(suggested) // 2)
        more = f"{program()} resume {shell_path(folder.where)} search.trials={further}"
        of_seeds = f"{len(suggested)} configurations ({len(runs)} runs)"
        what = f"{len(suggested)} trials" if len(runs) == len(suggested) else of_seeds
        return f"All {what} have ended{', and more are enqueued' if waiting else ''}. For more: {more}"
    so_far = spent(folder)
    watch = StopBudget(search.budget, so_far, time=search.time)
    watch.replay(folder, records)
    used = watch.used_up()
    if everything_ended and so_far.closed and so_far.closed == search.time:
        used = f"search.time={search.time} has no room for another trial"
    return (
        f"{used}. With a larger one it goes on: {program()} resume {shell_path(folder.where)} {used.split('=')[0]}=…"
        if used
        else ""
    )


def past_runs(folder: SweepFolder, composed: Composed) -> list[Due]:
    """The trials that have ended and the baselines that were scored, as each tracker should have them."""
    baselines = planned(composed.template, composed.precisions)
    configs = {baseline.name: settings_of(baseline) for baseline in baselines}
    return list(PastRuns(folder, configs, composed.config.search.repeats).due())


def tracked_config(composed: Composed) -> dict[str, Any]:
    """What trackers show as the sweep's config; ``lorasweep wandb pull`` reads it."""
    return composed.resolved() | {"searched": list(composed.space)}


_ABSENT = object()


def _shown(values: Mapping[str, Any], path: str) -> str:
    return repr(values[path]) if path in values else "nothing"
