"""What is not taken from a stored config: ``sweep.yaml`` may be another person's than whoever runs a command on it.

- *Environment.* Variables are read once, where a sweep begins; what is stored holds their values. ``${oc.env:…}`` in a
  stored config would read the reader's, and is refused.
- *Addresses.* A cluster, a tracking server, a bucket of an earlier sweep, a judge and the variable with its key: a
  resume goes without those, says so, and takes them where they are given again. Without its judge a sweep cannot go on.
- *Code.* A metric, tracker, sampler or scheduler of somebody's own, and code that a model writes, is run where the
  command says that it is the user's (``--own-code``), or names it itself.

Files that the config names (data, model) are read: a sweep cannot go on without them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.buckets.bucket import is_uri
from analysis.errors import ConfigError, masked
from sweeps.compose.overrides import Overrides
from sweeps.compose.stored import current_target
from sweeps.compose.to_dataclass import get, put

JUDGE = ("eval.judge.server", "eval.judge.key_variable")  # what a judge is asked by: may be given again at any time
_DROPPED = ("ray.address", "tracking.uri")
_SWEEPS = ("search.warm_start", "search.transfer_from")
_MLFLOW = "sweeps.tracking.mlflow_tracker.MlflowTracker"
_OURS = {
    "sampler": ("optuna.samplers.", "sweeps.search."),
    "scheduler": ("ray.tune.schedulers.", "sweeps.search."),
    "tracking": ("sweeps.tracking.",),
}
OWN_CODE = "--own-code"


def refuse_environment(stored: Mapping[str, Any]) -> None:
    """Raises ConfigError where a stored config would read an environment variable."""
    for path, text in _texts(stored, ""):
        if "oc.env" in text:
            raise ConfigError(
                f"{path}={text!r} in the stored config would read this machine's environment. Variables are read where"
                " a sweep begins, and never from what is stored: write the value into sweep.yaml in its place."
            )


def take_addresses_out(raw: dict[str, Any]) -> dict[str, str]:
    """Remove what a stored config would have contacted, in place.

    Returns:
        Dotted path → what stood there.
    """
    removed = {}
    for path in (*_DROPPED, *JUDGE):
        if (value := get(raw, path)) is not None:
            removed[path] = str(value)
            put(raw, path, None)
    for path in _SWEEPS:
        given = get(raw, path)
        named = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if far := [str(it) for it in named if is_uri(it) or "${" in str(it)]:
            removed[path] = f"[{','.join(far)}]"
            put(raw, path, [it for it in named if str(it) not in far])
    for name, entry in _entries(raw, "tracking.trackers"):
        if isinstance(entry, dict) and current_target(entry.get("_target_")) == _MLFLOW:
            uri = entry.get("uri")
            if uri is not None and uri != "${tracking.uri}":
                removed[f"tracking.trackers.{name}.uri"] = str(uri)
            entry["uri"] = "${tracking.uri}"
    return removed


def not_given_again(removed: Mapping[str, str], read: Overrides) -> list[str]:
    """Sentences on the addresses that a resume goes without.

    Args:
        removed: of ``take_addresses_out``.
        read: the command's overrides.

    Raises:
        ConfigError: for those of a judge.
    """
    left = {path: value for path, value in removed.items() if not _is_given(path, read)}
    if asked := [f"{path}={masked(value)}" for path, value in left.items() if path in JUDGE]:
        raise ConfigError(
            f"The stored {' and '.join(asked)} is not used: it would be sent this sweep's answers. Give it again where"
            f" it is yours: {' '.join(asked)}"
        )
    return [
        f"The stored {path}={masked(value)} is not used: no address is taken from a sweep folder. Give it again to use"
        f" it: {path}={masked(value)}"
        for path, value in left.items()
    ]


def code_of(raw: Mapping[str, Any]) -> dict[str, str]:
    """What a config runs that does not come with lorasweep: dotted path → what it is.

    Args:
        raw: nested; a value with an interpolation counts as code, as it may become anything.
    """
    found = {}
    for name, entry in _entries(raw, "eval.metrics"):
        of = entry if isinstance(entry, Mapping) else {"function": entry}
        where = f" of {of['file']}" if of.get("file") else ""
        found[f"eval.metrics.{name}"] = f"`{of['command']}`" if of.get("command") else f"{of.get('function')}{where}"
    run_code = get(raw, "eval.run_code")
    if run_code not in (None, False):
        found["eval.run_code"] = f"{str(run_code).lower()}: what the model writes is run"
    named = {group: (group, get(raw, f"{group}._target_")) for group in ("sampler", "scheduler")}
    for name, entry in _entries(raw, "tracking.trackers"):
        named[f"tracking.trackers.{name}"] = (
            "tracking",
            entry.get("_target_") if isinstance(entry, Mapping) else entry,
        )
    for path, (group, target) in named.items():
        text = str(current_target(target))
        if target is not None and ("${" in text or not text.startswith(_OURS[group])):
            found[f"{path}._target_"] = text
    return found


def refuse_code(stored: Mapping[str, Any], read: Overrides) -> None:
    """Raises ConfigError for code in a stored config that the command does not name itself."""
    found = {path: what for path, what in code_of(stored).items() if not _is_given(path, read)}
    if found:
        listed = "".join(f"\n  {path}: {what}" for path, what in found.items())
        raise ConfigError(
            f"The stored config names code that does not come with lorasweep, and it would be run on this machine:"
            f"{listed}\nLook at it. Where it is yours, say so: {OWN_CODE}"
        )


def refuse_other_code(stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ConfigError for code in a stored config that a whole given config does not name as well."""
    known = code_of(given)
    for path, what in code_of(stored).items():
        if known.get(path) != what:
            raise ConfigError(
                f"{path} is {what} in the stored config, and not in what the command says: it is not run. Restore"
                " sweep.yaml, or start a new sweep."
            )


def _is_given(path: str, read: Overrides) -> bool:
    """Whether overrides say what stands at a path, itself or by its group."""
    named = [*read.choices, *(setting.path for setting in read.settings)]
    return any(path == it or path.startswith(f"{it}.") for it in named)


def _entries(raw: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    inner = get(raw, path)
    return [(str(name), entry) for name, entry in inner.items()] if isinstance(inner, Mapping) else []


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text in a nested value, keys of mappings too, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else str(key)
            yield below, str(key)
            yield from _texts(inner, below)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner, path)
