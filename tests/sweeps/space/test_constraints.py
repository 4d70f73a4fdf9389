"""Constraints over the space: what an expression may hold, and that no forbidden point is in a sweep."""

import pytest

from analysis.errors import ConfigError
from sweeps.compose.compose import compose
from sweeps.space.expression import Expression

VALUES = {"lora.rank": 16, "optim.lr": 1e-3, "lora.targets": "attention", "precision": "nf4", "lora.dora": False}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lora.rank * 4 <= 64", True),
        ("lora.rank*{'attention': 4, 'all_linear': 7}[lora.targets] < 64", False),
        ("4 < lora.rank <= 16", True),
        ("4 < lora.rank < 16", False),
        ("precision in ['nf4', 'int8'] or lora.rank > 99", True),
        ("precision not in ('nf4',)", False),
        ("not lora.dora and lora.rank % 8 == 0", True),
        ("lora.rank <= (8 if precision == 'nf4' else 64)", False),
        ("log10(optim.lr)", -3.0),
        ("max(lora.rank // 3, 2 ** 3, -1)", 8.0),
        ("lora.dora == false", True),
    ],
)
def test_expressions_have_the_value_that_python_would_give(text, value):
    assert Expression.parse(text, "here").value(VALUES) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "lora.rank.__class__()",
        "[x for x in (1, 2)]",
        "(lambda: 1)()",
        "open('f')",
        "f'{precision}'",
        "lora.rank := 3",
        "{**lora}",
        "max(*lora.rank)",
        "max(1, key=abs)",
        "lora.rank if",
        "~lora.rank",
        "lora.rank << 9",
        "",
        7,
        "b'x'",
        "a" * 2000,
    ],
)
def test_nothing_reaches_python_that_is_not_arithmetic(text):
    with pytest.raises(ConfigError, match="here"):
        Expression.parse(text, "here")


@pytest.mark.parametrize(
    "text", ["'a' * 10 ** 9 == 1", "9 ** 9 ** 9 ** 9", "lora.rank / 0", "[1][7]", "lora.rank < 'a'"]
)
def test_an_expression_without_a_value_says_where(text):
    with pytest.raises(ConfigError, match="has no value at"):
        Expression.parse(text, "here").value(VALUES)


def test_a_constraint_reads_searched_keys_fixed_keys_and_those_that_depend_on_what_is_sampled(capfd):
    given = "space_constraints=['lora.alpha_value <= 6 or lora.rank == train.batch_size']"
    composed = compose([given, "train.batch_size=8"])
    allows = composed.constraints().allows  # alpha_value follows the sampled alpha_rule: fixed 16, ratio 2, sqrt 6
    assert allows({"lora.alpha_rule": "sqrt", "lora.rank": 4})
    assert not allows({"lora.alpha_rule": "fixed", "lora.rank": 4})
    assert allows({"lora.alpha_rule": "fixed", "lora.rank": 8})
    assert "study" not in "".join(capfd.readouterr())  # Optuna announces every study that is made
    assert composed.config.space_constraints == ["lora.alpha_value <= 6 or lora.rank == train.batch_size"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["space_constraints=['lora.ranks < 8']"],
            ["space_constraints[0]", "'lora.ranks'", "Did you mean 'lora.rank'"],
        ),
        (["space_constraints=['precision == nf4']"], ["'nf4'", "quotes"]),
        (["space_constraints=['lora.rank < 4']"], ["none is allowed", "lora.rank < 4"]),
        (
            ["space=learning_rate", "space_constraints=['optim.lr < 1e-3']", "search.start_from=[{optim.lr: 2e-3}]"],
            ["search.start_from[0]", "optim.lr < 1e-3"],
        ),
    ],
)
def test_constraints_that_cannot_be_used_are_refused_before_anything_starts(overrides, words):
    with pytest.raises(ConfigError) as refused:
        compose(overrides)
    for word in words:
        assert word in str(refused.value)
