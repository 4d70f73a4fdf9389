"""Metrics as sums over items: the same values as scikit-learn and the trainer's own give."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from analysis.errors import DataError, FolderError
from analysis.folder import SweepFolder
from analysis.metrics import METRICS, ranking_metrics
from analysis.objective import Objective
from analysis.statistics.estimators import ESTIMATORS, Scored, scores
from analysis.statistics.intervals import spread, t_quantile
from analysis.statistics.items import align, groups, read_table

LABELS = ["a", "b", "c", "d"]


def columns(seed: int, n: int = 60, offset: int = 0) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(99).integers(3, size=n + 100)[offset : offset + n]  # class d is never the label
    logits = rng.standard_normal((n, 4)) + 1.5 * np.eye(4)[gold]
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return {
        "item_id": [f"i{i + offset}" for i in range(n)],
        "label": [LABELS[g] for g in gold],
        "prediction": [LABELS[g] for g in logprobs.argmax(1)],
        "logprobs": logprobs.tolist(),
        "nll": rng.uniform(5, 50, n).tolist(),
        "n_tokens": rng.integers(5, 50, n).tolist(),
        "n_bytes": rng.integers(20, 200, n).tolist(),
        "completion_nll": rng.uniform(0, 5, n).tolist(),
        "completion_tokens": rng.integers(1, 4, n).tolist(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path)


def table(folder: SweepFolder, name: str, content: dict[str, list[Any]], dataset: str = "task") -> Any:
    folder.trial(name).write_items(dataset, "validation", 1, content)
    return read_table(folder.trial(name), dataset, 1)


def value(metric: str, aligned: Any) -> np.ndarray:
    estimator = ESTIMATORS[metric]
    sums = estimator.columns(aligned, LABELS).astype(np.float64).sum(axis=1)
    return estimator.value(sums, np.array(float(aligned.n)))


def test_every_estimator_gives_what_scikit_learn_or_the_definition_gives(folder: SweepFolder) -> None:
    given = [columns(0), columns(1)]
    aligned = align([table(folder, f"t{i}", content) for i, content in enumerate(given)])
    for i, c in enumerate(given):
        probabilities = np.exp(c["logprobs"])
        expected = {
            "accuracy": np.mean(np.array(c["label"]) == np.array(c["prediction"])),
            "macro_f1": f1_score(c["label"], c["prediction"], labels=LABELS, average="macro", zero_division=0),
            "micro_f1": f1_score(c["label"], c["prediction"], labels=LABELS, average="micro", zero_division=0),
            "weighted_f1": f1_score(c["label"], c["prediction"], labels=LABELS, average="weighted", zero_division=0),
            "log_loss": log_loss(c["label"], probabilities / probabilities.sum(1, keepdims=True), labels=LABELS),
            "perplexity": math.exp(sum(c["nll"]) / sum(c["n_tokens"])),
            "completion_perplexity": math.exp(sum(c["completion_nll"]) / sum(c["completion_tokens"])),
            "bits_per_byte": sum(c["nll"]) / math.log(2) / sum(c["n_bytes"]),
        }
        for metric, wanted in expected.items():
            assert value(metric, aligned)[i] == pytest.approx(wanted, rel=1e-6), metric


def bias_tables(rng: np.random.Generator, n: int) -> dict[str, dict[str, list[Any]]]:
    """Item tables of every bias set, with ties of no consequence and answers of every kind."""
    ids = {"item_id": [f"b{i}" for i in range(n)]}
    pairs = {
        name: ids
        | {"label": ["stereo"] * n, "prediction": ["more"] * n, "logprobs": rng.normal(-30, 3, (n, 2)).tolist()}
        for name in ("crows_pairs", "pairs")
    }
    fillings = {"group": ["race"] * n, "target": [f"term {i % 7}" for i in range(n)]}
    questions = {
        "group": ["Age"] * n,
        "condition": [("ambig", "disambig", "disambig")[i % 3] for i in range(n)],
        "label": rng.integers(3, size=n).tolist(),
        "biased": [0] * n,
        "unknown": [2] * n,
    }
    swap = columns(11, n)
    swap = {name: swap[name] for name in ("item_id", "label", "prediction", "logprobs")}
    after = np.array(swap["logprobs"]) + rng.normal(0, 1, (n, 4))
    after -= np.log(np.exp(after).sum(1, keepdims=True))
    swapped = {"swapped_logprobs": after.tolist(), "swapped_prediction": [LABELS[i] for i in after.argmax(1)]}
    return pairs | {
        "stereoset": ids | fillings | {"logprobs": rng.normal(-3, 1, (n, 3)).tolist()},
        "bbq": ids | questions | {"logprobs": rng.normal(-3, 1, (n, 3)).tolist()},
        "swap": swap | swapped,
    }


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2], []], ids=["four classes", "two classes", "no labels"])
def test_every_metric_that_ranks_is_what_the_trainer_computes_of_the_same_tables(
    folder: SweepFolder, labels: list[str]
) -> None:
    from trainer.config import BiasConfig
    from trainer.evaluation.evaluate import metrics_of

    task = columns(0)
    if len(labels) == 2:
        logprobs = np.array(task["logprobs"])[:, :2]
        logprobs = logprobs - np.log(np.exp(logprobs).sum(1, keepdims=True))
        gold = np.random.default_rng(5).integers(2, size=60)
        task |= {"logprobs": logprobs.tolist(), "prediction": [LABELS[i] for i in logprobs.argmax(1)]}
        task["label"] = [LABELS[i] for i in gold]
    if not labels:
        task = {name: task[name] for name in task if name not in ("label", "prediction", "logprobs")}
    tables = {"task": task, **(bias_tables(np.random.default_rng(1), 40) if len(labels) == 4 else {})}
    aligned = {name: align([table(folder, "t0", content, name)]) for name, content in tables.items()}
    computed = metrics_of(tables, tuple(labels), BiasConfig())
    expected = {name: given for name, given in computed.items() if name in ranking_metrics()}
    assert len(expected) == {4: 28, 2: 12, 0: 4}[len(labels)]
    for name, given in expected.items():
        estimator = ESTIMATORS[name]
        summed = estimator.columns(aligned[estimator.dataset], labels)
        found = estimator.value(summed.sum(axis=1, dtype=np.float64), np.array(float(summed.shape[1])))[0]
        assert found == pytest.approx(given, abs=1e-9), name


def test_figures_of_written_answers_are_the_trainers(folder: SweepFolder) -> None:
    from trainer.answers.answer import Answer
    from trainer.answers.text_metrics import columns as columns_of
    from trainer.answers.text_metrics import figures
    from trainer.config import EvalConfig

    written = ["a cat sat ", "no", "the dog 7", "yes", "猫", '{"a": 1, "b": [2]}']
    reference = ["a cat", "no", " the dog, 7", "maybe yes", "犬", '{"a": 1, "b": [3]}']
    pairs = zip(written, reference, strict=True)
    made = [Answer(f"i{i}", "", b, a, len(a), i % 2 == 0) for i, (a, b) in enumerate(pairs)]
    free: dict[str, list[Any]] = {
        "item_id": [answer.item_id for answer in made],
        "label": reference,
        "n_tokens": [answer.n_tokens for answer in made],
        "finished": [answer.finished for answer in made],
        **columns_of(made, EvalConfig()),
    }
    found = figures(free)
    assert {name for name, figure in found.items() if math.isnan(figure)} == {"generate.choice"}
    means = ["exact_match", "token_f1", "choice", "number", "json_valid", "json_f1", "rouge_1", "rouge_2", "rouge_l"]
    others = ["bleu", "chrf", "length", "refusal", "repetition", "finished"]
    assert set(found) == {f"generate.{name}" for name in (*means, *others)}
    answers = {"label": ["a", "b", "c", "a"], "prediction": ["a", None, "b", "a"], "constrained": ["a", "b", "b", "b"]}
    given = {
        "generate.exact_match": (free, 2 / 6),  # "no", and "the dog 7" without the comma
        "generate.number": (free, 0.5),  # of two items: 7; 2 in JSON where the last number is 3
        "generate.json_f1": (free, 0.5),  # of the one item that has JSON
        "generate.length": (free, sum(map(len, written)) / 6),
        "generate.finished": (free, 0.5),
        **{name: (free, figure) for name, figure in found.items() if name.partition(".")[2] in SAME},
        "generate.accuracy": ({"item_id": list("wxyz")} | answers, 0.5),
        "generate.invalid": ({"item_id": list("wxyz")} | answers, 0.25),
        "generate.constrained_accuracy": ({"item_id": list("wxyz")} | answers, 0.5),
    }
    for name, (content, expected) in given.items():
        aligned = align([table(folder, "t0", content, "generated")])
        assert value(name, aligned)[0] == pytest.approx(expected, abs=1e-12), name


SAME = ("token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "json_valid", "refusal", "repetition")


@pytest.mark.parametrize("values", [[1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [1.0] * 6], ids=["some right", "all right"])
def test_items_without_a_value_take_no_part_in_a_mean_and_its_interval(
    folder: SweepFolder, values: list[float]
) -> None:
    few = {"item_id": [f"i{i}" for i in range(6)], "label": ["x"] * 6, "number": values}
    many = {"item_id": [f"i{i}" for i in range(60)], "label": ["x"] * 60, "number": values + [math.nan] * 54}
    ends = []
    for name, content in (("few", few), ("many", many)):
        aligned = align([table(folder, name, content, "generated")])
        sums = ESTIMATORS["generate.number"].columns(aligned, []).astype(np.float32)
        scored = Scored({"generated": aligned.n}, {"generate.number": sums}, {}, lambda v: v["generate.number"])
        of = spread(scored, "generate.number")
        assert of.quantity[0] == pytest.approx(sum(values) / 6)
        ends.append(np.array(of.ends(t_quantile(of.freedom)))[:, 0])
    assert ends[1] == pytest.approx(ends[0], abs=0.1), "as wide as that of six items, not of sixty"
    none = align([table(folder, "none", few | {"number": [math.nan] * 6}, "generated")])
    assert math.isnan(value("generate.number", none)[0])


def test_only_gaps_between_groups_rank_without_an_estimator() -> None:
    """Any other metric without one would stay as measured, and make another test of that of an objective."""
    assert {name for name in ranking_metrics() if name not in ESTIMATORS} == {
        f"bias.group.{figure}" for figure in ("equalized_odds", "demographic_parity", "tpr_gap")
    }


def test_a_resample_is_the_metric_of_the_drawn_items(folder: SweepFolder) -> None:
    content = columns(2)
    aligned = align([table(folder, "t0", content)])
    drawn = np.random.default_rng(0).integers(60, size=(5, 60))
    counts = np.stack([np.bincount(row, minlength=60) for row in drawn])
    picked = {m: ESTIMATORS[m].columns(aligned, LABELS).astype(np.float32) for m in ("macro_f1", "log_loss")}
    found = Scored({"task": 60}, picked, {}, lambda values: values["macro_f1"]).weighted({"task": counts})
    for i, row in enumerate(drawn):
        gold, told = ([content[c][j] for j in row] for c in ("label", "prediction"))
        assert found["macro_f1"][0, i] == pytest.approx(
            f1_score(gold, told, labels=LABELS, average="macro", zero_division=0), rel=1e-5
        )
        p = np.exp([content["logprobs"][j] for j in row])
        assert found["log_loss"][0, i] == pytest.approx(
            log_loss(gold, p / p.sum(1, keepdims=True), labels=LABELS), 1e-5
        )


def test_exchanging_answers_is_the_metric_of_the_exchanged_tables(folder: SweepFolder) -> None:
    a, b = columns(3), columns(4)
    aligned = align([table(folder, "t0", a), table(folder, "t1", b)])
    mask = np.random.default_rng(1).integers(2, size=(4, 60))
    picked = {"macro_f1": ESTIMATORS["macro_f1"].columns(aligned, LABELS).astype(np.float32)}
    first, other = Scored({"task": 60}, picked, {}, lambda v: v["macro_f1"]).exchanged({"task": mask})
    for i, moved in enumerate(mask):
        for mine, yours, found in ((a, b, first), (b, a, other)):
            told = [(yours if m else mine)["prediction"][j] for j, m in enumerate(moved)]
            expected = f1_score(a["label"], told, labels=LABELS, average="macro", zero_division=0)
            assert found["macro_f1"][0, i] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["chebyshev", "lexicographic"])
def test_the_array_score_is_the_objectives_own(method: str) -> None:
    terms = {
        "a": {"metric": "a", "range": [0, 1], "tolerance": 0.05, "weight": 1.0},
        "b": {"metric": "b", "direction": "min", "range": [0, 25], "weight": 0.25},
        "c": {"metric": "c", "direction": "target", "target": 50.0, "range": [20, 80], "tolerance": 2.0, "weight": 0.5},
    }
    objective = Objective.from_config({"name": "x", "method": method, "rho": 0.05, "terms": terms})
    rng = np.random.default_rng(0)
    values = {"a": rng.uniform(-0.2, 1.2, 200), "b": rng.uniform(0, 40, 200), "c": rng.uniform(0, 100, 200)}
    one_by_one = [objective.score({k: float(v[i]) for k, v in values.items()}) for i in range(200)]
    assert scores(objective, values) == pytest.approx(one_by_one, abs=1e-12)


def test_tables_in_another_order_or_with_other_items_are_brought_to_the_common_ones(folder: SweepFolder) -> None:
    a, shifted = columns(5), columns(6, offset=20)
    order = np.random.default_rng(2).permutation(60)
    b = {name: [column[i] for i in order] for name, column in a.items()}
    aligned = align([table(folder, "t0", a), table(folder, "t1", b), table(folder, "t2", shifted)])
    assert aligned.ids.to_pylist() == [f"i{i}" for i in range(20, 60)]
    numbers = aligned.numbers("nll")
    assert (numbers[0] == numbers[1]).all()
    assert (numbers[0] == a["nll"][20:]).all()
    assert (numbers[2] == shifted["nll"][:40]).all()
    assert groups({"t0": aligned.tables[0], "t1": aligned.tables[1]}, "t0") == [["t0", "t1"]]


def test_what_cannot_be_compared_is_refused(folder: SweepFolder) -> None:
    a, b = columns(7), columns(7, offset=100 - 40)
    with pytest.raises(DataError, match="no scored item in common"):
        align([table(folder, "t0", a), table(folder, "t1", b)])
    other = a | {"label": a["label"][::-1]}
    with pytest.raises(DataError, match="one label in one table and another one elsewhere"):
        align([table(folder, "t0", a), table(folder, "t2", other)])
    with pytest.raises(FolderError, match="lacks label"):
        table(folder, "t3", {"item_id": ["a"], "prediction": ["b"]})


def test_the_estimators_are_those_of_the_metrics_that_have_one() -> None:
    named = list(ESTIMATORS)
    assert len(named) == len(ESTIMATORS) > 40
    assert {"accuracy", "perplexity", "bias.crows_pairs.distance"} <= set(named)
    (first, *_) = without = [name for name, metric in METRICS.items() if metric.estimator is None]
    assert not set(without) & set(named)
    with pytest.raises(KeyError, match=re.escape(first)):
        ESTIMATORS[first]


def test_measured_values_are_the_same_in_every_resample_and_change_rows_in_no_exchange() -> None:
    scored = Scored({"task": 5}, {}, {"cost": np.array([1.0, 2.0, 3.0])}, lambda them: them["cost"])
    assert scored.weighted({"task": np.ones((4, 5))})["cost"].tolist() == [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    first, other = scored.exchanged({"task": np.ones((4, 5))})
    assert first["cost"].tolist() == [[1.0] * 4] * 2
    assert other["cost"].tolist() == [[2.0] * 4, [3.0] * 4]
    assert list(scored.runs_of_rows) == [1, 1, 1]
    assert scored.width == 1
