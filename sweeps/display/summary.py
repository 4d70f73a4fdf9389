"""What a sweep prints at its end: its leaderboard, and the commands to use next. Imports neither Ray nor torch."""

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.folder import State, SweepFolder
from analysis.leaderboard import leaderboard
from analysis.leaderboard.leaderboard import Row
from analysis.leaderboard.seeds import best_seed
from analysis.leaderboard.transfer import agreement_sentence
from analysis.rows import best_trial
from analysis.text.visible import single_line, visible
from sweeps.process.console import SafeConsole
from sweeps.process.installation import program, shell_path
from sweeps.process.terminal import wrapped

if TYPE_CHECKING:
    from analysis.leaderboard.compare_sweeps import Comparison
    from analysis.statistics.comparison import Judgement


def show_leaderboard(
    folder: SweepFolder, rows: Sequence[Row], by: Sequence[str] = (), judgement: "Judgement | None" = None
) -> None:
    """Print ranked rows and the verdict on them: a table on a terminal, plain text in a pipe.

    Args:
        folder: of the sweep.
        rows: ranked.
        by: metrics that they are ranked by; empty for the objective.
        judgement: how sure the ranking is.
    """
    width = shutil.get_terminal_size((120, 24)).columns
    terms = [term.metric for term in leaderboard.objective_of(folder, rows)[0].terms]
    if sys.stdout.isatty():
        SafeConsole(width=width).print(leaderboard.render(rows, width, by, terms))
    else:
        print(leaderboard.plain(rows, width, by, terms))
    print()
    sentences = [leaderboard.verdict(folder, rows, judgement), agreement_sentence(folder, rows)]
    said = visible("\n".join(filter(None, sentences)))
    print(wrapped(said, sys.stdout))


def show_comparison(comparison: "Comparison") -> None:
    """Print sweeps side by side: a table, what differs in their configs, and sentences."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = SafeConsole(width=shutil.get_terminal_size((120, 24)).columns)
    for head, lines in (("", comparison.table), ("config", comparison.changed)):
        if not lines:
            continue
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, name in enumerate((head, *comparison.names)):
            table.add_column(Text(single_line(name)), justify="right" if i else "left", overflow="fold")
        for name, values in lines:
            table.add_row(*(Text(single_line(cell)) for cell in (name, *values)))
        console.print(table)
        console.print()
    for sentence in comparison.sentences:
        console.print(Text(visible(sentence)))


def show_next(
    folder: SweepFolder, rows: Sequence[Row], interrupted: bool, hints: Sequence[tuple[str, str]] = ()
) -> None:
    """Print where the results are, and the commands to use next, ready to be copied.

    Args:
        folder: of the sweep.
        rows: ranked.
        interrupted: whether a resume would go on with the sweep.
        hints: of trackers: a command, such as the one that uploads W&B runs, and what it does.
    """
    shown, lorasweep = visible(shell_path(folder.where)), program()
    print(f"\nResults: {shown}/  (leaderboard.csv, trials/, sweep.yaml)")
    commands = []
    if interrupted:
        commands.append((f"{lorasweep} resume {shown}", "go on from the last checkpoints"))
    commands.append((f"{lorasweep} report {shown}", "tables and plots in one HTML file"))
    by = "accuracy" if any("accuracy" in row.metrics for row in rows) else "perplexity"
    commands.append((f"{lorasweep} rank {shown} --by {by}", "rank by another metric"))
    best = best_trial(rows)
    if best is not None:
        export = f"{lorasweep} export {shown} {best_seed(best).trial_id}"
        of = f", the best seed of {best.trial_id}" if len(best.seeds) > 1 else ""
        commands.append((f"{export} --to adapter", f"the best adapter{of}, for plain PEFT"))
        commands.append((f"{export} --to model --merge", "or merged into its base model"))
        if _has_test_rows(folder):
            commands.append((f"{lorasweep} finalize {shown} --top 3", "the best with other seeds, on the test split"))
    commands += hints
    widest = max(len(command) for command, _ in commands)
    lines = [f"  {command:<{widest}}  # {what}" for command, what in commands]
    if sys.stdout.isatty() and max(map(len, lines)) > shutil.get_terminal_size((120, 24)).columns:
        lines = [line for command, what in commands for line in (f"  # {what}", f"  {command}")]
    print("\nNext:", *lines, sep="\n")


def exit_status(rows: Sequence[Row]) -> int:
    """Of a sweep that came to its end: 1 where no trial has a score, which is said."""
    nothing = leaderboard.nothing_scored(rows)
    if nothing:
        print(f"\n{nothing}", file=sys.stderr)
    trials = [row for row in rows if row.kind == "trial"]
    over = any(row.status in (State.COMPLETED, State.STOPPED_EARLY) or row.seeds for row in trials)
    return 0 if over and not nothing else 1


def _has_test_rows(folder: SweepFolder) -> bool:
    from sweeps.store.manifest import read_manifest

    data = read_manifest(folder)["config"].get("data", {})
    return bool(data.get("test") or data.get("test_rows") or (data.get("split") or {}).get("test"))
