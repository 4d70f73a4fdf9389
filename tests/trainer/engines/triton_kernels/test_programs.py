"""What the kernels are compiled to for NVIDIA GPUs, which takes no GPU: the compiler comes with Triton."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# [name, compute capability, types of arguments (else int32), values of those known when it is compiled] → instructions
CODE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer.engines.triton_kernels import programs

results = []
for name, capability, types, constants in json.loads(sys.argv[1]):
    program = getattr(programs, name)
    types = dict.fromkeys(program.arg_names, "i32") | dict.fromkeys(constants, "constexpr") | types
    signature = {argument: types[argument] for argument in program.arg_names}
    odd = {*constants, "module_key", "threshold", "factor", "blocks", "rows"}
    sixteens = {(i,): [["tt.divisibility", 16]] for i, argument in enumerate(program.arg_names) if argument not in odd}
    source = ASTSource(program, signature, constants, sixteens)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]  # ptxas took it
    lines = [line.split() for line in compiled.asm["ptx"].splitlines() if line.startswith("\\t")]
    results.append([words[1] if words[0].startswith("@") else words[0] for words in lines if words])
print(json.dumps(results))
"""


def instructions(tmp_path: Path, *asked: tuple[str, int, dict[str, str], dict[str, Any]]) -> list[Counter[str]]:
    """Of each program, for a compute capability."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    call = [sys.executable, "-c", CODE, json.dumps(asked)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [Counter(names) for names in json.loads(done.stdout)]


def starting(counts: Counter[str], *starts: str) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if name.startswith(starts)}


CAPABILITIES = (80, 90, 100)  # A100, H100, B200


def test_dropout_loads_and_stores_sixteen_bytes_and_rounds_as_ieee_says(triton: None, tmp_path: Path) -> None:
    rows, places = 4, 1024  # of a program: each of 128 threads has 8 places of each row
    types = {"x": "*bf16", "dropped": "*bf16", "keys": "*i64", "factor": "fp32"}
    constants = {"ROWS": rows, "BLOCK": places, "RECIPROCAL": True}
    one = types | {"p": "*i64"}, constants | {"PER_ROW": False}
    of_rows = types | {"p": "*fp32"}, constants | {"PER_ROW": True}
    asked = [("drop", capability, *program) for capability in CAPABILITIES for program in (one, of_rows)]
    keys, probabilities = {"ld.global.b64": rows}, {"ld.global.b32": rows}
    for (_, _, _, values), counts in zip(asked, instructions(tmp_path, *asked), strict=True):
        numbers = keys | probabilities if values["PER_ROW"] else keys
        assert starting(counts, "ld.global") == numbers | {"ld.global.v4.b32": rows}
        assert starting(counts, "st.global") == {"st.global.v4.b32": rows}
        assert starting(counts, "cvt.rn.bf16x2") == {"cvt.rn.bf16x2.f32": rows * 4}
        assert not starting(counts, "fma", "div.full", "div.approx")
        assert not [name for name in counts if "ftz" in name]
        divided = {"div.rn.f32": rows * 8} if values["PER_ROW"] else {}
        assert starting(counts, "div") == divided | {"div.s32": 2}  # tokens and features of places, once a thread


def test_adamw_loads_and_stores_sixteen_bytes_where_slices_allow_it(triton: None, tmp_path: Path) -> None:
    types = {"table": "*i64", "owners": "*i32", "columns": "*fp64", "factors": "*fp32"}
    asked = [
        ("adamw", capability, types, {"EPS": 1e-8, "BLOCK": 1024, "UNIT": unit})
        for capability in CAPABILITIES
        for unit in (4, 1)
    ]
    places = 4 * 8  # of each thread, in parameter, gradient and both moments
    for (_, _, _, values), counts in zip(asked, instructions(tmp_path, *asked), strict=True):
        numbers = Counter({"ld.global.b64": 6 + 6, "ld.global.b32": 2})  # rows of table and columns; owner, factor
        vector, width = (".v4", 4) if values["UNIT"] == 4 else ("", 1)
        assert starting(counts, "ld.global") == numbers + Counter({f"ld.global{vector}.b32": places // width})
        assert starting(counts, "st.global") == {f"st.global{vector}.b32": places // width}
        assert starting(counts, "div", "sqrt") == {"div.rn.f32": 16, "div.rn.f64": 1, "sqrt.rn.f32": 8}
        assert not [name for name in counts if "ftz" in name]
