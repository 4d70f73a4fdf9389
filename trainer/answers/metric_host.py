"""Calls one function of a user's file, in a process of its own. A script, of the standard library alone.

``python metric_host.py SPEC``: JSON with ``module``, ``function``, ``file`` (empty: by the module's name), ``root``
(where the module's name begins) and ``path`` (what else is looked through for modules). It writes a line that
describes the function, or says what is wrong with it; then, for each line {prompt, reference, answer, row} that it
reads, one with ``value``, with figures, or with ``error``. What the function itself prints goes to standard error.
"""

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from typing import Any

_ARGUMENTS = ("prompt", "reference", "answer", "row")
_LONGEST = 300  # characters of an exception's message


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)

    def say(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    spec = json.loads(sys.argv[1])
    sys.path[:] = [*([spec["root"]] if spec["root"] else []), *spec["path"]]
    function, said = _load(spec)
    say(said)
    if function is None:
        return
    for line in requests:
        request = json.loads(line)
        try:
            say(_plain(function(*(request[name] for name in _ARGUMENTS))))
        except BaseException as error:  # a user's function may raise anything, SystemExit too
            say({"error": _said(error, spec["file"])})


def _load(spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The function, or None, and what is said of it."""
    try:
        module = _module(spec)
    except BaseException as error:
        return None, {"error": f"cannot be imported: {_said(error, spec['file'])}"}
    if module is None:
        return None, {"missing": True}
    function = getattr(module, spec["function"], None)
    if function is None or not callable(function):
        own = [name for name, it in vars(module).items() if inspect.isfunction(it) and not name.startswith("_")]
        return None, {"error": "it is not a function there" if function else "", "functions": own}
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return None, {"error": "it is async or a generator: expected a function that returns a number"}
    try:
        inspect.signature(function).bind(*_ARGUMENTS)
    except TypeError as error:
        taken = ", ".join(inspect.signature(function).parameters)
        return None, {"error": f"it takes ({taken}): expected ({', '.join(_ARGUMENTS)}) ({error})"}
    except ValueError:  # written in C: it has no signature to look at
        pass
    marked = dict(getattr(function, "lorasweep_metric", {}))
    if "range" in marked:
        marked["range"] = list(marked["range"])
    if not isinstance(marked.get("figures", {}), dict):
        marked["figures"] = list(marked["figures"])
    spec["file"] = file = module.__file__ or ""
    return function, {"file": os.path.abspath(file), "digest": _digest(file), "marked": marked}


def _module(spec: dict[str, Any]) -> Any:
    if not spec["file"]:
        try:
            if importlib.util.find_spec(spec["module"]) is None:
                return None
        except ModuleNotFoundError:  # of a package above it
            return None
        return importlib.import_module(spec["module"])
    found = importlib.util.spec_from_file_location(spec["module"], spec["file"])
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[spec["module"]] = module
    found.loader.exec_module(module)
    return module


def _digest(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.sha256(opened.read()).hexdigest()


def _plain(value: Any) -> dict[str, Any]:
    """What is told of a function's result: numbers of numpy and torch are numbers too."""
    if isinstance(value, dict):
        return {"figures": {str(name): _number(inner) for name, inner in value.items()}}
    return {"value": _number(value)}


def _number(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return float(value)
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return _number(value.item())  # of an array with several elements it raises
    return {"not a number": f"{type(value).__name__} ({repr(value)[:60]})"}


def _said(error: BaseException, file: str) -> str:
    """An exception as part of a sentence, with the line of the user's file that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if file and frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    where = f" ({os.path.basename(file)}, line {lines[-1]})" if lines else ""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())[:_LONGEST]
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


if __name__ == "__main__":
    main()
