"""The command-line options of all commands that compose a config: overrides, ``--cfg job``, ``--config-dir``."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.errors import ConfigError
from sweeps.commands.parser import Parser

if TYPE_CHECKING:
    from sweeps.compose.compose import Composed

EXAMPLES = """\
examples:
  lorasweep run experiment=quickstart
  lorasweep run experiment=quickstart --cfg job
  lorasweep run experiment=quickstart lora.rank=8 'optim.lr=tag(log,interval(1e-4,2e-3))' search.trials=12
  lorasweep run task=classification model=local model.path=DIR data=csv data.train=A.csv data.validation=B.csv \\
                data.text=text data.label=label
  lorasweep run --config-dir mine experiment=my_sweep        (mine/experiment/my_sweep.yaml)
"""


def composing_parser(command: str, description: str, arguments: Sequence[str]) -> Parser:
    """A parser of overrides and the options that go with them. Its help lists the config groups.

    Args:
        command: the subcommand's name.
        description: what it does.
        arguments: the command line; config groups are read only where it asks for help.
    """
    epilog = ""
    if "--help" in arguments or "-h" in arguments:
        examples = EXAMPLES.replace("lorasweep run", f"lorasweep {command}")
        epilog = f"{_groups_help(_config_dir(arguments))}\n{examples}"
    parser = Parser(command, description, epilog)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="GROUP=OPTION or KEY=VALUE")
    parser.add_argument("--cfg", choices=["job"], help="print the composed config as YAML, and do nothing else")
    parser.add_argument("--resolve", action="store_true", help="with --cfg job: interpolations resolved")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder with config groups of your own")
    return parser


def composed(options: argparse.Namespace) -> "Composed | None":
    """The sweep that the options compose; None where ``--cfg job`` only prints it.

    Args:
        options: parsed by a ``composing_parser``.

    Raises:
        LorasweepError: for a config that cannot be composed.
    """
    if options.resolve and not options.cfg:
        raise ConfigError("--resolve goes with --cfg job.")
    from sweeps.compose.compose import compose
    from sweeps.process.installation import package_root

    package_root()
    result = compose(options.overrides, options.config_dir)
    if not options.cfg:
        return result
    print(result.yaml(resolve=options.resolve), end="")
    for note in result.notes:
        print(note, file=sys.stderr)
    return None


def _groups_help(config_dir: str | None) -> str:
    """Groups and options, ours and those of the given folder."""
    from sweeps.compose import conf_tree

    groups = conf_tree.groups(conf_tree.extra_folder(config_dir))
    width = max(map(len, groups))
    lines = [f"  {name:<{width}}  {', '.join(options)}" for name, options in groups.items()]
    experiments = [
        f"  experiment={name}: {conf_tree.summary('experiment', name)}" for name in conf_tree.groups()["experiment"]
    ]
    return "\n".join(["config groups and their options (GROUP=OPTION):", *lines, "", *experiments, ""])


def _config_dir(arguments: Sequence[str]) -> str | None:
    """The value of ``--config-dir`` before parsing: help lists its groups too."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument in ("--config-dir", "-cd"):
            return following
        if argument.startswith("--config-dir="):
            return argument.split("=", 1)[1]
    return None
