"""``lorasweep data``: what a person sees of their rows."""

import itertools
import json
import re
import sys

import pytest

from sweeps import cli
from sweeps.checks.show_data import _histogram


@pytest.fixture
def shown(tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, model: str = "llama") -> str:
        assert cli.main(["data", *tiny(model, *arguments)]) == 0
        return capsys.readouterr().out

    return run


def test_rows_stand_as_the_model_sees_them_with_the_loss_bearing_tokens_marked(shown, tiny_data):
    out = shown("--rows", "2")
    assert "60 training and 30 validation rows; schema label" in out
    assert "tokens that bear loss stand between ⟦ and ⟧" in out
    assert out.count("⟦bird") == 1  # the tiny tokenizer decodes without the space
    assert f"{tiny_data[0]}, line 2" in out
    assert "1 bear loss" in out
    assert re.search(r"data\.max_length=(16|24|32) cuts none\.", out)  # as long as the rows need, in eights
    lines = [line.split() for line in out.splitlines()]
    assert ["bird", "20", "(33.3", "%)", "10", "(33.3", "%)"] in lines


def test_what_is_cut_is_counted(shown):
    out = shown("data.max_length=10", "--rows", "1", "--split", "validation")
    assert "validation-0-" in out
    cut = int(out.split("data.max_length=10 cuts ")[1].split(" ")[0])
    assert 0 < cut < 60


def test_a_conversation_shows_each_answer_marked_and_rows_left_out_are_named(shown, tiny_models, tmp_path):
    import shutil

    shutil.copytree(tiny_models["llama"], tmp_path / "model")
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    turns = [("user", "the apple"), ("assistant", "a pear"), ("user", "and"), ("assistant", "a plum")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "c.jsonl").write_text(f"{json.dumps(row)}\n{{oops\n{json.dumps(row)}\n")
    files = ["data=jsonl", "data.train=c.jsonl", "data.validation=c.jsonl", "data.on_error=skip"]
    out = shown("model.path=model", *files, "--rows", "1")
    assert "data.schema=chat, because of the columns" in out
    assert out.count("⟦") == 3  # the legend, and two answers
    assert "2 rows left out (data.on_error=skip):" in out  # one of each split
    assert "c.jsonl, line 2: not valid JSON" in out


def test_a_classifier_s_rows_show_their_label(shown):
    out = shown("task=classification", "--rows", "1", model="bert")
    assert "label: bird" in out
    assert "⟦" not in out


def test_the_model_itself_is_not_loaded(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "trainer.models.base_model", None)  # importing it would raise
    assert "As the model sees it" in shown("--rows", "1")


def test_control_characters_cannot_reach_the_terminal(shown, tmp_path):
    (tmp_path / "a.csv").write_text(
        'text,label\n"the \x1b[31mapple",fruit\nthe pear,fruit\nthe tin,metal\nzinc,metal\n'
    )
    out = shown("data.train=a.csv", "data.validation=a.csv")
    assert "\x1b" not in out


def test_the_bins_of_a_histogram_hold_every_length_once():
    lengths = sorted([3, 3, 4, 17, 90, 91, 400])
    bins = _histogram(lengths)
    assert sum(n for _, _, n in bins) == 7
    assert len(bins) <= 12
    assert all(up + 1 == following for (_, up, _), (following, _, _) in itertools.pairwise(bins))
    assert (bins[0][0], bins[-1][1] >= 400) == (3, True)


def test_rows_of_each_group_and_what_gaps_they_can_show(shown, tmp_path):
    lines = [f"owl is a pear,{label},{who}" for label in ("fruit", "metal") for who in "xy" for _ in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,who", *lines, "a pear,fruit,z"]) + "\n")
    words = ("data.train=rows.csv", "data.validation=rows.csv", "data.group=who", "data.allow_overlap=true")
    out = shown(*words, "--rows", "0")
    table = [line.split() for line in out.splitlines()]
    assert ["validation", "rows", "x", "y", "z"] in table
    assert ["fruit", "12", "12", "1"] in table
    assert "take no part for it: z with label metal (0), z with label fruit (1)" in out
    assert "equalized odds cannot be shown to be below 0.18 (group x with label fruit has 12 rows)" in out
    assert "rows of a rung, no two groups of data.group=who have 13 rows of the same label each" in (
        shown(*words, "--rows", "0", "bias.group_rows=13")
    )
