"""Values that no key takes are refused while the config is composed, with the key: never a defect, never later."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from analysis.errors import ConfigError, DataError, ModelError
from sweeps.compose import compose as composing
from sweeps.compose.compose import LONGEST_NAME, Composed, compose
from sweeps.config import schema

REFUSED = [
    ("train.rungs=[12,4]", ["train.rungs=[12, 4]", "ascending"]),
    ("train.rungs=[4,4,8]", ["train.rungs=[4, 4, 8]", "ascending"]),
    ("train.rungs=[-4,8]", ["train.rungs=[-4, 8]", "ascending"]),
    ("train.rungs=[0,8]", ["train.rungs=[0, 8]", "ascending"]),
    ("scheduler.grace=3", ["scheduler.grace", "'grace_period'"]),
    ("sampler.seeed=3", ["sampler.seeed", "'seed'"]),
    ("scheduler.grace_period=1e400", ["scheduler.grace_period=inf", "finite"]),
    ("scheduler.grace_period=true", ["grace_period=True"]),
    ("scheduler.reduction_factor=nan", ["scheduler.reduction_factor=nan", "finite"]),
    ("search.budget.target={accuracy: 90}", ["search.budget.target.accuracy=90", "between 0 and 1", "0.9"]),
    ("search.budget.target={log_loss: -1}", ["search.budget.target.log_loss=-1", "never below 0"]),
    ("objective.constraints.a={metric: accuracy, at_least: 90}", ["objective.constraints.a.at_least=90", "0.9"]),
    ("objective.terms.quality.range=[0,inf]", ["objective.terms.quality.range", "two numbers"]),
    (f"sweep.name={'x' * 300}", ["300 bytes", f"{LONGEST_NAME} at most"]),
    ("sweep.name=..", ["sweep.name='..'"]),
    ("lora.alpha_value=1e400", ["lora.alpha_value=inf"]),
    (f"optim.beta2={10**400}", ["optim.beta2=1000", "finite"]),
    (f"few_shot.seed={10**400}", ["few_shot.seed=1000", "finite"]),
    (f"eval.generate_items={10**30}", ["eval.generate_items=1000"]),
    ("baselines={a: 1}", ["baselines={'a': 1}", "a list"]),
    ("tracking.tags={a: 1}", ["tracking.tags={'a': 1}", "a list"]),
    ("task.name=3.7", ["task.name=3.7", "completion, classification"]),
    ("task.name=completions", ["task.name='completions'", "'completion'"]),
    ("x=" + "[" * 100_000, ["nested more than"]),
    ("lora.rank=" + "[" * 100_000 + "]" * 100_000, ["lora.rank=", "nested more than"]),
    ("search.start_from=" + "[{a: " * 20_000, ["nested more than"]),
    ("lora.targets=" + "x(" * 50, ["nested more than"]),
]

WRONG = [
    "-1", "0", "1e400", "-inf", "nan", "[]", "{}", "null", "''", "'a\nb'", "true", "3.7", str(10**30), "1" + "0" * 400,
    "1e308", "[[]]", "[1,null]", "{a: 1}", "{a: null}", "[nan]", "x" * 300, "[12,4]", "[-4,8]", "{a: {b: 1}}", "5e-324",
    "[{a: 1}]", "[true]", "[x,y]", "{1: 2}", "'\x1b[31m'", "../../etc", "'\u202e'",
]  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Composed]:
    """``compose`` without origins, and without points placed in the space."""
    monkeypatch.setattr(composing, "_sources", lambda *_: [])
    monkeypatch.setattr(composing, "portfolio", lambda *_: [])
    return compose


def test_what_cannot_be_is_refused_with_its_key_and_the_reason(quick: Any) -> None:
    for override, words in REFUSED:
        with pytest.raises(ConfigError) as caught:
            quick(["experiment=quickstart", override])
        said = str(caught.value)
        assert [word for word in words if word not in said] == [], said[:500]
        assert len(said) < 1_000, override[:80]


def _tried(quick: Any, path: str, value: str) -> str:
    """What is wrong with how a value is refused; empty where it is taken, or refused as it should be."""
    try:
        quick(["experiment=quickstart", f"{path}={value}"])
    except (ConfigError, DataError, ModelError) as error:
        said = str(error)
        named = path in said or path.rpartition(".")[0] + ":" in said or path.split(".")[0] in said
        return "" if named and not said.startswith((":", " ")) and len(said) < 2_000 else said[:300]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def _sample(n: int, seed: int) -> list[tuple[str, str]]:
    return random.Random(seed).sample([(path, value) for path in schema() for value in WRONG], n)


def test_no_wrong_value_of_a_key_is_a_defect(quick: Any) -> None:
    faults = {f"{path}={value[:40]}": _tried(quick, path, value) for path, value in _sample(16, seed=0)}
    assert {key: fault for key, fault in faults.items() if fault} == {}


@pytest.mark.heavy
def test_no_wrong_value_of_any_key_is_a_defect(quick: Any) -> None:
    faults = {f"{path}={value[:40]}": _tried(quick, path, value) for path, value in _sample(1_500, seed=1)}
    assert {key: fault for key, fault in faults.items() if fault} == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampler=gp", ["'sampler' cannot change", "one sampler", "search.*, tracking.*, ray.*, resources.*"]),
        ("sampler.seed=3", ["'sampler.seed' cannot change", "one sampler"]),
        ("scheduler=fifo", ["'scheduler' cannot change", "stopped by one rule"]),
        ("objective=single", ["'objective' cannot change", "stopped and suggested by the recorded one"]),
        ("space=lora", ["'space' cannot change", "drawn from"]),
        ("sweep.name=b", ["'sweep.name' cannot change", "which sweep this is"]),
        ("lora.rank=4", ["'lora.rank' cannot change", "comparable"]),
    ],
)
def test_a_resume_says_why_a_key_cannot_change_and_what_to_do(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Composed.from_stored({}, [override])
    for word in [*words, "start a new sweep", "search.warm_start=RUN"]:
        assert word in str(caught.value)
