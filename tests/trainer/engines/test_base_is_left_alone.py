"""A trial leaves nothing in the base model that all trials of a device share, whatever its options and its end."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from analysis.folder import State, TrialFolder
from tests.trainer.packs import drive, packed_engine, score
from trainer.baselines import score_baseline
from trainer.config import Baseline, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted, Ended, Requeued, RungResult
from trainer.engines.hf_engine import HfEngine
from trainer.final_scoring import saved_adapter

_PLAIN = (bool, int, float, str, type(None))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Path:
    """A llama whose output layer is not its embedding, with biases."""
    folder = tmp_path_factory.mktemp("untied")
    AutoTokenizer.from_pretrained(tiny_models["llama"]).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.1, attention_bias=True,
            pad_token_id=2, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def fingerprint(model: Any) -> dict[str, Any]:
    """Everything that makes a model what it is: modules, attributes, hooks, configs and each tensor's bytes."""
    found: dict[str, Any] = {"config": model.config.to_dict(), "attention": model.config._attn_implementation}
    if getattr(model, "generation_config", None) is not None:
        found["generation"] = model.generation_config.to_dict()
    for name, module in model.named_modules(remove_duplicate=False):
        attributes = vars(module)
        plain = {key: value for key, value in attributes.items() if isinstance(value, _PLAIN)}
        hooks = {key: [id(hook) for hook in value.values()] for key, value in attributes.items() if "_hooks" in key}
        others = sorted(attributes.keys() - plain.keys())
        found[f"module {name}"] = (id(module), type(module), plain, hooks, others, list(module._modules))
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        facts = (tensor.dtype, tensor.shape, tensor.data_ptr(), tensor.requires_grad, tensor.grad is None)
        found[f"tensor {name}"] = (id(tensor), hashlib.sha256(content).hexdigest(), *facts)
    return found


@contextmanager
def left_alone(model: Any) -> Iterator[None]:
    """Fails where the model is another one afterwards, and names in what."""
    model(torch.arange(4, 20)[None])  # quantised layers set themselves up in their first pass
    before = fingerprint(model)
    yield
    after = fingerprint(model)
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert not changed, {key: (before.get(key), after.get(key)) for key in sorted(changed)[:3]}


def engine_of(name: str, kept: DeviceCache, checkpointing: bool = False) -> Any:
    return HfEngine(kept, score, checkpointing) if name == "hf" else packed_engine(kept, checkpointing=checkpointing)


PACKED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {"dropout": 0.2}),
    ("untied", {"rank": 2, "targets": "attention", "accumulation": 2}),
    ("bert", {"dropout": 0.2}),
    ("llama", {"task_name": "classification"}),
    ("llama", {"precision": "bf16"}),
    ("llama", {"precision": "nf4"}),
    ("llama", {"precision": "int8"}),
]
ALONE: list[tuple[str, dict[str, Any]]] = [
    ("untied", {"bias": "all"}),
    ("gpt2", {"bias": "lora_only"}),
    ("bert", {"bias": "all", "dropout": 0.1}),
    ("llama", {"dora": True}),
    ("untied", {"modules_to_save": ["lm_head"]}),
    ("llama", {"modules_to_save": ["lm_head"]}),  # tied to the embedding
    ("llama", {"modules_to_save": ["embed_tokens"]}),
    ("untied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ("untied", {"modules_to_save": ["norm", "input_layernorm"], "dora": True, "bias": "all"}),
    ("bert", {"modules_to_save": ["LayerNorm", "word_embeddings"]}),
    ("llama", {"modules_to_save": ["lm_head"], "precision": "nf4"}),
]
CASES = [(engine, *case, False) for case in PACKED for engine in ("packed", "hf")]
CASES += [("hf", *case, False) for case in ALONE]
CASES += [(engine, *case, True) for case in PACKED[:4] for engine in ("packed", "hf")]
CASES += [("hf", *case, True) for case in ALONE[1:9:2]]


@pytest.fixture
def trial_of(make_trial: Callable[..., TrialConfig], untied: Path) -> Callable[..., TrialConfig]:
    def make(model: str, changes: dict[str, Any], **more: Any) -> TrialConfig:
        changes = {"lr": 2e-2, "max_steps": 3, "rungs": [1, 3], **changes, **more}
        task = changes.pop("task_name", None)
        trial = make_trial("llama" if model == "untied" else model, **changes)
        if model == "untied":
            trial.model.path = str(untied)
        if task:
            trial.task.name = task
        return trial

    return make


@pytest.mark.parametrize(("engine", "model", "changes", "checkpointing"), CASES)
def test_a_base_is_the_same_after_a_trial_and_a_trial_the_same_after_itself(
    engine: str,
    model: str,
    changes: dict[str, Any],
    checkpointing: bool,
    trial_of: Callable[..., TrialConfig],
    kept: DeviceCache,
    tmp_path: Path,
) -> None:
    trial = trial_of(model, changes)
    runner = engine_of(engine, kept, checkpointing)
    with left_alone(kept.base(trial).model):
        for folder in ("a", "b"):
            events = drive(runner, [trial], tmp_path / folder)["t0000"]
            assert isinstance(events[-1], Ended)
            assert events[-1].row is not None, events[-1].reason
    first, again = (load_file(tmp_path / f / "t0000" / "adapter" / "adapter_model.safetensors") for f in ("a", "b"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    rows = [[row.metrics for row in TrialFolder(tmp_path / f / "t0000").read_metrics()] for f in ("a", "b")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("changes", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}], ids=str)
def test_the_untuned_model_is_scored_alike_before_and_after_a_trial(
    changes: dict[str, Any], trial_of: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    trial = trial_of("untied", changes)

    def zero_shot(name: str) -> dict[str, float]:
        return score_baseline(kept, Baseline("zero_shot", trial), TrialFolder(tmp_path / name)).metrics

    before = zero_shot("before")
    drive(engine_of("hf", kept), [trial], tmp_path)
    assert zero_shot("after") == before
    with left_alone(kept.base(trial).model), saved_adapter(kept.base(trial), trial, tmp_path / "t0000" / "adapter"):
        pass
    assert zero_shot("afterwards") == before


class Fault:
    """Raises in a base model's layer: in the forward or the backward pass, the ``at``-th time, and once."""

    def __init__(self, layer: nn.Module, error: Exception, backward: bool, at: int):
        self.left, self.error, self.backward = at, error, backward
        self.handle = layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if self.backward and output.requires_grad:
            output.register_hook(self.now)
        elif not self.backward:
            self.now()

    def now(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


FAULTS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("something else")]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("engine", "model", "changes"),
    [
        ("packed", "llama", {"dropout": 0.1}),
        ("packed", "bert", {}),
        ("hf", "bert", {"bias": "all"}),
        ("hf", "untied", {"modules_to_save": ["lm_head"], "dora": True}),
    ],
)
def test_a_trial_that_fails_in_mid_step_leaves_the_base_as_it_was(
    engine: str,
    model: str,
    changes: dict[str, Any],
    backward: bool,
    error: Exception,
    trial_of: Callable[..., TrialConfig],
    kept: DeviceCache,
    tmp_path: Path,
) -> None:
    trial = trial_of(model, changes, accumulation=2, max_steps=6, rungs=[2, 6])
    base = kept.base(trial).model
    runner = engine_of(engine, kept, checkpointing=backward)
    runner.capacity(trial)  # a pack measures first
    layer = next(module for name, module in base.named_modules() if name.endswith(("layers.1.mlp", "layer.1.output")))
    fault = Fault(layer, error, backward, at=1 << 30)
    try:
        with left_alone(base):
            fault.left = 10
            events = drive(runner, [trial], tmp_path)["t0000"]
            assert isinstance(events[-1], Ended)
            assert events[-1].state in (State.OUT_OF_MEMORY, State.FAILED)
            assert fault.left <= 0
            fault.left = 1 << 30
    finally:
        fault.handle.remove()


@pytest.mark.parametrize("how", ["release", "end", "release before a step"])
@pytest.mark.parametrize(
    ("engine", "model", "changes"),
    [("packed", "bert", {}), ("hf", "llama", {"modules_to_save": ["lm_head"]}), ("hf", "gpt2", {"bias": "all"})],
)
def test_a_trial_that_is_taken_out_leaves_the_base_as_it_was(
    engine: str,
    model: str,
    changes: dict[str, Any],
    how: str,
    trial_of: Callable[..., TrialConfig],
    kept: DeviceCache,
    tmp_path: Path,
) -> None:
    trial = trial_of(model, changes)
    runner = engine_of(engine, kept)
    with left_alone(kept.base(trial).model):
        assert isinstance(runner.admit(trial, TrialFolder(tmp_path), None), Admitted)
        if "before" not in how:
            assert isinstance(runner.advance()[0], RungResult)
        if how == "end":
            runner.end("t0000", State.STOPPED_EARLY)
        else:
            runner.release("t0000")


def test_an_adapter_for_which_memory_runs_out_leaves_the_base_as_it_was(
    trial_of: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import layer

    trial, made = trial_of("llama", {}), []
    update = layer.LoraLayer.update_layer

    def third_fails(self: Any, *args: Any, **options: Any) -> Any:
        made.append(self)
        if len(made) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, *args, **options)

    monkeypatch.setattr(layer.LoraLayer, "update_layer", third_fails)
    with left_alone(kept.base(trial).model), pytest.raises(torch.OutOfMemoryError):
        HfEngine(kept, score).admit(trial, TrialFolder(tmp_path), None)
    assert len(made) == 3


def test_slots_that_make_room_leave_the_base_as_it_was(
    trial_of: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    three = [trial_of("bert", {}, trial_id=f"t000{i}", seed=i) for i in range(3)]
    base = kept.base(three[0]).model
    runner = packed_engine(kept)
    runner.capacity(three[0])
    fault = Fault(base.bert.encoder.layer[1].output, torch.OutOfMemoryError("CUDA out of memory"), False, at=1 << 30)
    try:
        with left_alone(base):
            for trial in three:
                assert isinstance(runner.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)
            always = torch.OutOfMemoryError("CUDA out of memory")
            fault.now = lambda *_: (_ for _ in ()).throw(always)  # type: ignore[method-assign]
            events = runner.advance()
            assert any(isinstance(event, Requeued) for event in events)
            del fault.now
            for trial_id in [slot.trial.trial_id for pack in list(runner._packs) for slot in list(pack.slots)]:
                runner.release(trial_id)
    finally:
        fault.handle.remove()


def test_the_fingerprint_sees_a_bit_of_a_weight_and_a_flag(tiny_models: dict[str, Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_models["bert"], num_labels=3).eval()
    before = fingerprint(model)
    assert fingerprint(model) == before
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight.view(torch.int32)[0, 0] ^= 1
    assert [key for key, value in fingerprint(model).items() if value != before[key]] == [
        "tensor bert.encoder.layer.0.output.dense.weight"
    ]
    with torch.no_grad():
        weight.view(torch.int32)[0, 0] ^= 1
    assert fingerprint(model) == before
    model.dropout.p = 0.25
    assert fingerprint(model) != before


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("engine", "package", "changes"),
    [
        ("hf", "smollm2", {"modules_to_save": ["lm_head"], "targets": "q_proj", "rank": 2}),
        ("hf", "smollm2", {"modules_to_save": ["norm"], "dora": True, "targets": "q_proj", "rank": 2}),
        ("packed", "smollm2", {"targets": "q_proj", "rank": 2}),
        ("hf", "minilm", {"bias": "all", "modules_to_save": ["LayerNorm"]}),
        ("packed", "minilm", {"dropout": 0.1}),
    ],
)
def test_real_models_are_left_alone(
    engine: str,
    package: str,
    changes: dict[str, Any],
    make_trial: Callable[..., TrialConfig],
    kept: DeviceCache,
    tmp_path: Path,
) -> None:
    trial = make_trial("bert" if package == "minilm" else "llama", max_steps=2, rungs=[2], **changes)
    trial.model.source, trial.model.package = "package", package
    runner, weights = engine_of(engine, kept), []
    with left_alone(kept.base(trial).model):
        for folder in ("a", "b"):
            events = drive(runner, [trial], tmp_path / folder)["t0000"]
            assert isinstance(events[-1], Ended)
            assert events[-1].row is not None, events[-1].reason
            weights.append(load_file(tmp_path / folder / "t0000" / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
