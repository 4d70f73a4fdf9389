"""Quality of predictions and of the language model, from item tables. scikit-learn wherever it has the metric."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.evaluation.metric_names import QUALITY

ECE_BINS = 15  # of equal width over the confidence, as in Guo et al. 2017


def class_metrics(logprobs: np.ndarray, gold: np.ndarray, n_labels: int) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-, micro- and weighted F1, Matthews correlation, log loss, Brier score,
    calibration error, and the number of classes that are predicted.

    Macro-F1 averages over all classes, also those absent here; weighted F1 by how many rows have a class; balanced
    accuracy over those that are there. The Brier score is the squared distance to the one-hot label, halved for two
    classes (scikit-learn's convention).

    Args:
        logprobs: (rows, classes) log-probabilities, normalised over the classes.
        gold: (rows,) indices.
        n_labels: classes.

    Returns:
        NaN for all where a log-probability is not a number.
    """
    from sklearn.metrics import (
        accuracy_score,
        balanced_accuracy_score,
        brier_score_loss,
        f1_score,
        log_loss,
        matthews_corrcoef,
    )

    if not np.isfinite(logprobs).all():
        return dict.fromkeys(QUALITY, math.nan)
    predicted = logprobs.argmax(1)
    classes = list(range(n_labels))
    probabilities = np.exp(logprobs)
    probabilities /= probabilities.sum(1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a predicted class that no row here has; a single class
        balanced = float(balanced_accuracy_score(gold, predicted))
        correlation = float(matthews_corrcoef(gold, predicted))
    proba = probabilities[:, 1] if n_labels == 2 else probabilities
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        **{
            f"{average}_f1": float(f1_score(gold, predicted, labels=classes, average=average, zero_division=0))
            for average in ("macro", "micro", "weighted")
        },
        "balanced_accuracy": balanced,
        "mcc": correlation,
        "log_loss": float(log_loss(gold, probabilities, labels=classes)),
        "brier": float(brier_score_loss(gold, proba, labels=classes)),
        "ece": calibration_error(probabilities.max(1), predicted == gold),
        "classes_predicted": float(len(np.unique(predicted))),
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, weighted by the rows of a bin.

    Guo et al. 2017 (arXiv 1706.04599), equation 3; bins of equal width, closed on the right.

    Args:
        confidence: (rows,) probability of the predicted class.
        right: (rows,) whether it was the label.
        bins: how many.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def text_metrics(text: Mapping[str, list[Any]]) -> dict[str, float]:
    """Perplexities and bits per byte from sums over the whole set, never from averages of batches.

    Args:
        text: per row ``nll`` (nats) over ``n_tokens`` tokens that spell ``n_bytes`` bytes, and ``completion_nll`` over
            ``completion_tokens`` of them, where there are: the label's, or those that bear loss.
    """
    nll, tokens, n_bytes = sum(text["nll"]), sum(text["n_tokens"]), sum(text["n_bytes"])
    metrics = {
        "perplexity": _exp(nll / tokens),
        "bits_per_byte": nll / (math.log(2) * n_bytes) if math.isfinite(nll) else math.nan,
    }
    if "completion_nll" in text:
        metrics["completion_perplexity"] = _exp(sum(text["completion_nll"]) / sum(text["completion_tokens"]))
    return metrics


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.nan  # beyond float64: as good as not finite
