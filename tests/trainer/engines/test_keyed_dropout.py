"""Keyed dropout: what a mask depends on, and what it must not depend on."""

import numpy as np
import pytest
import torch

from trainer.engines.keyed_dropout import (
    DropoutKeys,
    KeyedDropout,
    keep_mask,
    packed_row_keys,
    row_keys,
    shared_key,
)


def masks(
    samples: list[int], tokens: int, seed: int = 1, step: int = 2, module: int = 3, p: float = 0.4
) -> torch.Tensor:
    return keep_mask(row_keys(seed, step, torch.tensor(samples)), module, torch.Size((len(samples), tokens, 64)), p)


def lowbias32(x: int) -> int:
    """As Wellons writes it, in Python's own integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("p", [0.0, 0.3, 0.95])
def test_a_mask_is_the_hash_of_its_row_module_and_place_below_p(p: float) -> None:
    keys, module, shape = row_keys(7, 3, torch.tensor([4, 900])), 0xDEADBEEF, torch.Size((2, 3, 37))
    expected = [
        [lowbias32(lowbias32(int(key) ^ module) ^ lowbias32(place)) >= int(p * 2**32) for place in range(3 * 37)]
        for key in keys
    ]
    assert keep_mask(keys, module, shape, p).view(2, -1).tolist() == expected
    assert keep_mask(keys, module, shape, torch.tensor([p, p], dtype=torch.float64)).view(2, -1).tolist() == expected


def test_places_may_be_counted_from_a_token_in_the_middle() -> None:
    keys, features, origin = row_keys(7, 3, torch.tensor([4])), 5, 2
    places = [(place - origin * features) % 2**32 for place in range(6 * features)]
    expected = [lowbias32(lowbias32(int(keys) ^ 3) ^ lowbias32(place)) >= int(0.4 * 2**32) for place in places]
    assert keep_mask(keys, 3, torch.Size((1, 6, features)), 0.4, origin).flatten().tolist() == expected


def test_keys_of_many_trials_at_once_are_those_of_each_trial_alone() -> None:
    seeds = np.array([0, 1, 7, 2**31 - 1, 2**32 - 1, 2**40 + 3, -5, 11])
    steps = np.array([0, 3, 3, 70_000, 2**32 + 9, 1, 2, 2**31])
    samples = np.array([0, 5, -1, 900, 2**31, 2**32 - 1, 2**35, -1])
    each = [
        row_keys(seed, step, torch.tensor([sample])).item()
        for seed, step, sample in zip(seeds.tolist(), steps.tolist(), samples.tolist(), strict=True)
    ]
    keys = packed_row_keys(seeds, steps, samples)
    assert keys.dtype == np.int64
    assert keys.tolist() == each
    assert keys[2] == shared_key(7, 3).item()
    assert packed_row_keys(*(x.astype(np.int32) for x in (seeds[1:3], steps[1:3], samples[1:3]))).tolist() == each[1:3]


def test_a_row_key_is_the_hash_of_seed_step_and_sample() -> None:
    expected = lowbias32(lowbias32(lowbias32(7) ^ 3) ^ lowbias32(900 + 1))
    assert row_keys(7, 3, torch.tensor([900])).tolist() == [expected]
    assert packed_row_keys(np.array([7]), np.array([3]), np.array([900])).tolist() == [expected]


def test_padding_and_neighbours_do_not_change_a_rows_mask() -> None:
    alone = masks([5], tokens=7)[0]
    assert torch.equal(masks([9, 5, 2], tokens=20)[1, :7], alone)


def test_seed_step_module_and_sample_each_change_the_mask() -> None:
    base = masks([5], 7)
    for other in (masks([5], 7, seed=2), masks([5], 7, step=3), masks([5], 7, module=4), masks([6], 7)):
        agree = (base == other).float().mean()
        assert 0.4 < agree < 0.65  # independent masks agree with probability 0.6² + 0.4² = 0.52


def test_the_rate_is_p_in_every_row_and_feature() -> None:
    kept = masks(list(range(200)), tokens=16, p=0.25).float()
    assert abs(kept.mean() - 0.75) < 0.003
    assert (kept.mean((1, 2)) - 0.75).abs().max() < 0.06
    assert (kept.mean((0, 1)) - 0.75).abs().max() < 0.04


def test_backward_uses_the_forward_mask_and_evaluation_uses_none() -> None:
    routing = DropoutKeys()
    routing.keys = row_keys(0, 0, torch.arange(3))
    layer, x = KeyedDropout(0.5, "layers.0.q_proj", routing), torch.ones(3, 4, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(layer.eval()(x), x)
