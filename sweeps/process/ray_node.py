"""Ray's own processes on this machine, without those that a sweep has no use for.

``ray.init`` starts a dashboard even where none is asked for, and waits for it; a monitor that would start machines; and
a process that copies workers' logs to the driver. Here none of them is started: half of the time that Ray takes to
start. This reaches into ``ray._private.node.Node`` of Ray 2.60; where a later Ray has other methods, they are started
again, and nothing else changes.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import ray._private.node


@contextlib.contextmanager
def few_processes(setup_worker: str | None = None, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """While this lasts, ``ray.init`` starts a Ray of fewer processes.

    Args:
        setup_worker: path of the script that Ray runs to start a worker, instead of its own.
        variables: environment variables of the raylet, and so of its workers, besides those of this process.
    """
    real: Any = ray._private.node.Node

    class Node(real):  # type: ignore[misc]  # Ray's classes are Any here
        def __init__(self, ray_params: Any, *arguments: Any, **options: Any):
            ray_params.no_monitor = True
            ray_params.include_log_monitor = False
            if setup_worker is not None:
                ray_params.setup_worker_path = setup_worker
                ray_params.env_vars = {**(ray_params.env_vars or {}), **(variables or {})}
            super().__init__(ray_params, *arguments, **options)

        def start_api_server(self, **options: Any) -> None:
            self._webui_url = ""

    setattr(ray._private.node, "Node", Node)  # noqa: B010  # mypy knows the real one
    try:
        yield
    finally:
        setattr(ray._private.node, "Node", real)  # noqa: B010
