"""Chats with tools, weights and other tools' columns through whole commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.folder import SweepFolder
from sweeps import cli
from sweeps.store.manifest import read_manifest

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.role }} : {{ m.content }}"
    "{% for c in m.tool_calls or [] %} {{ c.function.arguments.values() | join(' ') }}{% endfor %} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
WORDS = ["apple", "pear", "plum", "cherry", "iron", "copper", "zinc", "tin", "wren", "owl", "hawk", "crow"]


@pytest.fixture
def model(tiny_models: dict[str, Path], tmp_path: Path) -> str:
    """The tiny model with a chat template that writes tools and calls."""
    shutil.copytree(tiny_models["llama"], tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return f"model.path={tmp_path / 'model'}"


def chats(weight: int = 1) -> list[dict[str, Any]]:
    made = []
    for i, word in enumerate(WORDS):
        name, key = (("owl", "a"), ("crow", "b"))[i % 2]
        call = {"type": "function", "function": {"name": name, "arguments": {key: word}}}
        made.append({
            "messages": [
                {"role": "user", "content": f"the {word}"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "zinc"},
                {"role": "assistant", "content": "a pear is", "weight": weight},
            ],
            "tools": [{"type": "function", "function": {"name": name, "parameters": {key: {"type": "string"}}}}],
        })  # fmt: skip
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.train={path}"


def metrics(name: str) -> dict[str, float]:
    [trial] = SweepFolder(Path("runs") / name).trials()
    return trial.read_metrics()[-1].metrics


def test_a_trial_learns_the_same_of_chats_in_json_and_in_parquet(tiny, model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["data.validation=null", "data.split.validation=0.25", "objective=single", "baselines=[]", model]
    for name, rows in [("a.jsonl", chats()), ("b.parquet", chats()), ("c.jsonl", chats(weight=0))]:
        source = {"jsonl": "jsonl", "parquet": "parquet"}[name.split(".")[1]]
        given = [f"data={source}", write(tmp_path / name, rows), f"sweep.name={name[0]}"]
        assert cli.main(["trial", *tiny("llama", *common, *given)]) == 0
    assert metrics("a") == metrics("b")
    tokens = {name: read_manifest(SweepFolder(Path("runs") / name))["data"]["tokens"] for name in "abc"}
    assert tokens["a"] == tokens["b"] == tokens["c"], "a turn that is not learned is still read"
    assert metrics("c")["completion_loss"] != pytest.approx(metrics("a")["completion_loss"])
    assert metrics("c")["perplexity"] != metrics("a")["perplexity"], "and not trained on"


@pytest.mark.heavy
def test_a_sweep_over_sharegpt_rows_resumes_with_the_columns_that_it_found(lorasweep, tiny, model, tmp_path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"the {word}"}, {"from": "gpt", "value": "a pear"}]}
        for word in WORDS
    ]
    given = ["data=jsonl", write(tmp_path / "rows.jsonl", rows), "data.validation=null", model, "objective=single"]
    command = lorasweep(tmp_path)
    done = command("run", *tiny("llama", *given, "baselines=[]", "search.trials=1", "sweep.name=s"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ShareGPT's" in done.stdout
    done = command("resume", "runs/s", "search.trials=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(SweepFolder(tmp_path / "runs" / "s").trials())) == 2
