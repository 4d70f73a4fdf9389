"""Counterfactual texts: the same text about another group (names, pronouns, gendered nouns, group terms).

The one-for-one word substitution of counterfactual data augmentation (Lu et al. 2018, arXiv 1807.11714; names as in
Maudslay et al. 2019, arXiv 1909.00871), shared by the augmentation of training rows and by the counterfactual metric.
It reads words, not sentences: "her" is told apart by the words around it, and a text whose label depends on the group
it names is swapped all the same. English only. Words that are also other words (Will, Grace, Mark; black, white,
straight away from a person) are left alone, and so are names that are made of them (Christian Bale, Stephen King, the
European Union) and forms that name both genders in one word (s/he).
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


def _each(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Before these words "her" is an object, and becomes "him" ("told her that"); before others it is a possessive, "his".
_AFTER_OBJECT = _each(
    "a about after again also an and any anything are as at away back because been before but by can could did do"
    " does down everything for from had has have here hers him home how i if in into is it me much my never not"
    " nothing of off on or our out over should so some something than that the their them then there these they this"
    " those through to today tomorrow tonight too under until up us was we well were what when where whether which"
    " while who whom whose why with without would yesterday yesterday's you your"
)
# These belong to the noun after them where one follows ("her now famous book"), and to the verb where none does.
_EITHER = _each("all almost just more most now once only quite rather so then very")
# After these verbs a person does what follows: "let her go", "saw her leave", "made her happy".
_MAKES = _each(
    "bid call called calls catch catches caught consider considered considers drive drives drove feel feels felt"
    " find finds found get gets getting got hear heard hearing hears help helped helping helps keep"
    " keeping keeps kept leave leaves leaving left let lets letting made make makes making notice noticed notices"
    " render rendered saw see seeing seen sees set sets watch watched watches watching"
)
_DONE = _each(
    "accept act add admit agree answer appear argue arrive ask attend be become beg begin believe blush break"
    " breathe bring build buy carry change choose clean climb close come complain confess continue cook cough cross"
    " check cry cut dance decide die dig disappear draw dream drink drive drop eat enjoy enter escape explain fail fall"
    " feel fight find finish fly forget get give go grow happen hear help hide hold hope improve join jump keep kick"
    " kill kiss know laugh lead learn leave lie listen live look lose make marry meet miss move open paint panic"
    " pass pay pick play pray prepare prove pull push put quit reach read realise realize recover relax rest ride"
    " rise run say scream see sell send shake shine shiver shout show sign sing sit sleep slip smile sneeze speak spend"
    " stand start stay steal stop stumble succeed suffer swear swim take talk teach tell think throw touch travel"
    " tremble try turn understand use vanish visit wait wake walk want wash watch wear weep win wonder work worry"
    " write"
)
_FEELS = _each(
    "afraid alive alone angry anxious asleep awake aware breathless busy calm comfortable confident crazy curious"
    " dead desperate excited famous free furious guilty happy helpless hungry ill innocent jealous late lonely mad"
    " miserable nervous pregnant proud ready responsible rich sad safe satisfied sick silent sleepy speechless"
    " strong tired uncomfortable unconscious uneasy unhappy upset useless waiting warm weak welcome well wet wrong"
)
_OBJECTS = _each("a an back her him it me my out that the them these this those up us you your")
_LY_NOUNS = _each("ally assembly belly bully family fly jelly reply")
_ING_NOUNS = _each(
    "being blessing building clothing earring earrings evening feeling feelings finding findings king lightning"
    " meeting morning offspring painting paintings ring rings sibling siblings spring string thing things training"
    " wedding writing writings"
)
# After these verbs a person gets what follows: "gave her two tickets", "showed her respect".
_GIVES = _each(
    "ask asked asking bring brings brought buy bought buys cost deny denied give gave given gives giving grant granted"
    " hand handed lend lent offer offered offers owe owed owes paid pay pays promise promised send sends sent show"
    " showed showing shown shows taught teach teaches tell telling tells told wish wished"
)
_COUNTS = _each(
    "two three four five six seven eight nine ten twelve twenty hundreds thousands several many few every each"
)
_GIFTS = _each(
    "access advice attention chocolates comfort courage credit directions flowers food goodnight help hope information"
    " instructions love lies money permission praise questions respect roses stories strength support tea thanks time"
    " trouble water work"
)
_NAMES_AS = _each("appointed appoint crowned declared elect elected made make name named names nicknamed")
_ROLES = _each(
    "boss captain ceo chair chairman champion director editor head leader manager mayor minister partner president"
)
_DAYS = _each("monday tuesday wednesday thursday friday saturday sunday")
_SPANS = _each("day evening month monday morning night saturday summer sunday time week weekend winter year")
# A capital letter after a group term makes it part of a name, but for words for people and for these.
_PEOPLE_AFTER = frozenset({"american", "americans", *_PERSON.split("|")})
_TITLES = _each("king lady prince princess queen")
_OPENS_NO_NAME = _each("a an and as but her his if my of or our that the their these this those to when your")
_OF_A_PERSON = re.compile(
    r"['’]s\b|,?\s+(?:said|says|is|was|has|had|told|asked|went|came|will|thinks|wrote)\b"
)  # behind "Christian" as a first name
_PLACES = _each("fort lake mount port saint san santa st st. virgin")
_NAMES_AND_WORDS = _each("carol heather")  # names only where they are written as such


def swap_terms(text: str, seed: int) -> str | None:
    """The text with genders, first names and group terms swapped; None where there is nothing to swap.

    Gender is swapped throughout, so that names and pronouns go together. A name becomes one of the other gender, two
    names never the same one; a group becomes another one of its axis. Case is kept.

    Args:
        text: English.
        seed: another seed gives other names and other groups.
    """
    table = _replacements(seed)
    swapped = _words().sub(lambda match: _with_possessive(match, _like(match["word"], _other(match, table))), text)
    return swapped if swapped != text else None


def _other(match: "re.Match[str]", table: dict[str, str]) -> str:
    word = match["word"].lower()
    before, after = match.string[: match.start()], match.string[match.end("word") :]
    if _is_named(match["word"], before, after):
        return word
    if word == "her":
        return "his" if _possessive(before, after) else "him"
    if word == "his":
        return "her" if _has_noun(after) else "hers"
    return table[word]


def _following(text: str) -> list[str]:
    """The next two words, in lower case, as far as white space alone stands between them."""
    found = re.match(r"(?:\s+[\w'’-]+){0,2}", text)
    return found[0].lower().replace("’", "'").split() if found else []


def _last_word(text: str) -> str:
    found = re.search(r"([\w'’.-]+)[\s(]*$", text[-60:])
    return found[1] if found else ""


def _possessive(before: str, after: str) -> bool:
    """Whether "her" is followed by what is hers."""
    if after.startswith("/"):
        return bool(re.match(r"/his\b", after, re.I))
    if before.endswith("/"):
        return bool(re.search(r"\bhis/$", before[-5:], re.I))
    words = _following(after)
    first, second = (*words, "", "")[:2]
    if first in ("and", "or") and second == "his":
        return True
    if not first or first.split("'")[0] in _AFTER_OBJECT or first in _DAYS:
        return False
    ends = not second or second in _AFTER_OBJECT
    verb = _last_word(before).lower()
    if first in _EITHER or (first.endswith("ly") and first not in _LY_NOUNS):
        return not ends
    if first in ("last", "next") and second in _SPANS:
        return verb in ("is", "was", "been", "be", "for", "in", "on")
    if verb in _GIVES:
        return not (first in _COUNTS or (first in _GIFTS and ends))
    if first in _ROLES:
        return not (verb in _NAMES_AS and ends)
    if verb in ("have", "has", "had"):
        return not (first in _DONE and second in _OBJECTS)
    if verb in _MAKES:
        if first in _FEELS:
            return not ends
        return first not in _DONE and not (first.endswith("ing") and first not in _ING_NOUNS)
    return True


def _has_noun(after: str) -> bool:
    """Whether "his" is followed by what is his."""
    if re.match(r"/hers\b", after, re.I):
        return False
    words = _following(after)
    if re.match(r"/her\b", after, re.I) or words in (["and", "her"], ["or", "her"]):
        return True
    return bool(words) and words[0] not in _AFTER_OBJECT


def _is_named(word: str, before: str, after: str) -> bool:
    """Whether a word is, or is part of, a name that is not swapped."""
    lower, last = word.lower(), _last_word(before)
    if lower in _NAMES_AND_WORDS:
        return not word[0].isupper()
    if lower in _first_names():
        return last.lower() in _PLACES
    if not word[0].isupper() or word.isupper():
        return False
    if lower == "lady" and re.match(r"\s+[A-Z]", after):
        return True  # of nobles and of singers: "Gentleman Gaga" is nobody
    if lower in _TITLES:
        return last[:1].isupper() and last.lower() not in _OPENS_NO_NAME and last[-1:] != "."
    if lower not in _groups():
        return False
    following = re.match(r"\s+([A-Z][\w'’-]*)", after)
    if following and following[1].lower() not in _PEOPLE_AFTER:
        return True
    if lower != "christian":
        return False
    alone = not last or last[0].isupper() or last.endswith(".")
    return alone and bool(_OF_A_PERSON.match(after))


@lru_cache(maxsize=1)
def _groups() -> frozenset[str]:
    return frozenset(group for rows in _AXES for row in rows for group in row.split())


@lru_cache(maxsize=1)
def _first_names() -> frozenset[str]:
    return frozenset([*_MALE.split(), *_FEMALE.split()])


def _with_possessive(match: "re.Match[str]", word: str) -> str:
    """The word with the possessive ending behind it, if there is one: "ladies'" becomes "gentlemen's"."""
    ending = match["possessive"] or ""
    if not ending or word.lower() == match["word"].lower():
        return word + ending
    quoted = len(re.findall(r"(?:^|[\s(])['’]", match.string[: match.start()])) > len(
        re.findall(r"['’](?=$|[\s.,;:!?)])", match.string[: match.start()])
    )
    if len(ending) == 1:
        return word + ending + ("" if word[-1] in "sS" or quoted else "s")
    plural = word.lower() in _plurals()
    return word + (ending[0] if plural and word[-1] in "sS" else ending)


@lru_cache(maxsize=1)
def _plurals() -> frozenset[str]:
    """The nouns for several people: their possessive has no further s."""
    pairs = [pair.split() for pair in _PAIRS.split("|")]
    singular = {word for pair in pairs for word in pair}
    return frozenset(
        word for word in singular if word.endswith("s") and word not in ("princess", "actress", "waitress", "ms")
    )


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
    plain = rf"(?:{'|'.join(words)})(?![\w-])|(?:{near})(?=[ -](?:{_PERSON})\b)"
    return re.compile(rf"(?<![\w'-])(?<!\bs/)(?<!\(s\))(?P<word>{plain})(?P<possessive>['’]s?(?!\w))?", re.I)
