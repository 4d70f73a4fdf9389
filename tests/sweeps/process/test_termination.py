"""The end of a process whose libraries would not let it end."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "ends"])
def test_what_hangs_at_the_interpreters_end_costs_neither_the_status_nor_what_was_printed(hangs: bool) -> None:
    command = f"""
import atexit, sys, time
from sweeps.process.termination import ending, leave_nothing_to_libraries
atexit.register(lambda: time.sleep(600) if {hangs} else print(" and done", end=""))
print("said", end="")
if {hangs}:
    leave_nothing_to_libraries()
sys.exit(ending(3))
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said" if hangs else "said and done", "")
