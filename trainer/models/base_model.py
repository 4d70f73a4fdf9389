"""Base models at a precision: loading, what this machine can do, and how to run them.

A base model stays on its device between trials and is the same for every trial of a model, precision and task head.
"""

import contextlib
import logging
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from analysis.errors import HardwareError, LorasweepError, ModelError, first_line
from trainer.config import HEAD_NAMES, PRECISIONS, ModelConfig
from trainer.data.text_tokens import end_tokens
from trainer.models.behaviour import PLAIN, Behaviour, configs, try_out
from trainer.models.cpu_attention import short_rows_in_float32
from trainer.models.lm_head import TokenLogits
from trainer.models.model_files import ADAPTER_CONFIG
from trainer.models.padding import fit_padding, refuse_tokens_beyond
from trainer.models.ranks import ALONE, Ranks
from trainer.models.task_head import TaskHead, find_head
from trainer.models.tokenizer import loading_arguments, model_folder, open_tokenizer
from trainer.models.weights import load_weights
from trainer.models.window import window

_SLOW = 4.0  # times as long as fp32: no sweep would choose it


@dataclass(frozen=True)
class Batching:
    """How rows of a causal model can be continued in one batch, each as it is continued alone.

    Attributes:
        cache: whether from what was computed of the tokens before.
        left_padding: whether rows of different length go together.
    """

    cache: bool = True
    left_padding: bool = True


@dataclass
class BaseModel:
    """A frozen base model.

    Attributes:
        model: in evaluation mode, no parameter requires a gradient.
        tokenizer: its padding token may be none; see ``pad_token``.
        precision: one of PRECISIONS.
        heads: modules that a classification trial trains in full (``trainer/models/task_head.py``).
        autocast: dtype of mixed-precision arithmetic, or None for arithmetic as stored.
        fresh: those heads that start from seeded random values, instead of the checkpoint's.
        pad_token: id that fills rows up; never attended to.
        notes: what the user should know of the model.
        behaviour: how it treats its rows.
        ranks: the processes that train trials on it together.
        sharded: whether each of them holds a part of it, so that a pass of one is a pass of all.
        batching: how its rows can be continued together; None: not tried yet (``trainer/generation/batching.py``).
    """

    model: PreTrainedModel
    tokenizer: Any
    precision: str
    heads: frozenset[str] = field(default_factory=frozenset)
    autocast: torch.dtype | None = None
    fresh: frozenset[str] = frozenset()
    pad_token: int = 0
    notes: tuple[str, ...] = ()
    behaviour: Behaviour = PLAIN
    ranks: Ranks = ALONE
    sharded: bool = False
    batching: Batching | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def output(self) -> TokenLogits:
        """Of a causal model: its output at chosen positions only."""
        return TokenLogits(self)

    @cached_property
    def window(self) -> int:
        """Tokens that the model reads at once; very many where nothing names a limit."""
        return window(self.model)

    def ordinary_tokens(self) -> list[int]:
        """Ids of some tokens that stand for text, from all over the vocabulary."""
        embeddings: Any = self.model.get_input_embeddings()
        n = min(len(self.tokenizer), len(embeddings.weight))
        special = set(self.tokenizer.all_special_ids)
        spread = [i for i in range(0, n, max(1, n // 64)) if i not in special]
        return spread if len(spread) > 1 else list(range(n))

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """The autocast context that every forward of this model runs in, in training and in scoring."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_fault(precision: str, device: torch.device) -> str:
    """Why a precision does not work on this device, found by trying it; empty where it works."""
    if precision == "fp32":
        return ""
    quiet()
    try:
        if precision == "bf16":
            if device.type == "cuda" and not _has_bf16():
                major, minor = torch.cuda.get_device_capability(device)
                return (
                    f"{torch.cuda.get_device_name(device)} has no bf16 arithmetic (compute capability {major}.{minor};"
                    " it begins with 8.0)"
                )
            a = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
            return "" if float((a @ a).sum()) == 512.0 else "a bf16 matrix product came out wrong"
        import bitsandbytes as bnb

        layer: nn.Module
        if precision == "nf4":
            layer = bnb.nn.modules.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        else:
            layer = bnb.nn.modules.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=0.0)
        layer = layer.to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            finite = bool(torch.isfinite(layer(torch.ones(2, 64, device=device))).all())
        return "" if finite else f"a {precision} layer gave values that are not finite"
    except ImportError as error:
        return f"bitsandbytes is not installed or does not load ({error})"
    except Exception as error:  # a broken CUDA or bitsandbytes installation raises anything
        return f"trying it failed ({type(error).__name__}: {error})"


def available_precisions(device: torch.device, precisions: Collection[str] = PRECISIONS) -> dict[str, str]:
    """Precision → why it does not work here, empty where it does.

    Args:
        device: on which they are tried.
        precisions: those that are tried; where one does not work, all are, so that another can be named.
    """
    faults = {precision: precision_fault(precision, device) for precision in precisions}
    others = [precision for precision in PRECISIONS if precision not in faults] if any(faults.values()) else []
    faults |= {precision: precision_fault(precision, device) for precision in others}
    return {precision: faults[precision] for precision in PRECISIONS if precision in faults}


def slow_precisions(device: torch.device, precisions: Collection[str] = PRECISIONS) -> dict[str, float]:
    """Precision → how many times as long as fp32 a linear layer's two passes take in it, where that is several times.

    A CPU without bf16 instructions (AVX512 or AMX) does bf16 products by slow generic loops, the backward pass's above
    all: a trial would take hours instead of minutes.
    """
    if device.type != "cpu" or "bf16" not in precisions:
        return {}
    size = (64, 512, 2048)  # rows, inputs, outputs: some 20 ms in float32 on one core

    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(size[:2], dtype=dtype), torch.ones(size[2], size[1], dtype=dtype)
        began = time.perf_counter()
        y = x @ weight.T
        y @ weight
        return time.perf_counter() - began

    fastest = {dtype: min(seconds(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    times = fastest[torch.bfloat16] / fastest[torch.float32]
    return {"bf16": round(times, 1)} if times > _SLOW else {}


def arithmetic_speed(device: torch.device) -> float:
    """Billions of floating-point operations a second of a matrix product, to compare devices by.

    On a CPU, by this thread's own time: what else the machine does just now, such as starting another worker, says
    nothing of the hours to come.
    """
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.thread_time
    size = 4096 if gpu else 512
    square = torch.ones(size, size, dtype=torch.float16 if gpu else torch.float32, device=device)

    def seconds() -> float:
        began = clock()
        square @ square
        if gpu:
            torch.cuda.synchronize(device)
        return clock() - began

    return 2 * size**3 / min(seconds() for _ in range(20)) / 1e9


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """In what arithmetic a base model runs.

    Quantised weights are computed with in bf16 on a GPU that has it. On one that has not (before compute capability
    8.0), in float32: float16 gradients of adapters vanish without a loss scale, which would be one more thing in which
    trials of a pack depend on each other.
    """
    if precision == "bf16":
        return torch.bfloat16
    if precision in ("nf4", "int8") and device.type == "cuda" and _has_bf16():
        return torch.bfloat16
    return torch.float32


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def load_base(
    config: ModelConfig,
    precision: str,
    task: str,
    labels: Sequence[str],
    device: torch.device,
    place: torch.device | None = None,
) -> BaseModel:
    """Load a base model, frozen and in evaluation mode.

    Args:
        config: where it comes from.
        precision: one of PRECISIONS.
        task: ``completion`` or ``classification``.
        labels: class names in their order (classification).
        device: where it stays.
        place: where it is loaded to, and left, if that is another: of a model that is still to be sharded.

    Raises:
        ModelError: for weights that cannot be loaded, or an architecture that does not fit the task.
        HardwareError: for a precision this device cannot do.
    """
    fault = precision_fault(precision, device)
    if fault:
        works = ", ".join(p for p, why in available_precisions(device).items() if not why)
        raise HardwareError(f"precision={precision} does not work on this machine: {fault}. Use one of: {works}.")
    where = model_folder(config)
    quiet()
    arguments = loading_arguments(config, where)
    classes = labels if task == "classification" else None
    dtype = compute_dtype(precision, device)
    try:
        tokenizer = open_tokenizer(where, arguments)
        model, lacking, own = load_weights(where, precision, dtype, classes, place or device, arguments)
    except (LorasweepError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise anything for a folder that is broken
        said = first_line(error) or type(error).__name__
        raise ModelError(f"{where}: cannot be loaded for task={task}: {said}") from error
    model.requires_grad_(False)
    model.eval()
    _with_plain_outputs(model, task)
    _guard_four_bit(model)
    padding = fit_padding(tokenizer, model)
    refuse_tokens_beyond(tokenizer, model)
    head = TaskHead()
    if classes is not None:
        head = find_head(model, lacking, own, labels, HEAD_NAMES)
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    if device.type == "cpu" and dtype is torch.bfloat16:
        short_rows_in_float32(model)
    autocast = dtype if dtype is not torch.float32 else None
    notes = [head.note] if head.note else []
    if config.source == "local" and config.path and (Path(config.path) / ADAPTER_CONFIG).exists():
        notes.append(f"{ADAPTER_CONFIG} in {config.path} is not used: adapters are trained on the model itself")
    if rebuilt := getattr(tokenizer, "rebuilt_as", ""):
        notes.append(
            f"tokens are those of the model's tokenizer.json; transformers' {rebuilt} makes others of it, so load the"
            " tokenizer with PreTrainedTokenizerFast.from_pretrained where the model is used"
        )
    if getattr(tokenizer, "fix_mistral_regex", None) is False:
        notes.append(
            f"{where}: transformers holds this tokenizer's word pattern for the faulty one of early Mistral uploads"
            " (huggingface/transformers pull request 42299). Where the model was trained with another, store it mended:"
            " AutoTokenizer.from_pretrained(…, fix_mistral_regex=True).save_pretrained(…)"
        )
    base = BaseModel(model, tokenizer, precision, head.modules, autocast, head.fresh, padding, tuple(notes))
    tokens, ending = base.ordinary_tokens(), end_tokens(tokenizer)[-2:]
    base.behaviour = try_out(model, task, head.modules, tokens, ending, padding, base.arithmetic)
    if base.behaviour.refusal:  # under engine=hf it is no refusal, and holds of the trial's own rows
        base.notes = (*base.notes, base.behaviour.refusal)
    return base


def _with_plain_outputs(model: PreTrainedModel, task: str) -> None:
    """Undo what a checkpoint's config says of its former use: tuples as outputs, more outputs, another kind of labels.

    What is exported says the same: a pipeline takes the sigmoid of each class, not the softmax over them, of a model
    whose ``problem_type`` is still that of the several labels it was trained on before.
    """
    for config in configs(model):
        config.return_dict = True
        config.output_hidden_states = False
        config.output_attentions = False
    if task == "classification":
        model.config.problem_type = "single_label_classification"


def _guard_four_bit(model: nn.Module) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights in evaluation on CPUs with AVX512-BF16.

    After that repacking the gradient through the base model is lost and saving corrupts the weights.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # no such name for mypy


class _DropNoise(logging.Filter):
    """bitsandbytes logs a line for each 8-bit layer and call."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "inputs will be cast" not in record.getMessage()


def quiet() -> None:
    """Keep the libraries' progress bars and per-call lines off the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    drop = _DropNoise()
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _DropNoise) for existing in logger.filters):
            logger.addFilter(drop)
    warnings.filterwarnings("ignore", message=".*inputs will be cast.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    # a slot's gradients lie where its optimiser steps them (trainer/engines/tensors/stacks.py)
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
