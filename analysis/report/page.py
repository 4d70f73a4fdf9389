"""The report's parts put into its template, as one file.

Everything is inlined: style, script, Plotly, and the figures as JSON that the script draws. A policy in the page
forbids all network access, so that nothing which is added later can ask for anything.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from analysis.bias_sets import HEADLINE
from analysis.errors import FolderError, LorasweepError
from analysis.finals import read_finals
from analysis.finals import report as report_finals
from analysis.folder import MetricsRow, State, SweepFolder, atomic_write
from analysis.leaderboard.ranking import Ranking, ranked
from analysis.leaderboard.verdict import UNTUNED, pays, verdict
from analysis.metrics import METRICS, as_shown
from analysis.report import figures, gather, insights
from analysis.report.optuna_study import paths
from analysis.report.reproduce import command
from analysis.rows import Row

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plot:
    """A figure and what stands beside it.

    Attributes:
        name: its id in the page.
        title: heading.
        summary: the same in words, for those who do not see it.
        figure: Plotly's JSON.
    """

    name: str
    title: str
    summary: str
    figure: str


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
    manifest = gather.manifest_of(folder)
    curves = gather.evaluations(folder, ranking.rows)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    best = _best(ranking.rows)
    told = verdict(folder, ranking.rows, ranking.judgement).splitlines()
    return environment.get_template("template.html.j2").render(
        name=folder.name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        best=best,
        headline=_headline(folder, ranking, best),
        best_values=_values(best) if best else "",
        answer=told[:2],
        notes=[*told[2:], *ranking.notes],
        tiles=_tiles(ranking, best),
        table=_table(ranking),
        statuses=sorted({row.status for row in ranking.rows}),
        **_parts(folder, ranking, manifest, curves, best),
        style=Markup((HERE / "style.css").read_text()),
        script=Markup((HERE / "page.js").read_text()),
        plotly=Markup(get_plotlyjs()),
    )


def _best(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.kind == "trial" and row.status == State.COMPLETED and row.final), None)


def _headline(folder: SweepFolder, ranking: Ranking, best: Row | None) -> tuple[str, str]:
    """What to do, before and after the best trial's name."""
    if best is None:
        return "Nothing to take yet", ""
    if pays(folder, ranking.rows) is False:
        return "Fine-tuning is not shown to pay; of the trials,", "is best"
    if ranking.judgement is not None and ranking.judgement.winner is None:
        return "No clear winner;", "scores best"
    return "Take", ""


def _values(row: Row) -> str:
    return " · ".join(
        f"{figures.axis_name(path)} {insights.shown(value)}" for path, value in row.config.items() if value is not None
    )


def _tiles(ranking: Ranking, best: Row | None) -> list[tuple[str, str]]:
    trials = [row for row in ranking.rows if row.kind == "trial"]
    counts = {
        state: sum(row.status == state for row in trials) for state in dict.fromkeys(row.status for row in trials)
    }
    ended = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts.items())
    tiles = [(str(len(trials)), f"trials: {ended}" if ended else "trials")]
    if best is not None:
        spread = f", 95 % interval {best.low:.3f} – {best.high:.3f}" if math.isfinite(best.low) else ""
        tiles.append((_number(best.objective), f"score of {best.trial_id}{spread}"))
        tiles.append((str(best.n_items), "validation items"))
    corrected = ranking.judgement.corrected if ranking.judgement else {}
    if "objective" in corrected:
        tiles.append((_number(corrected["objective"]), "score to expect on new items"))
    return tiles


def _parts(
    folder: SweepFolder,
    ranking: Ranking,
    manifest: Mapping[str, Any],
    curves: Mapping[str, Sequence[MetricsRow]],
    best: Row | None,
) -> dict[str, Any]:
    """The sections below the leaderboard; each plot is left out, with the reason, where its data is not there."""
    rows = ranking.rows
    trials = [row for row in rows if row.kind == "trial"]
    baselines = [row for row in rows if row.kind == "baseline"]
    untuned = next((row for row in baselines if row.trial_id == UNTUNED), baselines[0] if baselines else None)
    objective = ranking.objective
    by = insights.basis(trials, curves, objective.score)
    space = manifest.get("space") if isinstance(manifest.get("space"), Mapping) else {}
    found, study = insights.importance_of(folder.name, trials, space or {}, by)
    searched = paths(trials)
    metrics = [
        name for name in METRICS if any(name in row.metrics for row in rows) and METRICS[name].better is not None
    ]
    plots: dict[str, Plot] = {}
    absent: dict[str, str] = {}

    def add(name: str, title: str, summary: str, make: Callable[[], Any], why_not: str = "") -> None:
        if why_not:
            absent[name] = why_not
            return
        try:
            plots[name] = Plot(name, title, summary, _json(make()))
        except (LorasweepError, OSError, KeyError, ValueError) as error:
            absent[name] = str(error)

    scored = [row for row in rows if math.isfinite(row.objective)]
    nothing = "" if scored else "No trial has been scored yet."
    if len(objective.terms) > 1:
        first, second = objective.terms[:2]
        bias = next((term for term in objective.terms if term.metric.startswith("bias.")), None)
        second = bias or second
        front = [row.trial_id for row in rows if row.front == 1]
        add(
            "pareto",
            f"{first.metric} and {second.metric}",
            f"On the Pareto front of all {len(objective.terms)} terms: {_some(front)}. No other completed row is as"
            " good in all of them and better in one.",
            lambda: figures.pareto(rows, first, second),
            nothing,
        )
    else:
        add(
            "pareto",
            f"{objective.terms[0].metric} and training time",
            "The objective has one term, so there is no front of several: each trial's score by the seconds it took.",
            lambda: figures.quality_cost(rows, objective.terms[0]),
            nothing,
        )
    add(
        "curves",
        "Learning curves by rung",
        f"{len(curves)} trials, each a line over optimiser steps"
        + (f" (the first {figures.MOST_CURVES} of the leaderboard)" if len(curves) > figures.MOST_CURVES else "")
        + f". {sum(r.status == State.STOPPED_EARLY for r in trials)} were stopped early, marked with a cross.",
        lambda: figures.curves(rows, curves, objective),
        "" if any(curves.values()) else "No rung has been reached yet.",
    )
    add(
        "parallel",
        "Parallel coordinates",
        f"{len(study.get_trials(deepcopy=False))} trials by {by.words}, each a line through its searched values,"
        " the brighter the better.",
        lambda: figures.parallel(study),
        ""
        if len(study.get_trials(deepcopy=False)) > 1 and searched
        else "Too few trials were scored for lines to compare.",
    )
    order = ", ".join(f"{figures.axis_name(k)} {100 * v:.0f} %" for k, v in found.shares.items())
    add(
        "importance",
        "Importance of what was searched",
        f"{found.method} over {found.trials} trials, by {found.basis}: {order}.",
        lambda: figures.importance(found),
        "" if found.shares else found.warning,
    )
    both = [r for r in trials if r.config.get("lora.rank") is not None and r.config.get("optim.lr") is not None]
    lost = insights.diverged(trials)
    add(
        "rank_rate",
        "Rank and learning rate",
        f"{len(both)} trials by learning rate and rank, coloured by {by.words}. "
        + (f"Diverged or out of memory: {_some([r.trial_id for r in lost])}." if lost else "None diverged."),
        lambda: figures.rank_by_rate(trials, by.values),
        "" if both else "Rank and learning rate were not searched together.",
    )
    effects = insights.effects(trials, by, metrics)
    if "precision" in effects:
        add(
            "precision",
            "Precision",
            "; ".join(
                f"{lv.label}: {lv.trials} trials, median {_medians(lv, objective.terms[0].metric)}"
                for lv in effects["precision"]
            )
            + f" (by {by.words}). Trials differ in other values too: a difference here is a hint.",
            lambda: figures.by_level(trials, "precision", by.values),
            nothing,
        )
    else:
        absent["precision"] = "One precision only: nothing to compare."
    _add_bias(folder, best, untuned, add)
    confusions: list[tuple[Plot, dict[str, Any]]] = []
    for row in [best, untuned]:
        if row is None or not row.final:
            continue
        try:
            counts, labels = gather.confusion(folder, row, _labels(manifest))
        except LorasweepError as error:
            absent[f"confusion_{row.trial_id}"] = str(error)
            continue
        name = f"confusion_{len(confusions)}"
        right, n = sum(counts[i][i] for i in range(len(labels))), sum(map(sum, counts))
        add(
            name,
            row.trial_id,
            f"{right} of {n} items right. Most confused: {_most_confused(counts, labels)}.",
            partial(figures.confusion, counts, labels),
        )
        if name in plots:
            confusions.append((plots[name], _matrix(counts, labels)))
    card, label_counts = gather.data_card(folder, manifest, best or untuned)
    return {
        "plots": plots,
        "absent": absent,
        "confusions": confusions,
        "importance": found,
        "effects": [
            (figures.axis_name(path), [_effect(lv, metrics) for lv in levels]) for path, levels in effects.items()
        ],
        "effect_metrics": [METRICS[name].head for name in metrics],
        "effect_basis": by.words,
        "diverged": [(row.trial_id, row.status.replace("_", " "), row.step, _values(row), row.reason) for row in lost],
        "cost": gather.cost(folder, manifest, rows, curves),
        "data_card": card,
        "label_counts": label_counts,
        "run_facts": gather.run_facts(manifest),
        "reproduce": [(row.rank, row.trial_id, text) for row in rows if (text := command(manifest, row))],
        "finals": report_finals(finals) if (finals := read_finals(folder)).finalists else "",
        "sweep_command": " ".join(map(str, manifest.get("command") or [])),
    }


def _add_bias(folder: SweepFolder, best: Row | None, untuned: Row | None, add: Callable[..., None]) -> None:
    shares = {}
    for row in (best, untuned):
        if row is not None:
            try:
                shares[row.trial_id] = gather.bias_shares(folder, row)
            except (LorasweepError, KeyError):
                continue
    if best is None or best.trial_id not in shares:
        why_not = f"Bias was not measured by category ({HEADLINE.title}) in this sweep."
        add("bias", "Bias by category", "", None, why_not)
        return
    words = []
    for category, (share, error, n) in sorted(shares[best.trial_id].items()):
        beside = shares.get(UNTUNED, {}).get(category)
        words.append(
            f"{category} {share:.0f} % ± {error:.0f} of {n}" + (f" (untuned {beside[0]:.0f} %)" if beside else "")
        )
    add(
        "bias",
        "Bias by category",
        f"{HEADLINE.title}, 50 % shows no preference; {best.trial_id}: {'; '.join(words)}. Few pairs a category: errors"
        " are large, and this warns rather than certifies.",
        lambda: figures.bias_by_category(shares),
    )


def _table(ranking: Ranking) -> dict[str, Any]:
    """Heads and rows of the leaderboard. A cell is (text, what to sort by)."""
    rows = ranking.rows
    metrics = [name for name in METRICS if any(name in row.metrics for row in rows)]
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
    lines = []
    for row in rows:
        spread = f"{row.low:.3f} – {row.high:.3f}" if math.isfinite(row.low) else "–"
        cells = [
            _cell(f"{row.rank}{' =' if row.tied else ''}", row.rank),
            _cell(row.trial_id, row.trial_id),
            _cell(row.status.replace("_", " ") + (" !" if row.broken else ""), row.status),
            _cell(_number(row.objective), row.objective),
            _cell(spread, row.low),
            *(
                _cell(as_shown(name, row.metrics.get(name, math.nan), "–"), row.metrics.get(name, math.nan))
                for name in metrics
            ),
            *(
                _cell("–" if row.config.get(p) is None else insights.shown(row.config[p]), row.config.get(p))
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
        "tied": any(row.tied for row in rows),
        "broken": any(row.broken for row in rows),
    }


def _cell(text: str, key: Any) -> tuple[str, str]:
    if key is None or (isinstance(key, float) and not math.isfinite(key)):
        return text, ""
    return text, str(key)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _medians(level: insights.Level, metric: str) -> str:
    return f"{metric} {_number(level.medians.get(metric, math.nan))}"


def _effect(level: insights.Level, metrics: Sequence[str]) -> dict[str, Any]:
    ended = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in level.ended.items())
    medians = [as_shown(name, level.medians[name], "–") for name in metrics]
    return {
        "label": level.label,
        "trials": level.trials,
        "ended": ended,
        "best": _number(level.best),
        "medians": medians,
    }


def _labels(manifest: Mapping[str, Any]) -> list[str]:
    data = manifest.get("data")
    labels = data.get("labels") if isinstance(data, Mapping) else None
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _most_confused(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    wrong = [(n, labels[i], labels[j]) for i, line in enumerate(counts) for j, n in enumerate(line) if i != j and n]
    if not wrong:
        return "none"
    n, label, told = max(wrong)
    return f"{label} taken for {told}, {n} times"


def _matrix(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> dict[str, Any]:
    return {"labels": labels, "lines": list(zip(labels, counts, strict=True))}


def _some(names: Sequence[str], most: int = 8) -> str:
    return (
        ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"
    )


def _json(figure: Any) -> str:
    """For a script element: nothing in it can end the element."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


__all__ = ["Plot", "render", "write"]
