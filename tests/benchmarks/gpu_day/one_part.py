"""The process of one part: measures it, and ends with status 1 where something failed."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.gpu_day import machine
from tests.benchmarks.gpu_day.parts import Part
from tests.benchmarks.gpu_day.record import COMPLETE, FAILED, LEFT_OUT, Record, last_lines


@dataclass(frozen=True)
class Order:
    """What the process is to do.

    Attributes:
        part: which.
        out: folder of the JSON files.
        models: folder of models with random weights.
        minutes: that it has.
        dry: whether with tiny shapes.
    """

    part: Part
    out: str
    models: str
    minutes: float
    dry: bool

    @property
    def path(self) -> Path:
        """The part's JSON file."""
        return Path(self.out) / f"part{self.part.number}.json"

    def words(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_words(cls, words: str) -> "Order":
        fields = json.loads(words)
        return cls(**fields | {"part": Part(**fields["part"])})

    def record(self) -> Record:
        part = self.part
        return Record(self.path, part.number, part.title, self.minutes, self.dry, Path(self.models))


def perform(order: Order) -> Record:
    """Measure a part. Its error is in the record."""
    record = order.record()
    record.content["machine"] = {
        "device": machine.device(),
        "versions": machine.versions(),
        "host": machine.host(),
        "card_before": machine.card_now(),
    }
    record.save()
    try:
        order.part.measure(record)
    except Exception as error:
        record.fail("the part", last_lines(error))
    record.content["machine"]["card_after"] = machine.card_now()
    if record.content["errors"]:
        record.end(FAILED)
    elif not record.figures:
        record.end(LEFT_OUT)
    else:
        record.end(COMPLETE)
    return record


if __name__ == "__main__":
    sys.exit(int(bool(perform(Order.from_words(sys.argv[1])).content["errors"])))
