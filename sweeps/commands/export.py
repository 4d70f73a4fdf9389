"""``lorasweep export``: a trial's adapter, or the merged model."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "export",
        "Write a trial's adapter for plain PEFT, or the merged model for plain transformers.",
        "examples:\n  lorasweep export runs/quickstart --to adapter\n"
        "  lorasweep export runs/quickstart t0003 --to model --merge\n",
    )
    parser.add_sweep_folder()
    parser.add_argument("trial", nargs="?", metavar="TRIAL", help="trial id, such as t0003; the best one if left out")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the base model, and write that")
    options = parser.read(arguments)
    from sweeps.export import export

    export(options.run, options.trial, options.to, options.merge)
    return 0
