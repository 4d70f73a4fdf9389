"""JSON in answers: whether it is there, whether it keeps a schema, and how many of its fields are right."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag, urljoin

from analysis.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)^[ \t]*\1", re.DOTALL | re.MULTILINE)
# how an object or array begins, or what was meant to be one: {"a", {'a', {a:, ["a", [{, [[, [1,
_MEANT = re.compile(r"""\{\s*(?:["'}]|\w+\s*:)|\[\s*(?:["'{\[]|-?\d+(?:\.\d+)?\s*(?:,|$))""")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_MOST_BEGINNINGS = 100  # brackets in a text at which JSON is looked for


def json_in(text: str) -> Any:
    """The JSON object or array in a text: the whole of it, else in the first fence that has one, else the longest.

    A part of an object that is broken or cut off is not the object, however well it reads.

    Returns:
        None where there is none. ``NaN`` and ``Infinity``, which Python would read, are no JSON (RFC 8259).
    """
    for part in (text, *(match.group(2) for match in _FENCE.finditer(text))):
        value, _ = _read(part.strip())
        if value is not None:
            return value
    longest, best = 0, None
    beginnings = [match.start() for match in re.finditer(r"[{\[]", text)][:_MOST_BEGINNINGS]
    end = 0
    for at in beginnings:
        if at < end:  # within one that was read
            continue
        value, length = _read(text[at:], whole=False)
        if value is not None:
            end = at + length
            if length > longest:
                longest, best = length, value
        elif _MEANT.match(text, at):
            end = _behind(text, at)
    return best


def _behind(text: str, at: int) -> int:
    """Where the brackets are closed that are opened at a place, or the text's end; brackets in strings are text."""
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text, at):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token.group(), 0)
        if not depth:
            return token.end()
    return len(text)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _read(text: str, whole: bool = True) -> tuple[Any, int]:
    """An object or array at the beginning of a text, and its length; (None, 0) where there is none."""
    try:
        value, length = json.JSONDecoder(parse_constant=_no_number).raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0
    if not isinstance(value, dict | list) or (whole and length < len(text)):
        return None, 0
    return value, length


def fields(value: Any) -> Counter[tuple[str, str]]:
    """Path and value of each leaf, as often as it is there.

    An element of an array has ``[]`` in its path and no number, so that arrays are compared whatever their order.
    Numbers are equal by value, texts without the white space at their ends; an empty object or array is a leaf.
    """
    return Counter(_leaves(value, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{json.dumps(name)}")
    elif isinstance(value, list) and value:
        for part in value:
            yield from _leaves(part, f"{path}[]")
    elif isinstance(value, float) and value.is_integer():
        yield path, str(int(value))
    else:
        yield path, json.dumps(value.strip() if isinstance(value, str) else value)


def field_f1(answer: Any, reference: Any) -> float:
    """F1 of the leaves of two JSON values (see ``fields``), from 0 to 1.

    Args:
        answer: the value of what a model wrote; None where it wrote none: 0.
        reference: that of the reference.
    """
    if answer is None:
        return 0.0
    try:
        ours, theirs = fields(answer), fields(reference)
    except RecursionError:  # nested deeper than can be walked
        return 0.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def schema_validator(path: str) -> "Validator":
    """What says whether a JSON value keeps the schema in a file, by ``jsonschema``.

    Args:
        path: a file with a JSON schema, of the draft that its ``$schema`` names, else of 2020-12.

    Raises:
        ConfigError: where the file is missing, no JSON or no schema, or refers to what is not in it.
    """
    import jsonschema

    where = f"eval.json_schema={path}"
    try:
        schema = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file. Give the path of a JSON schema.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: cannot be read as JSON ({error}). Give a file with a JSON schema.") from None
    if not isinstance(schema, dict | bool):
        raise ConfigError(f"{where}: a {type(schema).__name__}, where a JSON schema is an object. Mend the file.")
    kind: Any = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "its top"
        raise ConfigError(f"{where}: not a JSON schema: {error.message} (at {place}). Mend the file.") from None
    if lacking := _lacking_references(schema):
        raise ConfigError(
            f"{where}: refers to {lacking}, which is not in the file. Nothing is fetched: put it below $defs."
        )
    validator: Validator = kind(schema)
    return validator


def _lacking_references(schema: Any) -> str:
    """The first ``$ref`` that neither the schema itself nor a standard draft has; empty where there is none."""
    parts = list(_objects(schema))
    base = str(schema.get("$id", "")) if isinstance(schema, dict) else ""
    named = {urldefrag(urljoin(base, str(part["$id"]))).url for part in parts if isinstance(part.get("$id"), str)} | {
        base
    }
    anchors = {str(part[key]) for part in parts for key in ("$anchor", "$dynamicAnchor") if key in part}
    for part in parts:
        for key in ("$ref", "$dynamicRef"):
            given = part.get(key)
            if not isinstance(given, str):
                continue
            document, fragment = urldefrag(urljoin(base, given) if not given.startswith("#") else given)
            if document.startswith(("http://json-schema.org/", "https://json-schema.org/")):
                continue
            if document not in named and document != "":
                return given
            inside = document in ("", base)
            if inside and fragment.startswith("/") and not any(_has(whole, fragment) for whole in [schema, *parts]):
                return given
            if inside and fragment and not fragment.startswith("/") and fragment not in anchors:
                return given
    return ""


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)


def _has(value: Any, pointer: str) -> bool:
    """Whether a JSON pointer (RFC 6901) leads somewhere."""
    for step in unquote(pointer)[1:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return False
    return True


def keeps(value: Any, validator: "Validator") -> bool:
    """Whether a JSON value keeps a schema; None, where an answer had none, does not."""
    try:
        return value is not None and bool(validator.is_valid(value))
    except RecursionError:
        return False
