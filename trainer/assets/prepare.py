"""Makes files of rows from what a package carries, once, when it is fetched. The rules are fixed: nothing is drawn."""

import json
from pathlib import Path

LONGEST_PASSAGE = 800  # characters: with question and answer at most 320 tokens of SmolLM2, so that nothing is cut
_NO_ANSWER = "unknown"  # what Disfl-QA says where the passage does not answer the question


def short_passages(folder: Path) -> None:
    """Write ``passages.jsonl``: Disfl-QA's rows with an answer and a passage of at most 800 characters, in their order.

    Args:
        folder: has ``all.jsonl``, rows of passage, question and answer.
    """
    lines = (folder / "all.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = [row for row in rows if row["answer"] != _NO_ANSWER and len(row["passage"]) <= LONGEST_PASSAGE]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
