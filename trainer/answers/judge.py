"""A judge (``eval.judge``): a model that says which of two answers to a prompt is better, asked in both orders.

The value of an item is 1 where the written answer wins in both orders, 0 where it loses in both, and ½ else: judges
prefer a place (Zheng et al. 2023, "Judging LLM-as-a-Judge", arXiv 2306.05685, section 3.4, count such a pair as a tie
too). How often both orders agree is told, and so is how often people agree with the judge, where verdicts of theirs are
given (``eval.judge.calibration``).
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import ConfigError, DataError
from trainer.answers.answer import Answer, without_thoughts
from trainer.answers.judge_server import Ask
from trainer.config import JudgeConfig

VALUE, CONSISTENT, PARSED = "judge", "judge_consistent", "judge_parsed"  # columns of the item table of answers
METRIC, CONSISTENCY = "generate.judge", "generate.judge.consistency"
VERDICTS = ("first", "second", "tie")
_WORDS = {
    **dict.fromkeys(("1", "a", "first", "one"), "first"),
    **dict.fromkeys(("2", "b", "second", "two"), "second"),
    **dict.fromkeys(("tie", "c", "tied", "draw", "equal", "equally", "same", "both", "neither"), "tie"),
}
_MOST_NONSENSE = 0.1  # share of the items: beyond it there is no figure
_PLACEHOLDERS = ("{prompt}", "{first}", "{second}")


def verdict(reply: str) -> str | None:
    """``first``, ``second`` or ``tie``; None for a reply that names none of them, or several.

    Understood are one word (``1``, ``Answer 2.``, ``A``, ``tie``), brackets (``[[B]]``: the last ones count), a last
    line like ``Verdict: 1``, and sentences that name one of them alone. What stands in ``<think>`` is left out.
    """
    text = without_thoughts(reply).strip().lower()
    marked = re.findall(r"\[\[\s*(\w+)\s*\]\]", text)
    if marked:
        return _WORDS.get(marked[-1])
    last = text.splitlines()[-1] if text else ""
    for part in (text, last):
        alone = re.fullmatch(
            r"\W*(?:(?:the )?(?:final )?(?:verdict|winner|better|best|answer|response)\s*(?:is)?\W*)*(\w+)"
            r"(?: is better| wins)?\W*",
            part,
        )
        if alone and alone[1] in _WORDS:
            return _WORDS[alone[1]]
    named = {_WORDS[word] for word in re.findall(r"(?:answer|response)\s*\W?([12ab])\b", text)}
    named |= {"tie"} if re.search(r"\b(tie|tied|draw|equally good|equal)\b", text) else set()
    return named.pop() if len(named) == 1 else None


def check_prompt(prompt: str) -> None:
    """Raises ConfigError for an ``eval.judge.prompt`` that lacks a placeholder."""
    missing = [name for name in _PLACEHOLDERS if name not in prompt]
    if missing:
        raise ConfigError(f"eval.judge.prompt: lacks {', '.join(missing)}. It needs {', '.join(_PLACEHOLDERS)}.")


@dataclass(frozen=True)
class Calibration:
    """How far a judge agrees with people.

    Attributes:
        n: pairs with people's verdicts; 0: it is not calibrated.
        agreement: share of them on which the judge says the same.
        kappa: Cohen's kappa of both; NaN where all verdicts are one.
        consistency: share of the pairs on which both orders agree.
        fault: why there are no figures, a sentence; empty: there are, or nobody asked for them.
    """

    n: int = 0
    agreement: float = math.nan
    kappa: float = math.nan
    consistency: float = math.nan
    fault: str = ""

    @property
    def sentence(self) -> str:
        """What stands beside every judged figure."""
        if not self.n:
            return f"not calibrated: {self.fault}" if self.fault else "not calibrated"
        kappa = f", kappa {self.kappa:.2f}" if math.isfinite(self.kappa) else ""
        return f"agrees with people on {self.agreement:.0%} of {self.n} pairs{kappa}"


class Judge:
    """A judge, with the verdicts that it gave.

    Args:
        settings: ``eval.judge``.
        ask: gives a reply for each prompt: of ``JudgeServer``, or of a local model.

    Raises:
        ConfigError: for a prompt without its placeholders.
    """

    def __init__(self, settings: JudgeConfig, ask: Ask):
        check_prompt(settings.prompt)
        self._settings, self._ask = settings, ask
        self._replies: dict[str, str] = {}  # of the prompts that were answered

    def judged(
        self, answers: Sequence[Answer], against: Sequence[str]
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        """How each answer compares with another text.

        Args:
            answers: written ones.
            against: a text for each: its reference, or what the untuned model wrote.

        Returns:
            Columns of the item table (``judge``; ``judge_consistent`` and ``judge_parsed``, 1 or 0); and metric → why
            it has no value, a sentence. An item with a reply that is no verdict counts as a tie, if they are few.
        """
        pairs = [(answer.prompt, answer.text, other) for answer, other in zip(answers, against, strict=True)]
        verdicts, fault, nonsense = self._verdicts(pairs)
        bad = sum(None in of_pair for of_pair in verdicts)
        if not fault and bad > _MOST_NONSENSE * len(pairs):
            fault = f"gave no verdict for {bad} of {len(pairs)} items, such as {nonsense[:60]!r}"
        if fault:
            why = f"the judge ({self.name}) {fault}."
            return {}, {METRIC: why, CONSISTENCY: why}
        agreed = [first == _swapped(second) for first, second in verdicts]
        values = {"first": 1.0, "second": 0.0, "tie": 0.5, None: 0.5}
        return {
            VALUE: [values[first] if same else 0.5 for (first, _), same in zip(verdicts, agreed, strict=True)],
            CONSISTENT: [float(same) for same in agreed],
            PARSED: [float(None not in of_pair) for of_pair in verdicts],
        }, {}

    @property
    def name(self) -> str:
        """What it is called in messages; a server by its address without user and query."""
        settings = self._settings
        return settings.path or f"{settings.model or 'a model'} at {re.sub('//[^/]*@', '//', str(settings.server))}"

    def calibrated(self) -> Calibration:
        """Agreement with the verdicts of ``eval.judge.calibration``. Raises DataError for a file that is none."""
        if not self._settings.calibration:
            return Calibration()
        rows = read_calibration(Path(self._settings.calibration))
        verdicts, fault, _ = self._verdicts([(row["prompt"], row["first"], row["second"]) for row in rows])
        if fault:
            return Calibration(fault=f"the judge ({self.name}) {fault}.")
        from sklearn.metrics import cohen_kappa_score

        agreed = [first is not None and first == _swapped(second) for first, second in verdicts]
        said = [first or "tie" if same else "tie" for (first, _), same in zip(verdicts, agreed, strict=True)]
        better = [row["better"] for row in rows]
        kappa = float(cohen_kappa_score(better, said)) if len({*better, *said}) > 1 else math.nan
        same = sum(ours == theirs for ours, theirs in zip(said, better, strict=True))
        return Calibration(len(rows), same / len(rows), kappa, sum(agreed) / len(rows))

    def _verdicts(self, pairs: Sequence[tuple[str, str, str]]) -> tuple[list[tuple[str | None, str | None]], str, str]:
        """Of each (prompt, first, second) the verdicts in both orders; why there are none; a reply that is none.

        Two texts that are the same are a tie, about which nobody is asked.
        """
        orders = [
            [] if first == second else [self._filled(prompt, first, second), self._filled(prompt, second, first)]
            for prompt, first, second in pairs
        ]
        new = [text for text in dict.fromkeys(text for both in orders for text in both) if text not in self._replies]
        fault = ""
        for text, reply in zip(new, self._ask(new) if new else [], strict=True):
            if reply.fault:
                fault = fault or reply.fault
            else:
                self._replies[text] = reply.text
        if fault:
            return [], fault, ""
        said = [[self._replies[text] for text in both] for both in orders]
        verdicts = [(verdict(both[0]), verdict(both[1])) if both else ("tie", "tie") for both in said]
        nonsense = next((reply for both in said for reply in both if verdict(reply) is None), "")
        return verdicts, "", nonsense

    def _filled(self, prompt: str, first: str, second: str) -> str:
        """The judge's prompt; braces in the texts stay as they are."""
        texts = dict(zip(_PLACEHOLDERS, (prompt, first, second), strict=True))
        return re.sub(r"\{(?:prompt|first|second)\}", lambda match: texts[match[0]], self._settings.prompt)


def read_calibration(file: Path) -> list[dict[str, str]]:
    """Rows of JSON lines with prompt, first, second, and better: first, second or tie. Raises DataError."""
    rows = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"eval.judge.calibration={file}: cannot be read ({error}).") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts = {name: row[name] for name in ("prompt", "first", "second", "better")}
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{file}, line {number}: expected an object with prompt, first, second and better (first, second or"
                " tie)."
            ) from None
        if texts["better"] not in VERDICTS:
            raise DataError(f"{file}, line {number}: better={texts['better']!r}: expected first, second or tie.")
        rows.append({name: str(text) for name, text in texts.items()})
    if not rows:
        raise DataError(f"eval.judge.calibration={file}: no rows in it.")
    return rows


def _swapped(said: str | None) -> str | None:
    """A verdict on the same two texts in the other order."""
    return {"first": "second", "second": "first"}.get(str(said), said)
