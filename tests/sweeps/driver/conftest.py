"""Clusters of Ray nodes on this machine: see ``tests/sweeps/driver/ray_nodes.py``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.sweeps.driver.ray_nodes import RayCluster, ray_cluster


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., RayCluster]]:
    """Starts a head; nodes join it by ``join``. Arguments: those of ``RayCluster``."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(ray_cluster(**options))


@pytest.fixture
def cluster(start_cluster: Callable[..., RayCluster]) -> RayCluster:
    """Nodes ``alpha``, the head, and ``beta`` with two CPUs each, in Ray's own configuration."""
    running = start_cluster(cpus=2, head="alpha", system_config={})
    running.join("beta")
    return running
