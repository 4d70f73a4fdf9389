"""The metrics of written answers: a value for each item, and the figures of a set made of those.

A value is NaN where the *reference* or the row does not say what would be right (no number in it, no JSON), never
because of what was answered: the items of a figure are the same for every trial. The figure of a set is made by the
estimator of the metric table (``analysis/metrics.py``), so that what ranks and what is resampled are one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import regex

from analysis.errors import ConfigError
from analysis.metrics import METRICS
from trainer.answers import extraction, json_answers, labels_in_text, rouge, squad, style, translation
from trainer.answers.answer import Answer
from trainer.answers.code_tests import passed, row_tests
from trainer.config import EvalConfig

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

PREFIX = "generate."
Score = Callable[[Answer], float]  # NaN where the reference does not say what would be right


def columns(
    answers: Sequence[Answer], settings: EvalConfig, labels: Sequence[str] = ()
) -> dict[str, list[Any]]:  # fmt: skip
    """The columns of figures in the item table of answers, the same ones whatever was answered.

    Args:
        answers: of one model.
        settings: what of the metrics needs a key of the config is left out where it is not given.
        labels: names of the classes, where rows have labels.

    Returns:
        Column → a number for each answer; of ``bleu`` and ``chrf`` the list of its counts.

    Raises:
        ConfigError: see ``check``.
    """
    if labels:
        read = [labels_in_text.label_in(answer.text, labels) for answer in answers]
        return {
            "label_in_text": [float(a == b.reference) for a, b in zip(read, answers, strict=True)],
            "no_label": [float(label is None) for label in read],
        }
    table: dict[str, list[Any]] = {
        name: [score(answer) for answer in answers] for name, score in _scores(settings).items()
    }
    table |= _overlaps(answers)
    if settings.run_code and settings.code_tests is not None:
        table["code"] = _code(answers, settings.code_tests)
    tokenizer = translation.tokenizer_of([answer.reference for answer in answers])
    table["bleu"] = [translation.bleu_counts(answer.text, answer.reference, tokenizer) for answer in answers]
    table["chrf"] = [translation.chrf_counts(answer.text, answer.reference) for answer in answers]
    return table


def figures(table: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Every ``generate.*`` that an item table has the columns of, by the estimators of the metric table.

    Args:
        table: ``generated``, as in the sweep folder.

    Returns:
        Metric → its value over the items that have one; NaN where none has.
    """
    import numpy as np

    items = _OneTable(table)
    labels = items.texts("label", "prediction") if "prediction" in table else []
    found: dict[str, float] = {}
    for name, metric in METRICS.items():
        if not name.startswith(PREFIX) or metric.estimator is None:
            continue
        try:
            sums = metric.estimator.columns(items, labels)
        except KeyError:  # a column that this table does not have
            continue
        units = np.array(float(sums.shape[1]))
        found[name] = float(metric.estimator.value(sums.sum(axis=1, dtype=np.float64), units)[0]) if units else math.nan
    return found


def absent(
    references: Sequence[str], rows: Sequence[Mapping[str, Any]], settings: EvalConfig, labels: Sequence[str] = ()
) -> dict[str, str]:
    """Metric → why these rows and this config cannot give it, a clause. Nothing needs to be answered for it.

    Args:
        references: of the items.
        rows: their columns, in the same order.
        settings: config of the metrics.
        labels: names of the classes, where rows have labels.
    """
    why: dict[str, str] = {}
    if labels:
        return {}
    options = _choices(settings)
    few = ", ".join(options) if len(options) < 5 else f"{options[0]} … {options[-1]}"
    lacking: dict[str, tuple[Callable[[str], Any], str]] = {
        "choice": (lambda text: extraction.choice(text, options) is not None, f"no reference names one of {few}"),
        "number": (lambda text: extraction.number(text) is not None, "no reference has a number"),
        "rouge_1": (rouge.words, "no reference has words of ASCII letters or digits, which ROUGE counts"),
        "rouge_2": (lambda text: len(rouge.words(text)) > 1, "no reference has two words of ASCII letters or digits"),
        "rouge_l": (rouge.words, "no reference has words of ASCII letters or digits, which ROUGE counts"),
        "json_f1": (lambda text: json_answers.json_in(text) is not None, "no reference is a JSON object or array"),
        "exact_match": (str.strip, "no row has a reference"),
        "token_f1": (squad.normalised, "no reference has words after SQuAD's normalisation"),
        "bleu": (str.strip, "no row has a reference"),
        "chrf": (str.strip, "no row has a reference"),
    }
    for name, (there, reason) in lacking.items():
        if not any(map(there, references)):
            why[name] = reason
    if settings.json_schema is None:
        why["json_schema"] = "eval.json_schema is not given"
        if "json_f1" in why:
            why["json_valid"] = f"{why['json_f1']}, and eval.json_schema is not given"
    if settings.regex is None:
        why["regex"] = "eval.regex is not given"
    elif not any(extraction.found_by(_pattern(settings.regex), text) is not None for text in references):
        why["regex"] = f"eval.regex={settings.regex} finds nothing in any reference"
    if not settings.run_code or settings.code_tests is None:
        why["code"] = "eval.run_code and eval.code_tests are not both given"
    elif not any(row_tests(row, settings.code_tests) for row in rows):
        why["code"] = f"no row has tests in its column {settings.code_tests}, eval.code_tests"
    return {name: why[short] for name in METRICS if (short := name.removeprefix(PREFIX)) in why and name != short}


def check(settings: EvalConfig) -> None:
    """Refuse what no row can mend: a schema that is none, a pattern without a group, tests that may not be run.

    Raises:
        ConfigError: naming the key, and what to do.
    """
    if settings.regex is not None:
        _pattern(settings.regex)
    if settings.json_schema is not None:
        json_answers.schema_validator(settings.json_schema)
    _choices(settings)
    if settings.code_tests is not None and not settings.run_code:
        raise ConfigError(
            f"eval.code_tests={settings.code_tests} with eval.run_code=false: nothing that a model writes is run"
            " unasked. Set eval.run_code=true, or remove eval.code_tests."
        )
    if settings.run_code and settings.code_tests is None:
        raise ConfigError(
            "eval.run_code=true without eval.code_tests: it says in which column the asserts of a row stand."
            " Give it, and the column in data.extra_columns; or leave eval.run_code out."
        )


def _choices(settings: EvalConfig) -> tuple[str, ...]:
    """What can be chosen, the letters A to J where nothing was said of it."""
    given = tuple(str(name) for name in settings.choices)
    if not given:
        return extraction.LETTERS
    folded = [name.casefold() if len(name) > 1 else name for name in given]
    if len(given) < 2 or len(set(folded)) < len(folded) or not all(name.strip() == name != "" for name in given):
        raise ConfigError(
            f"eval.choices={list(given)}: expected at least two different options without white space at their ends,"
            " such as [A,B,C,D]."
        )
    return given


def _pattern(written: str) -> "regex.Pattern[str]":
    try:
        pattern = regex.compile(written)
    except regex.error as error:
        raise ConfigError(f"eval.regex={written!r}: not a regular expression ({error}). Mend it.") from None
    if not pattern.groups:
        raise ConfigError(
            f"eval.regex={written!r} has no group: what its first group finds in the answer and in the reference is"
            " compared. Put parentheses around that part."
        )
    return pattern


def _scores(settings: EvalConfig) -> dict[str, Score]:
    """Column → what scores one answer."""
    choices = _choices(settings)
    scores: dict[str, Score] = {
        "exact_match": lambda a: squad.exact_match(a.text, a.reference),
        "token_f1": lambda a: squad.token_f1(a.text, a.reference) if squad.normalised(a.reference) else math.nan,
        "choice": lambda a: _same_choice(a, choices),
        "number": lambda a: _same_number(a, settings.number_tolerance),
        "repetition": lambda a: style.repetition(a.text),
        "refusal": lambda a: style.refusal(a.text),
    }
    if settings.regex is not None:
        pattern = _pattern(settings.regex)
        scores["regex"] = lambda a: _same_match(a, pattern)
    schema = json_answers.schema_validator(settings.json_schema) if settings.json_schema is not None else None
    scores["json_valid"] = lambda a: _valid(a, schema is not None)
    scores["json_f1"] = _field_f1
    if schema is not None:
        scores["json_schema"] = lambda a: float(json_answers.keeps(json_answers.json_in(a.text), schema))
    return scores


def _same_choice(answer: Answer, choices: Sequence[str]) -> float:
    right = extraction.choice(answer.reference, choices)
    if right is None:
        return math.nan
    given = extraction.choice(answer.text, choices)
    if given is None and (option := squad.normalised(extraction.option_text(answer.reference, right))):
        return float(squad.normalised(answer.text) == option)
    return float(given == right)


def _same_number(answer: Answer, tolerance: float) -> float:
    if extraction.number(answer.reference) is None:
        return math.nan
    return float(extraction.same_number(answer.text, answer.reference, tolerance))


def _same_match(answer: Answer, pattern: "regex.Pattern[str]") -> float:
    right = extraction.found_by(pattern, answer.reference)
    return math.nan if right is None else float(extraction.found_by(pattern, answer.text) == right)


def _valid(answer: Answer, always: bool) -> float:
    if not always and json_answers.json_in(answer.reference) is None:
        return math.nan
    return float(json_answers.json_in(answer.text) is not None)


def _field_f1(answer: Answer) -> float:
    reference = json_answers.json_in(answer.reference)
    return math.nan if reference is None else json_answers.field_f1(json_answers.json_in(answer.text), reference)


def _code(answers: Sequence[Answer], column: str) -> list[float]:
    tests = [row_tests(answer.row, column) for answer in answers]
    tested = [i for i, program in enumerate(tests) if program]
    values = dict(zip(tested, passed([answers[i].text for i in tested], [tests[i] for i in tested]), strict=True))
    return [values.get(i, math.nan) for i in range(len(answers))]


def _overlaps(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """The three columns of ROUGE, for which each text is cut into words once."""
    table: dict[str, list[float]] = {"rouge_1": [], "rouge_2": [], "rouge_l": []}
    for answer in answers:
        ours, theirs = rouge.words(answer.text), rouge.words(answer.reference)
        scores = (rouge.rouge_n(ours, theirs, 1), rouge.rouge_n(ours, theirs, 2), rouge.rouge_l(ours, theirs))
        for column, score in zip(table.values(), scores, strict=True):
            column.append(score if theirs else math.nan)
    return table


class _OneTable:
    """An item table as the estimators of the metric table read it (``analysis.item_sums.ItemColumns``): one row."""

    def __init__(self, table: Mapping[str, Sequence[Any]]):
        self._table = table

    def numbers(self, column: str) -> "Array":
        """(1, items) of a numeric column."""
        return self._array(column)[None]

    def vectors(self, column: str) -> "Array":
        """(1, items, width) of a column of equally long lists."""
        return self._array(column)[None]

    def codes(self, column: str, names: Sequence[str]) -> "Array":
        """(1, items) of a text column as places in ``names``; -1 for a text that is not among them."""
        import numpy as np

        place = {name: i for i, name in enumerate(names)}
        return np.array([[place.get(text, -1) for text in self._table[column]]])

    def texts(self, *columns: str) -> list[str]:
        """The different texts of some columns, sorted."""
        return sorted(set(self._all(columns)))

    def _all(self, columns: Sequence[str]) -> Iterator[str]:
        return (str(text) for column in columns for text in self._table[column] if text is not None)

    def _array(self, column: str) -> "Array":
        import numpy as np

        return np.array(self._table[column], dtype=np.float64)
