"""Tokens that a tokenizer knows and the model has no row for: as padding another one serves; in a text none does."""

from typing import Any

import torch
from torch import nn

from analysis.errors import ModelError


def embedding_rows(model: Any) -> int:
    """How many tokens the model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])


def fit_padding(tokenizer: Any, model: Any) -> int:
    """Choose the token that fills rows up, and name it in the model's config.

    Padding is masked, so that any will do; but heads of decoders find a row's last token by it. So it is the
    tokenizer's own padding, end or unknown token, the first that the model has a row for; without one the last token
    of all, the rarest of a vocabulary.

    Args:
        tokenizer: of the model; its padding token is set where it was none that the model knows.
        model: the base model.

    Returns:
        The token's id.
    """
    rows = embedding_rows(model)
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    named = next((token for token in own if token is not None and 0 <= token < rows), None)
    if named is not None and named != tokenizer.pad_token_id:
        tokenizer.pad_token_id = named
    padding = rows - 1 if named is None else int(named)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = padding
    return padding


def refuse_tokens_beyond(tokenizer: Any, model: Any) -> None:
    """Let a model refuse tokens that it has no embedding for, in a sentence, where its tokenizer has such tokens.

    Without it a CPU raises IndexError, and a GPU ends all trials of its process.

    Args:
        tokenizer: of the model.
        model: the base model; gets a hook at its embedding.
    """
    if max(tokenizer.get_vocab().values(), default=0) < embedding_rows(model):
        return

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer.training:  # training rows are looked at as they are tokenised, and this look would wait for a GPU
            return
        if inputs and isinstance(inputs[0], torch.Tensor):
            check_token(int(inputs[0].max()), tokenizer, model)

    model.get_input_embeddings().register_forward_pre_hook(look)


def check_token(largest: int, tokenizer: Any, model: Any) -> None:
    """Raises ModelError where the model has no embedding for a token.

    Args:
        largest: id of a token.
        tokenizer: that writes it.
        model: the base model.
    """
    rows = embedding_rows(model)
    if largest < rows:
        return
    beyond = sum(i >= rows for i in tokenizer.get_vocab().values())
    raise ModelError(
        f"the tokenizer writes the token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}), and the model has"
        f" embeddings for {rows} tokens only: {beyond} of the tokenizer's tokens {'are' if beyond > 1 else 'is'} beyond"
        " them. Use the tokenizer that belongs to the model; or add the tokens to the model too, with"
        " `model.resize_token_embeddings(len(tokenizer))`, and save it."
    )
