"""What a checkpoint's config says of its former use changes neither scores nor what is exported."""

import json
import shutil

import pytest
import torch

from trainer.config import ModelConfig
from trainer.models.base_model import load_base

_FORMER = {
    "tuples as outputs": {"return_dict": False},
    "more outputs": {"output_hidden_states": True, "output_attentions": True},
    "several labels a row": {"problem_type": "multi_label_classification"},
    "one number a row": {"problem_type": "regression", "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
}


@pytest.mark.parametrize("task", ["completion", "classification"])
@pytest.mark.parametrize("former", _FORMER.values(), ids=_FORMER)
def test_a_former_use_changes_nothing(tiny_models, tmp_path, former, task):
    folder = shutil.copytree(tiny_models["llama"], tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | former))
    ids = torch.tensor([[0, 5, 6, 7]])
    outputs = []
    for path in (tiny_models["llama"], folder):
        base = load_base(
            ModelConfig(source="local", path=str(path)), "fp32", task, ["x", "y", "z"], torch.device("cpu")
        )
        if task == "classification":
            assert base.model.config.num_labels == 3
            assert base.model.config.problem_type == "single_label_classification"
        with torch.no_grad():
            hidden = base.model.base_model(ids)
        assert "hidden_states" not in hidden
        assert "attentions" not in hidden
        outputs.append(hidden.last_hidden_state)
    assert torch.equal(*outputs)
