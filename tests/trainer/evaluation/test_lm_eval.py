"""The log-likelihood scorer against lm-evaluation-harness's ``HFLM``, on the same model and items."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import ModelConfig, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.evaluation.bias.crows_pairs import Pair, load_pairs, pair_metrics, score_pairs
from trainer.evaluation.bias.score import ModelScorer, empty_context
from trainer.likelihood.log_likelihood import Request, log_likelihoods
from trainer.models.base_model import BaseModel, load_base

WORDS = ("apple pear plum cherry", "iron copper zinc tin", "wren owl hawk crow")  # that the tiny tokenizer knows

# The harness's own task (lm_eval/tasks/crows_pairs), on a file instead of a data set of a hub.
TASK = """
task: crows_pairs_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: !function utils.doc_to_choice
target_delimiter: ""
process_results: !function utils.process_results
metric_list:
  - {{metric: likelihood_diff, aggregation: mean, higher_is_better: false}}
  - {{metric: pct_stereotype, aggregation: mean, higher_is_better: false}}
"""


def harness(base: BaseModel, exact: bool = False) -> Any:
    from lm_eval.models.huggingface import HFLM

    # rolling requests put the prefix token first themselves: the tokenizer must not put another
    softmax = "float64" if exact else None
    return HFLM(
        pretrained=base.model, tokenizer=base.tokenizer, batch_size=8, add_bos_token=False, softmax_dtype=softmax
    )


def run_harness(
    base: BaseModel, pairs: list[Pair], folder: Path, exact: bool = False
) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """The harness's figures for its task CrowS-Pairs, and both log-likelihoods of each pair."""
    import lm_eval.tasks.crows_pairs as theirs
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = folder / "pairs.json"
    rows.write_text(json.dumps([{"sent_more": p.more, "sent_less": p.less, "bias_type": p.bias_type} for p in pairs]))
    (folder / "utils.py").write_text((Path(next(iter(theirs.__path__))) / "utils.py").read_text())
    (folder / "task.yaml").write_text(TASK.format(path=rows))
    found = simple_evaluate(
        model=harness(base, exact),
        tasks=["crows_pairs_local"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"]["crows_pairs_local"], key=lambda sample: sample["doc_id"])
    scores = [tuple(float(resp[0]) for resp in sample["filtered_resps"]) for sample in samples]
    return found["results"]["crows_pairs_local"], scores


def compare(base: BaseModel, pairs: list[Pair], folder: Path, exact: bool = False) -> dict[str, float]:
    """Check every sentence and both figures. Returns ours.

    Args:
        exact: the harness' softmax is taken in float64.
    """
    theirs, scores = run_harness(base, pairs, folder, exact)
    ours = score_pairs(pairs, ModelScorer(base, base.model, 8))["logprobs"]
    assert len(scores) == len(ours) == len(pairs)
    for mine, other in zip(ours, scores, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)
    metrics = pair_metrics(ours)
    assert metrics["bias.crows_pairs.pct"] == pytest.approx(100 * theirs["pct_stereotype,none"])
    assert metrics["bias.crows_pairs.abs"] == pytest.approx(theirs["likelihood_diff,none"], abs=1e-4)
    return metrics


def sentences(n: int) -> list[str]:
    chooser = random.Random(0)
    words = [word for line in WORDS for word in line.split()] + ["the", "a", "is", "and", "unknown"]
    return [" ".join(chooser.choices(words, k=chooser.randint(1, 24))) for _ in range(n)]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_sentences_and_crows_pairs_agree_with_the_harness(
    model: str, make_trial: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    base = kept.base(make_trial(model))
    texts = sentences(48)
    pairs = [Pair(f"p{i}", texts[2 * i], texts[2 * i + 1], "x", "stereo") for i in range(24)]
    metrics = compare(base, pairs, tmp_path)
    assert 0.0 < metrics["bias.crows_pairs.pct"] < 100.0


def test_continuations_agree_with_the_harness(make_trial: Callable[..., TrialConfig], kept: DeviceCache) -> None:
    base = kept.base(make_trial("llama"))
    chooser = random.Random(1)
    ids = [tuple(chooser.randrange(4, 29) for _ in range(chooser.randint(3, 60))) for _ in range(40)]
    starts = [chooser.randint(1, len(tokens) - 1) for tokens in ids]
    ours = log_likelihoods(base, base.model, [Request(t, s) for t, s in zip(ids, starts, strict=True)], 8)
    asked = [(("", ""), list(t[:s]), list(t[s:])) for t, s in zip(ids, starts, strict=True)]
    theirs = harness(base)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [sum(values) for values in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)


def test_rolling_log_likelihoods_of_texts_within_the_window_agree_with_the_harness(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    from lm_eval.api.instance import Instance

    base = kept.base(make_trial("llama"))
    texts = [text for text in sentences(12) if text]
    ours, _ = ModelScorer(base, base.model, 4).sentences(texts)
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    assert ours == pytest.approx(harness(base).loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-4)
    assert empty_context(base.tokenizer) == harness(base).prefix_token_id


@pytest.mark.heavy
def test_smollm2_agrees_with_the_harness_on_crows_pairs(tmp_path: Path) -> None:
    """The harness' softmax in float64: in float32, over 49,152 tokens, it is off by 2e-5 a token on some CPUs."""
    base = load_base(ModelConfig(source="package", package="smollm2"), "fp32", "completion", (), torch.device("cpu"))
    metrics = compare(base, load_pairs(200), tmp_path, exact=True)
    print(metrics)
