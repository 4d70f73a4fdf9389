"""The report's section of written answers: the best trial's beside the baselines' and the reference."""

from dataclasses import dataclass
from typing import Any

from analysis import answers
from analysis.answers import ADDED, MISSING, PREFIX, SAME, Answers, Written, differences, shortened
from analysis.folder import SweepFolder
from analysis.metrics import METRICS, as_shown
from analysis.report.gather import duration
from analysis.text.visible import visible

MOST = 200  # items on the page
_PROMPT = 600  # characters of a prompt before it is folded


@dataclass(frozen=True)
class Section:
    """What the template shows.

    Attributes:
        caption: who wrote, how many items there are, and how they are ordered.
        heads: of the columns of answers.
        lines: one an item: prompt (short, whole), reference, and each answer with its figures.
    """

    caption: str
    heads: list[str]
    lines: list[dict[str, Any]]


def section(written: Written, metrics: list[str]) -> Section | str:
    """The answers to show; a sentence where nobody wrote any.

    Args:
        written: of the sweep.
        metrics: that rank it, the first first.
    """
    shown = written.chosen()
    if shown is None:
        return f"No answers: {answers.how_to_write(written.folder)}"
    beside = written.baselines(shown)
    figure = answers.ranking_figure(shown, metrics)
    items = answers.worst_first(shown, figure, beside)
    lines = []
    for item in items[:MOST]:
        of_reference = answers.differences(item.reference, _text(shown, item.places[0]))[0]
        lines.append(
            {
                "item": visible(item.item_id),
                "prompt": visible(shortened(item.prompt, _PROMPT)),
                "whole": visible(item.prompt) if len(item.prompt) > _PROMPT else "",
                "reference": _shown(of_reference),
                "answers": [
                    _answer(table, place, item.reference)
                    for table, place in zip([shown, *beside], item.places, strict=True)
                ],
            }
        )
    part = f"the worst {MOST} of {len(items)} items" if len(items) > MOST else f"{len(items)} items"
    rows = "test" if shown.split == "test" else "validation"
    caption = (
        f"What {shown.name} wrote at step {shown.step}, {part} of the {rows} rows, the worst in {figure} first. Words"
        " that an answer lacks are underlined in the reference; words that the reference has not are marked in the"
        " answer."
    )
    if seconds := _seconds(written.folder):
        caption += f" Writing all answers of the trials and baselines took {duration(seconds)} of the devices' time."
    return Section(visible(caption), [visible(table.name) for table in (shown, *beside)], lines)


def _seconds(folder: SweepFolder) -> float:
    """That all trials and baselines of a sweep spent on writing answers."""
    rows = [row for files in (*folder.trials(), *folder.baselines()) for row in files.read_metrics()]
    return sum(row.answer_seconds for row in rows if isinstance(row.answer_seconds, int | float))


def _answer(table: Answers, place: int | None, reference: str) -> dict[str, Any]:
    if place is None:
        return {"pieces": [(SAME, "did not answer this item")], "figures": ""}
    pieces = differences(reference, table.text(place))[1]
    figures = [f"{visible(name)} {_number(name, value)}" for name, value in table.values(place).items()]
    figures += ["cut off"] if table.get("finished", place) is False else []
    return {"pieces": _shown(pieces), "figures": " · ".join(figures)}


def _text(table: Answers, place: int | None) -> str:
    return "" if place is None else table.text(place)


def _shown(pieces: list[answers.Piece]) -> list[answers.Piece]:
    """Pieces as the template marks them: ``del``, ``ins`` or plain."""
    tags = {MISSING: "del", ADDED: "ins"}
    return [(tags.get(kind, ""), visible(part)) for kind, part in pieces]


def _number(figure: str, value: float) -> str:
    return as_shown(PREFIX + figure, value) if PREFIX + figure in METRICS else f"{value:.3g}"
