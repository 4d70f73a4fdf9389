"""The sentences on how sure a ranking is, of judgements made by hand."""

from dataclasses import replace

import pytest

from analysis.leaderboard.claims import claims
from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics.comparison import Judgement, Standing


def row(name: str, objective: float = 0.8, seeds: tuple[float, ...] = (), **config: float) -> Row:
    runs = tuple(Row("trial", f"{name}.{i}", "completed", 8, 500, True, objective=it) for i, it in enumerate(seeds))
    metrics = {"accuracy": objective, "macro_f1": objective}
    return Row("trial", name, "completed", 8, 500, True, config, metrics, objective, seeds=runs)


def standing(behind: float, p: float, error: float = 0.0175, n: int = 500) -> Standing:
    return Standing(0.7, 0.9, behind, behind - 2 * error, behind + 2 * error, error, p, p, n)


def judgement(*behind: float, p: float = 0.3, what: str = "objective", **more: object) -> Judgement:
    standings = {f"t{i}": standing(apart, p if i else 1.0) for i, apart in enumerate((0.0, *behind))}
    return replace(Judgement(what, "t0", standings), **more)


def rows(*objectives: float) -> list[Row]:
    return [row(f"t{i}", objective, lr=i) for i, objective in enumerate(objectives)]


def test_five_tied_trials_are_all_named_and_of_six_two_are_others() -> None:
    five = judgement(*[0.021] * 5)
    assert "cannot be told from t1, t2, t3, t4 and t5 on 500 items" in claims(rows(*[0.8] * 6), five)[0]
    six = judgement(*[0.021] * 6)
    assert "cannot be told from t1, t2, t3, t4 and 2 others on 500 items" in claims(rows(*[0.8] * 7), six)[0]


def test_what_the_items_could_have_shown_is_of_the_next_best_and_in_the_metrics_unit() -> None:
    two = judgement(0.04, 0.021, 0.05)
    said = claims(rows(0.8, 0.76, 0.779, 0.75), two, None)
    assert said[1] == (
        "These 500 items could have shown a difference of 0.049 of the score to t2 (80 % power); the one seen, 0.021 of"
        " the score, would take about 2,700 items."
    )
    by = claims(rows(0.8, 0.76, 0.779, 0.75), replace(two, what="macro_f1"))
    assert by[1] == (
        "These 500 items could have shown a difference of 4.9 points to t2 (80 % power); the one seen, 2.1 points,"
        " would take about 2,700 items."
    )


def test_an_objective_of_one_term_is_told_in_the_unit_of_its_metric() -> None:
    terms = {"q": {"metric": "completion_loss", "direction": "min", "range": [0, 8], "weight": 1}}
    said = claims(rows(0.8, 0.779), judgement(0.021), Objective.from_config({"terms": terms}))
    assert "the one seen, 0.168 nats a token, would take about 2,700 items." in said[1]


def test_a_winner_is_told_without_what_could_have_been_shown() -> None:
    said = claims(rows(0.9, 0.7), judgement(0.2, p=0.001))
    assert said[0] == "t0 is better than the other completed trial on 500 items (permutation test, p 0.001)."
    assert not any("could have shown" in line for line in said)


def test_the_same_number_would_take_no_number_of_items() -> None:
    assert claims(rows(0.8, 0.8), judgement(0.0))[1].endswith("to t1 (80 % power); the two score the same.")
    alike = Judgement("objective", "t0", {"t0": standing(0.0, 1.0), "t1": standing(0.0, 1.0, error=0.0)})
    assert claims(rows(0.8, 0.8), alike)[1] == (
        "t0 and t1 answered alike on all 500 items: more like them would show nothing."
    )


def test_a_choice_is_among_all_that_were_looked_at_and_copies_count_once() -> None:
    made = judgement(0.021, corrected={"accuracy": 0.78}, looked_at=60)
    assert claims(rows(0.8, 0.779), made)[2] == (
        "t0 was chosen among 60 configurations on these same items (2 ran to the end, 58 were stopped early); corrected"
        " for that, expect accuracy of about 78.0 % on new ones (shown: 80.0 %)."
    )
    one = replace(made, looked_at=3)
    assert (
        "among 3 configurations on these same items (2 ran to the end, 1 was stopped early);"
        in claims(rows(0.8, 0.779), one)[2]
    )
    copies = [row("t0", 0.8, lr=1), row("t1", 0.779, lr=1)]
    assert (
        "among 4 configurations on these same items (1 ran to the end, 1 more was a copy, 3 were stopped early)"
        in (claims(copies, replace(made, looked_at=4))[2])
    )


def test_without_a_corrected_figure_the_choice_is_still_told() -> None:
    assert claims(rows(0.8, 0.779), judgement(0.021, looked_at=2))[2] == (
        "t0 was chosen among 2 configurations on these same items: expect a little less on new ones."
    )


def test_a_missing_interval_has_its_reason_once() -> None:
    reasons = {"macro_f1": "label spam has 2 items", "objective": "it is made of macro_f1, and label spam has 2 items"}
    said = claims(rows(0.8, 0.779), judgement(0.021, without_interval=reasons))
    assert [line for line in said if "interval" in line] == [
        "There is no 95 % interval of the score: it is made of macro_f1, and label spam has 2 items."
    ]
    both = claims(rows(0.8, 0.779), judgement(0.021, without_interval={"ece": "too few", "mcc": "too few"}))
    assert "There is no 95 % interval of ece and mcc: too few." in both


def test_seeds_that_are_known_say_how_many_would_tell_two_configurations_apart() -> None:
    made = judgement(0.02)
    of_seeds = [row("t0", 0.8, (0.82, 0.78), lr=0), row("t1", 0.78, (0.80, 0.76), lr=1)]
    # pooled deviation 0.0283, apart 0.02: effect 0.707, Cohen's table: 33 of each
    assert claims(of_seeds, made)[1] == (
        "Seeds of one configuration differ by 0.028 of the score (standard deviation): to tell t0 from t1, 0.020 of the"
        " score apart, would take about 33 seeds of each (search.repeats=33), and items enough."
    )


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_mcnemars_exact_test_needs_more_than_the_normal_one(metric: str) -> None:
    test = "McNemar's test" if metric == "accuracy" else "permutation test"
    said = claims(rows(0.8, 0.779), judgement(0.021, what=metric, test=test))[1]
    assert ("5.0 points" if metric == "accuracy" else "4.9 points") in said


def test_a_cheaper_trial_that_stands_before_the_best_is_explained() -> None:
    best, cheaper = rows(0.8, 0.79)
    frozen = replace(cheaper, kind="baseline", objective=0.9)  # of the same name, as an answer file may have it
    said = claims([frozen, cheaper, best], judgement(0.01))
    (sentence,) = (it for it in said if "stands before" in it)
    assert sentence.startswith("t1 (0.790) stands before t0 (0.800), which has the best score:")
    assert not [it for it in claims([best, cheaper], judgement(0.01)) if "stands before" in it]


def test_a_row_is_told_apart_where_p_is_below_the_level_and_not_at_it() -> None:
    def tied(**p: tuple[float, float]) -> list[str]:
        """``p`` before and after Holm's correction."""
        standings = {"t0": standing(0.0, 1.0)}
        standings |= {name: replace(standing(0.02, plain), adjusted=adjusted) for name, (plain, adjusted) in p.items()}
        return Judgement("objective", "t0", standings).tied

    assert tied(t1=(0.05, 0.05)) == ["t1"]
    assert tied(t1=(0.05, 0.1), t2=(0.5, 0.5)) == ["t1", "t2"]
    assert tied(t1=(0.04, 0.08), t2=(0.04, 0.08)) == []  # each is told apart by itself: then their number costs nothing
    assert tied(t1=(0.04, 0.08), t2=(0.06, 0.08), t3=(0.01, 0.03)) == ["t1", "t2"]
    assert tied(t1=(0.04, 0.05), t2=(0.06, 0.06), t3=(0.01, 0.049)) == ["t1", "t2"]
    beaten = {"t0": standing(0.0, 1.0), "zero_shot": replace(standing(0.1, 0.5), rival=False)}
    assert Judgement("objective", "t0", beaten).tied == []
    assert Judgement("objective", "t0", beaten).winner == "t0"
    assert Judgement("objective", "t0", beaten, lacking={"t1": "no item table"}).winner is None


def test_what_has_no_sampling_error_and_who_is_not_compared_is_said() -> None:
    given = judgement(0.02, fixed=("ece", "bias.winobias.gap"), lacking={"t7": "no item table", "t8": "another"})
    said = claims(rows(0.8, 0.78), given)
    assert "Taken as measured, without sampling error: ece, bias.winobias.gap." in said
    assert "Not compared, for want of item scores: t7 and t8 (no item table)" in said
    assert not [line for line in claims(rows(0.8, 0.78), judgement(0.02)) if "measured" in line or "want of" in line]


def test_one_rival_takes_no_correction_and_of_several_the_largest_p_is_said() -> None:
    one, two = claims(rows(0.8, 0.78), judgement(0.02))[0], claims(rows(0.8, 0.78, 0.7), judgement(0.02, 0.1))[0]
    assert one.endswith("told from t1 on 500 items (permutation test).")
    assert two.endswith("told from t1 and t2 on 500 items (permutation test, Holm's correction).")
    alone = claims(rows(0.8, 0.7), judgement(0.1, p=0.001))[0]
    assert alone == "t0 is better than the other completed trial on 500 items (permutation test, p 0.001)."
    several = judgement(0.1, 0.2, p=0.001)
    several = replace(several, standings=several.standings | {"t2": standing(0.2, 0.02)})
    wins = claims(rows(0.8, 0.7, 0.6), several)[0]
    assert wins == "t0 is better than each of 2 other completed trials on 500 items (permutation test, largest p 0.02)."
    assert claims(rows(0.8), judgement())[0] == "t0 has no rival to be compared with."
