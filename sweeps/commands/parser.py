"""The argument parser of all subcommands."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from analysis.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that refuses unknown options with the nearest name, and takes options between overrides.

    Args:
        command: the subcommand's name.
        description: what it does, for ``--help``.
        epilog: examples and exit codes, as they stand.
    """

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"lorasweep {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_sweep_folder(self) -> None:
        """Take the folder of one sweep, as ``run``."""
        self.add_argument("run", metavar="RUN", help="sweep folder, such as runs/quickstart")

    def add_own_code(self) -> None:
        """Take ``--own-code``, as ``own_code``."""
        self.add_argument(
            "--own-code",
            action="store_true",
            help="run metrics, trackers and the like that the sweep's stored config names: they are yours",
        )

    def add_json(self) -> None:
        """Take ``--json``, as ``json``."""
        self.add_argument("--json", action="store_true", help="print JSON for other programs")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments parsed. Raises ConfigError for an option that the command does not have."""
        for argument in arguments:
            option = argument.split("=", 1)[0]
            if option in ("-m", "--multirun") and option not in self._option_string_actions:
                raise ConfigError(
                    f"{option}: Hydra's multirun is not used here. To search over values in one sweep:"
                    " 'lora.rank=choice(4,8)'. For several sweeps, one after the other, a loop of the shell:"
                    f" for m in minilm smollm2; do {self.prog} model=$m sweep.name=$m …; done"
                )
            if option.startswith("-") and len(option) > 1 and option not in self._option_string_actions:
                known = [name for name in self._option_string_actions if name.startswith("--")]
                raise ConfigError(f"{option} is not an option of `{self.prog}`. {did_you_mean(option, known)}")
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError, where argparse would exit."""
        raise ConfigError(f"{message}. See {self.prog} --help.")
