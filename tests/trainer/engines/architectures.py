"""Transformers' architectures at a tiny size, and whether packs train them as plain PEFT does.

``outcome`` is a cell of the table in trainer/README.md: a task with an architecture either works in packs, its
adapters, head and predictions equal to those of a plain PyTorch loop over a plain PEFT model, or is refused.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_scheduler,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from analysis.errors import LorasweepError
from analysis.folder import State, TrialFolder
from tests.conftest import WORDS
from tests.trainer.packs import Weights, at_step, distance, drive, packed_engine, score
from trainer.config import ModelConfig, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Ended
from trainer.engines.batches import micro_batches
from trainer.engines.hf_engine import HfEngine
from trainer.models.lora import add_adapter

STEPS = 4
EQUAL, NONE = "equal", "–"
REFUSALS = {  # what the table says of a refusal → what stands in its sentence
    "looks ahead": "attends both ways",
    "padding": "the rows or the padding beside it",
    "random": "draws random numbers",
    "rebuilt": "replaces layers of its own",
    "fixed length": "cannot be run on rows of tokens",
}
TARGETS = "Use lora.targets="
_ITEMS = 5  # of the validation rows, whose predictions are compared
_IDS = {"vocab_size": 32, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
_BODY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_DECODER = {**_BODY, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, **_IDS}
_ENCODER = {**_BODY, "max_position_embeddings": 70, **_IDS}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, **_IDS}
_MOE = {**_DECODER, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SPAN = {"relative_attention": True, "max_relative_positions": 24, "position_biased_input": False}
_BOTH = {"pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32, **_SPAN}
_SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, **_IDS,
}  # fmt: skip
# name in the table → model_type and what is set of its config
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # decoders
    "Llama": ("llama", {"tie_word_embeddings": True, **_DECODER}),
    "Mistral": ("mistral", {"sliding_window": 6, **_DECODER}),
    "Mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, **_DECODER}),
    "Qwen2": ("qwen2", {**_DECODER, "vocab_size": 128}),
    "Qwen2-MoE": ("qwen2_moe", {"num_experts": 4, "shared_expert_intermediate_size": 24, **_MOE}),
    "Qwen3": ("qwen3", _DECODER),
    "Qwen3-MoE": ("qwen3_moe", {"num_experts": 4, **_MOE}),
    "Qwen3-Next": (
        "qwen3_next",
        {
            "num_experts": 4,
            "shared_expert_intermediate_size": 24,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            **_MOE,
        },
    ),
    "Gemma": ("gemma", _DECODER),
    "Gemma 2": ("gemma2", {"sliding_window": 6, **_DECODER}),
    "Gemma 3": ("gemma3_text", {"sliding_window": 6, **_DECODER}),
    "Phi": ("phi", _DECODER),
    "Phi-3": ("phi3", {**_DECODER, "num_key_value_heads": 2}),
    "PhiMoE": ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2, **_DECODER}),
    "GPT": ("openai-gpt", _GPT2),
    "GPT-2": ("gpt2", _GPT2),
    "GPT-BigCode": ("gpt_bigcode", _GPT2),
    "GPT-Neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "max_position_embeddings": 64,
            **_IDS,
        },
    ),
    "GPT-NeoX": ("gpt_neox", _ENCODER),
    "GPT-J": ("gptj", {"rotary_dim": 8, **_GPT2}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "sliding_window": 6, **_MOE}),
    "OPT": (
        "opt",
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 64,
            "layerdrop": 0.2,
            **_IDS,
        },
    ),
    "BLOOM": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.1, **_IDS}),
    "Falcon": ("falcon", {**_ENCODER, "hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "StarCoder2": ("starcoder2", {**_DECODER, "residual_dropout": 0.1, "embedding_dropout": 0.1}),
    "StableLM": ("stablelm", {**_DECODER, "hidden_dropout": 0.1}),
    "OLMo": ("olmo", _DECODER),
    "OLMo 2": ("olmo2", _DECODER),
    "OLMo 3": ("olmo3", {"sliding_window": 6, **_DECODER}),
    "OLMoE": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, **_DECODER}),
    "Granite": ("granite", _DECODER),
    "GraniteMoE": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2, **_DECODER}),
    "Cohere": ("cohere", _DECODER),
    "Cohere 2": ("cohere2", {"sliding_window": 6, **_DECODER}),
    "MPT": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 2, "expansion_ratio": 2, "max_seq_len": 64, **_IDS}),
    "BioGPT": ("biogpt", {**_ENCODER, "layerdrop": 0.2}),
    "XGLM": (
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 2, "max_position_embeddings": 64, **_IDS},
    ),
    "SmolLM3": ("smollm3", _DECODER),
    "EXAONE 4": ("exaone4", {"sliding_window": 6, "sliding_window_pattern": 2, **_DECODER}),
    "GLM": ("glm", _DECODER),
    "GLM-4": ("glm4", _DECODER),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            **_MOE,
            "head_dim": 8,
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 12,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "Nemotron": ("nemotron", _DECODER),
    "Persimmon": ("persimmon", _ENCODER),
    "CTRL": ("ctrl", {**_GPT2, "dff": 48}),
    "Helium": ("helium", _DECODER),
    "Mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **_IDS}),
    "RWKV": ("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, **_IDS}),
    "Jamba": (
        "jamba",
        {
            **_DECODER,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
        },
    ),
    # encoders
    "BERT": ("bert", _ENCODER),
    "RoBERTa": ("roberta", _ENCODER),
    "XLM-RoBERTa": ("xlm-roberta", _ENCODER),
    "CamemBERT": ("camembert", _ENCODER),
    "DistilBERT": (
        "distilbert",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64, **_IDS},
    ),
    "ELECTRA": ("electra", {**_ENCODER, "embedding_size": 16}),
    "ALBERT": ("albert", {**_ENCODER, "embedding_size": 16, "classifier_dropout_prob": 0.1}),
    "DeBERTa": ("deberta", {**_ENCODER, **_BOTH}),
    "DeBERTa-v2": ("deberta-v2", {**_ENCODER, **_BOTH, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "DeBERTa-v3": (
        "deberta-v2",
        {**_ENCODER, **_BOTH, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "ModernBERT": ("modernbert", {**_ENCODER, "local_attention": 6, "attention_dropout": 0.1}),
    "MPNet": ("mpnet", _ENCODER),
    "ConvBERT": ("convbert", {**_ENCODER, "embedding_size": 32, "conv_kernel_size": 3}),
    "XLNet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48, **_IDS}),
    "Funnel": ("funnel", {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 48, "block_sizes": [1, 1], **_IDS}),
    "RoFormer": ("roformer", {**_ENCODER, "embedding_size": 32}),
    "Longformer": ("longformer", {**_ENCODER, "attention_window": 8}),
    "BigBird": ("big_bird", {**_ENCODER, "block_size": 4, "num_random_blocks": 1}),
    "Nyströmformer": ("nystromformer", {**_ENCODER, "num_landmarks": 4, "segment_means_seq_len": 64}),
    "FNet": ("fnet", _ENCODER),
    "MobileBERT": (
        "mobilebert",
        {**_ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    ),
    "SqueezeBERT": ("squeezebert", {**_ENCODER, "embedding_size": 32}),
    "ERNIE": ("ernie", _ENCODER),
    "ESM": ("esm", {**_ENCODER, "position_embedding_type": "absolute"}),
    "XLM": ("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64, "n_words": 32, **_IDS}),
    "EuroBERT": ("eurobert", _DECODER),
    "Reformer": (
        "reformer",
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "attention_head_size": 16,
            "feed_forward_size": 48,
            "attn_layers": ["local", "lsh"],
            "axial_pos_shape": [8, 8],
            "axial_pos_embds_dim": [16, 16],
            "max_position_embeddings": 64,
            "is_decoder": True,
            **_IDS,
        },
    ),
    # encoders with decoders
    "BART": ("bart", _SEQ2SEQ),
    "T5": (
        "t5",
        {"decoder_start_token_id": 2, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, **_IDS},
    ),
}


def tasks(name: str) -> list[str]:
    """The tasks for which Transformers has a class of this architecture."""
    kind = type(config(name))
    return [
        task
        for task, classes in (
            ("completion", MODEL_FOR_CAUSAL_LM_MAPPING),
            ("classification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
        )
        if kind in classes
    ]


def config(name: str) -> Any:
    model_type, settings = ARCHITECTURES[name]
    return AutoConfig.for_model(model_type, initializer_range=0.1, **settings)


def save(name: str, task: str, folder: Path, tokenizer: Path) -> Path:
    """A tiny random checkpoint, as published ones are: with a language-model head or none, but no classifier's."""
    torch.manual_seed(0)
    if task == "completion":
        AutoModelForCausalLM.from_config(config(name)).save_pretrained(folder)
    else:
        whole = AutoModelForSequenceClassification.from_config(config(name))
        getattr(whole, whole.base_model_prefix).save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    if name in ("BART", "T5"):  # these find a row's end by the token that their tokenizers put there
        settings = json.loads((folder / "tokenizer.json").read_text())
        settings["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
        settings["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
        (folder / "tokenizer.json").write_text(json.dumps(settings))
    if name == "Qwen2":
        _byte_level_tokenizer(folder)
    return folder


def cell(outcome: str) -> str:
    """What the table says of an outcome."""
    if TARGETS in outcome:
        return f"{EQUAL}, with `{outcome.split('. Use ')[1].rstrip('.')}`"
    return next((name for name, part in REFUSALS.items() if part in outcome), outcome)


def line(name: str, cells: Mapping[str, str]) -> str:
    """An architecture's line of the table."""
    return f"| {name} | {cells.get('completion', NONE)} | {cells.get('classification', NONE)} |"


def _byte_level_tokenizer(folder: Path) -> None:
    """Byte-pair encoding over bytes, the only kind that Qwen2's own tokenizer class takes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [f"the {word} and a {word}\nLabel: {label}" for label, words in WORDS.items() for word in words.split()]
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    inner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=128, special_tokens=special, show_progress=False))
    learnt = json.loads(inner.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    names = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), special, strict=True))
    Qwen2Tokenizer(vocab=learnt["vocab"], merges=merges, **names).save_pretrained(folder)


def outcome(folder: Path, trials: Sequence[TrialConfig], root: Path) -> str:
    """``equal`` where a pack of these trials, and the reference engine, train as plain PEFT; else why it is refused.

    Where ``lora.targets`` is refused, those that the refusal names are tried.

    Raises:
        AssertionError: where they train otherwise, or fail.
    """
    trials = [replace(trial, model=ModelConfig(source="local", path=str(folder))) for trial in trials]
    materials = DeviceCache(torch.device("cpu"))
    try:
        materials.base(trials[0])
    except LorasweepError as error:
        return str(error)
    refused = _refusal(materials, trials, root / "refused")
    if TARGETS in refused:
        targets = refused.split(TARGETS)[1].rstrip(".")
        trials = [replace(trial, lora=replace(trial.lora, targets=targets)) for trial in trials]
        assert _refusal(materials, trials, root / "refused") == ""
    expected = [plain_peft(materials, trial, folder) for trial in trials]
    (*_, ended) = drive(HfEngine(materials, score), trials[:1], root / "alone")[trials[0].trial_id]
    if "random" in refused:  # then no two runs are the same
        assert isinstance(ended, Ended)
        assert ended.state is State.COMPLETED, ended.reason
    else:
        weights, predictions = expected[0]  # in scoring, rows are padded to others that the plain model does not see
        _agree(ended, trials[0], root / "alone", weights, {} if "padding" in refused else predictions)
    if "engine=hf" in refused:
        return refused
    events = drive(packed_engine(materials), trials, root / "pack")
    for trial, (weights, predictions) in zip(trials, expected, strict=True):
        _agree(events[trial.trial_id][-1], trial, root / "pack", weights, predictions)
    return refused or EQUAL


def _refusal(materials: DeviceCache, trials: Sequence[TrialConfig], root: Path) -> str:
    """Why a pack does not take the first trial; empty where it does."""
    engine = packed_engine(materials)
    try:
        engine.admit(trials[0], TrialFolder(root), None)
    except LorasweepError as error:
        return str(error)
    engine.release(trials[0].trial_id)
    return ""


def _agree(ended: Any, trial: TrialConfig, root: Path, weights: Weights, predictions: dict[str, torch.Tensor]) -> None:
    """That a trial's trained tensors and predictions are those of plain PEFT."""
    assert isinstance(ended, Ended)
    assert ended.state is State.COMPLETED, ended.reason
    trained = at_step(root, trial, STEPS)
    assert distance(trained, weights) < 1e-3, sorted(
        ((float((trained[k] - weights[k]).abs().max()), k) for k in weights), reverse=True
    )[:5]
    items = TrialFolder(root / trial.trial_id).read_items("task", "validation", STEPS)
    recorded = dict(zip(items["item_id"], items["logprobs"], strict=True))
    for item, expected in predictions.items():
        torch.testing.assert_close(torch.tensor(recorded[item]), expected, atol=1e-3, rtol=0, check_dtype=False)


def plain_peft(materials: DeviceCache, trial: TrialConfig, folder: Path) -> tuple[Weights, dict[str, torch.Tensor]]:
    """A trial's final weights and predictions by a plain loop over a model that Transformers alone has loaded."""
    settings = AutoConfig.from_pretrained(folder)
    for name, value in vars(settings).items():
        if isinstance(value, float) and "drop" in name:
            setattr(settings, name, 0.0)
    labels = materials.dataset(trial).labels
    completion = trial.task.name == "completion"
    settings.pad_token_id = 2
    if completion:
        plain = AutoModelForCausalLM.from_pretrained(folder, config=settings)
    else:
        settings.num_labels = len(labels)
        plain = AutoModelForSequenceClassification.from_pretrained(folder, config=settings)
    plain.requires_grad_(False)
    model = add_adapter(plain, trial.lora, trial.task.name, materials.base(trial).heads, trial.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    _train(model, trained, trial, materials, completion)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    predictions = {}
    for row in materials.dataset(trial).validation[:_ITEMS]:
        text = tokenizer(row.text).input_ids
        if completion:
            context = text + tokenizer("\nLabel:", add_special_tokens=False).input_ids
            answers = [tokenizer(f" {label}", add_special_tokens=False).input_ids for label in labels]
            assert all(len(answer) == 1 for answer in answers)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context]), use_cache=False).logits[
                    0, -1, [answer[0] for answer in answers]
                ]
        else:
            with torch.no_grad():
                ids = torch.tensor([text])
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        predictions[row.item_id] = logits.float().log_softmax(-1)
    return {key: value.detach() for key, value in get_peft_model_state_dict(model).items()}, predictions


def _train(
    model: PeftModel, trained: list[torch.nn.Parameter], trial: TrialConfig, materials: DeviceCache, completion: bool
) -> None:
    heads = materials.base(trial).heads
    of_head = [p for n, p in model.named_parameters() if p.requires_grad and any(f".{head}." in n for head in heads)]
    rates = {id(p): trial.optim.lr * (trial.optim.head_ratio if any(p is h for h in of_head) else 1) for p in trained}
    groups = [{"params": [p], "lr": rates[id(p)], "weight_decay": 0.0} for p in trained]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_scheduler(trial.optim.schedule, optimizer, num_warmup_steps=1, num_training_steps=STEPS)
    model.train()
    for step in range(STEPS):
        (made,) = micro_batches(trial, materials.training(trial), 2, step)
        batch = made.tensors()
        options: dict[str, Any] = {"use_cache": False} if completion else {}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options).logits
        targets = batch["labels"]
        if completion:
            logits, targets = logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        (loss / batch["denominator"]).backward()
        torch.nn.utils.clip_grad_norm_(trained, trial.train.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def two_trials(make_trial: Callable[..., TrialConfig], task: str) -> list[TrialConfig]:
    """Two slots of one pack that differ in rank, factor, rate, rows a step and seed."""
    kind = "bert" if task == "classification" else "llama"
    common = {"max_steps": STEPS, "rungs": [STEPS], "rung_items": 6, "warmup": 0.1}
    return [
        make_trial(kind, **common),
        make_trial(
            kind, **common, trial_id="t0001", seed=3, rank=2, lr=2e-3, alpha_rule="fixed", alpha_value=7.0, batch_size=6
        ),
    ]
