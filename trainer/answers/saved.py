"""Answers that another system wrote before, read from JSON lines: a baseline of a sweep (``{answers: FILE}``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.errors import DataError, parsed_json
from trainer.data.schemas import Row, asked


def read_saved(file: Path, wanted: Sequence[tuple[str, int]], rows: Sequence[Row]) -> dict[str, str]:
    """The answer to each item.

    Lines are matched by their ``item_id``; else by their ``prompt``, a row's prompt or what the user says last; else,
    where there are as many as rows, by their order.

    Args:
        file: JSON lines, each with ``answer``, and ``item_id`` or ``prompt`` or neither.
        wanted: item id and place of the row, of what is to be answered.
        rows: of the split.

    Raises:
        DataError: for a file that cannot be read, or an item that has no answer in it.
    """
    where = f"baselines: answers={file}"
    lines = _lines(file, where)
    if all("item_id" in line for line in lines):
        by_id = {str(line["item_id"]): line["answer"] for line in lines}
        found = {item: by_id.get(item) for item, _ in wanted}
    elif all("prompt" in line for line in lines):
        by_prompt = {str(line["prompt"]).strip(): line["answer"] for line in lines}
        found = {item: by_prompt.get(asked(rows[place]).strip()) for item, place in wanted}
    elif len(lines) == len(rows):
        found = {item: lines[place]["answer"] for item, place in wanted}
    else:
        raise DataError(
            f"{where}: {len(lines)} lines without item_id or prompt for {len(rows)} rows. Give each line the prompt of"
            " its row (or its item_id), or as many lines as there are rows, in their order."
        )
    lacking = [(item, place) for item, place in wanted if found[item] is None]
    if lacking:
        first = asked(rows[lacking[0][1]]).strip()[:60]
        raise DataError(
            f"{where}: no answer to {len(lacking)} of {len(wanted)} items, the first {lacking[0][0]} ({first!r}). Add a"
            " line with its prompt (or item_id) and its answer."
        )
    return {item: str(text) for item, text in found.items()}


def _lines(file: Path, where: str) -> list[dict[str, Any]]:
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot be read ({error}). Give a file of JSON lines.") from None
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = parsed_json(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("answer"), str):
            raise DataError(f'{where}, line {number}: expected an object with "answer", a text, and "prompt".')
        lines.append(line)
    if not lines:
        raise DataError(f"{where}: no lines in it.")
    return lines
