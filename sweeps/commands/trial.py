"""``lorasweep trial``: one configuration, without Ray."""

from sweeps.commands.composing import composed, composing_parser


def main(arguments: list[str]) -> int:
    description = (
        "Train and score one configuration, without Ray: the first of search.start_from, or the config's own values."
    )
    sweep = composed(composing_parser("trial", description, arguments).read(arguments))
    if sweep is None:
        return 0
    from sweeps.single_trial import run_trial

    return run_trial(sweep)
