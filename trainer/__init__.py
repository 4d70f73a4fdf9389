"""The work of a trial: models, data, LoRA, engines, evaluation. Imports no Ray, Hydra, Optuna or W&B."""

import logging
import sys

# Through `kernels`, where it is installed, bitsandbytes and transformers fetch compiled code from a model hub and run
# it, bitsandbytes 0.50 when it is imported (on CPUs with AVX512-BF16, for a layout of weights that is never used here;
# see models.py). Code of a hub is never run here, so it is hidden from them, and the warning that it lacks dropped.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None: `import kernels` fails at once
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)
