"""Files and folders are named on the command line as the shell gives them."""

from pathlib import Path

import pytest

from analysis.errors import ConfigError
from sweeps.compose.overrides import read_overrides

_ODD = [
    "with blanks.csv",
    " ends in blanks ",
    "a=b.csv",
    "v(1).csv",
    "it's.csv",
    'says "yes".csv',
    "Zoë данные 数据.csv",
    "one,two.csv",
    "[x]{y}.csv",
    "$HOME #1;&.csv",
    "back\\slash.csv",
    "2024",
    "null.csv",
    "'quoted'.csv",
]


def value(typed: str) -> object:
    [setting] = read_overrides([typed], {}).settings
    return setting.value


_KEYS = ("data.train", "data.test", "model.path", "bias.pairs_file", "sweep.dir", "tracking.uri", "search.warm_start")


@pytest.mark.parametrize("key", _KEYS)
@pytest.mark.parametrize("name", _ODD)
def test_a_place_is_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert value(f"{key}={name}") == name
    assert value(f"{key}={tmp_path / name}") == str(tmp_path / name)


def test_hydras_quotes_are_read_where_nothing_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert value('data.train="a b.csv"') == "a b.csv"
    assert value("data.train='a,b.csv'") == "a,b.csv"
    assert value("data.train=null") is None
    assert value("data.train=${oc.env:HOME}/a.csv") == "${oc.env:HOME}/a.csv"
    (tmp_path / '"a b.csv"').touch()
    assert value('data.train="a b.csv"') == '"a b.csv"'


def test_several_places_are_a_list_of_quoted_names() -> None:
    assert value("search.warm_start=[runs/a,'runs/b (1)']") == ["runs/a", "runs/b (1)"]
    with pytest.raises(ConfigError, match="cannot be read as KEY=VALUE"):
        value("search.transfer_from=[runs/b (1)]")


def test_other_keys_are_read_by_hydras_grammar() -> None:
    [setting] = read_overrides(["data.max_length=choice(8,16)"], {}).settings
    assert setting.path == "space.data.max_length"
    with pytest.raises(ConfigError, match="cannot be read as KEY=VALUE"):
        read_overrides(["task.prompt=a(b"], {})
