"""Sweeps of each schema through the real command: intervals, verdict and choice, in the terminal and in the page."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import SweepFolder
from tests.conftest import write_rows
from tests.sweeps.test_chats import TEMPLATE

UNITS = {"completion": "nats a token", "chat": "nats a token", "text": "bits a byte"}


def rows(schema: str, texts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    if schema == "completion":
        return [{"prompt": text, "completion": f" {label}"} for text, label in texts]
    if schema == "text":
        return [{"text": f"{text} {label}"} for text, label in texts]
    turns = [({"role": "user", "content": text}, {"role": "assistant", "content": label}) for text, label in texts]
    return [{"messages": list(pair)} for pair in turns]


@pytest.mark.heavy
@pytest.mark.parametrize("schema", ["label", "classification", "completion", "chat", "text"])
def test_each_schema_has_its_claims(
    schema: str, lorasweep: Any, tiny: Any, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    command = lorasweep(tmp_path)
    given = ["search.trials=3", "scheduler=fifo", "precision=fp32", "tracking=none", "sweep.name=tiny"]
    if schema in UNITS:
        for split, n, seed in (("train", 60, 0), ("validation", 30, 1)):
            lines = write_rows(tmp_path / f"{split}.csv", n, seed).read_text().splitlines()[1:]
            made = rows(schema, [(line.split(",")[0], line.split(",")[1]) for line in lines])
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        shutil.copytree(tiny_models["llama"], tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
        given += ["data=jsonl", f"data.schema={schema}", f"model.path={tmp_path / 'model'}"]
        given += [f"data.{split}={tmp_path / split}.jsonl" for split in ("train", "validation")]
    elif schema == "classification":
        given += ["task=classification"]
    done = command("run", *tiny("bert" if schema == "classification" else "llama", *given))
    assert done.returncode == 0, done.stdout + done.stderr
    again = command("rank", "runs/tiny")
    assert again.returncode == 0, again.stderr
    assert command("report", "runs/tiny").returncode == 0
    page = " ".join((tmp_path / "runs" / "tiny" / "report.html").read_text().split())
    for text in (done.stdout, again.stdout):
        assert len(re.findall(r"t000\d +completed +\d\.\d+ +\d\.\d\d–\d\.\d\d ", text)) == 3
        assert re.search(rf"paired 95 % interval \[[^]]*\] {UNITS.get(schema, 'points')} on 30 items", text)
        [choice] = re.findall(r"t000\d was chosen among 3 configurations on these same items; corrected for .*", text)
        [standing] = re.findall(
            r"t000\d is better than each of 2 other .*|No winner: t000\d has the best score, .*", text
        )
        assert ("could have shown a difference" in text) == standing.startswith("No winner")
    for sentence in (choice, standing):
        assert sentence.replace("'", "&#39;") in page
    if schema == "classification":
        assert "zero_shot: its head is untrained" in again.stdout
        assert {"majority", "linear", "frozen", "zero_shot"} <= {
            files.trial_id for files in SweepFolder(tmp_path / "runs" / "tiny").baselines()
        }
