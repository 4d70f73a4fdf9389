"""The table of architectures in trainer/README.md is what happens, line by line.

``pytest -m heavy tests/trainer/engines/test_architecture_table.py`` makes every line of it anew. A line that differs is
shown as it should be printed.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

import trainer
from tests.trainer.engines.architectures import (
    ARCHITECTURES,
    EQUAL,
    REFUSALS,
    cell,
    line,
    outcome,
    save,
    tasks,
    two_trials,
)
from trainer.config import TrialConfig

ALWAYS = ("Mixtral", "OPT", "StarCoder2", "BERT", "DeBERTa-v3", "ConvBERT", "Mamba", "PhiMoE")


def printed() -> list[str]:
    """The lines of the table."""
    text = (Path(trainer.__file__).parent / "README.md").read_text(encoding="utf-8")
    return text.split("| architecture |")[1].split("\n\n")[0].splitlines()[2:]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.heavy) for name in ARCHITECTURES]
)
def test_a_line_of_the_table_is_what_happens(
    name: str, make_trial: Callable[..., TrialConfig], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    cells = {}
    for task in tasks(name):
        folder = save(name, task, tmp_path / task / "model", tiny_models["llama"])
        cells[task] = cell(outcome(folder, two_trials(make_trial, task), tmp_path / task))
    assert line(name, cells) in printed()


def test_the_table_has_a_line_for_each_architecture_and_explains_its_words() -> None:
    assert [row.split(" | ")[0].removeprefix("| ") for row in printed()] == list(ARCHITECTURES)
    text = (Path(trainer.__file__).parent / "README.md").read_text(encoding="utf-8")
    cells = {said for row in printed() for said in row.strip("| ").split(" | ")[1:]}
    words = {said for said in cells if said != "–" and not said.startswith(EQUAL)}
    assert words == set(REFUSALS)
    for word in words:
        assert f"- *{word}*: " in text
