"""Counterfactual texts: the same text about another group (names, pronouns, gendered nouns, group terms).

The one-for-one word substitution of counterfactual data augmentation (Lu et al. 2018, arXiv 1807.11714; names as in
Maudslay et al. 2019, arXiv 1909.00871), shared by the augmentation of training rows and by the counterfactual metric.
It reads words, not sentences: "her" is told apart by the word after it, and a text whose label depends on the group it
names is swapped all the same. English only. Words that are also other words (Will, Grace, Mark; black, white, straight
away from a person) are left alone.
"""

import re
from functools import lru_cache
from hashlib import sha256

# First names common in the United States that are not words as well, and the names of Bertrand and Mullainathan (2004,
# "Are Emily and Greg more employable than Lakisha and Jamal?"), chosen as perceived as of one group. Both lists are of
# the same length.
_MALE = (
    "james john robert michael david william richard joseph thomas charles christopher daniel matthew anthony steven"
    " paul andrew joshua kenneth kevin brian george timothy ronald edward jason jeffrey ryan jacob gary nicholas eric"
    " jonathan stephen larry justin scott brandon benjamin samuel gregory alexander patrick todd neil geoffrey brett"
    " brendan rasheed tremayne kareem darnell tyrone hakim jamal leroy jermaine"
)
_FEMALE = (
    "mary patricia jennifer linda elizabeth barbara susan jessica sarah karen lisa nancy betty margaret sandra ashley"
    " kimberly emily donna michelle carol amanda melissa deborah stephanie rebecca sharon laura cynthia kathleen amy"
    " angela shirley brenda emma anna pamela nicole samantha katherine christine anne jill allison laurie"
    " meredith aisha keisha tamika lakisha tanisha latoya latonya kristen rachel heather carolyn"
)
_PAIRS = (
    "he she|himself herself|man woman|men women|boy girl|boys girls|father mother|fathers mothers|dad mom|dads moms"
    "|daddy mommy|son daughter|sons daughters|brother sister|brothers sisters|husband wife|husbands wives|uncle aunt"
    "|uncles aunts|nephew niece|nephews nieces|grandfather grandmother|grandfathers grandmothers|grandpa grandma"
    "|grandson granddaughter|grandsons granddaughters|boyfriend girlfriend|boyfriends girlfriends|gentleman lady"
    "|gentlemen ladies|male female|males females|king queen|kings queens|prince princess|princes princesses"
    "|actor actress|actors actresses|waiter waitress|waiters waitresses|policeman policewoman|policemen policewomen"
    "|businessman businesswoman|businessmen businesswomen|chairman chairwoman|chairmen chairwomen"
    "|spokesman spokeswoman|spokesmen spokeswomen|stepfather stepmother|stepson stepdaughter|groom bride"
    "|widower widow|mr ms|sir madam"
)
# Axes of group terms. A column is a group; a swap moves every row of an axis by the same number of columns.
_AXES = (
    (
        "christian muslim jewish hindu buddhist",
        "christians muslims jews hindus buddhists",
        "christianity islam judaism hinduism buddhism",
    ),
    ("african asian european", "africans asians europeans"),
)
# Group terms that are swapped only before a word for a person.
_BEFORE_PERSON = (("black white hispanic",), ("gay straight",))
_PERSON = (
    "man|men|woman|women|person|people|boy|boys|girl|girls|guy|guys|kid|kids|child|children|male|males|female|females"
    "|couple|couples|family|families|student|students|teacher|teachers|officer|officers|american|americans|community"
)
# Before these words "her" is an object, and becomes "him" ("told her that"); before others it is a possessive, "his".
_AFTER_OBJECT = (
    "a about after again all also an and any are as at away be because been before but by can could did do does down"
    " for from had has have how i if in into is it just may might must my never not now of off on or our out over"
    " should so some than that the their then there these they this those through to today tomorrow tonight too under"
    " until up very was we were what when where which while who whom why will with without"
    " would yesterday you your"
)


def swap_terms(text: str, seed: int) -> str | None:
    """The text with genders, first names and group terms swapped; None where there is nothing to swap.

    Gender is swapped throughout, so that names and pronouns go together. A name becomes one of the other gender, two
    names never the same one; a group becomes another one of its axis. Case is kept.

    Args:
        text: English.
        seed: another seed gives other names and other groups.
    """
    table = _replacements(seed)
    swapped = _words().sub(lambda match: _like(match[0], _other(match, table)), text)
    return swapped if swapped != text else None


def _other(match: "re.Match[str]", table: dict[str, str]) -> str:
    word = match[0].lower()
    if word not in ("her", "his"):
        return table[word]
    following = re.match(r"\s+([\w']+)", match.string[match.end() :])
    if word == "his":
        return "her" if following else "hers"
    return "his" if following and following[1].lower() not in _AFTER_OBJECT.split() else "him"


def _like(original: str, word: str) -> str:
    if original.isupper() and len(original) > 1:
        return word.upper()
    return word.capitalize() if original[0].isupper() else word


@lru_cache(maxsize=8)
def _replacements(seed: int) -> dict[str, str]:
    table = {"him": "her", "hers": "his", "mrs": "mr"}
    for pair in _PAIRS.split("|"):
        male, female = pair.split()
        table |= {male: female, female: male}
    for names, others in ((_MALE, _FEMALE), (_FEMALE, _MALE)):
        drawn = sorted(others.split(), key=lambda name: sha256(f"{seed}:{name}".encode()).digest())
        table |= dict(zip(names.split(), drawn, strict=True))
    for rows in (*_AXES, *_BEFORE_PERSON):
        for row in rows:
            groups = row.split()
            shift = 1 + seed % (len(groups) - 1)
            table |= {group: groups[(i + shift) % len(groups)] for i, group in enumerate(groups)}
    return table


@lru_cache(maxsize=1)
def _words() -> "re.Pattern[str]":
    near_person = {group for rows in _BEFORE_PERSON for row in rows for group in row.split()}
    words = sorted((set(_replacements(0)) | {"her", "his"}) - near_person, key=lambda word: (-len(word), word))
    near = "|".join(sorted(near_person))
    return re.compile(rf"(?<![\w'-])(?:(?:{'|'.join(words)})(?![\w-])|(?:{near})(?=[ -](?:{_PERSON})\b))", re.I)
