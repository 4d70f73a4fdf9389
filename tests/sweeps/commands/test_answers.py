"""``lorasweep answers``: what stands in the terminal, at several widths, and as JSON."""

import json
from pathlib import Path

import pytest

from analysis.errors import ConfigError
from sweeps.commands.answers import main
from sweeps.commands.shell_completion import completions
from tests.analysis.answers import PROMPTS, REFERENCES, TUNED, UNTUNED, make


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(make(tmp_path / "runs" / "x").root)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_texts_stand_side_by_side_where_there_is_room_and_below_each_other_elsewhere(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    wide = printed(capsys, run, "--worst", "2")
    heads = next(line for line in wide.splitlines() if "reference:" in line)
    assert heads.split() == ["reference:", "t0000:", "zero_shot:"]
    assert "in Paris, [-France-]" in wide
    assert "in Paris, {+Spain+}" in wide
    assert "exact_match 0.000 · overlap 0.5 · 4 tokens" in wide
    monkeypatch.setenv("COLUMNS", "80")
    narrow = printed(capsys, run, "--worst", "2")
    assert [line for line in narrow.splitlines() if line.strip() == "reference:"] == ["reference:"] * 2
    assert max(map(len, narrow.splitlines())) <= 80
    assert max(map(len, wide.splitlines())) <= 160


def test_the_worst_come_first_with_how_the_rows_compare(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, run)
    assert "t0000, step 8, 3 validation items: exact_match 0.333." in text
    assert "t0000 is better on 1, alike on 1, worse on 1." in " ".join(text.split())
    assert text.index("validation-2") < text.index("validation-0") < text.index("validation-1")
    assert "cut off" in text
    only = printed(capsys, run, "t0001", "--against", "few_shot", "--worst", "1")
    assert "t0001, step 4" in only
    assert "few_shot" in only
    assert "zero_shot" not in only
    assert only.count("──") == 1 or "2. " not in only
    assert "zero_shot" not in printed(capsys, run, "--against", "none")


def test_no_control_character_of_a_text_reaches_the_terminal(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--full",), ("--json",)):
        text = printed(capsys, run, *arguments)
        assert "owned" in text
        assert [char for char in text if not char.isprintable() and char != "\n"] == []
    assert "[bold]Faust[/bold]" in printed(capsys, run, "--full")  # nor is it rich's markup


def test_json_has_the_texts_as_they_were_written(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(printed(capsys, run, "--json", "--worst", "0"))
    assert (content["trial"], content["split"], content["by"]) == ("t0000", "validation", "exact_match")
    by_id = {item["item_id"]: item for item in content["items"]}
    for i in range(3):
        item = by_id[f"validation-{i}"]
        assert (item["prompt"], item["reference"]) == (PROMPTS[i], REFERENCES[i])
        assert (item["answers"]["t0000"]["text"], item["answers"]["zero_shot"]["text"]) == (TUNED[i], UNTUNED[i])
    assert by_id["validation-1"]["answers"]["t0000"]["values"] == {"exact_match": 1.0}
    assert by_id["validation-1"]["answers"]["t0000"]["finished"] is False


def test_a_number_of_items_that_is_none_is_refused(run: str) -> None:
    with pytest.raises(ConfigError, match="--worst many: expected how many items"):
        main([run, "--worst", "many"])


def test_the_shell_completes_sweeps_trials_and_options(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(run).parent.parent)
    assert "runs/x" in completions("lorasweep answers ")
    assert {"t0000", "t0001", "zero_shot"} <= set(completions("lorasweep answers runs/x "))
    assert {"--against", "--worst", "--by", "--full", "--json"} <= set(completions("lorasweep answers runs/x --"))
