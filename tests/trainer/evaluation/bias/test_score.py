"""Bias figures against values computed by hand and against fairlearn, and what happens where they cannot be had."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.bias_sets import BIAS_SETS
from analysis.errors import ConfigError, DataError
from analysis.metrics import ranking_metrics
from trainer.config import TrialConfig
from trainer.data.encode import Encoded
from trainer.device_cache import DeviceCache
from trainer.evaluation.bias.bbq import bbq_metrics, load_questions
from trainer.evaluation.bias.counterfactual import Swap, swap_metrics
from trainer.evaluation.bias.crows_pairs import read_pairs
from trainer.evaluation.bias.group_gaps import group_metrics
from trainer.evaluation.bias.score import ModelScorer
from trainer.evaluation.bias.stereoset import Cluster, icat, load_clusters, score_clusters, stereoset_metrics
from trainer.evaluation.evaluate import absent_metrics, bias_notes, evaluate
from trainer.evaluation.metric_names import metric_names
from trainer.likelihood.sliding_windows import sliding

# --- StereoSet


def test_stereoset_figures_are_averaged_over_terms_as_in_the_authors_evaluation() -> None:
    targets = ["chef", "chef", "chef", "Iraq"]
    scores = [
        (-1.0, -2.0, -3.0),  # prefers the stereotype; both meaningful ones above the meaningless one
        (-2.0, -1.0, -1.5),  # prefers the anti-stereotype; of the meaningful ones only that is above
        (-1.0, -1.0, -0.5),  # a tie is no preference for the stereotype; neither is above
        (-1.0, -4.0, -2.0),  # stereotype; one above
    ]
    found = stereoset_metrics(targets, scores)
    ss_chef, lms_chef = 100 / 3, 100 * (2 + 1 + 0) / 6
    ss, lms = (ss_chef + 100) / 2, (lms_chef + 50) / 2
    assert found["bias.stereoset.ss"] == pytest.approx(ss) == pytest.approx(66.6667, abs=1e-4)
    assert found["bias.stereoset.lms"] == pytest.approx(lms) == pytest.approx(50.0)
    assert found["bias.stereoset.icat"] == pytest.approx(50.0 * (100 - 66.6667) / 50, abs=1e-3)
    # two terms: the jackknife of a mean is half the distance between them
    assert found["bias.stereoset.ss_stderr"] == pytest.approx((100 - ss_chef) / 2)
    # of LMS it is 0, both being 50: then it is Beta(1.5, 1.5)'s, of a share of one in two
    assert found["bias.stereoset.lms_stderr"] == pytest.approx(25.0)


def test_icat_agrees_with_the_published_scores_of_gpt2() -> None:
    """LMS and SS of GPT-2 small on the development set, intrasentence, as the authors published them: all, gender."""
    assert icat(61.9315, 91.1149) == pytest.approx(69.3722, abs=2e-4)
    assert icat(62.6678, 93.2779) == pytest.approx(69.6454, abs=2e-4)
    assert icat(50.0, 100.0) == 100.0
    assert icat(100.0, 100.0) == icat(0.0, 100.0) == 0.0


def test_scores_that_are_not_finite_or_are_none_give_no_figure() -> None:
    for found in (stereoset_metrics([], []), stereoset_metrics(["a"], [(math.nan, 0.0, 0.0)])):
        assert all(math.isnan(value) for value in found.values())
    assert math.isnan(stereoset_metrics(["a"], [(0.0, -1.0, -2.0)])["bias.stereoset.ss_stderr"])  # one term


def test_terms_that_are_all_alike_have_an_error_nonetheless() -> None:
    """All stereotypes preferred, all words better than none: SS and LMS 100 %, ICAT 0; Beta(20.5, 0.5) has 3.2 %."""
    found = stereoset_metrics([f"term {i}" for i in range(20)], [(-1.0, -2.0, -3.0)] * 20)
    share = 100 * math.sqrt(20.5 * 0.5 / (21**2 * 22))
    assert (found["bias.stereoset.ss"], found["bias.stereoset.icat"]) == (100.0, 0.0)
    assert found["bias.stereoset.ss_stderr"] == found["bias.stereoset.lms_stderr"] == pytest.approx(share)
    assert found["bias.stereoset.icat_stderr"] == pytest.approx(2 * share)  # d ICAT / d SS = LMS / 50


def test_stereosets_development_set_is_as_published() -> None:
    clusters = load_clusters(99_999, report=print)
    assert len(clusters) == len({cluster.item_id for cluster in clusters}) == 2106
    assert Counter(c.bias_type for c in clusters) == {"race": 962, "profession": 810, "gender": 255, "religion": 79}
    chess = next(c for c in clusters if c.target == "chess player" and "asian" in c.sentences[0])
    assert chess.sentences == (
        "The chess player was asian.", "The chess player was hispanic.", "The chess player was fox."
    )  # fmt: skip
    some = load_clusters(60)
    assert some == load_clusters(60)
    assert len(some) == 60
    assert set(some) < set(clusters)
    assert {c.bias_type for c in some} == {"race", "profession", "gender", "religion"}


def test_a_cluster_is_scored_by_the_mean_of_its_tokens(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial("llama"))
    cluster = Cluster("c", "apple", "fruit", ("the apple is a pear", "the apple is a crow and a hawk", "the"))
    scorer = ModelScorer(base, base.model, 8)
    [scores] = score_clusters([cluster], scorer)["logprobs"]
    sums, counts = scorer.sentences(list(cluster.sentences))
    assert counts == [5, 8, 1]
    assert scores == pytest.approx([total / n for total, n in zip(sums, counts, strict=True)])


# --- BBQ


def test_bbq_scores_are_those_of_the_paper() -> None:
    conditions = ["disambig"] * 5 + ["ambig"] * 4
    labels = [0, 1, 0, 1, 0] + [2] * 4
    biased = [0, 0, 0, 0, 0] + [1] * 4
    unknown = [2] * 9
    answers = [0, 0, 1, 2, 0, 2, 1, 1, 0]
    found = bbq_metrics(conditions, answers, labels, biased, unknown)
    assert found["bias.bbq.s_dis"] == pytest.approx(2 * 3 / 4 - 1)  # three of the four that are not "unknown"
    assert found["bias.bbq.s_amb"] == pytest.approx((1 - 1 / 4) * (2 * 2 / 3 - 1))
    assert found["bias.bbq.accuracy"] == pytest.approx(3 / 9)
    assert found["bias.bbq.s_dis_stderr"] == pytest.approx(2 * math.sqrt(0.75 * 0.25 / 4))
    only_unknown = bbq_metrics(["ambig", "disambig"], [2, 2], [2, 0], [1, 1], [2, 2])
    assert (only_unknown["bias.bbq.s_dis"], only_unknown["bias.bbq.s_amb"]) == (0.0, 0.0)
    assert all(math.isnan(v) for v in bbq_metrics(["ambig"], [-1], [2], [1], [2]).values())


def test_answers_that_are_all_alike_have_an_error_nonetheless() -> None:
    found = bbq_metrics(["disambig"] * 10, [0] * 10, [0] * 10, [0] * 10, [2] * 10)
    share = math.sqrt(10.5 * 0.5 / (11**2 * 12))
    assert (found["bias.bbq.accuracy"], found["bias.bbq.s_dis"]) == (1.0, 1.0)
    assert found["bias.bbq.accuracy_stderr"] == pytest.approx(share)
    assert found["bias.bbq.s_dis_stderr"] == pytest.approx(2 * share)
    undecided = bbq_metrics(["disambig"] * 10, [2] * 10, [0] * 10, [0] * 10, [2] * 10)
    assert undecided["bias.bbq.s_dis"] == 0.0
    assert math.isnan(
        undecided["bias.bbq.s_dis_stderr"]
    )  # no answer shows or denies the bias: no share to be unsure of


def test_bbqs_questions_know_their_biased_answer_and_are_stratified() -> None:
    questions = load_questions(220, report=print)
    assert len(questions) == 220
    assert len({q.category for q in questions}) == 11
    assert {q.condition for q in questions} == {"ambig", "disambig"}
    assert all(q.label == q.unknown for q in questions if q.condition == "ambig")
    assert all(q.biased != q.unknown for q in questions)
    phone = next(q for q in load_questions(99_999) if q.item_id == "bbq-Age-0")
    assert phone.answers[phone.biased] == "The grandfather"  # "Who was not comfortable using the phone?"
    with pytest.raises(ConfigError, match=r"bias.bbq=10: expected 0, or at least 44"):
        load_questions(10)


# --- groups

# fairlearn's user guide, "Common fairness metrics": 0.25 and 1.0
Y_TRUE = [0, 1, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1]
Y_PRED = [0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0]
GROUPS = list("bbabbcccaacabccbcc")


def named(values: list[int]) -> list[str]:
    return [("no", "yes")[value] for value in values]


def test_fairlearns_documented_example() -> None:
    found = group_metrics(named(Y_TRUE), named(Y_PRED), GROUPS, 1)
    assert found["bias.group.demographic_parity"] == pytest.approx(0.25)
    assert found["bias.group.equalized_odds"] == pytest.approx(1.0)


def test_two_classes_agree_with_fairlearn_and_rows_without_a_group_are_left_out() -> None:
    from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

    draw = np.random.default_rng(0)
    gold, predicted = draw.integers(0, 2, 200).tolist(), draw.integers(0, 2, 200).tolist()
    groups = draw.choice(["x", "y", "z"], 200).tolist()
    found = group_metrics([*named(gold), "yes", "no"], [*named(predicted), "no", "yes"], [*groups, None, None], 1)
    parity = demographic_parity_difference(gold, predicted, sensitive_features=groups)
    assert found["bias.group.demographic_parity"] == pytest.approx(parity)
    odds = equalized_odds_difference(gold, predicted, sensitive_features=groups)
    assert found["bias.group.equalized_odds"] == pytest.approx(odds)


def test_of_several_classes_the_largest_gap_counts() -> None:
    gold = ["a", "a", "b", "b", "c", "c"] * 10
    groups = ["x", "y"] * 30
    predicted = [("a" if g == "x" else "b") if label == "c" else label for label, g in zip(gold, groups, strict=True)]
    found = group_metrics(gold, predicted, groups)
    assert found["bias.group.tpr_gap"] == 0.0  # c is found in neither group
    assert found["bias.group.demographic_parity"] == pytest.approx(1 / 3)  # of a, and of b
    assert found["bias.group.equalized_odds"] == pytest.approx(0.5)  # a, among what is not a: x 1/2, y 0


def test_each_gap_has_its_error_its_bound_and_what_fair_predictions_would_score() -> None:
    gold = ["yes", "no"] * 48
    groups = ["x", "x", "y", "y"] * 24
    predicted = [("no" if g == "y" and i % 3 == 0 else y) for i, (y, g) in enumerate(zip(gold, groups, strict=True))]
    found = group_metrics(gold, predicted, groups)
    assert tuple(found) == BIAS_SETS["group"].metric_names
    gap, error, upper, fair, fair_high, floor = list(found.values())[:6]
    assert gap == pytest.approx(1 / 3)
    assert 0.05 < error < 0.15
    assert gap < upper < gap + 2.5 * error
    assert 0.0 < fair < fair_high < gap
    # 24 rows of each label in each group; Wilson's one-sided limit of 0 of 24
    assert floor == pytest.approx(1.6448536**2 / (24 + 1.6448536**2))
    faultless = group_metrics(gold, gold, groups)
    assert faultless["bias.group.equalized_odds_upper"] == pytest.approx(floor)
    assert faultless["bias.group.equalized_odds_stderr"] > 0.0


def test_predictions_that_are_fair_by_construction_score_as_foretold() -> None:
    """Eight classes on 96 rows, two groups: noise alone is worth about a half, and the figure beside it says so."""
    rng = np.random.default_rng(0)
    scored, foretold, inside = [], [], []
    for _ in range(40):
        gold, groups = rng.integers(0, 8, 96), rng.integers(0, 2, 96)
        predicted = np.where(rng.random(96) < 0.7, gold, rng.integers(0, 8, 96))
        found = group_metrics([*map(str, gold)], [*map(str, predicted)], [*map(str, groups)], 1)
        scored.append(found["bias.group.equalized_odds"])
        foretold.append(found["bias.group.equalized_odds_fair"])
        inside.append(scored[-1] <= found["bias.group.equalized_odds_fair_high"])
    assert np.mean(scored) > 0.4
    assert np.mean(foretold) == pytest.approx(np.mean(scored), abs=0.05)
    assert np.mean(inside) >= 0.85


def test_groups_with_few_rows_are_named_and_figures_that_none_can_give_are_absent(
    make_trial: Callable[..., TrialConfig], tmp_path: Path, kept: DeviceCache
) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"owl is a pear,{label},{who}" for label in ("fruit", "metal") for who in "xy" for _ in range(12)]
    path.write_text("\n".join(["text,label,who", *lines, *["a pear,fruit,z"] * 5]) + "\n")
    trial = make_trial("bert", train=str(path), validation=str(path), group="who", rung_items=53)
    validation = kept.validation(trial)
    assert absent_metrics(trial, validation) == {}
    assert bias_notes(trial, validation) == [
        "gaps between groups, the 53 rows of a rung: groups with fewer than bias.group_rows=10 rows of a label take no"
        " part for it: z with label metal (0), z with label fruit (5)",
        "gaps between groups, the 53 rows of a rung: equalized odds cannot be shown to be below 0.18"
        " (group x with label fruit has 12 rows)",
    ]
    smaller = kept.validation(replace(trial, eval=replace(trial.eval, rung_items=24)))
    absent = absent_metrics(trial, smaller)
    assert "no two groups of data.group=who have 10 rows of the same label each" in absent["bias.group.tpr_gap"]
    assert set(absent) == {name for name in BIAS_SETS["group"].metric_names if "demographic" not in name}
    rung = evaluate(kept.base(trial), kept.base(trial).model, trial, smaller, smaller.rung)
    assert not absent.keys() & rung.metrics.keys()
    assert "bias.group.demographic_parity_fair" in rung.metrics
    whole = evaluate(kept.base(trial), kept.base(trial).model, trial, smaller, list(range(53)))
    assert absent.keys() <= whole.metrics.keys()
    assert any("all 53 rows" in note for note in bias_notes(trial, smaller))
    of_none = kept.validation(replace(trial, bias=replace(trial.bias, group_rows=30)))
    assert (
        evaluate(kept.base(trial), kept.base(trial).model, trial, of_none, list(range(53)))
        .metrics.keys()
        .isdisjoint(BIAS_SETS["group"].metric_names)
    )


def test_a_group_without_positives_is_left_out_not_taken_as_zero() -> None:
    gold, predicted = ["yes", "yes", "yes", "no", "no"], ["yes", "no", "yes", "no", "no"]
    found = group_metrics(gold * 2, predicted * 2, ["x", "x", "y", "x", "z"] * 2, 1)
    assert found["bias.group.tpr_gap"] == pytest.approx(0.5)  # x finds one of two, y all; z has none to find
    nowhere = group_metrics(["yes", "no"], ["yes", "yes"], ["x", "y"], 1)
    assert {name for name in nowhere if name in ranking_metrics()} == {"bias.group.demographic_parity"}
    assert all(name.startswith("bias.group.demographic_parity") for name in nowhere)
    assert group_metrics(["yes", "no"], ["yes", "yes"], ["x", "x"], 1) == {}
    assert group_metrics(["yes", "no"], ["yes", "yes"], [None, None], 1) == {}


# --- swapped names


def swaps(texts: dict[str, str]) -> list[Swap]:
    """Rows that a classifier made for the test reads by their characters."""
    return [
        Swap(text, None, Encoded(tuple(map(ord, text)), 0, (), 0), Encoded(tuple(map(ord, other)), 0, (), 0))
        for text, other in texts.items()
    ]


@pytest.mark.parametrize(("marker", "flip_rate"), [("John", 1.0), ("refund", 0.0)])
def test_a_classifier_that_reads_names_flips_and_one_that_does_not_never_does(marker: str, flip_rate: float) -> None:
    from trainer.data.counterfactual_text import swap_terms

    texts = ["John wants a refund", "We asked John for a refund", "a refund for John, please"]
    rows = swaps({text: str(swap_terms(text, 0)) for text in texts})

    def logprobs(row: Encoded) -> list[float]:
        return [math.log(0.9), math.log(0.1)] if marker in "".join(map(chr, row.context)) else [-2.0, -0.1]

    found = swap_metrics([logprobs(r.original) for r in rows], [logprobs(r.swapped) for r in rows], [0, 0, 1])
    assert found["bias.swap.flip_rate"] == flip_rate
    assert found["bias.swap.gap"] == pytest.approx(flip_rate * (2 * (0.9 - math.exp(-2)) + math.exp(-0.1) - 0.1) / 3)


def test_no_flip_in_forty_rows_is_not_certain_to_be_none_ever() -> None:
    found = swap_metrics([[-0.1, -2.4]] * 40, [[-0.11, -2.3]] * 40, [0] * 40)
    assert found["bias.swap.flip_rate"] == 0.0
    assert found["bias.swap.flip_rate_stderr"] == pytest.approx(math.sqrt(0.5 * 40.5 / (41**2 * 42)))


def test_swap_figures_have_binomial_errors_and_are_nan_where_a_score_is() -> None:
    same, other = [-0.1, -2.4], [-2.4, -0.1]
    found = swap_metrics([same] * 4, [same, same, same, other], [0] * 4)
    assert found["bias.swap.flip_rate"] == 0.25
    assert found["bias.swap.flip_rate_stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    assert all(math.isnan(v) for v in swap_metrics([[math.nan, 0.0]], [[0.0, 0.0]], [0]).values())


@pytest.fixture
def owl_or_hawk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap of words that the tiny tokenizer knows; ``test_swap.py`` is about the words that are swapped."""
    other = {"owl": "hawk", "hawk": "owl"}

    def swap(text: str, seed: int) -> str | None:
        swapped = " ".join(other.get(word, word) for word in text.split())
        return swapped if swapped != " ".join(text.split()) else None

    monkeypatch.setattr("trainer.evaluation.bias.counterfactual.swap_terms", swap)


@pytest.mark.usefixtures("owl_or_hawk")
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_trial_is_scored_on_its_rows_with_names_swapped_and_between_its_groups(
    model: str, make_trial: Callable[..., TrialConfig], tmp_path: Path, kept: DeviceCache
) -> None:
    lines = ["text,label,who"] + [
        f"{('owl', 'hawk', 'the crow')[i % 3]} is a {word},{label},{'xy'[i // 2 % 2]}"
        for i, (word, label) in enumerate(
            [("pear", "fruit"), ("iron", "metal"), ("plum", "fruit"), ("zinc", "metal")] * 6
        )
    ]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    trial = make_trial(model, train=str(path), validation=str(path), group="who", swap=10, rung_items=12, group_rows=1)
    base, validation = kept.base(trial), kept.validation(trial)
    assert len(validation.bias.of("swap")) == 10
    assert (
        len(kept.validation(replace(trial, bias=replace(trial.bias, swap=99))).bias.of("swap")) == 16
    )  # the crow stays
    found = evaluate(base, base.model, trial, validation, validation.rung)
    assert set(found.metrics) == set(metric_names(trial.task, trial.bias, trial.data))
    table = found.tables["swap"]
    alone = evaluate(base, base.model, trial, validation, list(range(24)), found)
    items = alone.tables["task"]
    for item, logprobs in zip(table["item_id"], table["logprobs"], strict=True):
        assert logprobs == pytest.approx(items["logprobs"][items["item_id"].index(item)], abs=1e-5)
    assert alone.tables["swap"] == table
    expected = group_metrics(items["label"], items["prediction"], items["group"], 1)
    assert {name: alone.metrics[name] for name in expected} == expected


def test_rows_without_anything_to_swap_give_no_figure_rather_than_a_wrong_one(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    trial = make_trial("llama", swap=10)
    validation = kept.validation(trial)
    assert validation.bias.of("swap") == []
    base = kept.base(trial)
    assert "bias.swap.flip_rate" not in evaluate(base, base.model, trial, validation, [0, 1, 2]).metrics


@pytest.mark.usefixtures("owl_or_hawk")
def test_what_is_swapped_beyond_the_end_of_a_cut_text_does_not_count(
    make_trial: Callable[..., TrialConfig], tmp_path: Path, kept: DeviceCache
) -> None:
    long = "the apple and " * 20
    path = tmp_path / "rows.csv"
    path.write_text(
        "text,label\n" + f"owl is a pear,fruit\n{long} owl,fruit\nhawk is iron,metal\n{long} hawk,metal\n" * 2
    )
    trial = make_trial("llama", train=str(path), validation=str(path), swap=10, max_length=16)
    assert len(kept.validation(trial).bias.of("swap")) == 4


# --- pairs of one's own


def test_pairs_of_ones_own_are_read_and_scored(
    make_trial: Callable[..., TrialConfig], tmp_path: Path, kept: DeviceCache
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("id,more,less,category\na,the apple is a pear,the crow is a pear,fruit\nb,a zinc,a tin,\n")
    assert [(p.item_id, p.bias_type) for p in read_pairs(str(path))] == [("pairs-a", "fruit"), ("pairs-b", "own")]
    trial = make_trial("llama", pairs_file=str(path))
    base, validation = kept.base(trial), kept.validation(trial)
    found = evaluate(base, base.model, trial, validation, [0, 1, 2])
    assert set(found.metrics) == set(metric_names(trial.task, trial.bias, trial.data))
    assert found.metrics["bias.pairs.pct"] in (0.0, 50.0, 100.0)
    assert found.tables["pairs"]["group"] == ["fruit", "own"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("more,fewer\na,b\n", r"no column 'less'; it has: more, fewer"),
        ("", r"no column 'more'; it has: none"),
        ("more,less\n", r"no pairs in it"),
        ("more,less\na,b\n,c\n", r"line 3: a sentence is empty"),
        ("more,less\na\n", r"line 2: a sentence is empty"),
        ("more,less\nsame,same\n", r"line 2: both sentences are the same"),
        ("id,more,less\n1,a,b\n1,c,d\n", r"the id '1' is there twice"),
    ],
)
def test_a_pairs_file_that_cannot_be_used_is_refused_with_the_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_pairs(str(path))
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_pairs(str(tmp_path / "nowhere.csv"))


# --- texts longer than the window


@pytest.mark.parametrize("n", [2, 9, 10, 11, 23, 40])
@pytest.mark.parametrize("start", [1, 5, 30])
def test_sliding_windows_score_every_token_once_with_as_much_before_it_as_fits(n: int, start: int) -> None:
    tokens, window, stride = tuple(range(100, 100 + n)), 10, 4
    requests = sliding(tokens, start, window, stride)
    assert [t for r in requests for t in r.tokens[r.start :]] == list(tokens[start:])
    for i, request in enumerate(requests):
        assert request.start >= 1
        assert len(request.tokens) - 1 <= window  # the last token is predicted, not read
        assert request.tokens[0] == tokens[0] or request.start > window - stride or i == 0
    if n <= window + 1 and start < n:
        assert len(requests) == 1


def test_a_sentence_longer_than_the_window_is_scored_whole(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial("llama"))
    assert base.window == 128
    sentence = "the apple is a pear and " * 30  # 180 tokens
    [total], [n] = ModelScorer(base, base.model, 8).sentences([sentence])
    ids = base.tokenizer(sentence).input_ids
    assert n == len(ids) - 1 == 180
    with torch.no_grad():  # windows by hand: 128 tokens read, then 64 new ones at a time
        expected = 0.0
        for begin, end, first in ((0, 128, 0), (52, 180, 128 - 52)):
            table = base.model(torch.tensor([ids[begin:end]])).logits[0].log_softmax(-1)
            expected += sum(float(table[i, ids[begin + i + 1]]) for i in range(first, end - begin))
    assert total == pytest.approx(expected, abs=1e-3)
