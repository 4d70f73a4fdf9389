"""The window that the tool allows is the longest row that a model takes, alone and beside others."""

import pytest
import torch
import transformers as tf

from trainer.models.window import UNLIMITED, window

_SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_LEARNED = {
    "bert": (tf.BertConfig, 20, 0, 20),
    "roberta": (tf.RobertaConfig, 20, 1, 18),
    "xlm-roberta": (tf.XLMRobertaConfig, 20, 1, 18),
    "camembert": (tf.CamembertConfig, 20, 1, 18),
    "a RoBERTa whose padding token is the fourth": (tf.RobertaConfig, 20, 3, 16),
    "mpnet": (tf.MPNetConfig, 20, 1, 18),
    "electra": (tf.ElectraConfig, 20, 0, 20),
}


@pytest.mark.parametrize(("config", "positions", "padding", "right"), _LEARNED.values(), ids=_LEARNED)
def test_a_row_of_the_window_runs_and_one_more_token_does_not(config, positions, padding, right):
    model = tf.AutoModel.from_config(config(**_SMALL, max_position_embeddings=positions, pad_token_id=padding)).eval()

    def run(tokens):
        with torch.no_grad():
            return model(torch.full((1, tokens), 7))

    assert window(model) == right
    run(right)
    with pytest.raises((IndexError, RuntimeError)):
        run(right + 1)


def _phi3(window_before: int):
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 5.0, 7.0],
        "original_max_position_embeddings": window_before,
    }
    sizes = {**_SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    sizes["initializer_range"] = 0.5  # attention far from uniform: positions matter
    return tf.Phi3ForCausalLM(
        tf.Phi3Config(**sizes, original_max_position_embeddings=window_before, rope_parameters=rope)
    ).eval()


def test_rows_within_longropes_original_window_do_not_depend_on_their_neighbours():
    model = _phi3(16)

    def beside(neighbour):
        ids = torch.zeros(2, neighbour, dtype=torch.long)
        ids[0, :5], ids[1] = torch.arange(5, 10), torch.arange(neighbour) % 40 + 1
        with torch.no_grad():
            return model(ids, attention_mask=(ids > 0).long()).logits[0, :5]

    assert window(model) == 16
    assert torch.allclose(beside(5), beside(16), atol=1e-4)
    assert (beside(5) - beside(17)).abs().max() > 0.1, "one token more would change the neighbour's result"


def test_each_kind_of_layer_may_have_its_own_rotary_settings():
    config = _phi3(16).config
    config.rope_parameters = {"full": dict(config.rope_parameters), "sliding": {"rope_type": "default"}}
    model = _phi3(16)
    model.config.rope_parameters = config.rope_parameters
    assert window(model) == 16


def test_a_model_without_positions_has_no_limit():
    bloom = tf.BloomForCausalLM(tf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    assert window(bloom) == UNLIMITED
