"""The console script ``lorasweep``: reads the command line, and starts the subcommand that does the work.

Each is a module of its name in ``sweeps/commands/``; ``sweeps/commands/run.py`` is the one that runs a sweep.

Nothing heavy is imported here at module level: ``--help`` answers at once, and mistakes are told before torch loads.
"""

import contextlib
import errno
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from analysis import errors
from analysis.errors import INTERRUPTED, ConfigError, FolderError, LorasweepError, did_you_mean
from sweeps.process import signals
from sweeps.process.logs import of_command
from sweeps.process.open_files import allow_many
from sweeps.process.terminal import may_be_closed, message, safe_streams, show_anything, wrapped
from sweeps.process.termination import ending
from sweeps.process.threads import wait_policy
from trainer.assets.cache import cache_folder

# Command → how it is called, and what it does. Each is a module of its name in sweeps/commands/.
COMMANDS = {
    "doctor": ("", "look at this machine, and say what to do about what is missing"),
    "fetch": ("[NAME | OVERRIDES]", "fetch models and data beforehand, into one cache"),
    "check": ("[OVERRIDES]", "say what a sweep would do: data, memory, time, cost"),
    "cluster": ("check [ADDRESS] | join RUN", "check the nodes of a Ray cluster; be a node of a sweep's own"),
    "data": ("[OVERRIDES]", "show rows as the model sees them, token lengths and labels"),
    "run": ("[OVERRIDES]", "run a sweep (`lorasweep run --help` lists groups and options)"),
    "trial": ("[OVERRIDES]", "train and score one configuration, without Ray"),
    "rank": ("RUN [RUN]", "print the leaderboard of a sweep folder, or of several as one"),
    "compare": ("RUN RUN", "print sweeps side by side"),
    "breakdown": ("RUN [TRIAL]", "each class, confusions, and each category of the bias sets"),
    "answers": ("RUN [TRIAL]", "what a trial wrote, beside the reference and the untuned model, the worst first"),
    "report": ("RUN [--out FILE]", "write report.html: one file with tables and plots"),
    "export": ("RUN [TRIAL]", "write a trial's adapter, or the merged model"),
    "finalize": ("RUN", "train the best trials with more seeds, and score them on the test split"),
    "status": ("RUN", "how a sweep stands, running or not"),
    "attach": ("RUN", "the live view of a running sweep: a detached one, or one in another terminal"),
    "stop": ("RUN [TRIAL]", "stop a running sweep, or one of its trials"),
    "enqueue": ("RUN KEY=VALUE …", "give a sweep a point to try next"),
    "resume": ("RUN", "go on with a sweep that was stopped, or extend it (search.trials=…)"),
    "wandb": ("report RUN | pull PROJECT", "a workspace and report at W&B; rank a sweep that is only there"),
    "completion": ("bash|zsh", "print a script for the shell that completes commands, groups and keys"),
}

_WITH_PROCESSES = ("check", "cluster", "run", "trial", "finalize", "resume")  # or temporary files

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # faults of a disk, not of this program


def usage() -> str:
    """The text of ``lorasweep --help``."""
    calls = {f"lorasweep {name} {call}".rstrip(): what for name, (call, what) in COMMANDS.items()}
    width = max(map(len, calls))
    lines = [f"  {call:<{width}}   {what}" for call, what in calls.items()]
    return "\n".join(
        [
            "lorasweep: sweep over LoRA and QLoRA hyperparameters, and rank what comes out.",
            "",
            *lines,
            "",
            f"  {'lorasweep COMMAND --help':<{width}}   about one command",
            f"  {'--debug':<{width}}   with any command: show the traceback of an error",
            "",
            "exit status:",
            *(f"  {code:>3}  {meaning}" for code, meaning in exit_codes().items()),
            "",
            "Start with:  lorasweep run experiment=quickstart",
            "",
        ]
    )


def exit_codes() -> dict[int, str]:
    """Exit code → what it means."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LorasweepError)]
    known = {kind.exit_code: kind.summary for kind in kinds if kind is not LorasweepError}
    return {
        0: "done",
        1: "no trial has a score, or a defect of lorasweep (--debug shows where)",
        **dict(sorted(known.items())),
        INTERRUPTED: "stopped by Ctrl-C, SIGTERM or a closed terminal; `lorasweep resume` goes on",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, a LorasweepError's own, 1 for a defect of ours.

    It is 130 after Ctrl-C, SIGTERM or SIGHUP (``sweeps/process/signals.py``), wherever they come.
    """
    show_anything(sys.stdout, sys.stderr)
    with may_be_closed(), safe_streams(), signals.installed():
        try:
            code = _main(arguments)
        except KeyboardInterrupt:  # while an error was being told
            code = INTERRUPTED
        return ending(code)


def _main(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    os.environ.update(wait_policy())
    allow_many()
    # Read when grpc is imported, by Ray too: else it tells the terminal of each server that is being ended.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    given = [argument for argument in given if argument != "--debug"]
    with contextlib.ExitStack() as scratch:  # it ends last: what is to be said is said before that is waited for
        return _run(given, debug, scratch)


def _run(given: list[str], debug: bool, scratch: contextlib.ExitStack) -> int:
    """Run a command, and tell the user of its error. Returns the exit code."""
    try:
        with of_command(_warnings_log(), debug):
            return _dispatch(given, scratch)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # such as `… | head`: nobody reads on
        return INTERRUPTED if signals.came() else 0
    except KeyboardInterrupt:
        signals.said_stopped()
        return INTERRUPTED
    except LorasweepError as error:
        if signals.interrupted():  # libraries make errors of their own of an interrupt
            signals.said_stopped()
            return INTERRUPTED
        if debug:
            traceback.print_exc()
        print(wrapped(message(f"lorasweep: {error}"), sys.stderr), file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if signals.came() and not debug:  # what breaks while all is being ended is no defect
            signals.said_stopped()
            return INTERRUPTED
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in _DISK:
            sentence = (
                f"lorasweep: {error.filename or 'the disk'}: cannot be written ({error.strerror}). Free some space, or"
                " choose another place (sweep.dir=…, LORASWEEP_CACHE); `lorasweep resume` goes on with a sweep."
            )
            print(wrapped(message(sentence), sys.stderr), file=sys.stderr)
            return FolderError.exit_code
        print(
            message(f"lorasweep: unexpected {type(error).__name__}: {error}")
            + "\nThis is a defect of lorasweep; --debug shows where.",
            file=sys.stderr,
        )
        return 1


def _warnings_log() -> Path:
    """Where libraries' warnings go; those of a sweep while it runs go to the sweep folder."""
    try:
        return cache_folder() / "warnings.log"
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(tempfile.gettempdir()) / "lorasweep-warnings.log"


def _dispatch(given: list[str], scratch: contextlib.ExitStack) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if given else 2
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        run = f" Did you mean `lorasweep run {command}`?" if "=" in command else ""
        raise ConfigError(
            f"'{command}' is not a command.{run or ' ' + did_you_mean(command, COMMANDS)} See lorasweep --help."
        )
    main = importlib.import_module(f"sweeps.commands.{command}").main
    if command not in _WITH_PROCESSES or {"-h", "--help"} & set(rest):
        return int(main(rest))
    from sweeps.process.scratch import private_scratch

    scratch.enter_context(private_scratch())
    return int(main(rest))


if __name__ == "__main__":
    sys.exit(main())
