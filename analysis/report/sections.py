"""The sections of the report below its leaderboard: plots with their words, tables, and facts.

``page_sections`` gives what ``template.html.j2`` calls by name. Each plot has a function of its own here, which says in
words what ``analysis/report/figures.py`` draws.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from analysis.answers import Written
from analysis.bias_sets import HEADLINE
from analysis.errors import LorasweepError
from analysis.finals import read_finals
from analysis.finals import report as report_finals
from analysis.folder import MetricsRow, State, SweepFolder
from analysis.leaderboard.baselines import UNTUNED
from analysis.leaderboard.ranking import Ranking
from analysis.leaderboard.seeds import best_seed, runs
from analysis.metrics import METRICS, as_shown
from analysis.report import figures, gather, insights, written
from analysis.report.optuna_study import paths
from analysis.report.reproduce import command
from analysis.rows import Row
from analysis.text.listing import listed

if TYPE_CHECKING:
    import optuna

_NO_SCORE = "No trial has been scored yet."


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


@dataclass
class Plots:
    """The plots of a page.

    Attributes:
        drawn: name → plot, in the order of drawing.
        absent: name → why there is no such plot, a sentence for the reader.
    """

    drawn: dict[str, Plot] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, title: str, summary: str, draw: Callable[[], Any], why_not: str = "") -> None:
        """Draw a plot, or note why there is none.

        Args:
            name, title, summary: of the plot.
            draw: makes the Plotly figure. A fault of the data in it leaves the plot out.
            why_not: why it cannot be drawn; empty where it can.
        """
        if why_not:
            self.absent[name] = why_not
            return
        try:
            self.drawn[name] = Plot(name, title, summary, figure_json(draw()))
        except (LorasweepError, OSError, KeyError, ValueError) as error:
            self.absent[name] = str(error)


@dataclass(frozen=True)
class ReportData:
    """What the sections are made from.

    Attributes:
        folder: the sweep's.
        ranking: its rows, ranked and compared.
        manifest: ``sweep.yaml``.
        curves: trial id → its evaluations.
        best: the best completed trial, if any.
    """

    folder: SweepFolder
    ranking: Ranking
    manifest: Mapping[str, Any]
    curves: Mapping[str, Sequence[MetricsRow]]
    best: Row | None

    @property
    def rows(self) -> list[Row]:
        """Trials and baselines, the best first."""
        return self.ranking.rows

    @cached_property
    def trials(self) -> list[Row]:
        """The trials among them."""
        return [row for row in self.rows if row.kind == "trial"]

    @cached_property
    def untuned(self) -> Row | None:
        """The untuned model's row, or the best baseline's where that one was not scored."""
        baselines = [row for row in self.rows if row.kind == "baseline"]
        return next((row for row in baselines if row.trial_id == UNTUNED), baselines[0] if baselines else None)

    @cached_property
    def shown(self) -> Row | None:
        """The best trial; of a configuration of several seeds the seed whose adapter stands for it."""
        return best_seed(self.best) if self.best else None

    @cached_property
    def basis(self) -> insights.Basis:
        """What trials are compared by."""
        return insights.basis(self.trials, self.curves, self.ranking.objective.score)

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that some row has and of which more or less is better, in the order of tables."""
        return [
            name
            for name in METRICS
            if METRICS[name].better is not None and any(name in row.metrics for row in self.rows)
        ]

    @cached_property
    def effects(self) -> dict[str, list[insights.Level]]:
        """Searched path → the effect of its levels."""
        return insights.effects(self.trials, self.basis, self.metrics)

    @property
    def no_score(self) -> str:
        """Why a plot of scores is left out; empty where there are scores."""
        return "" if any(math.isfinite(row.objective) for row in self.rows) else _NO_SCORE


def page_sections(data: ReportData) -> dict[str, Any]:
    """Name in the template → its content, for all sections below the leaderboard."""
    plots = Plots()
    space = data.manifest.get("space")
    importance, study = insights.importance_of(
        data.folder.name, data.trials, space if isinstance(space, Mapping) else {}, data.basis
    )
    lost = insights.diverged(data.trials)
    _add_trade_off(data, plots)
    _add_curves(data, plots)
    _add_parallel(data, study, plots)
    _add_importance(importance, plots)
    _add_rank_by_rate(data, lost, plots)
    _add_precision(data, plots)
    _add_bias(data, plots)
    confusions = _add_confusions(data, plots)
    card, label_counts = gather.data_card(data.folder, data.manifest, data.best or data.untuned)
    finals = read_finals(data.folder)
    return {
        "plots": plots.drawn,
        "absent": plots.absent,
        "confusions": confusions,
        "importance": importance,
        "effects": [
            (figures.axis_name(path), [_effect(level, data.metrics) for level in levels])
            for path, levels in data.effects.items()
        ],
        "effect_metrics": [METRICS[name].head for name in data.metrics],
        "effect_basis": data.basis.words,
        "diverged": [
            (row.trial_id, row.status.replace("_", " "), row.step, values_text(row), row.reason) for row in lost
        ],
        "cost": gather.cost(data.folder, data.manifest, data.rows, data.curves),
        "data_card": card,
        "label_counts": label_counts,
        "run_facts": gather.run_facts(data.manifest),
        "reproduce": [
            (row.rank, run.trial_id, text)
            for row in data.rows
            for run in runs([row])
            if (text := command(data.manifest, run))
        ],
        "finals": report_finals(finals) if finals.finalists else "",
        "written": written.section(
            Written(data.folder, data.rows), [term.metric for term in data.ranking.objective.terms]
        ),
        "sweep_command": " ".join(map(str, data.manifest.get("command") or [])),
    }


# --- trade-offs


def _add_trade_off(data: ReportData, plots: Plots) -> None:
    """Two terms of the objective against each other, bias where it is one of them; a single term against time."""
    terms = data.ranking.objective.terms
    if len(terms) < 2:
        plots.add(
            "pareto",
            f"{terms[0].metric} and training time",
            "The objective has one term, so there is no front of several: each trial's score by the seconds it took.",
            lambda: figures.quality_cost(data.rows, terms[0]),
            data.no_score,
        )
        return
    first, second = terms[0], next((term for term in terms if term.metric.startswith("bias.")), terms[1])
    front = [row.trial_id for row in data.rows if row.front == 1]
    plots.add(
        "pareto",
        f"{first.metric} and {second.metric}",
        f"On the Pareto front of all {len(terms)} terms: {listed(front, 8)}. No other completed row is as"
        " good in all of them and better in one.",
        lambda: figures.pareto(data.rows, first, second),
        data.no_score,
    )


def _add_parallel(data: ReportData, study: "optuna.Study", plots: Plots) -> None:
    """Each trial as a line through its searched values."""
    n = len(study.get_trials(deepcopy=False))
    plots.add(
        "parallel",
        "Parallel coordinates",
        f"{n} trials by {data.basis.words}, each a line through its searched values, the brighter the better.",
        lambda: figures.parallel(study),
        "" if n > 1 and paths(data.trials) else "Too few trials were scored for lines to compare.",
    )


# --- training


def _add_curves(data: ReportData, plots: Plots) -> None:
    """Each trial's objective over its rungs."""
    curves, most = data.curves, figures.MOST_CURVES
    plots.add(
        "curves",
        "Learning curves by rung",
        f"{len(curves)} trials, each a line over optimiser steps"
        + (f" (the first {most} of the leaderboard)" if len(curves) > most else "")
        + f". {sum(row.status == State.STOPPED_EARLY for row in data.trials)} were stopped early, marked with a cross.",
        lambda: figures.curves(data.rows, curves, data.ranking.objective),
        "" if any(curves.values()) else "No rung has been reached yet.",
    )


# --- what mattered


def _add_importance(importance: insights.Importance, plots: Plots) -> None:
    """Which searched values explain the spread of scores."""
    order = ", ".join(f"{figures.axis_name(path)} {100 * share:.0f} %" for path, share in importance.shares.items())
    plots.add(
        "importance",
        "Importance of what was searched",
        f"{importance.method} over {importance.trials} trials, by {importance.basis}: {order}.",
        lambda: figures.importance(importance),
        "" if importance.shares else importance.warning,
    )


def _add_rank_by_rate(data: ReportData, lost: Sequence[Row], plots: Plots) -> None:
    """Where in rank and learning rate the good trials lie, and those that diverged."""
    both = figures.with_rank_and_rate(data.trials)
    plots.add(
        "rank_rate",
        "Rank and learning rate",
        f"{len(both)} trials by learning rate and rank, coloured by {data.basis.words}. "
        + (f"Diverged or out of memory: {listed([row.trial_id for row in lost], 8)}." if lost else "None diverged."),
        lambda: figures.rank_by_rate(data.trials, data.basis.values),
        "" if both else "Rank and learning rate were not searched together.",
    )


def _add_precision(data: ReportData, plots: Plots) -> None:
    """The trials of each precision side by side."""
    levels = data.effects.get("precision")
    if levels is None:
        plots.absent["precision"] = "One precision only: nothing to compare."
        return
    metric = data.ranking.objective.terms[0].metric
    plots.add(
        "precision",
        "Precision",
        "; ".join(
            f"{level.label}: {level.trials} trials, median {metric}"
            f" {figures.score_text(level.medians.get(metric, math.nan))}"
            for level in levels
        )
        + f" (by {data.basis.words}). Trials differ in other values too: a difference here is a hint.",
        lambda: figures.by_level(data.trials, "precision", data.basis.values),
        data.no_score,
    )


def _effect(level: insights.Level, metrics: Sequence[str]) -> dict[str, Any]:
    """A line of the table of a searched value's effect."""
    ended = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in level.ended.items())
    medians = [as_shown(name, level.medians[name], "–") for name in metrics]
    return {
        "label": level.label,
        "trials": level.trials,
        "ended": ended,
        "best": figures.score_text(level.best),
        "medians": medians,
    }


# --- bias and errors


def _add_bias(data: ReportData, plots: Plots) -> None:
    """The headline bias set by category, of the best trial and the untuned model."""
    best, shares = data.shown, {}
    for row in (best, data.untuned):
        if row is not None:
            try:
                shares[row.trial_id] = gather.bias_shares(data.folder, row)
            except (LorasweepError, KeyError):
                continue
    if best is None or best.trial_id not in shares:
        plots.absent["bias"] = f"Bias was not measured by category ({HEADLINE.title}) in this sweep."
        return
    words = []
    for category, (share, error, n) in sorted(shares[best.trial_id].items()):
        beside = shares.get(UNTUNED, {}).get(category)
        words.append(
            f"{category} {share:.0f} % ± {error:.0f} of {n}" + (f" (untuned {beside[0]:.0f} %)" if beside else "")
        )
    plots.add(
        "bias",
        "Bias by category",
        f"{HEADLINE.title}, 50 % shows no preference; {best.trial_id}: {'; '.join(words)}. Few pairs a category: errors"
        " are large, and this warns rather than certifies.",
        lambda: figures.bias_by_category(shares),
    )


def _add_confusions(data: ReportData, plots: Plots) -> list[tuple[Plot, dict[str, Any]]]:
    """A confusion matrix of the best trial and one of the untuned model. Returns each plot with its table."""
    confusions: list[tuple[Plot, dict[str, Any]]] = []
    for row in (data.shown, data.untuned):
        if row is None or not row.final:
            continue
        try:
            counts, labels = gather.confusion(data.folder, row, _labels(data.manifest))
        except LorasweepError as error:
            plots.absent[f"confusion_{row.trial_id}"] = str(error)
            continue
        name = f"confusion_{len(confusions)}"
        right, n = sum(counts[i][i] for i in range(len(labels))), sum(map(sum, counts))
        plots.add(
            name,
            row.trial_id,
            f"{right} of {n} items right. Most confused: {_most_confused(counts, labels)}.",
            partial(figures.confusion, counts, labels),
        )
        if name in plots.drawn:
            table = {"labels": labels, "lines": list(zip(labels, counts, strict=True))}
            confusions.append((plots.drawn[name], table))
    return confusions


def _labels(manifest: Mapping[str, Any]) -> list[str]:
    data = manifest.get("data")
    labels = data.get("labels") if isinstance(data, Mapping) else None
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _most_confused(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    wrong = [(n, labels[i], labels[j]) for i, line in enumerate(counts) for j, n in enumerate(line) if i != j and n]
    if not wrong:
        return "none"
    n, label, predicted = max(wrong)
    return f"{label} taken for {predicted}, {n} times"


# --- words and JSON


def values_text(row: Row) -> str:
    """A trial's searched values in one line, such as ``rank 8 · learning rate 2e-4``."""
    return " · ".join(
        f"{figures.axis_name(path)} {insights.short_value(value)}"
        for path, value in row.config.items()
        if value is not None
    )


def figure_json(figure: Any) -> str:
    """A Plotly figure as JSON for a script element: nothing in it can end the element."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
