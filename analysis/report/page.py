"""``report.html``: the answer, the leaderboard and the sections put into a template, as one file.

Everything is inlined: style, script, Plotly, and the figures as JSON that the script draws. A policy in the page
forbids all network access, so that nothing which is added later can ask for anything.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.errors import FolderError
from analysis.folder import SweepFolder, atomic_write
from analysis.leaderboard.ranking import Ranking, ranked
from analysis.leaderboard.seeds import counted, spread, with_seeds
from analysis.leaderboard.table import asked_first
from analysis.leaderboard.transfer import agreement_sentence
from analysis.leaderboard.verdict import beats_baselines, verdict
from analysis.metrics import METRICS, as_shown
from analysis.report import figures, gather, insights
from analysis.report.sections import ReportData, page_sections, values_text
from analysis.rows import Row, best_trial, sweep_yaml
from analysis.text.visible import visible

HERE = Path(__file__).parent


def write(folder: SweepFolder, out: Path | None = None) -> Path:
    """Write ``report.html`` of a sweep, running or finished.

    Args:
        folder: the sweep's.
        out: where to; in the sweep folder where it is None.

    Raises:
        FolderError: where ``sweep.yaml`` cannot be read, or the file cannot be written.
    """
    page = render(folder)
    to = out or folder.root / "report.html"
    try:
        if out is None:
            folder.write(to, page)
        else:
            atomic_write(to, page)
    except OSError as error:
        raise FolderError(
            f"{to}: cannot be written ({error.strerror or error}). Choose another file: --out FILE"
        ) from None
    return to


def render(folder: SweepFolder) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    ranking = ranked(folder)
    curves = gather.evaluations(folder, ranking.rows)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # all but what is markup already
    )  # fmt: skip
    best = best_trial(ranking.rows)
    sentences = verdict(folder, ranking.rows, ranking.judgement).splitlines()
    return environment.get_template("template.html.j2").render(
        name=folder.name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        best=best,
        headline=_headline(folder, ranking, best),
        best_values=values_text(best) if best else "",
        answer=sentences[:2],
        notes=list(filter(None, [*sentences[2:], *ranking.notes, agreement_sentence(folder, ranking.rows)])),
        tiles=_tiles(ranking, best),
        table=_table(ranking),
        statuses=sorted({row.status for row in ranking.rows}),
        **page_sections(ReportData(folder, ranking, sweep_yaml(folder), curves, best)),
        style=Markup((HERE / "style.css").read_text()),
        script=Markup((HERE / "page.js").read_text()),
        plotly=Markup(get_plotlyjs()),
    )


def _headline(folder: SweepFolder, ranking: Ranking, best: Row | None) -> tuple[str, str]:
    """What to do, before and after the best trial's name."""
    if best is None:
        return "Nothing to take yet", ""
    if beats_baselines(folder, ranking.rows, ranking.judgement) is False:
        return "Fine-tuning is not shown to pay; of the trials,", "is best"
    if ranking.judgement is not None and ranking.judgement.winner is None:
        return "No clear winner;", "scores best"
    return "Take", ""


def _tiles(ranking: Ranking, best: Row | None) -> list[tuple[str, str]]:
    trials = [row for row in ranking.rows if row.kind == "trial"]
    counts = {
        state: sum(row.status == state for row in trials) for state in dict.fromkeys(row.status for row in trials)
    }
    ended = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts.items())
    number, words = counted(trials).split(" ", 1)
    tiles = [(number, f"{words}: {ended}" if ended else words)]
    if best is not None:
        interval = f", 95 % interval {best.low:.3f} – {best.high:.3f}" if math.isfinite(best.low) else ""
        seeds = f", mean of {len(best.seeds)} seeds ± {spread(best):.3f}" if len(best.seeds) > 1 else ""
        tiles.append((figures.score_text(best.objective), f"score of {best.trial_id}{seeds}{interval}"))
        tiles.append((str(best.n_items), "validation items"))
    corrected = ranking.judgement.corrected if ranking.judgement else {}
    if "objective" in corrected:
        tiles.append((figures.score_text(corrected["objective"]), "score to expect on new items"))
    return tiles


def _table(ranking: Ranking) -> dict[str, Any]:
    """Heads and rows of the leaderboard. A cell is (text, what to sort by)."""
    rows = ranking.rows
    metrics = asked_first(rows, [*ranking.by, *(term.metric for term in ranking.objective.terms)])
    searched = list(dict.fromkeys(path for row in rows for path in row.config))
    heads = [
        ("#", "rank"),
        ("Trial", "trial"),
        ("Outcome", "how it ended"),
        ("Score", "objective, higher is better"),
        ("95 %", "interval of the score"),
    ]
    heads += [(METRICS[name].head, name) for name in metrics]
    heads += [(path.rsplit(".", 1)[-1].replace("_", " "), path) for path in searched]
    heads += [
        ("Step", "of the checkpoint that was scored"),
        ("Items", "validation items"),
        ("Seconds", "until it was scored"),
    ]
    lines, rank = [], 0
    for row in with_seeds(rows):
        interval = f"{row.low:.3f} – {row.high:.3f}" if math.isfinite(row.low) else "–"
        seed, deviation = row.kind == "seed", spread(row)
        rank = rank if seed else row.rank  # seeds stay below their configuration
        cells = [
            _cell("" if seed else f"{row.rank}{' =' if row.tied else ''}", rank),
            _cell(f"· {row.trial_id}" if seed else row.trial_id, row.trial_id),
            _cell(row.status.replace("_", " ") + (" !" if row.broken else ""), row.status),
            _cell(
                figures.score_text(row.objective) + (f" ± {deviation:.3f}" if math.isfinite(deviation) else ""),
                row.objective,
            ),
            _cell(interval, row.low),
            *(
                _cell(as_shown(name, row.metrics.get(name, math.nan), "–"), row.metrics.get(name, math.nan))
                for name in metrics
            ),
            *(
                _cell("–" if row.config.get(p) is None else insights.short_value(row.config[p]), row.config.get(p))
                for p in searched
            ),
            _cell(str(row.step), row.step),
            _cell(str(row.n_items or "–"), row.n_items),
            _cell(f"{row.seconds:.0f}" if math.isfinite(row.seconds) else "–", row.seconds),
        ]
        lines.append({"cells": cells, "row": row})
    return {
        "heads": heads,
        "rows": lines,
        "seeds": any(len(row.seeds) + len(row.uncounted) > 1 for row in rows),
        "tied": any(row.tied for row in rows),
        "broken": any(row.broken for row in rows),
    }


def _cell(text: str, key: Any) -> tuple[str, str]:
    if key is None or (isinstance(key, float) and not math.isfinite(key)):
        return text, ""
    return text, str(key)
