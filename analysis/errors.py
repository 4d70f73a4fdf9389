"""Every error a user can meet: one hierarchy, one exit code each, picklable (Ray sends errors between processes).

A message says what was given, what was expected, and what to do. The command line prints it without a traceback;
``lorasweep --debug …`` adds the traceback.
"""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

INTERRUPTED = 130  # exit status after Ctrl-C, SIGTERM or SIGHUP, as shells have it for the first


class LorasweepError(Exception):
    """Base of all errors that are explained to the user. ``args[0]`` is the whole message."""

    exit_code = 1
    summary = "an error"  # a line for lists of exit codes


class ConfigError(LorasweepError):
    """A key, value, space or override that cannot be run."""

    exit_code = 2
    summary = "a key, value, space or command that cannot be run"


class DataError(LorasweepError):
    """A data file that is missing, unreadable, or does not hold what the task needs."""

    exit_code = 3
    summary = "a data file or row that cannot be used"


class ModelError(LorasweepError):
    """A model folder, weight file or module name that cannot be used."""

    exit_code = 4
    summary = "a model, weight file or module name that cannot be used"


class FolderError(LorasweepError):
    """A sweep folder that exists, is missing, or cannot be written or read."""

    exit_code = 5
    summary = "a sweep folder that is missing, in use or cannot be written"


class FetchError(LorasweepError):
    """A package that could not be downloaded, or whose checksum is wrong."""

    exit_code = 6
    summary = "a download that failed or has the wrong checksum"


class HardwareError(LorasweepError):
    """Something this machine cannot do, such as a precision."""

    exit_code = 7
    summary = "something that this machine cannot do or lacks"


class ClusterError(LorasweepError):
    """Ray itself died while a sweep ran: its control store, or the raylet of the driver's machine."""

    exit_code = 8
    summary = "Ray died under a running sweep; `lorasweep resume` goes on"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A sentence with the known names nearest to a name that is not known, or all of them where none is near.

    Args:
        given: what the user wrote.
        known: what would have been right. Names are compared whole and, for dotted paths, by their last part too
            (``lora.ranks`` → ``lora.rank``).
    """
    names = sorted(set(known))
    suggestion = nearest_names(given, names)
    if suggestion:
        return suggestion
    if not names:
        return "There are none."
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"There are: {shown}."


def nearest_names(given: str, known: Iterable[str]) -> str:
    """``did_you_mean`` without the list: "Did you mean …?", or nothing where no known name is near.

    Args:
        given: what the user wrote.
        known: what would have been right.
    """
    names = sorted(set(known))
    near = get_close_matches(given, names, n=3, cutoff=0.6)
    if not near:
        leaf = given.rsplit(".", 1)[-1]
        leaves = {name: name.rsplit(".", 1)[-1] for name in names}
        close = set(get_close_matches(leaf, leaves.values(), n=3, cutoff=0.6))
        near = [name for name in names if leaves[name] in close][:3]
    return "Did you mean " + " or ".join(f"'{name}'" for name in near) + "?" if near else ""


def refuse_uri(name: str, value: object) -> None:
    """Raises ConfigError for a URI such as ``s3://bucket/x`` where the path of a file or folder is expected.

    Args:
        name: of the config key or argument, for the message; ``sweep.dir=`` and ``--to `` end as they are typed.
        value: given for it.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", str(value))
    if scheme is None:
        return
    if scheme[1].lower() == "file":
        remedy = f"Write it without file://, such as {name}{str(value)[len('file://') :] or '/PATH'}"
    else:
        remedy = f"Copy it to a disk of this machine, or mount it there, and give that path: {name}/PATH"
    raise ConfigError(
        f"{name}{masked(value)}: expected the path of a file or folder; {scheme[1]}:// and other URIs cannot be read or"
        f" written yet. {remedy}"
    )


def masked(uri: object) -> str:
    """A URI for a message: what may be a key in it is ``***``, as is every value of its query but harmless ones."""
    text = re.sub(r"://[^/?#]*@", "://***@", str(uri))
    return re.sub(r"([?&](?!endpoint_override|scheme|region)[^=&]*)=[^&]*", r"\1=***", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """The last line of what a process died of, without Ray's traceback around it; at most 500 characters."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[-1].strip()[:500]


def parsed_json(text: str | bytes) -> Any:
    """``json.loads`` that raises ValueError for all that is not JSON, also for what is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
