"""A sweep as W&B shows it at its best: a workspace view and a report, written as code with ``wandb-workspaces``.

Nothing here talks to W&B but ``save``. What is saved is remembered in the sweep folder, so that a second call updates
the same view and the same report instead of adding another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from analysis.folder import SweepFolder, atomic_write
from analysis.objective import Term

GROUPED_BY = ("precision", "lora.rank")
_MOST_ROWS = 25  # of the leaderboard in the report


@dataclass(frozen=True)
class Shown:
    """What the views are about.

    Attributes:
        entity, project, group: where the runs are.
        searched: dotted config paths, as W&B's config has them.
        log: those of them that are searched on a logarithmic scale.
        terms: of the objective; its metrics are what is plotted.
        answer: sentences that the report opens with.
        columns, rows: the leaderboard, ranked.
    """

    entity: str
    project: str
    group: str
    searched: tuple[str, ...]
    log: tuple[str, ...]
    terms: tuple[Term, ...]
    answer: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def workspace(shown: Shown) -> ws.Workspace:
    """The view: search, trade-offs and learning curves of this sweep's trials, grouped by precision and rank."""
    return ws.Workspace(
        entity=shown.entity,
        project=shown.project,
        name=f"lorasweep: {shown.group}",
        sections=[
            ws.Section(name="What mattered", is_open=True, panels=_search_panels(shown)),
            ws.Section(name="Trade-offs", is_open=True, panels=_scatters(shown)),
            ws.Section(name="Learning curves", is_open=True, panels=_curves(shown)),
        ],
        settings=ws.WorkspaceSettings(x_axis="step"),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == shown.group, ws.Metric("JobType") == "trial"],
            groupby=[ws.Config(path) for path in GROUPED_BY if path in shown.searched],
            order=[ws.Ordering(ws.Summary("objective"), ascending=False)],
            pinned_columns=["summary:objective", "summary:state", *(f"summary:{t.metric}" for t in shown.terms)],
        ),
    )


def report(shown: Shown) -> wr.Report:
    """The report: the answer, the leaderboard, and the same panels over the sweep's trials."""

    def grid(panels: Sequence[Any], grouped: bool = False) -> wr.PanelGrid:
        runs = wr.Runset(
            entity=shown.entity,
            project=shown.project,
            name=shown.group,
            filters=f"Group = {json.dumps(shown.group)} and JobType = 'trial'",
            groupby=[f"config.{path}" for path in GROUPED_BY if grouped and path in shown.searched],
        )
        return wr.PanelGrid(runsets=[runs], panels=list(panels))

    return wr.Report(
        entity=shown.entity,
        project=shown.project,
        title=f"Sweep {shown.group}",
        description=shown.answer[0] if shown.answer else "",
        blocks=[
            *(wr.P(sentence) for sentence in shown.answer),
            wr.H1("Leaderboard"),
            wr.MarkdownBlock(_markdown(shown)),
            wr.H1("What mattered"),
            grid(_search_panels(shown)),
            wr.H1("Trade-offs"),
            grid(_scatters(shown)),
            wr.H1("Learning curves"),
            grid(_curves(shown)),
            wr.H1("Trials compared by precision and rank"),
            grid([wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=12))], grouped=True),
        ],
    )


def save(folder: SweepFolder, view: ws.Workspace, written: wr.Report) -> list[str]:
    """Create both at W&B, or update those that an earlier call created. Returns their addresses."""
    noted = folder.root / "wandb" / "views.json"
    try:
        known = json.loads(noted.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get("project") == [view.entity, view.project]:
        view._internal_name, view._internal_id, written.id = known["view"], known["view_id"], known["report_id"]
    view.save()
    written.save()
    atomic_write(
        noted,
        json.dumps(
            {
                "project": [view.entity, view.project],
                "view": view._internal_name,
                "view_id": view._internal_id,
                "report_id": written.id,
            }
        ),
    )
    return [view.url, written.url]


def specification(shown: Shown) -> dict[str, Any]:
    """What would be saved, as plain JSON. W&B is not asked: the report's runs then name no project."""
    models = {
        "workspace": workspace(shown)._to_model(),
        "report": report(replace(shown, entity="", project=""))._to_model(),
    }
    return {
        name: json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)) for name, model in models.items()
    }


def _search_panels(shown: Shown) -> list[Any]:
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(path), display_name=path, log=path in shown.log or None)
        for path in shown.searched
    ]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(t.metric)) for t in shown.terms]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("objective")))
    wide = wr.Layout(w=24, h=10)
    return [
        wr.ParallelCoordinatesPlot(title="Searched values and scores", columns=columns, layout=wide),
        wr.ParameterImportancePlot(with_respect_to="objective", layout=wr.Layout(y=10, w=12, h=8)),
        wr.RunComparer(diff_only="split", layout=wr.Layout(x=12, y=10, w=12, h=8)),
    ]


def _scatters(shown: Shown) -> list[Any]:
    """The objective's first metric against each other one, and against time.

    The Pareto front is W&B's running best: over x ascending where less of x is better. A metric with a target, or of
    which more is better, is plotted without it, as W&B has no front that runs the other way.
    """
    first, *others = shown.terms
    pairs = [(term.metric, term.direction == "min") for term in others] + [("seconds", True)]
    panels = []
    for i, (metric, front) in enumerate(pairs):
        panels.append(
            wr.ScatterPlot(
                title=f"{first.metric} against {metric}",
                x=wr.SummaryMetric(metric),
                y=wr.SummaryMetric(first.metric),
                running_ymax=(front and first.direction == "max") or None,
                running_ymin=(front and first.direction == "min") or None,
                layout=wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8),
            )
        )
    return panels


def _curves(shown: Shown) -> list[Any]:
    names = [*dict.fromkeys(t.metric for t in shown.terms), "objective"]
    return [
        wr.LinePlot(title=name, x="step", y=[name], layout=wr.Layout(x=8 * (i % 3), y=6 * (i // 3), w=8, h=6))
        for i, name in enumerate(names)
    ]


def _markdown(shown: Shown) -> str:
    lines = [shown.columns, tuple("---" for _ in shown.columns), *shown.rows[:_MOST_ROWS]]
    more = len(shown.rows) - _MOST_ROWS
    text = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    return f"{text}\n\n{more} more in leaderboard.csv" if more > 0 else text


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
