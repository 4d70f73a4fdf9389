"""``lorasweep enqueue``: give a sweep a point to try next."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "enqueue",
        "Try a point next, in a running sweep or when a stopped one goes on. It counts as one of search.trials.",
        "Keys that the point leaves out are sampled.\n\n"
        "example:\n  lorasweep enqueue runs/quickstart lora.rank=16 optim.lr=3e-4\n",
    )
    parser.add_sweep_folder()
    parser.add_argument("values", nargs="+", metavar="KEY=VALUE", help="of the search space")
    options = parser.read(arguments)
    from analysis.folder import SweepFolder
    from sweeps.commands.steering import enqueue

    print(enqueue(SweepFolder.open(options.run), options.values))
    return 0
