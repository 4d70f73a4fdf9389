"""The subcommands of ``lorasweep``: modules with ``main(arguments) -> exit code``, listed in ``sweeps/cli.py``."""
