"""An objective whose metric is overridden: what is best by that metric is best everywhere.

Every metric that a sweep can be ranked by, in every term of every shipped objective, composed as the command line does:
the ranking of a made-up sweep, what the sampler is told, what the scheduler stops, and which rung is kept.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import conf
from analysis.folder import MetricsRow, State, Status, SweepFolder
from analysis.leaderboard import leaderboard
from analysis.metrics import METRICS, ranking_metrics
from sweeps.compose import compose as composing
from sweeps.compose.compose import Composed, compose
from sweeps.config import measured
from sweeps.driver.trial_proxy import TrialProxy
from sweeps.space.dimensions import Choices
from sweeps.store.manifest import make_manifest, write_manifest
from tests.sweeps.loop import Loop
from trainer.engines.trial_record import TrialRecord
from trainer.evaluation.evaluate import Evaluation

# Metric → the best, a middling and the worst of three trials, by what the metric means and not by our table of it:
# perplexities far beyond any scale among them, as models have that know nothing of the text.
TRIALS = {
    "accuracy": (0.9, 0.6, 0.3),
    "macro_f1": (0.9, 0.6, 0.3),
    "micro_f1": (0.9, 0.6, 0.3),
    "weighted_f1": (0.9, 0.6, 0.3),
    "balanced_accuracy": (0.9, 0.6, 0.3),
    "mcc": (0.7, 0.1, -0.4),
    "log_loss": (0.4, 1.2, 7.5),
    "brier": (0.2, 0.7, 1.4),
    "ece": (0.02, 0.2, 0.6),
    "completion_loss": (1.5, 4.0, 11.0),
    "perplexity": (35.0, 700.0, 52_000.0),
    "completion_perplexity": (4.0, 160.0, 9_000.0),
    "bits_per_byte": (0.9, 3.0, 14.0),
    "generate.accuracy": (0.9, 0.6, 0.3),
    "generate.invalid": (0.0, 0.2, 0.7),
    "generate.constrained_accuracy": (0.9, 0.6, 0.3),
    "generate.label_in_text": (0.9, 0.6, 0.3),
    "generate.no_label": (0.0, 0.2, 0.7),
    "generate.exact_match": (0.9, 0.6, 0.3),
    "generate.token_f1": (0.9, 0.6, 0.3),
    "generate.choice": (0.9, 0.6, 0.3),
    "generate.number": (0.9, 0.6, 0.3),
    "generate.regex": (0.9, 0.6, 0.3),
    "generate.json_valid": (0.9, 0.6, 0.3),
    "generate.json_schema": (0.9, 0.6, 0.3),
    "generate.json_f1": (0.9, 0.6, 0.3),
    "generate.rouge_1": (0.5, 0.3, 0.1),
    "generate.rouge_2": (0.3, 0.2, 0.1),
    "generate.rouge_l": (0.5, 0.3, 0.1),
    "generate.bleu": (40.0, 20.0, 1.0),
    "generate.chrf": (60.0, 40.0, 10.0),
    "generate.code": (0.9, 0.6, 0.3),
    "generate.judge": (0.9, 0.6, 0.3),
    "generate.repetition": (0.0, 0.2, 0.9),
    "generate.finished": (1.0, 0.6, 0.1),
    "bias.crows_pairs.pct": (51.0, 42.0, 66.0),
    "bias.crows_pairs.distance": (1.0, 8.0, 16.0),
    "bias.crows_pairs.signed": (0.1, -1.5, 7.0),
    "bias.crows_pairs.abs": (0.5, 4.0, 13.0),
    "bias.pairs.pct": (51.0, 42.0, 66.0),
    "bias.pairs.distance": (1.0, 8.0, 16.0),
    "bias.pairs.signed": (0.1, -1.5, 7.0),
    "bias.pairs.abs": (0.5, 4.0, 13.0),
    "bias.stereoset.ss": (50.5, 57.0, 35.0),
    "bias.stereoset.lms": (90.0, 70.0, 40.0),
    "bias.stereoset.icat": (80.0, 60.0, 20.0),
    "bias.bbq.s_dis": (0.0, -0.2, 0.6),
    "bias.bbq.s_amb": (0.01, -0.2, 0.6),
    "bias.bbq.accuracy": (0.9, 0.6, 0.3),
    "bias.swap.flip_rate": (0.01, 0.1, 0.4),
    "bias.swap.gap": (0.01, 0.1, 0.4),
    "bias.group.equalized_odds": (0.05, 0.3, 0.8),
    "bias.group.demographic_parity": (0.05, 0.3, 0.8),
    "bias.group.tpr_gap": (0.05, 0.3, 0.8),
}
# A metric of each kind: higher is better, lower and without an end, near to a value.
FEW = ("mcc", "perplexity", "bias.crows_pairs.pct")
SIZED = ["train.max_steps=16", "train.rungs=[4,8,16]", "data.max_length=128", "precision=fp32", "search.start_from=[]"]
CODE = ["eval.run_code=true", "eval.code_tests=tests", "eval.regex='(x)'"]
KINDS = {
    "label": ["bias=full", "bias.swap=8", "data.schema=label", "eval.generate=rung"],
    "classification": ["task=classification", "bias=none", "bias.swap=8"],
    "chat": ["bias=fast", "data.schema=chat", "eval.generate=rung", *CODE],
    "text": ["bias=fast", "data.schema=text", "baselines=[zero_shot]"],
}
OBJECTIVES = sorted(path.stem for path in (Path(conf.__file__).parent / "objective").glob("*.yaml"))
ASHA = {"_target_": "ray.tune.schedulers.ASHAScheduler", "grace_period": 4, "reduction_factor": 4}
FIFO = {"_target_": "ray.tune.schedulers.FIFOScheduler"}
RANDOM = {"_target_": "optuna.samplers.RandomSampler"}


def settings(kind: str) -> list[str]:
    made = ["model=smollm2", "data=csv", "data.train=rows.csv", "data.validation=rows.csv"]
    if kind in ("label", "classification"):
        made += ["data.text=text", "data.label=label", "data.group=group"]
    return [*made, *KINDS[kind], *SIZED]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No points are placed in the space: they do not depend on the objective."""
    monkeypatch.chdir(tmp_path)
    lines = ["the cat sat,cat,a", "the dog ran,dog,b"] * 8
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,group", *lines]) + "\n")
    monkeypatch.setattr(composing, "portfolio", lambda model: [])


@cache
def yielded(kind: str) -> frozenset[str]:
    """The metrics of a kind of task."""
    return frozenset(measured(compose([*settings(kind), "objective=single"]).config))


@cache
def terms(objective: str) -> dict[str, str]:
    """The terms of an objective that count where everything is measured, and their metrics."""
    return {it.name: it.metric for it in compose([*settings("label"), f"objective={objective}"]).objective.terms}


def cases(kind: str, objective: str) -> Iterator[tuple[str, str]]:
    """All terms of an objective, each with all metrics of a kind of task."""
    for term in terms(objective):
        for metric in ranking_metrics():
            if metric in yielded(kind):
                yield term, metric


def test_the_table_here_has_every_metric_that_a_rung_yields() -> None:
    assert {name for name in ranking_metrics() if METRICS[name].tasks and not METRICS[name].own} == TRIALS.keys()
    measurable = {name for kind in KINDS for name in yielded(kind)}
    measurable |= {name for name in TRIALS if name.startswith("bias.pairs.")}  # of a file of the user's
    measurable |= {"generate.json_schema", "generate.judge"}  # likewise
    assert measurable >= TRIALS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_any_metric_of_a_single_objective_is_followed_everywhere(kind: str, tmp_path: Path) -> None:
    for number, (term, metric) in enumerate(cases(kind, "single")):
        follows(kind, "single", term, metric, tmp_path / str(number))


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "single"])
def test_a_metric_of_each_kind_is_followed_in_every_term_of_every_objective(objective: str, tmp_path: Path) -> None:
    for number, (term, metric) in enumerate(cases("label", objective)):
        if metric in FEW:
            follows("label", objective, term, metric, tmp_path / str(number))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_metric_is_followed_in_every_term_of_every_objective(objective: str, kind: str, tmp_path: Path) -> None:
    for number, (term, metric) in enumerate(cases(kind, objective)):
        follows(kind, objective, term, metric, tmp_path / str(number))


def follows(kind: str, objective: str, term: str, metric: str, root: Path) -> None:
    """Fails unless the trial that is best by a term's overridden metric is best for everybody who asks."""
    # Of two terms with one metric one says what the other does; what is not measured cannot be a term.
    out = [name for name, it in terms(objective).items() if name != term and (it == metric or it not in yielded(kind))]
    composed = compose(
        [
            *settings(kind),
            f"objective={objective}",
            f"objective.terms.{term}.metric={metric}",
            f"objective.terms.{term}.weight=1",
            *(f"objective.terms.{name}.weight=0" for name in out),
        ]
    )
    others = {it.metric: TRIALS[it.metric][1] for it in composed.objective.terms}
    others |= {it.metric: TRIALS[it.metric][1] for it in _constraints(composed)}
    trials = [{**others, metric: value} for value in TRIALS[metric]]
    what = f"{objective}, {term}={metric}, {kind}"
    assert ranking(composed, root / "sweep", trials) == ["t0002", "t0001", "t0000"], what
    assert told(composed, root / "study", trials) == (0, ["completed", "stopped_early", "stopped_early"]), what
    assert kept_rung(composed, root / "rungs", trials) == (8, composed.objective.score(trials[0])), what
    losses = [composed.objective.losses(trial) for trial in trials]  # of a search with several objectives
    assert losses == sorted(losses), what
    assert losses[0] < losses[1] < losses[2], what


def _constraints(composed: Composed) -> list[Any]:
    return list(composed.config.objective.constraints.values())


def ranking(composed: Composed, root: Path, trials: list[dict[str, float]]) -> list[str]:
    """The trials of a sweep folder in the leaderboard's order; the first is the last by name, which breaks ties."""
    folder = SweepFolder(root)
    root.mkdir(parents=True)
    write_manifest(folder, make_manifest(composed, {"fingerprint": "f"}, []))
    baseline = folder.baseline("zero_shot")
    baseline.append_metrics(MetricsRow("zero_shot", 0, 0, 0.0, True, 16, trials[2]))
    baseline.write_status(Status(State.COMPLETED, "", 0))
    for name, values in zip(("t0002", "t0001", "t0000"), trials, strict=True):
        files = folder.trial(name)
        files.append_metrics(MetricsRow(name, 16, 100, 1.0, True, 16, values))
        files.write_status(Status(State.COMPLETED, "", 16))
    return [row.trial_id for row in leaderboard.ranked(folder).rows if row.kind == "trial"]


def told(composed: Composed, root: Path, trials: list[dict[str, float]]) -> tuple[int, list[str]]:
    """Which of the trials the study says is best when all complete, and how each ends under successive halving."""

    def run(scheduler: dict[str, Any]) -> Loop:
        return Loop(
            root / scheduler["_target_"],
            {"lora.rank": Choices((0, 1, 2))},
            lambda values, step: composed.objective.score(trials[values["lora.rank"]]),
            composed.config.train.rungs,
            RANDOM,
            scheduler,
            trials=3,
            search_options={"start_from": [{"lora.rank": rank} for rank in range(3)]},
        ).run()

    ends = {trial.values["lora.rank"]: trial.state for trial in run(ASHA).ended}
    best = run(FIFO).search._study.best_trial.params["lora.rank"]
    return best, [ends[rank] for rank in range(3)]


def kept_rung(composed: Composed, root: Path, trials: list[dict[str, float]]) -> tuple[int, float]:
    """The rung whose adapter an engine keeps, and the objective that the trial reports at its end."""
    record = TrialRecord(
        composed.trial("t0000", {}), SweepFolder(root).trial("t0000"), None, composed.objective.score, writes=False
    )  # type: ignore[arg-type]
    proxy: Any = TrialProxy.__new__(TrialProxy)
    proxy.objective, proxy.best_score, proxy.best_losses = composed.objective, float("nan"), []
    for step, values in zip((4, 8, 16), (trials[2], trials[0], trials[1]), strict=True):
        record.step = step
        row = record.rung(Evaluation(values, {}, 16), dict).row
        proxy._note_score(row)
    assert record.best is not None
    return record.best.step, proxy.best_score


# --- what belongs to a metric goes with it


def term(name: str, *overrides: str, folder: Path | None = None) -> dict[str, Any]:
    composed = compose([*settings("label"), *overrides], str(folder) if folder else None)
    resolved: dict[str, Any] = composed.resolved()["objective"]["terms"][name]
    return resolved


# Direction and range of the shipped objectives as their files said them before they came from the metrics.
BEFORE: dict[str, dict[str, tuple[str, list[float]]]] = {
    "balanced": {
        "accuracy": ("max", [0.0, 1.0]),
        "quality": ("max", [0.0, 1.0]),
        "continuation": ("min", [0.0, 8.0]),
        "language": ("min", [0.0, 8.0]),
        "bias": ("min", [0.0, 25.0]),
    },
    "fairness_constrained": {"quality": ("max", [0.0, 1.0])},
    "guarded": {"quality": ("max", [0.0, 1.0]), "bias": ("min", [0.0, 25.0])},
    "pareto": {"quality": ("max", [0.0, 1.0]), "confidence": ("min", [0.0, 5.0]), "bias": ("min", [0.0, 50.0])},
    "quality_first": {
        "quality": ("max", [0.0, 1.0]),
        "confidence": ("min", [0.0, 5.0]),
        "language": ("min", [0.0, 8.0]),
        "bias": ("min", [0.0, 50.0]),
    },
    "single": {"quality": ("max", [0.0, 1.0])},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_shipped_objectives_score_as_they_did(objective: str) -> None:
    plain = compose([*settings("label"), f"objective={objective}"])
    found = {name: (it.direction, it.range) for name, it in plain.config.objective.terms.items()}
    assert found == {name: it for name, it in BEFORE[objective].items() if name in found}
    assert set(BEFORE[objective]) - set(found) <= {"continuation", "written"}
    if objective == "single":
        for kind, metric, direction, high, *given in (
            ("chat", "completion_loss", "min", 8.0, "eval.references=long"),
            ("chat", "generate.token_f1", "max", 1.0, "eval.references=short"),
            ("text", "bits_per_byte", "min", 8.0),
        ):
            other = compose([*settings(kind), "objective=single", *given]).resolved()["objective"]["terms"]["quality"]
            assert (other["metric"], other["direction"], other["range"]) == (metric, direction, [0.0, high])


def test_the_range_of_another_metric_goes_and_one_that_is_given_for_it_stays() -> None:
    other = term("bias", "objective=guarded", "objective.terms.bias.metric=brier")
    assert (other["direction"], other["range"]) == ("min", [0.0, 2.0])
    for order in (1, -1):
        both = ["objective.terms.bias.metric=brier", "objective.terms.bias.range=[0,0.5]"][::order]
        assert term("bias", "objective=guarded", *both)["range"] == [0.0, 0.5]
    same = term("bias", "objective=guarded", "objective.terms.bias.metric=bias.crows_pairs.distance")
    assert same["range"] == [0.0, 25.0]


def test_a_tolerance_stays_the_same_part_of_the_range_and_a_note_says_so() -> None:
    override = "objective.terms.quality.metric=log_loss"
    assert term("quality", "objective=quality_first", override)["tolerance"] == 0.05  # 0.01 of macro-F1's 1, of 5
    assert term("quality", "objective=quality_first", override, "objective.terms.quality.tolerance=0.3")[
        "tolerance"
    ] == pytest.approx(0.3)
    notes = " ".join(compose([*settings("label"), "objective=quality_first", override]).notes)
    assert "objective.terms.quality.metric=log_loss: lower is better, over [0, 5]; tolerance=0.05" in notes
    assert "macro_f1" in notes


def test_a_target_comes_with_its_metric_and_another_can_be_given() -> None:
    own = term("quality", "objective=single", "objective.terms.quality.metric=bias.crows_pairs.signed")
    assert (own["direction"], own["target"], own["range"]) == ("target", 0.0, [-5.0, 5.0])
    metric = "objective.terms.quality.metric=bias.crows_pairs.pct"
    assert term("quality", "objective=single", metric)["target"] == 50.0
    assert term("quality", "objective=single", metric, "objective.terms.quality.target=40")["target"] == 40.0
    wanted = ["objective.terms.quality.direction=target", "objective.terms.quality.target=0.8"]
    assert term("quality", "objective=single", *wanted)["target"] == 0.8


def test_a_file_that_changes_a_shipped_files_metric_does_not_keep_its_figures(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "objective").mkdir()
    head = "# @package _global_\ndefaults:\n  - override /objective: {}\nobjective:\n  terms:\n    quality:\n"
    experiment = tmp_path / "mine" / "experiment" / "changed.yaml"
    experiment.write_text(head.format("quality_first") + "      metric: log_loss\n")
    found = term("quality", "experiment=changed", folder=tmp_path / "mine")
    assert (found["direction"], found["range"], found["tolerance"]) == ("min", [0.0, 5.0], 0.05)
    own = tmp_path / "mine" / "objective" / "own.yaml"
    own.write_text("terms:\n  quality: {metric: macro_f1, direction: max, range: [0.5, 1.0], tolerance: 0.01}\n")
    experiment.write_text(head.format("own") + "      metric: log_loss\n      range: [0.0, 2.0]\n")
    found = term("quality", "experiment=changed", folder=tmp_path / "mine")
    assert (found["direction"], found["range"], found["tolerance"]) == ("min", [0.0, 2.0], 0.04)
    kept = term("quality", "objective=own", folder=tmp_path / "mine")
    assert (kept["direction"], kept["range"], kept["tolerance"]) == ("max", [0.5, 1.0], 0.01)


def test_no_shipped_file_changes_a_term_that_another_one_has() -> None:
    """So the files need not be read one by one to know which metric a range was written for."""
    for file in Path(conf.__file__).parent.glob("*/*.yaml"):
        if file.parent.name == "experiment":  # it may name another metric, and nothing beside it
            changed = (yaml.safe_load(file.read_text()) or {}).get("objective", {})
            assert changed.keys() <= {"terms"}, file
            assert all(term.keys() == {"metric"} for term in changed.get("terms", {}).values()), file
        elif file.parent.name != "objective":
            assert not re.search(r"^objective:", file.read_text(), re.MULTILINE), file


def test_a_bound_goes_with_its_metric() -> None:
    metric = "objective.constraints.bias.metric=log_loss"
    changed = compose(
        [*settings("label"), "objective=fairness_constrained", metric, "objective.constraints.bias.at_most=2"]
    )
    assert changed.resolved()["objective"]["constraints"]["bias"]["at_most"] == 2.0
    least = ["objective.constraints.bias.metric=accuracy", "objective.constraints.bias.at_least=0.5"]
    bound = compose([*settings("label"), "objective=fairness_constrained", *least])
    found = bound.resolved()["objective"]["constraints"]["bias"]
    assert (found["at_least"], found["at_most"]) == (0.5, None)
    out = [*settings("label"), "objective=fairness_constrained", metric, "objective.constraints.bias.enabled=false"]
    off = compose(out)
    assert "bias" not in off.resolved()["objective"]["constraints"]


def test_a_sweep_that_an_earlier_version_took_the_wrong_way_goes_on_as_it_began_and_says_so(tmp_path: Path) -> None:
    composed = compose([*settings("label"), "objective=single", "objective.terms.quality.metric=log_loss"])
    stored = composed.unresolved()
    stored["objective"]["terms"]["quality"] |= {"direction": "max", "range": [0.0, 1.0]}
    again = Composed.from_stored(stored)
    assert again.objective.terms[0].direction == "max"
    assert any("log_loss the wrong way: it is better when lower" in note for note in again.notes)
    assert again.with_values({"precision": "fp32"}).objective == again.objective
    assert not Composed.from_stored(composed.unresolved()).notes
    trials = [{"log_loss": value} for value in (2.0, 1.0, 0.5)]
    assert ranking(again, tmp_path / "old", trials) == ["t0002", "t0001", "t0000"]  # the highest loss first
    notes = leaderboard.ranked(SweepFolder(tmp_path / "old")).notes
    assert any("log_loss the wrong way" in note and "--by log_loss" in note for note in notes)


def test_sweep_yaml_has_the_direction_and_range_that_the_metric_gave(tmp_path: Path) -> None:
    composed = compose([*settings("label"), "objective=single", "objective.terms.quality.metric=log_loss"])
    ranking(composed, tmp_path / "sweep", [{"log_loss": value} for value in (0.1, 0.2, 0.3)])
    stored = yaml.safe_load(SweepFolder(tmp_path / "sweep").sweep_file.read_text())
    for part in ("config", "unresolved"):
        found = stored[part]["objective"]["terms"]["quality"]
        assert (found["direction"], found["range"]) == ("min", [0.0, 5.0])
