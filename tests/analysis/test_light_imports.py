"""What importing the analysis costs: the command line imports it, and so does every trial proxy."""

import json
import subprocess
import sys


def imported(module: str) -> set[str]:
    """What importing a module brings along that the standard library does not have."""
    code = (
        "import sys; before = set(sys.modules); import {}; import json;"
        " print(json.dumps(sorted({{m.split('.')[0] for m in set(sys.modules) - before}} - sys.stdlib_module_names)))"
    )
    return set(json.loads(subprocess.check_output([sys.executable, "-c", code.format(module)], text=True)))


def test_ranking_imports_neither_ray_nor_torch_and_nothing_heavy_before_it_is_needed() -> None:
    heavy = {"ray", "torch", "transformers", "pandas", "numpy", "scipy", "pyarrow"}
    assert imported("analysis.leaderboard.leaderboard") & heavy == set()


def test_the_objective_needs_the_standard_library_only() -> None:
    assert imported("analysis.objective") == {"analysis"}
