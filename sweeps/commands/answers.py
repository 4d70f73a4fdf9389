"""``lorasweep answers RUN [TRIAL]``: what a trial wrote beside the reference and the untuned model."""

from sweeps.commands.parser import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "answers",
        "What a trial or baseline wrote: prompt, reference and answers side by side, differences marked, the worst"
        " first.",
        "examples:\n  lorasweep answers runs/support\n  lorasweep answers runs/support t0003 --against few_shot\n"
        "  lorasweep answers runs/support --by rouge_l --worst 5 --full\n",
    )
    parser.add_sweep_folder()
    parser.add_argument("trial", metavar="TRIAL", nargs="?", help="a trial or baseline; the best trial if left out")
    parser.add_argument(
        "--against",
        metavar="NAME[,NAME]",
        help="whose answers stand beside them; the untuned model's if left out, none with `none`",
    )
    parser.add_argument("--worst", metavar="N", default="20", help="how many items (20 if left out; 0: all)")
    parser.add_argument("--by", metavar="FIGURE", help="what the worst are worst in; the metric that ranks if left out")
    parser.add_argument("--full", action="store_true", help="show long prompts as a whole")
    parser.add_json()
    options = parser.read(arguments)
    from analysis.answers import Written, ranking_figure, worst_first
    from analysis.errors import ConfigError
    from analysis.folder import SweepFolder
    from analysis.leaderboard import leaderboard
    from analysis.leaderboard.verdict import judge_sentences

    if not options.worst.isdecimal():
        raise ConfigError(f"--worst {options.worst}: expected how many items to show, such as 20; 0 shows all.")
    folder = SweepFolder.open(options.run)
    rows = leaderboard.build(folder)
    written = Written(folder, rows)
    shown = written.shown(options.trial)
    names = None if options.against is None else [name for name in options.against.split(",") if name != "none"]
    beside = written.against(shown, names)
    terms = [term.metric for term in leaderboard.objective_of(folder, rows)[0].terms]
    figure = ranking_figure(shown, terms, options.by)
    items = worst_first(shown, figure, beside)[: int(options.worst) or None]
    from sweeps.display import answers

    if options.json:
        print(answers.as_json(shown, beside, items, figure))
    else:
        answers.show(shown, beside, items, figure, options.full)
        for sentence in judge_sentences(folder, rows):
            print(sentence)
    return 0
