"""LoRA on a base model: its target modules, its scaling, its initial values.

Initial values depend on the trial's seed, the module's name and the rank alone, so that a trial starts from the same
adapter on its own, in a pack, or after other trials on the same base model.
"""

import copy
import hashlib
import math
import re
from collections.abc import Collection
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils import ModulesToSaveWrapper
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from analysis.errors import ModelError, did_you_mean
from trainer.config import LoraSettings
from trainer.models.base_state import BaseState

ADAPTER = "default"
_STATE = "_state_of_base"  # attribute of a PeftModel from ``add_adapter``


def linear_modules(model: PreTrainedModel, heads: frozenset[str]) -> list[str]:
    """Full names of the layers that LoRA can go on: linear ones, quantised or not, except output and task heads.

    Args:
        model: the base model.
        heads: full names of its task heads.
    """
    output = model.get_output_embeddings()
    unread = beside_text(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and not within(name, heads)
        and not within(name, unread)
        and _gives_a_product(module)
    ]


def beside_text(model: PreTrainedModel) -> list[str]:
    """Full names of the parts of a model of text and images or sound, such as Gemma 3, that no text passes through.

    An adapter there would never get a gradient, and count among those that are trained.
    """
    if model.config.get_text_config() is model.config:
        return []
    text = model.get_decoder()
    place = next((name for name, module in model.named_modules() if module is text), "")
    above = place.rpartition(".")[0]
    others = model.get_submodule(above).named_children() if place else ()
    return [".".join(filter(None, (above, name))) for name, module in others if module is not text]


def within(name: str, modules: Collection[str]) -> bool:
    """Whether a module or parameter is one of some modules, or part of one.

    Args:
        name: full.
        modules: full names.
    """
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


@torch.no_grad()
def _gives_a_product(layer: nn.Module) -> bool:
    """Whether a linear layer gives its product alone; a model's own class of it, such as a router, may give more."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    d_in, d_out = linear_shape(layer)
    weight: Any = layer.weight
    product = layer(torch.zeros(2, d_in, dtype=weight.dtype, device=weight.device))
    return isinstance(product, torch.Tensor) and product.shape == (2, d_out)


def linear_shape(layer: Any) -> tuple[int, int]:
    """(d_in, d_out) of a linear layer; a quantised weight's own shape says neither."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return layer.weight.shape[0], layer.weight.shape[1]  # Conv1D keeps its weight transposed


def suffix(name: str) -> str:
    """A module's name inside its block: ``model.layers.3.self_attn.q_proj`` → ``self_attn.q_proj``."""
    return re.split(r"\.\d+\.", name)[-1]


def resolve_targets(targets: str, modules: list[str]) -> list[str]:
    """Suffixes of the modules that ``lora.targets`` names.

    Args:
        targets: ``attention``, ``all_linear``, or names joined by ``+``, each the end of a module's name.
        modules: from ``linear_modules``.

    Raises:
        ModelError: where the model has no such module; lists those it has.
    """
    if targets == "all_linear":
        return sorted({suffix(m) for m in modules})
    leaves = sorted({m.rsplit(".", 1)[-1] for m in modules})
    if targets == "attention":
        suffixes = {suffix(m) for m in modules if re.search(r"(^|[._])(attn|attention|self_attn)[._]", m)}
        if not suffixes:
            raise ModelError(
                f"lora.targets=attention: no attention layer is named so in this model. It has: {', '.join(leaves)}."
            )
        return sorted(suffixes)
    suffixes = set()
    for target in targets.split("+"):
        matched = {suffix(m) for m in modules if m == target or m.endswith(f".{target}")}
        if not matched:
            raise ModelError(
                f"lora.targets={targets}: the model has no linear module '{target}'. {did_you_mean(target, leaves)}"
                f" It has: {', '.join(leaves)}; or use attention or all_linear."
            )
        suffixes |= matched
    return sorted(suffixes)


def scaling(settings: LoraSettings) -> tuple[float, bool]:
    """``lora_alpha`` and ``use_rslora`` for PEFT under the alpha rule.

    ``fixed``: alpha = value, so the factor alpha / rank falls as rank grows. ``ratio``: alpha = value · rank, a
    constant factor. ``sqrt``: factor value / √rank (rank-stabilised LoRA, Kalajdzievski 2023, arXiv 2312.03732).
    """
    if settings.alpha_rule == "ratio":
        return settings.alpha_value * settings.rank, False
    return settings.alpha_value, settings.alpha_rule == "sqrt"


def keyed_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose stream depends on two keys alone.

    Args:
        seed: the trial's.
        name: of the tensor that is drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def initial_a(rank: int, d_in: int, seed: int, name: str) -> torch.Tensor:
    """The start values of a module's A: PEFT's own distribution, uniform in ±1/√d_in. B starts at zero.

    Args:
        rank: rows.
        d_in: columns.
        seed: the trial's.
        name: the module's full name in the base model.

    Returns:
        (rank, d_in) float32 on the CPU.
    """
    return (2 * torch.rand(rank, d_in, generator=keyed_generator(seed, name)) - 1) / math.sqrt(d_in)


def initial_values(
    settings: LoraSettings, d_in: int, d_out: int, seed: int, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The start values of a module's A and B under ``lora.init``. In all of them B A is zero, but for rounding.

    ``default``: PEFT's own, see ``initial_a``; B is zero. ``orthogonal``: both differ from zero, A's rows mix one half
    of a random orthogonal basis of the rank's space, B's columns the other half, as PEFT's
    ``init_lora_weights="orthogonal"`` (https://datta0.github.io/posts/rethink-lora-init/).

    Args:
        settings: rank and init.
        d_in, d_out: of the module.
        seed: the trial's.
        name: the module's full name in the base model.

    Returns:
        A (rank, d_in) and B (d_out, rank), float32 on the CPU.
    """
    rank = settings.rank
    if settings.init == "default":
        return initial_a(rank, d_in, seed, name), torch.zeros(d_out, rank)
    generator = keyed_generator(seed, name)
    basis, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    a = torch.randn(d_in, rank // 2, generator=generator).mm(basis[0::2]).T / 10.0
    b = torch.randn(rank // 2, d_out, generator=generator).T.mm(basis[1::2]) / 10.0
    return a.contiguous(), b.contiguous()


def start_head(head: nn.Module, fresh: bool, seed: int, name: str, std: float) -> None:
    """Give a task head its start values, in place, as float32: AdamW's small updates are lost in half precision.

    Args:
        head: a copy of the base model's module.
        fresh: whether it starts from random values; else from those of the base model.
        seed: the trial's.
        name: of the module in the base model.
        std: standard deviation of the weights; biases are zero, and the factors of a norm 1.
    """
    head.float()
    for part, parameter in head.named_parameters() if fresh else ():
        if parameter.dim() > 1:
            generator = keyed_generator(seed, f"{name}.{part}")
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)
        else:
            parameter.data.fill_(1.0 if part.rsplit(".", 1)[-1] == "weight" else 0.0)


def head_std(model: PreTrainedModel) -> float:
    """Standard deviation of a fresh head's weights."""
    return float(getattr(model.config, "initializer_range", None) or 0.02)


def peft_config(model: PreTrainedModel, settings: LoraSettings, task: str, heads: frozenset[str]) -> LoraConfig:
    """A trial's adapter in PEFT's terms.

    Args:
        model: the base model.
        settings: rank, alpha rule, dropout, targets and what else PEFT offers.
        task: ``completion`` or ``classification``.
        heads: modules that are trained in full and saved with the adapter.

    Raises:
        ModelError: for targets the model does not have.
    """
    alpha, rslora = scaling(settings)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if task == "completion" else TaskType.SEQ_CLS,
        base_model_name_or_path=model.__dict__.get("name_or_path"),
        r=settings.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT accepts fractions, its annotation does not
        use_rslora=rslora,
        use_dora=settings.dora,
        bias=settings.bias,  # type: ignore[arg-type]  # checked against the same three words
        lora_dropout=settings.dropout,
        target_modules=resolve_targets(settings.targets, linear_modules(model, heads)),
        exclude_modules="|".join(rf"{re.escape(name)}\..*" for name in beside_text(model)) or None,
        modules_to_save=sorted({*heads, *settings.modules_to_save}) or None,
    )
    _check_with_peft(model, config, settings.targets)
    return config


def _check_with_peft(model: PreTrainedModel, config: LoraConfig, targets: str) -> None:
    """Raise ModelError for targets that PEFT refuses with this model, or takes for its experts by their names."""
    named = set(config.target_modules or ())
    lost: dict[str, str] = {}
    for target in named:
        try:
            _check_lora_target_modules_mamba(config, model, target.rsplit(".", 1)[-1])
        except ValueError:
            lost[target] = "does not train it with this architecture"
    as_peft_reads = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(as_peft_reads, model=model, conversions=None)
        read = set(as_peft_reads.target_modules or ())
    except ValueError:  # names some of what is fused in the experts
        read = {target for target in named if not target.endswith(("gate_proj", "up_proj", "down_proj"))}
    lost |= dict.fromkeys(named - read, "takes the name for that of the experts")
    if lost:
        target = min(lost)
        rest = sorted({name.rsplit(".", 1)[-1] for name in named - lost.keys()})
        raise ModelError(
            f"lora.targets={targets}: PEFT {lost[target]} ('{target}')."
            + (f" Use lora.targets={'+'.join(rest)}." if rest else " Name other layers, or use another model.")
        )


def add_adapter(
    model: PreTrainedModel,
    settings: LoraSettings,
    task: str,
    heads: frozenset[str],
    seed: int,
    fresh: frozenset[str] | None = None,
) -> PeftModel:
    """Wrap a base model with a freshly initialised adapter, and with heads of its own where the task has some.

    Args:
        model: the base model; its layers are replaced in place until ``remove_adapter``.
        settings: see ``peft_config``.
        task: ``completion`` or ``classification``.
        heads: modules that are trained in full and saved with the adapter.
        seed: the trial's.
        fresh: those of them that start from seeded random values (``BaseModel.fresh``); None: all.

    Raises:
        ModelError: for targets the model does not have, or modules to save that it does not have.
    """
    names = {name for name, _ in model.named_modules()}
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    for saved in settings.modules_to_save:
        if saved not in leaves:
            raise ModelError(
                f"lora.modules_to_save={settings.modules_to_save}: the model has no module '{saved}'."
                f" {did_you_mean(saved, sorted(leaves))}"
            )
    state = BaseState(model)
    try:
        std = head_std(model)
        peft_model = get_peft_model(model, peft_config(model, settings, task, heads))
        for name, module in peft_model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                a: Any = module.lora_A[ADAPTER].weight
                b: Any = module.lora_B[ADAPTER].weight
                start_a, start_b = initial_values(settings, a.shape[1], b.shape[0], seed, name)
                a.data.copy_(start_a)
                b.data.copy_(start_b)
            elif isinstance(module, ModulesToSaveWrapper) and name in heads:
                start_head(module.modules_to_save[ADAPTER], fresh is None or name in fresh, seed, name, std)
        state.keep_trained()
    except BaseException:  # such as no memory for the adapter
        state.restore()
        raise
    vars(peft_model)[_STATE] = state
    return peft_model


def remove_adapter(peft_model: PeftModel) -> None:
    """Give the base model back as it was before ``add_adapter``: not what PEFT's ``unload`` makes of it, which leaves
    modules in place that were trained in full (``lora.modules_to_save``), and the values of trained biases.
    """
    state: BaseState = vars(peft_model)[_STATE]
    state.restore()
