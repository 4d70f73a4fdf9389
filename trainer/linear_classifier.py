"""Logistic regression on fixed features of a row, its strength chosen by cross-validation: words, or hidden states.

Words: Joachims 1998 ("Text categorization with support vector machines", ECML), Wang and Manning 2012 ("Baselines and
bigrams", ACL). The untuned model's states: the linear probe of Alain and Bengio 2017 (arXiv 1610.01644).
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.subsets import stratified

_FOLDS = 3
_CHOOSING_ROWS = 1_500  # training rows that the settings are chosen on, at most: 18 fits of all would take minutes
# The most frequent words and pairs of words. Of 10,000 messages of 20 Newsgroups, all 285,000 gained 0.01 of accuracy
# and took thirty times as long to fit.
_MAX_FEATURES = 30_000
_STRENGTHS = (0.1, 1.0, 10.0)  # scikit-learn's C, of unit vectors of words
_PROBE_STRENGTHS = (0.001, 0.01, 0.1)  # of standardised hidden states, whose every column has variance 1
_WEIGHTS = (None, "balanced")
_TOLERANCE = 1e-3  # of the gradient of the mean loss
_FLOOR = 1e-9  # probability of a label, at least: its logarithm is finite


@dataclass(frozen=True)
class LinearFit:
    """What a linear classifier says.

    Attributes:
        logprobs: (items, classes) natural logarithms, normalised over the classes.
        strength: C of scikit-learn's logistic regression.
        class_weight: ``balanced`` or None, likewise.
    """

    logprobs: NDArray[np.float64]
    strength: float
    class_weight: str | None


def of_words(train: Sequence[str], targets: Sequence[int], items: Sequence[str], n_labels: int, seed: int) -> LinearFit:
    """TF-IDF of words and pairs of words (sublinear), and logistic regression.

    Args:
        train: texts.
        targets: index of the label of each.
        items: texts to classify.
        n_labels: classes; one without a training row is given the floor.
        seed: of the folds.
    """
    known, asked = tfidf(train, items, pairs=True, most=_MAX_FEATURES)
    return _fit(known, np.asarray(targets), asked, n_labels, _STRENGTHS, seed)


def of_states(
    train: NDArray[np.float32], targets: Sequence[int], items: NDArray[np.float32], n_labels: int, seed: int
) -> LinearFit:
    """Standardised hidden states, and logistic regression.

    Args:
        train: (rows, width).
        targets: index of the label of each.
        items: (items, width).
        n_labels: classes; one without a training row is given the floor.
        seed: of the folds.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    known, asked = scaler.transform(train), scaler.transform(items)
    return _fit(known, np.asarray(targets), asked, n_labels, _PROBE_STRENGTHS, seed)


def tfidf(train: Sequence[str], items: Sequence[str], pairs: bool = False, most: int | None = None) -> tuple[Any, Any]:
    """Unit vectors, sparse. Texts without words of two letters (such as of one symbol) are compared by characters.

    Args:
        train: texts that give the vocabulary and its weights.
        items: further texts.
        pairs: count pairs of neighbouring words too.
        most: features to keep, the most frequent ones; None: all.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    kept: dict[str, Any] = {"sublinear_tf": True, "max_features": most, "dtype": np.float32}
    vectors = TfidfVectorizer(ngram_range=(1, 2 if pairs else 1), **kept)
    try:
        known = vectors.fit_transform(train)
    except ValueError:  # an empty vocabulary
        vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), **kept)
        known = vectors.fit_transform(train)
    return known, vectors.transform(items)


def _fit(
    train: Any, targets: NDArray[np.int64], items: Any, n_labels: int, strengths: Sequence[float], seed: int
) -> LinearFit:
    logprobs = np.full((items.shape[0], n_labels), np.log(_FLOOR))
    present = np.unique(targets)
    if len(present) == 1:
        logprobs[:, present] = 0.0
        return LinearFit(_normalised(logprobs), strengths[0], None)
    strength, weight = _chosen(train, targets, strengths, seed)
    model = _regression(strength, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged after all iterations: as good as it gets in the time
        model.fit(train, targets)
    logprobs[:, model.classes_] = np.log(np.maximum(model.predict_proba(items), _FLOOR))
    return LinearFit(_normalised(logprobs), strength, weight)


def _chosen(train: Any, targets: NDArray[np.int64], strengths: Sequence[float], seed: int) -> tuple[float, str | None]:
    """C and class weights with the best sum of accuracy and macro-F1 over held-out folds, of equals the first.

    They are what a sweep ranks by. The log loss would choose weak penalties: on eight skewed classes of 20 Newsgroups
    (300 rows) it had 0.56 of accuracy and 0.33 of macro-F1 on new rows, where this has 0.72 and 0.61. The price is that
    the probabilities are too even. A class with fewer rows than folds is absent from some of them.
    """
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = _some(targets, seed)
    features, gold = train[rows], targets[rows]
    folds = min(_FOLDS, max(Counter(gold.tolist()).values()))
    if folds < 2 or len(rows) < 2 * folds:
        return strengths[len(strengths) // 2], None
    best = -1.0
    choice: tuple[float, str | None] = (strengths[0], None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer rows than folds, and those that a fold lacks
        for strength in strengths:
            for weight in _WEIGHTS:
                held_out = StratifiedKFold(folds, shuffle=True, random_state=seed)
                try:
                    said = cross_val_predict(_regression(strength, weight), features, gold, cv=held_out)
                except ValueError:  # a fold whose training rows are of one class
                    continue
                score = accuracy_score(gold, said) + f1_score(gold, said, average="macro", zero_division=0)
                if score > best + 1e-9:
                    best, choice = score, (strength, weight)
    return choice


def _regression(strength: float, weight: str | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight=weight, tol=_TOLERANCE, max_iter=200)


def _some(targets: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Places of the rows that the settings are chosen on, in order; each class in proportion."""
    places = [str(place) for place in range(len(targets))]
    chosen = stratified(places, [str(target) for target in targets], min(_CHOOSING_ROWS, len(targets)), seed)
    return np.sort(np.array(chosen, dtype=np.int64))


def _normalised(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    normalised: NDArray[np.float64] = logprobs - np.logaddexp.reduce(logprobs, axis=1, keepdims=True)
    return normalised
