"""What processes are told about threads."""

import pytest

from sweeps.process.threads import wait_policy


def test_threads_spin_for_a_moment_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert wait_policy() == {"GOMP_SPINCOUNT": "10000"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert wait_policy() == {"OMP_WAIT_POLICY": "ACTIVE"}
