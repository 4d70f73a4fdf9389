"""A process, and all that it starts, may have as many files open as the system lets it."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

CODE = """
import resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from sweeps.process.open_files import allow_many
print(allow_many(), flush=True)
subprocess.run([sys.executable, "-c", "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"])
"""


@pytest.mark.parametrize(("soft", "hard", "then"), [(256, 512, 512), (300, 300, 300)])
def test_the_limit_is_raised_as_far_as_it_may_be(soft: int, hard: int, then: int) -> None:
    code = CODE.format(soft=soft, hard=hard)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(then), str(then), str(hard)]


def test_it_is_never_lowered() -> None:
    from sweeps.process.open_files import MOST

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= MOST:
        pytest.skip("this machine allows no more than what is asked for")
    code = CODE.format(soft=hard, hard=hard)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(hard)] * 3


@pytest.mark.parametrize(("hard", "said"), [(128, "This process may have 128 files open (ulimit -n)"), (256, "fine")])
def test_too_few_are_refused_with_the_number(hard: int, said: str) -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard}))
from analysis.errors import HardwareError
from sweeps.process.open_files import require_enough
try:
    require_enough()
    print("fine")
except HardwareError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith(said)
