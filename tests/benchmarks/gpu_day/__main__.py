"""Half an hour with a GPU: what is measured when one is at hand, one command a part.

python tests/benchmarks/gpu_day                    all parts in order: 18 minutes at most
python tests/benchmarks/gpu_day --part 1 2 3       some of them: these need PyTorch, transformers and PEFT alone
python tests/benchmarks/gpu_day --dry              the same with tiny shapes, on a CPU too
python tests/benchmarks/gpu_day --bundle FILE      what parts 4 to 6 need besides, as an archive to carry along

Run it from the checkout, which need not be installed. Each part is a process of its own with a time limit, and writes
OUT/partN.json as it goes; OUT/tables.md shows all parts that lie there. What fails is written down, and the next part
goes on. A library that is not there costs only what needs it. Exit status: 1 where something failed or was stopped.
"""

import os
import runpy
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[3]


def own_tests() -> None:
    """Make ``tests`` this checkout's folder, also where a library brought a package of that name with it."""
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package
    here = str(Path(__file__).parent)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path not in (here, str(ROOT)))]


def main() -> int:
    own_tests()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1:2] == ["inside"]:  # of a part's processes: a module, and its arguments
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return 0
    from tests.benchmarks.gpu_day.day import day

    return day(sys.argv[1:], __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
