"""The console script ``lorasweep``: reads the command line, and starts what does the work.

Nothing heavy is imported here at module level: ``--help`` answers at once, and mistakes are told before torch loads.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from analysis.errors import ConfigError, LorasweepError, did_you_mean

USAGE = """\
lorasweep: sweep over LoRA and QLoRA hyperparameters, and rank what comes out.

  lorasweep run [OVERRIDES]        run a sweep (`lorasweep run --help` lists groups and options)
  lorasweep trial [OVERRIDES]      train and score one configuration, without Ray
  lorasweep rank RUN               print the leaderboard of a sweep folder
  lorasweep export RUN [TRIAL]     write a trial's adapter, or the merged model
  lorasweep resume RUN             go on with a sweep that was stopped, or extend it (search.trials=…)

  lorasweep COMMAND --help         about one command
  --debug                          with any command: show the traceback of an error

Start with:  lorasweep run experiment=quickstart
"""

RUN_EXAMPLES = """\
examples:
  lorasweep run experiment=quickstart
  lorasweep run experiment=quickstart --cfg job
  lorasweep run experiment=quickstart lora.rank=8 'optim.lr=tag(log,interval(1e-4,2e-3))' search.trials=12
  lorasweep run task=classification model=local model.path=DIR data=csv data.train=A.csv data.validation=B.csv \\
                data.text=text data.label=label
  lorasweep run --config-dir mine experiment=my_sweep        (mine/experiment/my_sweep.yaml)
"""


class Parser(argparse.ArgumentParser):
    """Refuses what it does not know with the nearest name, and takes options between overrides."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"lorasweep {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        for argument in arguments:
            option = argument.split("=", 1)[0]
            if option.startswith("-") and len(option) > 1 and option not in self._option_string_actions:
                known = [name for name in self._option_string_actions if name.startswith("--")]
                raise ConfigError(f"{option} is not an option of `{self.prog}`. {did_you_mean(option, known)}")
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, a LorasweepError's own, 130 after Ctrl-C, 1 for a defect of ours."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        return _dispatch(given)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # such as `… | head`: nobody reads on
        return 0
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except LorasweepError as error:
        if debug:
            traceback.print_exc()
        print(f"lorasweep: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        print(
            f"lorasweep: unexpected {type(error).__name__}: {error}\n"
            "This is a defect of lorasweep; --debug shows where.",
            file=sys.stderr,
        )
        return 1


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if given else 2
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        run = f" Did you mean `lorasweep run {command}`?" if "=" in command else ""
        raise ConfigError(
            f"'{command}' is not a command.{run or ' ' + did_you_mean(command, COMMANDS)} See lorasweep --help."
        )
    return COMMANDS[command](rest)


def _composing(command: str, description: str, epilog: str) -> Parser:
    parser = Parser(command, description, epilog)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="GROUP=OPTION or KEY=VALUE")
    parser.add_argument("--cfg", choices=["job"], help="print the composed config as YAML, and do nothing else")
    parser.add_argument("--resolve", action="store_true", help="with --cfg job: interpolations resolved")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder with config groups of your own")
    return parser


def _groups_help(config_dir: str | None) -> str:
    """Groups and options, ours and those of the given folder."""
    from sweeps import tree

    groups = tree.groups(tree.extra_folder(config_dir))
    width = max(map(len, groups))
    lines = [f"  {name:<{width}}  {', '.join(options)}" for name, options in groups.items()]
    experiments = [f"  experiment={name}: {tree.summary('experiment', name)}" for name in tree.groups()["experiment"]]
    return "\n".join(["config groups and their options (GROUP=OPTION):", *lines, "", *experiments, ""])


def _run(arguments: list[str]) -> int:
    return _compose_and(arguments, "run", "Run a sweep. Ctrl-C stops it cleanly; `lorasweep resume` goes on with it.")


def _trial(arguments: list[str]) -> int:
    return _compose_and(
        arguments,
        "trial",
        "Train and score one configuration, without Ray: the first of search.start_from, or the config's own values.",
    )


def _compose_and(arguments: list[str], command: str, description: str) -> int:
    epilog = ""
    if "--help" in arguments or "-h" in arguments:
        examples = RUN_EXAMPLES.replace("lorasweep run", f"lorasweep {command}")
        epilog = f"{_groups_help(_config_dir(arguments))}\n{examples}"
    parser = _composing(command, description, epilog)
    if command == "run":
        parser.add_argument("--quiet", action="store_true", help="print only the leaderboard and errors")
    options = parser.read(arguments)
    if options.resolve and not options.cfg:
        raise ConfigError("--resolve goes with --cfg job.")
    from sweeps.compose import compose
    from sweeps.place import package_root

    package_root()
    composed = compose(options.overrides, options.config_dir)
    if options.cfg:
        print(composed.yaml(resolve=options.resolve), end="")
        for note in composed.notes:
            print(note, file=sys.stderr)
        return 0
    if command == "trial":
        from sweeps.lone import run_trial

        return run_trial(composed)
    if not composed.space:
        raise ConfigError(
            "Nothing is searched: the space is empty. Use `lorasweep trial` for one configuration,"
            " or search something, such as 'optim.lr=tag(log,interval(1e-4,1e-2))'."
        )
    from sweeps.run import run_sweep

    return run_sweep(composed, quiet=options.quiet)


def _config_dir(arguments: Sequence[str]) -> str | None:
    """The value of ``--config-dir`` before parsing: help lists its groups too."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument in ("--config-dir", "-cd"):
            return following
        if argument.startswith("--config-dir="):
            return argument.split("=", 1)[1]
    return None


def _resume(arguments: list[str]) -> int:
    parser = Parser(
        "resume",
        "Go on with a sweep that was stopped, or extend it. Finished trials are kept.",
        "examples:\n  lorasweep resume runs/quickstart\n  lorasweep resume runs/quickstart search.trials=16\n",
    )
    parser.add_argument("run", metavar="RUN", help="sweep folder, such as runs/quickstart")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of search.*, tracking.*, ray.*, resources.*")
    parser.add_argument("--quiet", action="store_true", help="print only the leaderboard and errors")
    options = parser.read(arguments)
    from sweeps.place import package_root
    from sweeps.run import resume_sweep

    package_root()
    return resume_sweep(options.run, options.overrides, quiet=options.quiet)


def _rank(arguments: list[str]) -> int:
    parser = Parser("rank", "Print the leaderboard of a sweep, running or finished, and write leaderboard.csv again.")
    parser.add_argument("run", metavar="RUN", help="sweep folder, such as runs/quickstart")
    parser.add_argument("--by", metavar="METRIC[,METRIC]", help="sort by these instead of the objective")
    parser.add_argument("--json", action="store_true", help="print JSON for other programs")
    options = parser.read(arguments)
    from analysis import leaderboard
    from analysis.folder import SweepFolder
    from sweeps.show import show_leaderboard

    folder, by = SweepFolder.open(options.run), options.by.split(",") if options.by else []
    rows = leaderboard.build(folder, by)
    if options.json:
        print(leaderboard.to_json(rows))
        return 0
    show_leaderboard(folder, rows, by)
    if not by:
        leaderboard.write(folder, rows)
    return 0


def _export(arguments: list[str]) -> int:
    parser = Parser(
        "export",
        "Write a trial's adapter for plain PEFT, or the merged model for plain transformers.",
        "examples:\n  lorasweep export runs/quickstart --to adapter\n"
        "  lorasweep export runs/quickstart t0003 --to model --merge\n",
    )
    parser.add_argument("run", metavar="RUN", help="sweep folder, such as runs/quickstart")
    parser.add_argument("trial", nargs="?", metavar="TRIAL", help="trial id, such as t0003; the best one if left out")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the base model, and write that")
    options = parser.read(arguments)
    from sweeps.export import export

    export(options.run, options.trial, options.to, options.merge)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "trial": _trial,
    "rank": _rank,
    "export": _export,
    "resume": _resume,
}

if __name__ == "__main__":
    sys.exit(main())
