"""What a checkpoint says of itself: ``counters.json``, written last, holds a digest of every other file.

It also says which rung was the last to be scored: the checkpoint's own step, or an earlier one where a device worker
left between two rungs, or before it had scored the rung.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import parsed_json
from analysis.files.file_system import flush
from analysis.folder import atomic_write

if TYPE_CHECKING:
    import torch

COUNTERS = "counters.json"
ADAPTER_FILE = "adapter_model.safetensors"  # as PEFT names it
OPTIMIZER_FILE = "optimizer.safetensors"
BEST_FILE = "best.safetensors"  # the best rung's adapter
SCORED = "scored"
ADAPTER_METADATA = {"format": "pt"}  # as PEFT writes it
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as safetensors names them


def seal(checkpoint: Path, counters: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> None:
    """Complete a checkpoint: flush its files to the disk, then write ``counters.json``, which makes it count.

    Args:
        checkpoint: folder that holds all other files.
        counters: step, tokens and the like.
        digests: file name → what ``write_tensors`` gave for it: these are not read again.
    """
    known = digests or {}
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    for path in files:
        if path.name not in known:
            with path.open("rb") as file:
                flush(file.fileno())
    sha256 = {path.name: known.get(path.name) or _digest(path) for path in files}
    atomic_write(checkpoint / COUNTERS, json.dumps({**counters, "sha256": sha256}))
    for folder in (checkpoint, checkpoint.parent):  # the names of the files, too, before older checkpoints go
        _sync_folder(folder)


def write_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file, and flush it to the disk.

    Done by hand, as the library leaves a choice between reading the file again for its digest and a copy of it in
    memory, for which it holds Python's lock, so that training stands still.

    Args:
        path: of the file.
        tensors: on the CPU, contiguous.
        metadata: texts in the file's header.

    Returns:
        The file's SHA-256, in hexadecimal, taken while it is written.
    """
    import torch

    # https://huggingface.co/docs/safetensors: the header's length in 8 bytes, the header, then all tensors' bytes
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    tensors = dict(sorted(tensors.items()))  # what was read from a file comes in another order
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    head = len(head).to_bytes(8, "little") + head
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for tensor in (torch.frombuffer(bytearray(head), dtype=torch.uint8), *tensors.values()):
            data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
        file.flush()
        flush(file.fileno())
    return digest.hexdigest()


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, or what there is of one: first the file that makes it count, so that no part counts."""
    with contextlib.suppress(OSError):
        (checkpoint / COUNTERS).unlink()
    shutil.rmtree(checkpoint, ignore_errors=True)


def fault(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, as a phrase; empty where it is whole. Files without a digest are not checked."""
    try:
        counters = parsed_json((checkpoint / COUNTERS).read_text())
        digests = counters.get("sha256", {})
        int(counters["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{COUNTERS} cannot be read"
    for name, digest in digests.items():
        try:
            if Path(name).name != name or _digest(checkpoint / name) != digest:
                return f"{name} is not what was written"
        except OSError:
            return f"{name} cannot be read"
    return ""


def scored_rung(checkpoint: Path) -> int:
    """The step of the last rung that was scored before a checkpoint, its own where that cannot be read; 0: none was."""
    try:
        return int(parsed_json((checkpoint / COUNTERS).read_text())[SCORED])
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or older: those were written at rungs alone
        return int(checkpoint.name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        flush(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:  # of file systems that flush files, and no folders
            raise
    finally:
        os.close(descriptor)
