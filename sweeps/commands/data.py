"""``lorasweep data``: rows as the model sees them, token lengths and labels, without loading the model."""

from analysis.errors import ConfigError
from sweeps.commands.composing import composed, composing_parser


def main(arguments: list[str]) -> int:
    description = (
        "Show the first rows as the model sees them, with the tokens that bear loss told apart; how long rows are, how"
        " many are cut, and how many there are of each label. Only the tokenizer is loaded."
    )
    parser = composing_parser("data", description, arguments)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show (default 3)")
    parser.add_argument("--split", choices=["train", "validation"], default="train", help="of which the rows are shown")
    options = parser.read(arguments)
    if options.rows < 0:
        raise ConfigError(f"--rows {options.rows}: expected a number of rows, 0 or more.")
    sweep = composed(options)
    if sweep is None:
        return 0
    from sweeps.checks.length import asked_about
    from sweeps.checks.show_data import show_data
    from trainer.config import PRECISIONS

    for note in sweep.notes:
        print(note)
    show_data(asked_about(sweep.on_machine(PRECISIONS)), options.split, options.rows)
    return 0
