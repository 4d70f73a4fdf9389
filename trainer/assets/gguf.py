"""Converts a GGUF file to a folder that plain transformers loads.

The conversion is done once: the folder loads in a quarter of a second, the GGUF file in fifteen seconds.
"""

import contextlib
import io
from pathlib import Path

from analysis.errors import FetchError
from analysis.folder import usual_modes

_PROBE = "Tokenizers differ in spaces, 12,345 digits and naïve Unicode 🙂."


def convert_gguf(gguf: Path, to: Path) -> None:
    """Write weights (fp32, safetensors) and tokenizer, and check that they load as the same model.

    Args:
        gguf: weights and tokenizer of a decoder.
        to: folder to be made.

    Raises:
        FetchError: if transformers cannot read the file, or what was written differs from it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # progress bars; the GGUF reader has no switch for its own
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),  # left out, saving fails
                dtype=torch.float32,
                local_files_only=True,
            )
            model.save_pretrained(to)
            tokenizer.save_pretrained(to)
            again = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32, local_files_only=True)
            ids = AutoTokenizer.from_pretrained(to, local_files_only=True)(_PROBE).input_ids
        except Exception as error:  # the reader, torch, safetensors and the disk raise different errors
            raise FetchError(
                f"{gguf.name}: could not be converted ({type(error).__name__}: {error}). Check that {to} has 1 GB"
                " free, and install the versions that lorasweep is tested with: make install."
            ) from error
        written, read = again.state_dict(), model.state_dict()
        differing = [name for name in read if name not in written or not torch.equal(read[name], written[name])]
        if differing or len(written) != len(read) or ids != tokenizer(_PROBE).input_ids:
            what = ", ".join(differing[:3]) or "the tokenizer"
            raise FetchError(
                f"{gguf.name}: what was written does not load as the same model ({what}). Install the versions that"
                " lorasweep is tested with: make install."
            )
    usual_modes(to)  # a cache may be shared
