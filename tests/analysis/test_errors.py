"""Errors: what a user reads, what a shell sees, and that Ray can carry them."""

import pickle

import pytest

from analysis import errors
from analysis.errors import LorasweepError, did_you_mean, first_line, nearest_names

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LorasweepError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_way_between_processes(kind: type[LorasweepError]) -> None:
    back = pickle.loads(pickle.dumps(kind("space: 'lora.ranks' is not a config path.")))
    assert type(back) is kind
    assert str(back) == "space: 'lora.ranks' is not a config path."


def test_every_kind_has_its_own_exit_code_and_none_means_success() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes) >= 7
    assert 0 not in codes


def test_a_near_name_is_suggested_whole() -> None:
    assert did_you_mean("lora.ranks", ["lora.rank", "optim.lr"]) == "Did you mean 'lora.rank'?"


def test_a_forgotten_dot_is_found() -> None:
    assert did_you_mean("optimlr", ["lora.rank", "optim.lr"]) == "Did you mean 'optim.lr'?"


def test_a_right_leaf_under_the_wrong_group_is_found() -> None:
    assert did_you_mean("training.optimizer.lr", ["lora.rank", "optim.lr"]) == "Did you mean 'optim.lr'?"


def test_all_names_are_listed_where_none_is_near() -> None:
    assert did_you_mean("zzz", ["min", "max"]) == "There are: max, min."


def test_a_long_list_is_cut_and_says_so() -> None:
    sentence = did_you_mean("zzz", [f"name{i:02}" for i in range(25)])
    assert "name19" in sentence
    assert "name20" not in sentence
    assert "…" in sentence


def test_nothing_to_choose_from_is_said() -> None:
    assert did_you_mean("accuracy", []) == "There are none."


def test_a_suggestion_alone_lists_nothing_where_no_name_is_near() -> None:
    assert nearest_names("lora.ranks", ["lora.rank", "optim.lr"]) == "Did you mean 'lora.rank'?"
    assert nearest_names("zzz", ["min", "max"]) == ""


@pytest.mark.parametrize(
    ("message", "line"), [("disk full\nat /tmp", "disk full"), ("\n  lost \nmore", "lost "), ("", "ValueError")]
)
def test_an_error_in_one_line_is_its_first_or_its_class(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
