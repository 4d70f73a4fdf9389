"""What a device worker says of itself, and of data and model on its device, before any trial runs."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker tells about itself before any trial runs.

    Attributes:
        node: its Ray node's name; the address unless ``ray start --node-name`` gave another.
        device: such as ``CPU, 2 threads`` or ``NVIDIA H200, GPU 3``.
        precisions: precision → why it does not work there; empty where it does.
        speed: of arithmetic, to compare devices by: billions of floating-point operations a second; 0: not measured.
        slow: precision that works → how many times as long as fp32 it takes, where that is several times.
    """

    node: str
    device: str
    precisions: dict[str, str]
    slow: dict[str, float] = field(default_factory=dict)
    speed: float = 0.0

    @property
    def where(self) -> str:
        return f"{self.node}: {self.device}"


@dataclass(frozen=True)
class DataFacts:
    """What data and model turned out to be, and what the device can do with them.

    Attributes:
        rows: by split.
        labels: sorted class names.
        fingerprint: sha256 of the data.
        parameters: of the base model.
        slots: trials like the one asked about that the device takes side by side.
        schema: what a row is.
        tokens: by split.
        skipped: rows left out, and what was wrong with the first of them.
        model_revision: the commit that a model of the hub was loaded from.
        absent: metric that the data cannot give → why.
    """

    rows: dict[str, int]
    labels: tuple[str, ...]
    fingerprint: str
    parameters: int
    slots: int
    schema: str
    tokens: dict[str, int]
    skipped: dict[str, Any]
    model_revision: str | None
    absent: dict[str, str] = field(default_factory=dict)

    def for_manifest(self) -> dict[str, Any]:
        """What ``sweep.yaml`` says of data and model: everything but what depends on the device or the metrics."""
        return {name: value for name, value in asdict(self).items() if name not in ("slots", "absent")}
