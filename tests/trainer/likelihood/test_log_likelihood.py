"""The batched scorer against the model's own forward pass, one sentence at a time."""

from collections.abc import Callable

import pytest
import torch

from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.likelihood.log_likelihood import Request, _share_rows, log_likelihoods
from trainer.models.base_model import BaseModel


@pytest.fixture(scope="module")
def kept() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


def naive(base: BaseModel, request: Request) -> list[float]:
    with torch.no_grad():
        table = base.model(torch.tensor([request.tokens])).logits[0].log_softmax(-1)
    return [float(table[p - 1, request.tokens[p]]) for p in range(request.start, len(request.tokens))]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_equal_one_sentence_at_a_time(
    model: str, batch_size: int, make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial(model))
    draw = torch.Generator().manual_seed(0)
    requests = []
    for length in (2, 9, 5, 30, 17, 5):
        tokens = tuple(torch.randint(4, 25, (length,), generator=draw).tolist())
        requests += [Request(tokens, 1), Request(tokens, length - 1), Request((*tokens[:-1], 7), length - 1)]
    scores = log_likelihoods(base, base.model, requests, batch_size)
    for request, values in zip(requests, scores, strict=True):
        assert values == pytest.approx(naive(base, request), abs=1e-5)


def test_requests_whose_input_begins_another_share_its_row() -> None:
    rows, row_of = _share_rows([(1, 2), (1, 2, 3), (1, 2), (1, 4), (1,), (9, 1)])
    assert sorted(rows) == [(1, 2, 3), (1, 4), (9, 1)]
    for tokens, row in zip([(1, 2), (1, 2, 3), (1, 2), (1, 4), (1,), (9, 1)], row_of, strict=True):
        assert rows[row][: len(tokens)] == tokens


@pytest.mark.parametrize("start", [0, 3])
def test_a_request_without_context_or_without_tokens_is_refused(
    start: int, make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial("llama"))
    with pytest.raises(ValueError, match="context"):
        log_likelihoods(base, base.model, [Request((1, 2, 3), start)], 4)
