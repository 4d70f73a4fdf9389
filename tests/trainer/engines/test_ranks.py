"""Two processes train and score a trial as one does: the same rungs, the same adapter, the same checkpoints."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.engines.rank_processes import RankProcesses, trained
from tests.trainer.packs import at_step, distance
from trainer.config import TrialConfig
from trainer.models.ranks import ALONE

CLOSE = 1e-5


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    processes = RankProcesses(2, tmp_path_factory.mktemp("ranks"))
    yield processes
    processes.close()


def require_same(some: Any, others: Any) -> None:
    assert not isinstance(some, str), some
    assert not isinstance(others, str), others
    assert [type(event) for event in some] == [type(event) for event in others]
    for one, other in zip(some, others, strict=True):
        assert (one.row.step, one.row.tokens, one.row.n_items) == (other.row.step, other.row.tokens, other.row.n_items)
        assert one.row.metrics == pytest.approx(other.row.metrics, abs=CLOSE)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated, uneven": {"batch_size": 6, "accumulation": 2, "dropout": 0.3, "weight_decay": 0.1},
    "fewer rows than processes": {"batch_size": 3, "accumulation": 3, "dropout": 0.2, "lr": 1e-3},
}


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(
    case: str, model: str, sharding: str, two: RankProcesses, make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = make_trial(model, clip=0.05, **CASES[case])
    alone = trained(ALONE, trial, tmp_path / "alone")
    first, second = two(trained, trial, tmp_path / "two", sharding)
    require_same(first, alone)
    require_same(second, alone)
    for step in trial.train.rungs:
        d = distance(at_step(tmp_path / "two", trial, step), at_step(tmp_path / "alone", trial, step))
        print(case, model, sharding, step, d)
        assert d < CLOSE
