"""What an answer says in the end: a choice, a number, or what a regular expression finds.

Each reader gives None where a text says none. It reads the reference with the same rules as the answer.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction

import regex

LETTERS = tuple("ABCDEFGHIJ")  # choices where ``eval.choices`` gives none
_SEARCH = 1.0  # seconds for one text: a pattern such as (a+)+$ would take years with some
_LONGEST = 300  # digits of a number, and powers of ten, that are still read

_MARKS = "*_`\"'([{"  # what may stand before a choice
_JOINT = re.compile(r"\W*(?:or|and|/|&)\W*", re.IGNORECASE)  # between choices of which none is made
_ANSWER_IS = re.compile(r"(?:answer|option|choice)\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)

# thousands in groups of three, or of two before the last three (India); spaces between them must be no-break or thin
_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d])|\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)?"
_DECIMAL = rf"(?:(?=\.?\d){_DIGITS}(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_NUMBER = re.compile(
    rf"(?<![A-Za-z_\d.])(?P<sign>(?<![)\]])[+-]|(?<![\w)\]]\s)[+-]\s)?(?P<currency>[$€£¥]\s?)?"
    rf"(?:(?P<whole>\d+)\s(?P<of>\d+)/(?P<in>\d+)(?![\d/])|(?P<above>{_DECIMAL})(?:\s?/\s?(?P<below>\d+)(?![\d/]))?)"
    r"(?P<percent>\s?(?:%|\\%|percent\b))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_IN_NUMBERS = {"\u2212": "-", "\\$": "$", "{,}": ",", "\\,": "", "\\!": ""}  # a minus sign; LaTeX


def choice(text: str, choices: Sequence[str] = LETTERS) -> str | None:
    """The choice that a text names: the last after "answer is", else at its beginning, else the only one.

    Letters count in upper case alone, where they stand by themselves: "B", "(B)", "B) Paris", "The answer is B.". A
    and I must not go on as a sentence does ("A dog", "I think"). Longer choices are whole
    words, in either case.

    Args:
        text: an answer, or a reference.
        choices: what can be chosen.
    """
    named = [match for name in choices for match in _standing_alone(name).finditer(text)]
    named.sort(key=lambda match: (match.start(), -len(match.group())))
    after = {match.end() for match in _ANSWER_IS.finditer(text)}
    told = [match for match in named if _begin(text, match.start()) in after]
    if told:
        return _spelled(told[-1].group(), choices)
    named = [match for match in named if len(match.group()) > 1 or not _is_word(text, match)]
    begins = named and not text[: named[0].start()].strip(_MARKS + " \t\r\n")
    if begins and not (len(named) > 1 and _JOINT.fullmatch(text[named[0].end() : named[1].start()])):
        return _spelled(named[0].group(), choices)
    different = {_spelled(match.group(), choices) for match in named}
    return different.pop() if len(different) == 1 else None


def _standing_alone(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?![\w'’])", re.IGNORECASE if len(name) > 1 else 0)


def _begin(text: str, at: int) -> int:
    """Where the marks before a choice begin."""
    while at and text[at - 1] in _MARKS:
        at -= 1
    return at


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether A or I goes on as a word of a sentence does, and so names no choice."""
    return match.group() in "AI" and re.match(r"[ \t]+(?!(?:or|and)\b)[^\W\d_]", text[match.end() :]) is not None


def _spelled(found: str, choices: Sequence[str]) -> str:
    return found if found in choices else next(name for name in choices if name.casefold() == found.casefold())


def option_text(text: str, letter: str) -> str:
    """What stands behind the letter of a reference: ``Paris`` of ``B) Paris``; empty where nothing does."""
    match = re.match(rf"\W*{re.escape(letter)}\W+(.+)", text.strip(), re.DOTALL)
    return match.group(1).strip() if match else ""


def number(text: str) -> tuple[Fraction, bool] | None:
    r"""The number that a text gives as its answer, exactly, and whether a percent sign follows it.

    That in the last ``\boxed{…}``; else the first behind the last ``####`` (GSM8K, Cobbe et al. 2021, arXiv
    2110.14168); else the last one. Read are 1,234.50, -3/4, 1 1/2, \frac{3}{4}, 2e-3, $5, 12 %, digits of any script;
    not 1.234,50. Digits that follow a letter (x2, H2O) are no number.
    """
    for written, plain in _IN_NUMBERS.items():
        text = text.replace(written, plain)
    text = _FRACTION.sub(r" \1/\2", text)
    boxed = _boxed(text)
    if boxed is not None:
        return _last_number(boxed)
    _, mark, after = text.rpartition("####")
    if mark:
        found = _NUMBER.search(after)
        return _value(found) if found else None
    return _last_number(text)


def same_number(answer: str, reference: str, tolerance: float = 0.0) -> bool:
    """Whether a text gives the number of a reference that has one.

    Where only one of the two has a percent sign, 50 % is both 50 and 0.5.

    Args:
        answer: what a model wrote.
        reference: with a number.
        tolerance: relative to the reference; 0: exactly, so that 0.50 is 1/2.
    """
    given, expected = number(answer), number(reference)
    if given is None or expected is None:
        return False
    (ours, of_hundred), (theirs, in_percent) = given, expected
    close = Fraction(tolerance) * abs(theirs)
    if abs(ours - theirs) <= close:
        return True
    if of_hundred == in_percent:
        return False
    return abs((ours / 100 if of_hundred else ours * 100) - theirs) <= close


def _boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` that is closed."""
    at = text.rfind("\\boxed{")
    while at >= 0:
        depth, begin = 0, at + len("\\boxed{")
        for place in range(begin, len(text)):
            if text[place] == "{":
                depth += 1
            elif text[place] == "}":
                depth -= 1
                if depth < 0:
                    return text[begin:place]
        at = text.rfind("\\boxed{", 0, at)
    return None


def _last_number(text: str) -> tuple[Fraction, bool] | None:
    found = list(_NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _value(match: re.Match[str]) -> tuple[Fraction, bool] | None:
    """None for a number with too many digits, or a fraction of nothing."""
    if len(match.group()) > _LONGEST:
        return None
    if match["whole"]:
        above, below = Fraction(int(match["whole"])), int(match["in"])
        value = above + Fraction(int(match["of"]), below) if below else None
    else:
        given = re.sub(r"[,\u00a0\u2009\u202f]", "", match["above"])
        try:
            decimal = Decimal(given)
        except InvalidOperation:
            return None
        if abs(decimal.adjusted()) > _LONGEST:
            return None
        below = int(match["below"] or 1)
        value = Fraction(decimal) / below if below else None
    if value is None:
        return None
    return -value if (match["sign"] or "").startswith("-") else value, bool(match["percent"])


def found_by(pattern: "regex.Pattern[str]", text: str) -> str | None:
    """What the first group that took part has in a pattern's first match, white space at its ends aside.

    None too where the search takes longer than a second.
    """
    try:
        match = pattern.search(text, timeout=_SEARCH)
    except TimeoutError:
        return None
    taken = [group for group in match.groups() if group is not None] if match else []
    return taken[0].strip() if taken else None
