"""Every ``lorasweep`` command that documents and config files show runs, with a tiny model and a few rows in place of
what it would fetch.

``tests/test_documents.py`` runs the ``bash`` blocks as they stand, and composes the other commands in the default gate;
here those others, and the heads of ``conf/``, go through the command line and Ray, with their own options.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import yaml

from sweeps.compose import conf_tree
from tests.sweeps import options
from tests.sweeps.command_line import Lorasweep
from tests.sweeps.driver.ray_nodes import RayCluster, ray_cluster
from tests.test_documents import commands as documented

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

# Pattern of a command → why it is not run here.
NOT_RUN = {
    r"wandb (report|pull)": "needs an account; tests/sweeps/commands/test_wandb_*.py have a server of their own",
    r"s3://": "needs a bucket; tests/sweeps/test_bucket_sweep.py has a server of its own",
    r"gpus_per_trial=4": "needs four GPUs",
    r"workers_per_trial=2": "needs a second node, or twice the memory; tests/trainer/engines/test_ranks.py",
    r"127\.0\.0\.1:5000": "needs an MLflow server; tests/sweeps/tracking/test_mlflow_tracker.py starts one",
    r"tracking=wandb ": "needs an account; tests/sweeps/tracking/test_wandb_online.py has a server of its own",
    r"fetch .*=": "fetches hundreds of MB; tests/trainer/data/test_hub.py and test_prefetch.py",
    r"cluster check": "looks at other machines' folders; tests/sweeps/commands/test_cluster.py",
    r"(stop|enqueue|resume) runs/tickets": "needs a sweep that runs; tests/sweeps/commands/test_steering.py",
    r"finalize runs/quickstart": "needs the quickstart's sweep, minutes of work; `make sweep`",
}
ENCODERS = "minilm|bert|distilbert|roberta"
WRITTEN = "disfl_qa|quac"  # data whose rows with labels are answered too
CALLS = "bfcl|function_calling|question_answering|=chat$|=chat "  # whose answers are texts: JSON here


def heads() -> list[str]:
    """The commands in the heads of config files, without what is said beside them."""
    command = re.compile(r"^#\s+(lorasweep \S.*?)(?:\s{3,}.*)?$", re.M)
    files = sorted(conf_tree.SHIPPED.rglob("*.yaml"))
    return [line for file in files for line in command.findall(file.read_text(encoding="utf-8"))]


def commands() -> list[str]:
    """Each command once."""
    shown = [line for _, line in documented()] + heads()
    plain = [re.sub(r"\s+#.*$", "", line).strip() for line in shown]
    return list(dict.fromkeys(plain))


def reason(command: str) -> str:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, f"{command} ")), "")


def words_of(command: str) -> list[str]:
    """As bash splits them, ``$'…\\n…'`` too."""
    return shlex.split(command.replace("$'", "'").replace(r"\n", "\n"))[1:]


@pytest.fixture(scope="module")
def ray() -> Iterator[RayCluster]:
    with ray_cluster(cpus=2, system_config={}) as running:
        yield running


@pytest.fixture(scope="module")
def made(
    ray: RayCluster, lorasweep: type[Lorasweep], tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Lorasweep, options.Files]:
    """A folder with the files and sweeps that the commands name."""
    folder = tmp_path_factory.mktemp("typed")
    files = options.write_files(tiny_models, folder)
    labelled = [yaml.safe_load(line) for line in files.rows["label"][0].read_text().splitlines()]
    table = pa.Table.from_pylist([{"text": row["text"], "label": row["label"]} for row in labelled])
    for name, rows in (("A", table), ("B", table.slice(0, 16))):
        rows = rows if name == "A" else table.set_column(0, "text", [[f"the {it}" for it in table["text"].to_pylist()]])
        pq.write_table(rows, folder / f"{name}.parquet")
        feather.write_feather(rows, folder / f"{name}.arrow", compression="uncompressed")
        for suffix, between in (("csv", ","), ("tsv", "\t")):
            lines = [between.join(("text", "label")), *(between.join(row.values()) for row in rows.to_pylist())]
            (folder / f"{name}.{suffix}").write_text("\n".join(lines) + "\n")
    shutil.copy(files.rows["label"][0], folder / "A.jsonl")
    shutil.copy(files.rows["label"][1], folder / "B.jsonl")
    shutil.copy(folder / "A.csv", folder / "reviews.csv")
    shutil.copy(folder / "A.csv", folder / "train.csv")
    shutil.copy(folder / "B.csv", folder / "test.csv")
    shutil.copy(files.rows["chat"][0], folder / "chats.jsonl")
    asked = [f"is it {row['label']},{row['text']},{row['label']}" for row in labelled]
    (folder / "qa.csv").write_text("\n".join(["question,passage,answer", *asked]) + "\n")
    (folder / "DIR").mkdir()
    for number in range(20):
        text = " and ".join(row["text"] for row in labelled[number : number + 12])
        (folder / "DIR" / f"{number}.txt").write_text(text)
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "my_sweep.yaml").write_text("# @package _global_\nlora:\n  alpha_rule: ratio\n")
    command = lorasweep(folder, {**ray.environment, "RAY_ADDRESS": ray.address})
    for name, model in (("first", "llama"), ("second", "llama"), ("small", "gpt2"), ("tickets", "llama")):
        given = ["lora.rank=4"] if name == "second" else []
        done = command(*substituted(["run", f"sweep.name={name}", *given], files, ray.address, model=model))
        assert done.returncode == 0, done.stderr
    return command, files


def substituted(words: list[str], files: options.Files, address: str, model: str = "") -> list[str]:
    """A command with a tiny model, rows and lengths beside its own options."""
    if words[0] not in ("run", "data", "check", "trial") or "--help" in words or "--cfg" in words:
        return words
    text = " ".join(words)
    kind = model or ("bert" if re.search(rf"model=({ENCODERS})\b", text) else "llama")
    given = {word.partition("=")[0].lstrip("+"): word for word in words[1:]}
    added = ["model.source=local", f"model.path={files.models[kind]}"]
    if "data.train" not in given:
        train, validation = files.rows["label"]
        own = "data" if "data" not in given else ""
        added += ["data=jsonl"] if own else ["data.source=jsonl"]
        added += [f"data.train={train}", f"data.validation={validation}", "data.name=null"]
        added += ["data.topics={}"] if "data.topics" in text or "newsgroups" in text or "experiment" in text else []
        added += ["data.text=text", "data.label=label"] if "pubmedqa" in text else []
        if re.search(f"pubmedqa|{WRITTEN}|{CALLS}", text):
            added += ["data.package=null", "data.split.validation=0", "data.split.test=0"]  # rows of other files
            added += ["data.max_length=128"]  # the tiny models' window
        if re.search(WRITTEN, text):
            added += ["data.schema=label", "data.text=text", "data.label=label", "data.split.group=null"]
            added += ["data.template=null", "data.answer_template=null"]
        if re.search(CALLS, text):
            added += ["data.schema=completion", "data.split.group=null", "data.template='{{ text }}'"]
            added += ["""data.answer_template='{"label": "{{ label }}"}'"""]
        added += ["data.train_rows=0", "data.validation_rows=0", "data.test_rows=0"] if "experiment" in text else []
    if not {"train.max_steps", "train.epochs"} & given.keys() and words[0] != "data":
        added += ["train.max_steps=4", "train.rungs=[2,4]"]
    added += [] if "train.batch_size" in given else ["train.batch_size=4"]
    added += ["train.accumulation=1"] if "experiment=llama3_qlora" in text else []
    if not re.search(rf"model=({ENCODERS})\b|task=classification|bias=none|quickstart_classifier", text):
        added += ["bias.crows_pairs=12", "bias.stereoset=6", *(["bias.bbq=44"] if "bias=full" in text else [])]
    if words[0] == "run":
        added += ["search.trials=2", f"ray.address={address}"]
    return [*words, *added]


@pytest.mark.parametrize("command", [it for it in commands() if not reason(it)])
def test_a_command_that_is_shown_runs(
    command: str, made: tuple[Lorasweep, options.Files], ray: RayCluster, request: pytest.FixtureRequest
) -> None:
    lorasweep, files = made
    words = substituted(words_of(command), files, ray.address)
    name = re.sub(r"\W+", "-", request.node.name)[-60:].strip("-")
    own = words[0] == "run" and not {"--help", "--cfg"} & set(words)
    done = lorasweep(*words, *([f"sweep.name=x{name}"] if own else []))
    said = f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (done.returncode, done.stderr) == (0, ""), said
    if own:
        assert (lorasweep.cwd / "runs" / f"x{name}" / "leaderboard.csv").exists(), said


def test_what_is_not_run_is_still_shown() -> None:
    for pattern in NOT_RUN:
        assert any(re.search(pattern, f"{command} ") for command in commands()), pattern
