"""Two processes train and score a trial as one does: the same rungs, the same adapter, the same checkpoints.

One that is heavy waits for a collective's limit: ``pytest -m heavy tests/trainer/engines/test_ranks.py``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.errors import ConfigError, HardwareError
from analysis.folder import State, TrialFolder
from tests.trainer.engines import rank_processes as processes
from tests.trainer.engines.rank_processes import RankProcesses, trained
from tests.trainer.packs import at_step, distance, score
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engines.batches import MicroBatch, part_of
from trainer.engines.hf_engine import HfEngine
from trainer.generation.decode import Decoding
from trainer.models.ranks import ALONE, Ranks
from trainer.models.sharding import needs, too_large

CLOSE = 1e-5


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    started = RankProcesses(2, tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()


def differ(some: Any, others: Any, where: Path, trial: TrialConfig) -> float:
    """The largest difference of a metric, or of a weight at a rung, between ``two`` processes and one ``alone``."""
    assert not isinstance(some, str), some  # a traceback
    assert [type(event) for event in some] == [type(event) for event in others]
    found = [0.0]
    for one, other in zip(some, others, strict=True):
        assert (one.row.step, one.row.tokens, one.row.n_items) == (other.row.step, other.row.tokens, other.row.n_items)
        assert one.row.metrics.keys() == other.row.metrics.keys()
        found += [abs(one.row.metrics[name] - value) for name, value in other.row.metrics.items()]
    steps = TrialFolder(where / "two" / trial.trial_id).checkpoints()
    found += [distance(at_step(where / "two", trial, step), at_step(where / "alone", trial, step)) for step in steps]
    found += [distance(*(moments(where / name, trial, step) for name in ("two", "alone"))) for step in steps]
    return max(found)


def moments(root: Path, trial: TrialConfig, step: int) -> dict[str, torch.Tensor]:
    """AdamW's first moments: unlike its steps, they show the gradients' scale."""
    stored = load_file(TrialFolder(root / trial.trial_id).checkpoint_dir(step) / "optimizer.safetensors")
    return {name: tensor for name, tensor in stored.items() if name.endswith("|exp_avg")}


UNEVEN: dict[str, Any] = {"batch_size": 6, "accumulation": 2, "dropout": 0.3, "weight_decay": 0.1}  # three rows a pass
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("llama", "ddp", {}),
    "a batch that does not divide": ("llama", "ddp", UNEVEN),
    "a process without a row": ("llama", "ddp", {"batch_size": 3, "accumulation": 3, "dropout": 0.2}),
    "a head": ("bert", "ddp", UNEVEN),
    "DoRA": ("gpt2", "ddp", UNEVEN | {"dora": True}),
    "a sharded model": ("llama", "fsdp", UNEVEN),
    "a sharded model and a process without a row": ("llama", "fsdp", {"batch_size": 3, "accumulation": 3}),
    "a sharded model with a head": ("bert", "fsdp", UNEVEN),
    "a sharded model whose activations are computed again": ("llama", "fsdp", UNEVEN),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_at_the_same_batch(
    case: str, two: RankProcesses, make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    model, sharding, changes = CASES[case]
    trial = make_trial(model, clip=0.05, **changes)
    alone = trained(ALONE, trial, tmp_path / "alone")
    for answer in two(trained, trial, tmp_path / "two", sharding, None, None, "again" in case):
        assert differ(answer, alone, tmp_path, trial) < CLOSE


@pytest.mark.parametrize(
    "wrong",
    [
        processes.means_instead_of_sums,
        processes.own_denominators,
        processes.dropout_by_place_in_the_process,
        processes.clipped_before_they_are_summed,
        processes.no_sum_at_all,
        processes.scores_of_its_own,
    ],
)
def test_what_would_be_wrong_is_seen(
    wrong: Any, two: RankProcesses, make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    clip = 1e3 if wrong is processes.means_instead_of_sums else 0.05
    trial = make_trial("llama", clip=clip, max_steps=2, rungs=[2], **UNEVEN)
    alone = trained(ALONE, trial, tmp_path / "alone")
    answers = two(trained, trial, tmp_path / "two", "ddp", None, wrong)
    assert differ(answers[0], alone, tmp_path, trial) > 10 * CLOSE


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_checkpoint_goes_from_two_processes_to_one_and_back(
    sharding: str, two: RankProcesses, make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = make_trial("llama", **UNEVEN)
    whole = trained(ALONE, trial, tmp_path / "alone")
    of_one = TrialFolder(tmp_path / "alone" / trial.trial_id).checkpoint_dir(2)
    first, _ = two(trained, trial, tmp_path / "two", sharding, of_one)
    assert differ(first, whole[1:], tmp_path, trial) < CLOSE

    of_two = TrialFolder(tmp_path / "two" / trial.trial_id).checkpoint_dir(4)
    assert {path.suffix for path in of_two.iterdir()} <= {".safetensors", ".json", ".md"}
    last = trained(ALONE, trial, tmp_path / "again" / "two", checkpoint=of_two)
    (tmp_path / "again" / "alone").symlink_to(tmp_path / "alone")
    assert differ(last, whole[2:], tmp_path / "again", trial) < CLOSE
    of_two_again, _ = two(trained, trial, tmp_path / "third" / "two", sharding, of_two)
    (tmp_path / "third" / "alone").symlink_to(tmp_path / "alone")
    assert differ(of_two_again, whole[2:], tmp_path / "third", trial) < CLOSE


@pytest.mark.parametrize(
    ("wrong", "state", "reason"),
    [
        (processes.memory_runs_out_in_the_second, State.OUT_OF_MEMORY, "no room for 9 bytes"),
        (processes.infinite_in_the_second, State.DIVERGED, "the loss was nan in step 3"),
    ],
)
def test_a_fault_of_one_process_ends_the_trial_in_all(
    wrong: Any,
    state: State,
    reason: str,
    two: RankProcesses,
    make_trial: Callable[..., TrialConfig],
    tmp_path: Path,
) -> None:
    trial = make_trial("llama", **UNEVEN)
    for answer in two(trained, trial, tmp_path, "ddp", None, wrong):
        assert not isinstance(answer, str), answer
        rung, ended = answer
        assert rung.row.step == 2
        assert (ended.state, ended.reason, ended.step) == (state, reason, 2)
    assert (TrialFolder(tmp_path / trial.trial_id).adapter_dir / "adapter_model.safetensors").exists()


def test_where_scoring_does_not_fit_one_process_all_make_smaller_batches(
    two: RankProcesses, make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = make_trial("llama", max_steps=2, rungs=[2])
    alone = trained(ALONE, trial, tmp_path / "alone")
    answers = two(trained, trial, tmp_path / "two", "ddp", None, processes.large_batches_do_not_fit_the_second)
    assert differ(answers[0], alone, tmp_path, trial) < CLOSE


def test_each_process_holds_its_part_of_a_sharded_model(
    two: RankProcesses, make_trial: Callable[..., TrialConfig]
) -> None:
    parts = two(processes.sharded_bytes, make_trial("llama"))
    assert [2 * mine for mine, _ in parts] == [whole for _, whole in parts], parts


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_write_what_one_does(
    sharding: str, two: RankProcesses, make_trial: Callable[..., TrialConfig]
) -> None:
    prompts = [(0, 5), (0, 9, 4, 12, 7, 20, 6), (0, 11, 8), (0, 21, 5, 5, 9), (0, 6, 14, 9, 17, 4, 8, 8, 10)]
    trial, settings = make_trial("llama"), Decoding(9)
    expected, _ = processes.written(ALONE, trial, "ddp", prompts, settings, 2)
    assert len({len(answer.tokens) for answer in expected}) > 1, "processes have different numbers of passes to do"
    answers = two(processes.written, trial, sharding, prompts, settings, 2)
    assert not any(isinstance(answer, str) for answer in answers), answers
    assert [written for written, _ in answers] == [expected, expected]
    passes = [n for _, n in answers]
    assert (passes[0] == passes[1]) is (sharding == "fsdp")


@pytest.mark.heavy
def test_a_process_that_hangs_is_not_waited_for_for_ever(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    pair = RankProcesses(2, tmp_path, timeout=8.0)
    try:
        for jobs in pair.jobs:
            arguments = make_trial("llama"), tmp_path / "two", "ddp", None, processes.the_second_hangs
            jobs.put((trained, arguments))
        rank, answer = pair.answers.get(timeout=120)
    finally:
        pair.close()
    assert rank == 0
    assert "RankLost: another process of the trial does not answer" in answer


def test_the_parts_of_a_batch_are_the_batch() -> None:
    tokens = np.arange(15).reshape(3, 5)
    batch = MicroBatch(tokens, tokens, np.array([4, 5, 6]), None, (5, 2, 3), step=1, denominator=7)
    parts = [part_of(batch, Ranks(rank, 4)) for rank in range(4)]
    assert [part.samples.tolist() for part in parts[:3]] == [[4], [5], [6]]
    assert [part.shape[1] for part in parts] == [5, 2, 3, 5], "padded to its own longest row"
    assert {part.denominator for part in parts} == {7}
    assert (parts[3].labels == -100).all(), "a row that counts nothing"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "nf4"}, "precision=nf4: the sharded passes .* are wrong"),
        ({"precision": "int8"}, "precision=int8"),
        ({"dora": True}, "lora.dora=true"),
        ({"bias": "all"}, "lora.bias=all"),
        ({"modules_to_save": ["lm_head"]}, "lora.modules_to_save"),
    ],
)
def test_what_cannot_be_trained_on_a_sharded_model_is_refused(
    changes: dict[str, Any], words: str, make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = make_trial("llama", **{name: value for name, value in changes.items() if name != "bias"})
    trial.lora.bias = changes.get("bias", "none")
    engine = HfEngine(DeviceCache(torch.device("cpu"), sharding="fsdp"), score)
    with pytest.raises(ConfigError, match=f"engine.sharding=fsdp with .*{words}"):
        engine.admit(trial, TrialFolder(tmp_path), None)


def test_a_model_that_no_gpu_holds_is_told_with_the_number_that_do(make_trial: Callable[..., TrialConfig]) -> None:
    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256,
    )  # fmt: skip
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)  # 70.6 billion parameters
    trial = make_trial("llama", precision="bf16", max_length=1024, batch_size=16, accumulation=8)
    need = needs(llama, trial)
    assert need.weights == pytest.approx(141.1e9, rel=0.01)
    small = needs(llama, make_trial("llama", precision="nf4", max_length=1024, batch_size=16, accumulation=8))
    assert small.weights == pytest.approx(43e9, rel=0.05)
    said = too_large(need, "bf16", 80e9, small)
    assert "the base model is 141.1 GB" in said
    assert "resources.gpus_per_trial=3 trains over so many" in said
    assert not need.fits(80e9, 2, sharded=True)
    assert need.fits(80e9, 3, sharded=True)
    assert not need.fits(80e9, 3, sharded=False)
    assert too_large(small, "nf4", 80e9) == ""


def test_it_is_told_before_the_weights_are_loaded(
    make_trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceCache, "_memory", 1e5)  # the tiny model has some hundred kilobytes
    monkeypatch.setattr("trainer.device_cache.load_base", lambda *_, **__: pytest.fail("it was loaded"))
    cache = DeviceCache(torch.device("cpu"))
    cache.device = torch.device("cuda")
    with pytest.raises(HardwareError, match=r"precision=fp32: the base model is .* no single one holds it"):
        cache.base(make_trial("llama"))
