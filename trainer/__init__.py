"""The work of a trial: models, data, LoRA, engines, evaluation. Imports no Ray, Hydra, Optuna or W&B."""

import logging
import sys

# The package `kernels`, where it is installed, lets bitsandbytes and transformers fetch compiled code from a model hub
# and run it. bitsandbytes 0.50 does so on import (on CPUs with AVX512-BF16, for a layout of weights that is not used
# here; see trainer/models/base_model.py). This project runs no code from a hub, so `kernels` is hidden before either
# library is imported, and so is the warning that it is missing.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # None: `import kernels` fails at once
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)
