"""Importing the large libraries without what nobody needs."""

import subprocess
import sys


def test_bitsandbytes_is_imported_without_the_compiler_and_nothing_stays_changed() -> None:
    code = """
import sys, torch
real = torch.compile
from trainer.preload import import_libraries
import_libraries()
import trainer.engines.make, trainer.device_cache
assert {"bitsandbytes", "peft"} <= set(sys.modules)
assert torch.compile is real
print([name for name in sys.modules if name.startswith("torch._inductor.compile_fx")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_on_a_cpu_dropout_imports_no_kernel() -> None:
    code = """
import sys, torch
from trainer.engines.keyed_dropout import drop, row_keys
x = torch.ones(2, 3, 8, requires_grad=True)
drop(x, row_keys(1, 2, torch.arange(2)), 3, 0.1).sum().backward()
print([name for name in sys.modules if name.endswith("triton_kernels.programs")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_doctor_tries_precisions_without_the_compiler() -> None:
    code = """
import sys
from sweeps.checks.doctor import _precisions
print([finding.name for finding in _precisions()])
assert "bitsandbytes" in sys.modules
print([name for name in sys.modules if name == "peft" or name.startswith("torch._inductor.compile_fx")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["['precisions']", "[]"], done.stdout + done.stderr
