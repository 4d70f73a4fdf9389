"""Whether a process that Ray lost was ended for want of memory: by Ray itself, or by the system."""

from ray.exceptions import OutOfMemoryError

from trainer import host_memory


class MemoryKills:
    """Sees how often the system has ended a process of this machine, or container, for want of memory."""

    def __init__(self) -> None:
        self._seen = host_memory.kills()

    def explain(self, error: Exception | None) -> bool:
        """Whether memory ran out where a process was lost: Ray says so, or the system has killed since the last call.

        Args:
            error: of the process, as Ray tells it; None where it tells none.
        """
        before, self._seen = self._seen, host_memory.kills()
        return isinstance(error, OutOfMemoryError) or "running low on memory" in str(error) or self._seen > before


def memory_there() -> str:
    """How much memory a sweep on this machine may have, in words."""
    limit = " (the limit of its container or job)" if host_memory.limit() else ""
    return f"{host_memory.total() / 1e9:.1f} GB may be used here{limit}, {host_memory.available() / 1e9:.1f} are free"
