"""Completes a ``lorasweep`` command line at the cursor. Imports nothing heavy: it runs at every press of Tab."""

import contextlib
import importlib
import io
import shlex
from collections.abc import Iterator
from pathlib import Path

from sweeps.cli import COMMANDS
from sweeps.commands.parser import Parser
from sweeps.compose import conf_tree
from sweeps.compose.overrides import COMBINED
from sweeps.config import schema

_COMPOSING = ("run", "trial", "check", "cluster", "data", "fetch", "resume")  # take overrides
_FOLDERS = ("rank", "answers", "export", "resume", "report", "compare", "status", "attach", "stop", "enqueue", "wandb")
_TRIALS = ("answers", "export")  # take a sweep, and one of its trials

BASH = """\
# bash completion of lorasweep: eval "$(lorasweep completion bash)"
_lorasweep() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion at "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
    local typed="${COMP_LINE:0:COMP_POINT}"; typed="${typed##* }"
    # Where bash breaks words at '=', what stands before it is not replaced.
    [[ $typed == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${typed%%=*}="}")
}
complete -o default -F _lorasweep lorasweep
"""

ZSH = """\
#compdef lorasweep
# zsh completion of lorasweep: eval "$(lorasweep completion zsh)"
_lorasweep() {
    local -a found open closed
    local one
    found=("${(@f)$("${words[1]}" completion at "$LBUFFER" 2>/dev/null)}")
    for one in $found; do
        if [[ $one == *[=./] ]]; then open+=("$one"); elif [[ -n $one ]]; then closed+=("$one"); fi
    done
    (( $#open + $#closed )) || { _files; return }
    (( $#open )) && compadd -Q -S '' -a open
    (( $#closed )) && compadd -Q -a closed
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _lorasweep lorasweep
"""


def completions(line: str) -> list[str]:
    """What the last word of a command line could become; where there is nothing, the shell completes file names.

    Args:
        line: up to the cursor, the program's name first.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    if not words or line[-1:].isspace():
        words.append("")
    before, current = words[1:-1], words[-1]
    before = [word for word in before if word != "--debug"]
    if not before:
        candidates = [*COMMANDS, "--help", "--debug"] if len(words) > 1 else []
    elif before[0] not in COMMANDS:
        return []
    else:
        candidates = list(_of_command(before[0], before[1:], current))
    return sorted({word for word in candidates if word.startswith(current)})


def _of_command(command: str, before: list[str], current: str) -> Iterator[str]:
    options = _options(command)
    chosen = options.get(before[-1]) if before else None
    if chosen:  # an option with choices
        yield from chosen
        return
    if current.startswith("-"):
        yield from (*options, "--debug")
        return
    positional = [word for word in before if not word.startswith("-") and "=" not in word]
    if command in _FOLDERS and not positional:
        yield from _sweep_folders(current)
    if command in _TRIALS and len(positional) == 1:
        yield from (path.name for path in sorted(Path(positional[0]).glob("trials/*")))
    if command == "answers" and len(positional) == 1:
        yield from (path.name for path in sorted(Path(positional[0]).glob("baselines/*")))
    if command == "completion":
        yield from ("bash", "zsh")
    if command == "fetch":
        from trainer.evaluation.bias.registry import packages

        yield from packages()
    if command in _COMPOSING:
        yield from _overrides(current)


def _options(command: str) -> dict[str, list[str]]:
    """A command's options and their choices, from its own parser."""
    options: dict[str, list[str]] = {}

    class Listed(Exception):
        pass

    def read(self: Parser, arguments: object) -> None:
        for name, action in self._option_string_actions.items():
            options[name] = [str(choice) for choice in action.choices or ()]
        raise Listed

    real, Parser.read = Parser.read, read  # type: ignore[assignment,method-assign]
    try:
        with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f"sweeps.commands.{command}").main([])
    finally:
        Parser.read = real  # type: ignore[method-assign]
    return options


def _sweep_folders(current: str) -> Iterator[str]:
    """Folders that hold a sweep, below ``runs/`` and below the word that is being completed."""
    for pattern in {"runs/*/sweep.yaml", f"{current}*/sweep.yaml", f"{current}*/*/sweep.yaml"}:
        if not pattern.startswith("/"):
            yield from (path.parent.as_posix() for path in Path().glob(pattern))


def _overrides(current: str) -> Iterator[str]:
    groups, keys = conf_tree.groups(), schema()
    name, sign, _ = current.partition("=")
    if sign:
        values = groups.get(name, [])
        _, bracket, inside = current.partition("=[")
        if bracket and name in COMBINED:  # the next option of a list
            chosen, _, _ = inside.rpartition(",")
            before = f"[{chosen}," if chosen else "["
            values = [f"{before}{value}" for value in values if value not in chosen.split(",")]
        if name in keys:
            leaf = keys[name]
            values = [str(value) for value in leaf.metadata.get("choices") or () if value is not None]
            values += ["true", "false"] if leaf.type is bool else []
            values += ["null"] if leaf.optional else []
        yield from (f"{name}={value}" for value in values)
        return
    yield from (f"{group}=" for group in groups)
    depth = current.count(".") + 1
    for path in keys:
        parts = path.split(".")
        yield ".".join(parts[:depth]) + ("=" if len(parts) <= depth else ".")
