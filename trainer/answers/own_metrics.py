"""Metrics of the user's own (``eval.metrics``): a Python function, or a command that reads and writes JSON lines.

``completed`` looks a metric up once, where a sweep is composed, and gives the entry that it stores: file, digest,
direction, range. ``OwnMetrics`` asks it, in a worker. The user's code never runs in our processes: a function that
hangs, crashes or changes the interpreter costs its own process, and its metric a reason.
"""

import json
import math
import os
import re
import shlex
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from analysis.errors import ConfigError, did_you_mean
from analysis.metrics import METRICS, ends_of
from analysis.text.listing import listed
from trainer.answers.answer import Answer
from trainer.answers.guarded_process import Ended, GuardedProcess, Hangs

_KEYS = ("function", "command", "better", "range", "figures", "timeout")
_OF_TABLE = ("item_id", "prompt", "label", "generated", "n_tokens", "finished", "prediction", "constrained", "judge")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_FUNCTION_SECONDS, _COMMAND_SECONDS = 10.0, 60.0  # for an item; for all items of a scoring
_START_SECONDS = 60.0  # until a file of the user's is imported, at least
_TOLERANCE = 1e-9  # beyond the range: rounding
_HOST = Path(__file__).with_name("metric_host.py")

Entry = dict[str, Any]
PREFIX = "generate."  # of the names of metrics of written answers


def completed(metrics: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Entry]:
    """``eval.metrics`` with all that others need to know of each metric, so that nobody has to import it again.

    Args:
        metrics: name → ``module.function``, or a mapping of function or command, better, range, figures, timeout. An
            entry that is complete already stays as it is.
        folders: where the files of functions are looked for, before what is installed; the first is that of commands.

    Returns:
        name → function, command, file, root, digest, better, range, figures (name → better and range) and timeout.

    Raises:
        ConfigError: for a metric that cannot be used, with its config path.
    """
    entries = {}
    for name, given in metrics.items():
        if isinstance(given, Mapping) and "digest" in given:
            entries[name] = dict(given)
            continue
        where = f"eval.metrics.{name}"
        _check_name(where, name, f"{PREFIX}{name}")
        asked = {"function": given} if isinstance(given, str) else given
        if not isinstance(asked, Mapping):
            raise ConfigError(f"{where}={given!r}: expected module.function, or a mapping with function or command.")
        for key in asked:
            if key not in _KEYS:
                raise ConfigError(f"{where}.{key}: there is no such key. {did_you_mean(str(key), _KEYS)}")
        asked = {key: value for key, value in asked.items() if value is not None}
        if ("function" in asked) == ("command" in asked):
            raise ConfigError(
                f"{where}: expected either function (module.function) or command, such as 'node score.js'."
            )
        found = _function(where, asked, folders) if "function" in asked else _command(where, asked, folders[0])
        entries[name] = found | _numbers(where, asked, found.pop("marked"), "command" in asked)
    return entries


def columns(name: str, entry: Mapping[str, Any]) -> list[str]:
    """The columns that a metric has in the item table of answers: its name, or one for each of its figures.

    Args:
        name: of the metric in ``eval.metrics``.
        entry: what stands there, completed.
    """
    return [f"{name}.{figure}" for figure in entry["figures"]] or [name]


def verify(entries: Mapping[str, Entry]) -> None:
    """Look for each metric's file on this machine.

    Raises:
        ConfigError: for one that is not here, or another one than where the sweep was composed.
    """
    metrics = OwnMetrics(entries)
    try:
        for name in entries:
            if why := metrics.fault(name):
                raise ConfigError(f"eval.metrics.{name}: {why}")
    finally:
        metrics.close()


def try_out(entries: Mapping[str, Entry], answers: Sequence[Answer]) -> None:
    """Ask each metric about some answers before a sweep begins.

    Args:
        entries: completed.
        answers: ``trial_answers``.

    Raises:
        ConfigError: for one that gives no number for each of them.
    """
    metrics = OwnMetrics(entries)
    try:
        _, missing = metrics.columns(answers)
    finally:
        metrics.close()
    for name, why in missing.items():
        raise ConfigError(
            f"eval.metrics: {name} was tried on {len(answers)} rows (the answer as in the data, an empty one, a wrong"
            f" one), and {why}"
        )


def trial_answers(rows: Sequence[tuple[str, str, str, Mapping[str, Any]]]) -> list[Answer]:
    """Answers to try metrics with: of the first row its reference, of the second nothing, of the third a wrong one.

    Args:
        rows: item id, prompt, reference and row of at least one row of the data.
    """
    three = [rows[i % len(rows)] for i in range(3)]
    wrong = next((reference for _, _, reference, _ in rows if reference != three[2][2]), f"not {three[2][2]}")
    texts = (three[0][2], "", wrong)
    return [
        Answer(item_id, prompt, reference, text, len(text.split()), True, row)
        for (item_id, prompt, reference, row), text in zip(three, texts, strict=True)
    ]


class OwnMetrics:
    """The metrics of a config, asked in processes that are kept until ``close`` or the end of this process.

    Args:
        entries: ``eval.metrics``, completed.
    """

    def __init__(self, entries: Mapping[str, Entry]):
        self._entries = dict(entries)
        self._hosts: dict[str, GuardedProcess] = {}
        self._lock = threading.Lock()

    def columns(self, answers: Sequence[Answer]) -> tuple[dict[str, list[float]], dict[str, str]]:
        """A value for each answer.

        Returns:
            Column of the item table → values; and metric (``generate.<name>``) → why it has none, a sentence without
            its subject. A metric that fails for one answer has no values at all.
        """
        found: dict[str, list[float]] = {}
        missing: dict[str, str] = {}
        for name, entry in self._entries.items():
            names = columns(name, entry)
            with self._lock:
                replies, why = self._asked(name, entry, answers)
            if not why:
                values, why = _values(entry, answers, replies)
                if not why:
                    found |= dict(zip(names, values, strict=True))
            if why:
                missing |= {f"{PREFIX}{column}": f"{_shown(entry)} {why}" for column in names}
        return found, missing

    def fault(self, name: str) -> str:
        """Why a metric cannot be asked on this machine, a sentence; empty where it can."""
        entry = self._entries[name]
        with self._lock:
            try:
                if entry["command"]:
                    _check_command(entry)
                else:
                    self._host(name, entry)
            except _Unusable as error:
                return f"{_shown(entry)} {error}"
        return ""

    def close(self) -> None:
        """End the processes."""
        for host in self._hosts.values():
            host.end()
        self._hosts.clear()

    def _asked(self, name: str, entry: Entry, answers: Sequence[Answer]) -> tuple[list[Entry], str]:
        """A reply for each answer, or why there are none."""
        try:
            if entry["command"]:
                return self._by_command(entry, list(map(_request, answers))), ""
            return self._by_host(name, entry, answers), ""
        except _Unusable as error:
            return [], str(error)

    def _by_host(self, name: str, entry: Entry, answers: Sequence[Answer]) -> list[Entry]:
        host = self._host(name, entry)
        replies = []
        for answer in answers:
            try:
                replies.append(json.loads(host.line(_request(answer), entry["timeout"])))
            except Hangs:
                self._hosts.pop(name)
                raise _Unusable(
                    f"gave nothing for item {answer.item_id} within {entry['timeout']:g} s"
                    f" (eval.metrics.{name}.timeout)."
                ) from None
            except Ended as error:
                self._hosts.pop(name)
                raise _Unusable(f"ended its process at item {answer.item_id} ({error}).") from None
        return replies

    def _host(self, name: str, entry: Entry) -> GuardedProcess:
        """The process of a function; started where it does not run. Raises _Unusable."""
        if name in self._hosts:
            return self._hosts[name]
        file = entry["file"] if Path(entry["file"]).is_file() else ""
        host, described = _started(entry["function"], file, entry["root"] if file else "", entry["timeout"])
        why = ""
        if described.get("missing"):
            why = f"is not on {_here()}: neither {entry['file']} is there, nor a module of that name. {_REMEDY}"
        elif "error" in described or described["digest"] != entry["digest"]:
            why = described.get("error") or _differs(str(described.get("file", file)))
        if why:
            host.end()
            raise _Unusable(why)
        self._hosts[name] = host
        return host

    def _by_command(self, entry: Entry, requests: Sequence[str]) -> list[Entry]:
        """A line for each request, of a process of its own. Raises _Unusable."""
        _check_command(entry)
        process = _command_process(entry)
        try:
            lines = process.lines(requests, entry["timeout"])
        except Hangs:
            raise _Unusable(f"did not end within {entry['timeout']:g} s for {len(requests)} items (timeout).") from None
        except Ended as error:
            raise _Unusable(f"{error}.") from None
        finally:
            process.end()
        lines = [line for line in lines if line.strip()]
        if len(lines) != len(requests):
            raise _Unusable(f"wrote {len(lines)} lines for {len(requests)} items: expected one for each, in order.")
        return [_command_reply(line, number) for number, line in enumerate(lines, start=1)]


class _Unusable(Exception):
    """A metric that gives no values. ``args[0]`` says why, a sentence without its subject."""


_REMEDY = (
    "Put it on a file system that all machines share, or install it on each of them, and run the sweep again;"
    " `lorasweep resume` goes on with it."
)


def _differs(file: str) -> str:
    return (
        f"is another one here ({file} on {_here()}) than where the sweep was started, so its values could not be"
        " compared. Restore the file as it was, or start a new sweep with the changed one."
    )


def _here() -> str:
    return socket.gethostname()


def _shown(entry: Entry) -> str:
    """What a metric is called in a sentence."""
    return str(entry["function"] or f"`{entry['command']}`")


# --- looking a metric up


def _check_name(where: str, name: str, metric: str) -> None:
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"{where}: the name of a metric has letters, digits and '_', such as politeness.")
    if name in _OF_TABLE or (metric in METRICS and not METRICS[metric].own):
        raise ConfigError(f"{where}: {metric} is a figure that lorasweep has itself. Choose another name.")


def _function(where: str, asked: Mapping[str, Any], folders: Sequence[Path]) -> Entry:
    """The entry of a function, without its numbers. Raises ConfigError."""
    named = asked["function"]
    module, _, function = str(named).rpartition(".")
    if not module or not all(part.isidentifier() for part in str(named).split(".")):
        raise ConfigError(f"{where}={named!r}: expected module.function, such as mymetrics.politeness in mymetrics.py.")
    relative = Path(*module.split("."))
    places = [(folder, folder / f"{relative}{ending}") for folder in folders for ending in (".py", "/__init__.py")]
    root, file = next(((str(root), str(it)) for root, it in places if it.is_file()), ("", ""))
    try:
        host, said = _started(str(named), file, root, float(asked.get("timeout") or _FUNCTION_SECONDS))
    except _Unusable as error:
        raise ConfigError(f"{where}: {named} {error}") from None
    host.end()
    if said.get("missing"):
        looked = ", ".join(dict.fromkeys(map(str, folders)))
        raise ConfigError(
            f"{where}={named}: there is no {relative}.py in {looked}, and no module {module} is installed. Put the file"
            " where the command is run, or beside the config."
        )
    if "functions" in said:
        what = said["error"] or "it is not there"
        raise ConfigError(f"{where}={named}: {what} ({file or module}). {did_you_mean(function, said['functions'])}")
    if "error" in said:
        raise ConfigError(f"{where}={named}: {said['error']}.")
    if not root:
        root = str(Path(said["file"]).parents[module.count(".")])
    entry = {"function": str(named), "command": None, "file": said["file"], "root": root, "digest": said["digest"]}
    return entry | {"marked": said["marked"]}


def _started(named: str, file: str, root: str, seconds: float) -> tuple[GuardedProcess, Entry]:
    """A process with the function, and what it says of it. Raises _Unusable."""
    module, _, function = named.rpartition(".")
    path = [os.path.abspath(part) for part in sys.path]
    spec = {"module": module, "function": function, "file": file, "root": root, "path": path}
    host = GuardedProcess([sys.executable, "-P", str(_HOST), json.dumps(spec)], root or None)
    try:
        described = json.loads(host.line("", max(seconds, _START_SECONDS)))
    except Hangs:
        raise _Unusable(f"was not imported within {max(seconds, _START_SECONDS):g} s.") from None
    except Ended as error:
        raise _Unusable(f"ended its process while it was imported ({error}).") from None
    return host, described


def _command(where: str, asked: Mapping[str, Any], folder: Path) -> Entry:
    """The entry of a command, without its numbers. Raises ConfigError."""
    command = asked["command"]
    if not isinstance(command, str) or not command.strip():
        raise ConfigError(f"{where}.command={command!r}: expected a command line, such as 'node score.js'.")
    entry = {"function": None, "command": command, "file": None, "root": str(folder.absolute())}
    try:
        return entry | {"digest": _command_digest(command, folder), "marked": {}}
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}.command={command!r}: cannot be read ({error}).") from None


def _command_digest(command: str, folder: Path) -> str:
    """SHA-256 of a command line and of the files in the folder that it names."""
    digest = sha256(command.encode())
    for word in shlex.split(command):
        file = folder / word
        if not Path(word).is_absolute() and file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _check_command(entry: Entry) -> None:
    """Raises _Unusable where its folder is not here, or its files are others."""
    folder = Path(entry["root"])
    if not folder.is_dir():
        raise _Unusable(f"cannot run on {_here()}: its folder {folder} is not there. {_REMEDY}")
    if _command_digest(entry["command"], folder) != entry["digest"]:
        raise _Unusable(_differs(f"a file of {folder}"))


def _command_process(entry: Entry) -> GuardedProcess:
    return GuardedProcess(["/bin/sh", "-c", entry["command"]], entry["root"])


def _numbers(where: str, asked: Mapping[str, Any], marked: Mapping[str, Any], is_command: bool) -> Entry:
    """Direction, range, figures and time limit: of the config, else of the decorator. Raises ConfigError."""
    said = {**marked, **{key: value for key, value in asked.items() if key not in ("function", "command")}}
    better, ends = _better(where, said.get("better", "high")), _range(where, said.get("range"))
    figures = said.get("figures") or {}
    if not isinstance(figures, Mapping):
        if isinstance(figures, str) or not isinstance(figures, Sequence):
            raise ConfigError(f"{where}.figures={figures!r}: expected a list of names, such as [warmth, clarity].")
        figures = dict.fromkeys(figures, better)
    of_figures = {}
    for figure, its in figures.items():
        if not _NAME.fullmatch(str(figure)) or figure in ("value", "error"):
            raise ConfigError(f"{where}.figures: {figure!r} cannot be a name: expected letters, digits and '_'.")
        own = its if isinstance(its, Mapping) else {"better": its}
        of_figures[str(figure)] = {
            "better": _better(f"{where}.figures.{figure}", own.get("better", better)),
            "range": _range(f"{where}.figures.{figure}", own["range"]) if "range" in own else ends,
        }
    seconds = said.get("timeout") or (_COMMAND_SECONDS if is_command else _FUNCTION_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ConfigError(f"{where}.timeout={seconds!r}: expected seconds, above 0.")
    return {"better": better, "range": ends, "figures": of_figures, "timeout": float(seconds)}


def _better(where: str, given: Any) -> str | float:
    if given in ("high", "low"):
        return str(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ConfigError(f"{where}: better={given!r}: expected high, low, or a value to be near to.")
    return float(given)


def _range(where: str, given: Any) -> list[float | None] | None:
    """Lowest and highest value, None for no end; None for no range."""
    if given is None:
        return None
    ends = list(given) if isinstance(given, list | tuple) else []
    ends = [None if end is None or (isinstance(end, float) and math.isinf(end)) else end for end in ends]
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float | None) for end in ends):
        raise ConfigError(f"{where}: range={given!r}: expected lowest and highest value, such as [0, 1].")
    low, high = ends_of(ends)
    if not low < high:
        raise ConfigError(f"{where}: range={given!r}: the lowest value is not below the highest.")
    return [None if end is None else float(end) for end in ends]


# --- asking


def _request(answer: Answer) -> str:
    request = {"prompt": answer.prompt, "reference": answer.reference, "answer": answer.text, "row": dict(answer.row)}
    return json.dumps(request, default=str)


def _command_reply(line: str, number: int) -> Entry:
    """A line of a command as the host of functions says it. Raises _Unusable."""
    try:
        reply = json.loads(line)
    except ValueError:
        raise _Unusable(f'wrote line {number} that is not JSON: {line[:80]!r}. Expected {{"value": 0.5}}.') from None
    if not isinstance(reply, dict):
        raise _Unusable(f'wrote line {number}: {line[:80]}. Expected an object, such as {{"value": 0.5}}.')
    if "error" in reply:
        return {"error": str(reply["error"])}
    return reply if reply.keys() == {"value"} else {"figures": reply}


def _values(entry: Entry, answers: Sequence[Answer], replies: Sequence[Entry]) -> tuple[list[list[float]], str]:
    """A list for each figure, and why there is none, the number of failing items told."""
    faults, rows = [], []
    for answer, reply in zip(answers, replies, strict=True):
        try:
            rows.append(list(_figures(entry, reply)))
        except _Unusable as error:
            faults.append((answer.item_id, str(error)))
    if faults:
        item, what = faults[0]
        first = f", the first of {len(faults)} of {len(answers)} items" if len(faults) > 1 else ""
        return [], f"{what} for item {item}{first}."
    width = max(len(entry["figures"]), 1)
    return [[row[figure] for row in rows] for figure in range(width)], ""


def _figures(entry: Entry, reply: Entry) -> Iterator[float]:
    """The values of an item, in the order of the entry's figures. Raises _Unusable."""
    if "error" in reply:
        raise _Unusable(f"raised {reply['error']}")
    declared = entry["figures"]
    if not declared:
        if "value" not in reply:
            names = ", ".join(reply["figures"])
            raise _Unusable(f"gave figures ({names}), which must be declared (figures: [{names}])")
        yield _number(reply["value"], entry["range"], "")
        return
    given = reply.get("figures")
    if given is None:
        raise _Unusable(f"gave one number, and figures are declared ({', '.join(declared)})")
    if given.keys() != declared.keys():
        raise _Unusable(f"gave the figures {listed(sorted(given))}, and {listed(list(declared))} are declared")
    for figure, said in declared.items():
        yield _number(given[figure], said["range"], f" as {figure}")


def _number(value: Any, ends: Sequence[float | None] | None, named: str) -> float:
    """Raises _Unusable unless it is a finite number within its range."""
    if isinstance(value, dict) and "not a number" in value:
        raise _Unusable(f"gave a {value['not a number']}{named}: expected a number")
    if not isinstance(value, int | float):
        raise _Unusable(f"gave {json.dumps(value)[:60]}{named}: expected a number")
    if not math.isfinite(value):
        raise _Unusable(f"gave {'NaN' if math.isnan(value) else 'an infinite value'}{named}: expected a number")
    low, high = ends_of(ends)
    slack = _TOLERANCE * max(1.0, *(abs(end) for end in (low, high) if math.isfinite(end)), 1.0)
    if not low - slack <= value <= high + slack:
        raise _Unusable(f"gave {value:g}{named}, outside of its range ({low:g} to {high:g})")
    return float(value)
