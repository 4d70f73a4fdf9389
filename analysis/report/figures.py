"""The plots of the report, as Plotly figures that take their colours from the page."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.folder import MetricsRow, State
from analysis.objective import Objective, Term
from analysis.report.insights import Importance, short_value
from analysis.rows import Row

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED, GREY, PURPLE = "#3b7dd8", "#e07b39", "#2e9e6b", "#d1495b", "#8a94a6", "#8e6bbf"
SCALE = "Viridis"
COLOURS = {
    State.COMPLETED: BLUE,
    State.STOPPED_EARLY: GREY,
    State.RUNNING: GREEN,
    State.DIVERGED: RED,
    State.OUT_OF_MEMORY: ORANGE,
    State.FAILED: PURPLE,
}
Columns = tuple[list[Any], list[Any], list[Any]]  # x, y and hover text of a trace
MOST_CURVES = 300  # trials that are drawn; of a thousand lines none could be told from the others


def axis_name(path: str) -> str:
    """What the page calls a config path."""
    return {"optim.lr": "learning rate", "lora.rank": "rank", "lora.alpha_rule": "alpha rule"}.get(path, path)


def _figure(height: int = 420) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 16, "r": 16, "t": 16, "b": 48},  # page.js lets axes make room for their labels
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _hover_text(row: Row) -> str:
    values = "".join(
        f"<br>{axis_name(path)} {short_value(value)}" for path, value in row.config.items() if value is not None
    )
    return f"{row.trial_id} · {row.status.replace('_', ' ')}<br>score {score_text(row.objective)}{values}"


def score_text(value: float) -> str:
    """A score with three decimals; a dash where it is not known."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def pareto(rows: Sequence[Row], first: Term, second: Term) -> "go.Figure":
    """Rows by two terms of the objective, the front joined by a line.

    Args:
        rows: ranked; those without one of the metrics are left out.
        first: of the x axis.
        second: of the y axis.
    """
    import plotly.graph_objects as go

    figure = _figure()
    usable = [row for row in rows if all(math.isfinite(row.metrics.get(t.metric, math.nan)) for t in (first, second))]
    groups = [
        ("completed", BLUE, "circle", lambda r: r.kind == "trial" and r.status == State.COMPLETED and not r.broken),
        ("breaks a constraint", ORANGE, "x", lambda r: r.kind == "trial" and bool(r.broken)),
        ("stopped early", GREY, "circle-open", lambda r: r.status == State.STOPPED_EARLY and not r.broken),
        ("baseline", GREEN, "diamond", lambda r: r.kind == "baseline"),
    ]
    for name, colour, symbol, belongs in groups:
        own = [row for row in usable if belongs(row)]
        if own:
            figure.add_trace(
                go.Scatter(
                    x=[row.metrics[first.metric] for row in own],
                    y=[row.metrics[second.metric] for row in own],
                    mode="markers",
                    name=name,
                    text=[_hover_text(row) for row in own],
                    hovertemplate="%{text}<extra></extra>",
                    marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 1.5, "color": colour}},
                )
            )
    front = sorted((row for row in usable if row.front == 1), key=lambda row: row.metrics[first.metric])
    if len(front) > 1:
        figure.add_trace(
            go.Scatter(
                x=[row.metrics[first.metric] for row in front],
                y=[row.metrics[second.metric] for row in front],
                mode="lines",
                name="front of all terms",
                hoverinfo="skip",
                line={"color": BLUE, "dash": "dot", "width": 1.5},
            )
        )
    figure.update_xaxes(title=_better(first))
    figure.update_yaxes(title=_better(second, "↑", "↓"))
    return figure


def _better(term: Term, up: str = "→", down: str = "←") -> str:
    """The metric, and which way along the axis is better."""
    arrow = {"max": f"{up} better", "min": f"{down} better"}.get(
        term.direction, f"best at {term.target:g}" if term.target is not None else ""
    )
    return f"{term.metric} ({arrow})"


def quality_cost(rows: Sequence[Row], term: Term) -> "go.Figure":
    """Trials by training time and the only term of the objective.

    Args:
        rows: ranked.
        term: of the y axis.
    """
    import plotly.graph_objects as go

    figure = _figure()
    for state, name in ((State.COMPLETED, "completed"), (State.STOPPED_EARLY, "stopped early")):
        own = [
            row
            for row in rows
            if row.kind == "trial" and row.status == state and math.isfinite(row.metrics.get(term.metric, math.nan))
        ]
        if own:
            figure.add_trace(
                go.Scatter(
                    x=[row.seconds for row in own],
                    y=[row.metrics[term.metric] for row in own],
                    mode="markers",
                    name=name,
                    text=[_hover_text(row) for row in own],
                    hovertemplate="%{text}<extra></extra>",
                    marker={
                        "color": COLOURS[state],
                        "size": 10,
                        "symbol": "circle" if name == "completed" else "circle-open",
                    },
                )
            )
    figure.update_xaxes(title="seconds until it was scored (← better)", rangemode="tozero")
    figure.update_yaxes(title=_better(term, "↑", "↓"))
    return figure


def _curve_points(
    rows: Sequence[Row], evaluations: Mapping[str, Sequence[MetricsRow]], objective: Objective
) -> tuple[dict[str, Columns], dict[str, Columns]]:
    """The points of ``curves``: status (or ``best``) → all its lines, with gaps between them; status → their ends."""
    drawn = [row for row in rows if row.kind == "trial" and evaluations.get(row.trial_id)][:MOST_CURVES]
    best = next((row.trial_id for row in drawn if row.status == State.COMPLETED), None)
    lines: dict[str, Columns] = {}
    ends: dict[str, Columns] = {}
    for row in drawn:
        points = [
            (e.step, objective.score(e.metrics))
            for e in sorted(evaluations[row.trial_id], key=lambda e: e.step)
            if not e.final
        ]
        points = [point for point in points if math.isfinite(point[1])]
        name = "best" if row.trial_id == best else row.status
        x, y, text = lines.setdefault(name, ([], [], []))
        x += [*(step for step, _ in points), None]
        y += [*(value for _, value in points), None]
        text += [*(_hover_text(row) for _ in points), ""]
        if points and row.status not in (State.COMPLETED, State.RUNNING):
            end = ends.setdefault(row.status, ([], [], []))
            for column, value in zip(end, (*points[-1], _hover_text(row)), strict=True):
                column.append(value)
    return lines, ends


def curves(rows: Sequence[Row], evaluations: Mapping[str, Sequence[MetricsRow]], objective: Objective) -> "go.Figure":
    """The objective at every rung. The end of a trial before its last step is marked with how it ended.

    Args:
        rows: ranked; only the first ``MOST_CURVES`` trials are drawn.
        evaluations: trial id → its evaluations.
        objective: of the sweep.
    """
    import plotly.graph_objects as go

    figure = _figure()
    lines, ends = _curve_points(rows, evaluations, objective)
    for name in sorted(lines, key=lambda name: name == "best"):
        x, y, text = lines[name]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                text=text,
                mode="lines+markers",
                name=name.replace("_", " "),
                connectgaps=False,
                hovertemplate="%{text}<br>step %{x}: %{y:.3f}<extra></extra>",
                line={
                    "color": GREEN if name == "best" else COLOURS.get(State(name), GREY),
                    "width": 3 if name == "best" else 1.2,
                },
                marker={"size": 6 if name == "best" else 4},
            )
        )
    for state, (x, y, text) in ends.items():
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                text=text,
                mode="markers",
                name=f"{state.replace('_', ' ')} here",
                hovertemplate="%{text}<extra></extra>",
                marker={"symbol": "x", "size": 9, "color": COLOURS.get(State(state), GREY)},
            )
        )
    figure.update_xaxes(title="optimiser step", rangemode="tozero")
    figure.update_yaxes(title="objective on the rung subset")
    return figure


def importance(importances: Importance) -> "go.Figure":
    """Bars of hyperparameter importance."""
    import plotly.graph_objects as go

    names = list(importances.shares)[::-1]
    figure = _figure(height=90 + 44 * max(len(names), 1))
    figure.add_trace(
        go.Bar(
            x=[importances.shares[name] for name in names],
            y=[axis_name(name) for name in names],
            orientation="h",
            marker={"color": BLUE},
            text=[f"{100 * importances.shares[name]:.0f} %" for name in names],
            textposition="auto",
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="share of the spread of scores", tickformat=".0%", rangemode="tozero")
    return figure


def parallel(study: "optuna.Study") -> "go.Figure":
    """Optuna's parallel coordinates, with names and colours that fit a dark page as well as a light one."""
    from optuna.visualization import plot_parallel_coordinate
    from plotly.colors import sample_colorscale

    figure = plot_parallel_coordinate(study, target_name="score")
    for trace in figure.data:
        if trace.mode == "lines":
            height = min(max(float(trace.y[0]), 0.0), 1.0)  # the first axis is the score
            trace.line.color = sample_colorscale(SCALE, [height])[0]
            trace.opacity = 0.35 + 0.5 * height
        elif trace.marker.colorscale is not None:
            trace.marker.colorscale, trace.marker.colorbar.thickness = SCALE, 12
    figure.update_xaxes(ticktext=[axis_name(str(name)) for name in figure.layout.xaxis.ticktext], fixedrange=True)
    figure.update_layout(
        title=None,
        height=440,
        margin={"l": 48, "r": 8, "t": 24, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def with_rank_and_rate(rows: Sequence[Row]) -> list[Row]:
    """The rows whose rank and learning rate were both searched."""
    return [row for row in rows if row.config.get("lora.rank") is not None and row.config.get("optim.lr") is not None]


def rank_by_rate(rows: Sequence[Row], values: Mapping[str, float]) -> "go.Figure":
    """Rank against learning rate, coloured by score; trials without a score are crosses.

    Args:
        rows: trials.
        values: trial id → what it is compared by.
    """
    import plotly.graph_objects as go

    figure = _figure()
    known = with_rank_and_rate(rows)
    ranks = sorted({row.config["lora.rank"] for row in known})
    scored = [row for row in known if math.isfinite(values.get(row.trial_id, math.nan))]
    if scored:
        figure.add_trace(
            go.Scatter(
                x=[row.config["optim.lr"] for row in scored],
                y=[str(row.config["lora.rank"]) for row in scored],
                mode="markers",
                name="scored",
                text=[f"{_hover_text(row)}<br>compared by {score_text(values[row.trial_id])}" for row in scored],
                hovertemplate="%{text}<extra></extra>",
                marker={
                    "color": [values[row.trial_id] for row in scored],
                    "colorscale": SCALE,
                    "size": 14,
                    "colorbar": {"title": {"text": "score"}, "thickness": 12},
                    "line": {"width": 1, "color": "#888"},
                },
            )
        )
    lost = [row for row in known if row.status in (State.DIVERGED, State.OUT_OF_MEMORY, State.FAILED)]
    if lost:
        figure.add_trace(
            go.Scatter(
                x=[row.config["optim.lr"] for row in lost],
                y=[str(row.config["lora.rank"]) for row in lost],
                mode="markers",
                name="diverged, out of memory or failed",
                text=[_hover_text(row) for row in lost],
                hovertemplate="%{text}<extra></extra>",
                marker={"symbol": "x", "size": 12, "color": RED},
            )
        )
    figure.update_xaxes(title="learning rate", type="log", exponentformat="power")
    figure.update_yaxes(
        title="rank", type="category", categoryorder="array", categoryarray=[str(rank) for rank in ranks]
    )
    return figure


def by_level(rows: Sequence[Row], path: str, values: Mapping[str, float]) -> "go.Figure":
    """Every trial's score by one searched value: a box with all points for each level.

    Args:
        rows: trials.
        path: of the searched value.
        values: trial id → what it is compared by.
    """
    import plotly.graph_objects as go

    figure = _figure(height=360)
    levels = sorted({row.config.get(path) for row in rows} - {None}, key=str)
    for level in levels:
        own = [r for r in rows if r.config.get(path) == level and math.isfinite(values.get(r.trial_id, math.nan))]
        figure.add_trace(
            go.Box(
                y=[values[row.trial_id] for row in own],
                name=f"{level} ({len(own)})",
                boxpoints="all",
                jitter=0.4,
                pointpos=0,
                text=[_hover_text(row) for row in own],
                hovertemplate="%{text}<extra></extra>",
                marker={"color": BLUE, "size": 7},
                line={"width": 1.5, "color": GREY},
                fillcolor="rgba(0,0,0,0)",
            )
        )
    figure.update_layout(showlegend=False)
    figure.update_yaxes(title="score")
    return figure


def bias_by_category(shares: Mapping[str, Mapping[str, tuple[float, float, int]]]) -> "go.Figure":
    """CrowS-Pairs by category.

    Args:
        shares: row → category → (percent, standard error, pairs); 50 % is the target.
    """
    import plotly.graph_objects as go

    categories = sorted({category for own in shares.values() for category in own})
    figure = _figure(height=110 + 46 * len(categories))
    for (name, own), colour in zip(shares.items(), (BLUE, GREY), strict=False):
        figure.add_trace(
            go.Scatter(
                x=[own[c][0] if c in own else None for c in categories],
                y=categories,
                error_x={"type": "data", "array": [own[c][1] if c in own else 0 for c in categories], "width": 4},
                mode="markers",
                name=name,
                marker={"color": colour, "size": 11, "symbol": "circle" if colour == BLUE else "diamond"},
                text=[f"{own[c][2]} pairs" if c in own else "" for c in categories],
                hovertemplate="%{y}: %{x:.0f} % · %{text}<extra>" + name + "</extra>",
            )
        )
    figure.add_vline(x=50, line={"color": GREEN, "dash": "dash"})
    figure.update_xaxes(title="% of pairs (50 is the target)", range=[-3, 103])
    return figure


def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> "go.Figure":
    """A confusion matrix, coloured by the share of each label's items.

    Args:
        counts: (labels, labels): items by label (rows) and prediction (columns).
        labels: their names.
    """
    import plotly.graph_objects as go

    share = [[value / max(sum(line), 1) for value in line] for line in counts]
    figure = _figure(height=max(300, 120 + 40 * len(labels)))
    figure.add_trace(
        go.Heatmap(
            z=share,
            x=list(labels),
            y=list(labels),
            colorscale="Blues",
            zmin=0,
            zmax=1,
            xgap=2,
            ygap=2,
            showscale=False,
            text=[[str(value) for value in line] for line in counts],
            texttemplate="%{text}" if len(labels) <= 12 else None,
            hovertemplate="label %{y}, predicted %{x}: %{text} items (%{z:.0%})<extra></extra>",
        )
    )
    figure.update_xaxes(title="predicted", side="bottom", type="category")
    figure.update_yaxes(title="label", autorange="reversed", type="category")
    return figure
