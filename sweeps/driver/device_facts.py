"""What a device worker says of itself, and of data and model on its device, before any trial runs."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from analysis.errors import DataError, FolderError, HardwareError, LorasweepError, ModelError
from sweeps.checks.folder_probe import FolderProbe
from sweeps.checks.local_files import LocalFile
from sweeps.process.fingerprint import Fingerprint


@dataclass(frozen=True)
class StartCheck:
    """What a device worker is asked about itself and its node.

    Attributes:
        probe: of the sweep folder.
        precisions: to try.
        code: of the driver; the worker's must be the same.
        files: outside the sweep folder, as the driver's machine has them; the node's must be the same.
        cluster: whether there may be several nodes, so that each error about data or model says on which.
        answer: name of the file in the sweep folder that the worker answers with.
    """

    probe: FolderProbe
    precisions: tuple[str, ...]
    code: Fingerprint
    files: tuple[LocalFile, ...] = ()
    cluster: bool = False
    answer: str = ""

    def for_worker(self) -> "StartCheck":
        """The same for one worker, which gets a file of its own to answer with."""
        return replace(self, answer=uuid.uuid4().hex)


@dataclass(frozen=True)
class NodeFaults:
    """What is wrong with a node and the worker there: sentences that name the node; empty where all is well.

    Attributes:
        code: which code and libraries it runs.
        folder: the sweep folder.
        files: config key → its file on this node.
        device: what torch finds.
    """

    code: str = ""
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    device: str = ""

    def refusal(self) -> LorasweepError | None:
        """All of it as one error, of the first one's kind; None where nothing is wrong."""
        model = {key: wrong for key, wrong in self.files.items() if key.startswith("model.")}
        data = {key: wrong for key, wrong in self.files.items() if key not in model}
        kinds: list[tuple[type[LorasweepError], str]] = [
            (HardwareError, self.code),
            (HardwareError, self.device),
            (FolderError, self.folder),
            (DataError, " ".join(data.values())),
            (ModelError, " ".join(model.values())),
        ]
        said = [(kind, sentence) for kind, sentence in kinds if sentence]
        return said[0][0](" ".join(sentence for _, sentence in said)) if said else None


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker tells about itself before any trial runs.

    Attributes:
        node: its Ray node's name; the address unless ``ray start --node-name`` gave another.
        device: such as ``CPU, 2 threads`` or ``NVIDIA H200, GPU 3``.
        precisions: precision → why it does not work there; empty where it does.
        speed: of arithmetic, to compare devices by: billions of floating-point operations a second; 0: not measured.
        slow: precision that works → how many times as long as fp32 it takes, where that is several times.
        torch: its version, with its build.
        memory: bytes, of the GPU or else of the node.
    """

    node: str
    device: str
    precisions: dict[str, str]
    slow: dict[str, float] = field(default_factory=dict)
    speed: float = 0.0
    torch: str = ""
    memory: int = 0

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
        dtype: of the base model's arithmetic, such as ``bfloat16``.
        pad_token_id: of the token that fills rows up.
        model_notes: what the user should know of the model, such as which head a classifier starts from.
        bias_notes: what to know of the bias figures on these rows, such as groups that have too few.
        lost: a sentence on the loss-bearing tokens that ``data.max_length`` cuts, or "".
        max_new_tokens: of a written answer; None where none are written.
        judge: how far the judge of answers agrees with people, a sentence, or "".
        pass_cost: what one more pass was measured to cost there, in tokens that take as long; None: it was not.
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
    dtype: str = ""
    pad_token_id: int | None = None
    model_notes: list[str] = field(default_factory=list)
    bias_notes: list[str] = field(default_factory=list)
    lost: str = ""
    pass_cost: float | None = None
    max_new_tokens: int | None = None
    judge: str = ""

    def for_manifest(self) -> dict[str, Any]:
        """What ``sweep.yaml`` says of data and model: everything but what depends on the device or the metrics."""
        return {name: value for name, value in asdict(self).items() if name not in ("slots", "absent", "pass_cost")}
