"""The subcommands of ``lorasweep``, each a module with ``main(arguments) -> exit code``; ``sweeps/cli.py`` lists them."""
