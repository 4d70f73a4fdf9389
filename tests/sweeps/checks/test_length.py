"""What a sweep chooses where its config leaves length and trials open, with made-up devices."""

import pytest

from sweeps.checks.length import Measured, choose, fitting_tokens, is_open, max_concurrent, seconds_of
from sweeps.checks.simulate import Cost, Sizes
from sweeps.compose.compose import Composed, compose

BASE = ["task=classification", "model=minilm", "precision=fp32", "baselines=[majority]", "search.start_from=[]"]


def sizes(rows: int = 1200, step: float = 0.01, lengths: tuple[int, ...] = (128,)) -> Sizes:
    """A device on which an optimiser step of the longest rows takes ``step`` seconds, and of shorter ones less."""
    share = {n: n / lengths[0] for n in lengths}
    costs = {n: Cost("fp32", step * share[n], 0.0, (), 3 * step * share[n], 9 * step * share[n]) for n in lengths}
    return Sizes(rows, 300, 4, costs, dict.fromkeys(lengths, 0.03 * step))


def chosen(found: Sizes, *overrides: str, spent: float = 10.0) -> Composed:
    return choose(compose([*BASE, *overrides]), Measured(found, 1, spent))


@pytest.mark.parametrize(("rows", "steps"), [(12, 32), (120, 200), (1000, 200), (10_000, 1872), (100_000, 18_752)])
def test_more_rows_want_more_steps_and_few_rows_many_passes(rows: int, steps: int) -> None:
    train = chosen(sizes(rows, step=1e-6)).config.train
    assert abs(train.max_steps - steps) <= 8
    assert train.rungs[-1] == train.max_steps
    assert train.rungs[:2] == [train.max_steps // 4, train.max_steps // 2]


def test_where_there_is_time_for_all_nothing_is_given_up() -> None:
    composed = chosen(sizes())
    assert (composed.config.search.trials, composed.config.search.time) == (8, "15m")
    assert composed.config.data.max_length == 128
    assert "Left out" not in composed.notes[-1]


def test_trials_go_before_tokens_and_tokens_before_steps_and_the_note_says_so() -> None:
    found = sizes(lengths=(512, 256, 128, 64))
    kept = []
    for step in (0.2, 0.6, 1.4, 2.7, 5.5, 7.0, 12.0, 60.0):
        slow = sizes(step=step, lengths=tuple(found.costs))
        composed = chosen(slow)
        config = composed.config
        kept.append((int(composed.notes[-1].split()[0]), config.data.max_length, config.train.max_steps))
        assert config.search.trials == 8  # more are begun where these are over sooner
    trials, tokens, steps = zip(*kept, strict=True)
    assert (trials[0], tokens[0], steps[0]) == (8, 512, 224)
    assert any(n < 8 and length == 512 and long == 224 for n, length, long in kept)
    assert any(length in (128, 256) and long == 224 and n >= 4 for n, length, long in kept)
    assert any(length == 128 and 112 <= long < 224 for _, length, long in kept)
    assert steps[-1] < 112
    assert trials[-1] < 4
    note = chosen(sizes(step=9.0, lengths=tuple(found.costs))).notes[-1]
    assert "Left out for want of time: " in note
    assert "search.time=15m" in note


def test_where_few_trials_fit_few_run_side_by_side() -> None:
    for step in (0.2, 9.0, 40.0):
        composed = chosen(sizes(step=step, lengths=(512, 256, 128, 64)))
        trials = int(composed.notes[-1].split()[0])
        assert max_concurrent(composed.config, [8]) == -(-trials // 2)


def test_the_plan_fits_the_time_and_uses_most_of_it() -> None:
    for time in ("5m", "15m", "1h"):
        composed = chosen(sizes(step=0.6, lengths=(256, 128, 64)), f"search.time={time}")
        said = composed.notes[-1].split("about ")[1].split(" of search.time")[0]
        minutes = float(said.split()[0]) / (60 if said.endswith("s") else 1)
        assert minutes <= seconds_of(time) / 60
        if time != "1h":
            assert minutes >= 0.5 * seconds_of(time) / 60


def test_what_is_named_stays() -> None:
    slow = sizes(step=5.0, lengths=(512, 256))
    assert chosen(slow, "train.epochs=2", "search.time=5m").config.train.max_steps == 150
    assert chosen(slow, "train.max_steps=40", "search.time=5m").config.train.max_steps == 40
    assert chosen(slow, "train.rungs=[4,40]", "search.time=5m").config.train.rungs == [4, 40]
    assert chosen(slow, "search.trials=12", "search.time=5m").config.search.trials == 12


def test_a_named_length_or_number_of_trials_lifts_the_default_limit() -> None:
    for named in ("train.epochs=2", "train.max_steps=40", "search.trials=20"):
        assert chosen(sizes(step=5.0), named).config.search.time is None
    assert chosen(sizes(), "search.time=null").config.search.time is None


def test_only_an_open_length_has_to_be_chosen() -> None:
    named = ["train.max_steps=8", "data.max_length=64"]
    assert not is_open(compose([*BASE, *named]))
    assert is_open(compose([*BASE, *named, "search.time=5m"]))
    assert is_open(compose([*BASE, named[0]]))
    assert chosen(Sizes(10, 0, 1, {40: Cost("", 0, 0, (), 0, 0)}, {40: 0.0}), named[0]).config.data.max_length == 40


def test_trials_are_scored_less_often_where_scoring_costs_much() -> None:
    cheap, dear = sizes(), sizes()
    cost = dear.costs[128]
    dear = Sizes(dear.rows, 300, 4, {128: Cost("fp32", cost.own, 0.0, (), 2.0, 1.0)}, dear.item_seconds)
    assert len(chosen(cheap).config.train.rungs) > len(chosen(dear).config.train.rungs) == 3


@pytest.mark.parametrize(
    ("p99", "schema", "tokens"),
    [(37, "label", 40), (3, "label", 16), (900, "label", 512), (900, "chat", 904), (0, "text", 256)],
)
def test_rows_are_as_long_as_nearly_all_need(p99: int, schema: str, tokens: int) -> None:
    assert fitting_tokens(p99, schema) == tokens


def test_half_of_a_search_is_left_for_what_the_first_half_shows() -> None:
    assert max_concurrent(compose(["search.trials=8"]).config, [8]) == 4
    assert max_concurrent(compose(["search.trials=8", "resources.slots=8"]).config, [8]) == 8
    assert max_concurrent(compose(["search.trials=8", "ray.max_concurrent_trials=6"]).config, [8]) == 6
    assert max_concurrent(compose(["search.trials=2"]).config, [8, 8]) == 2
