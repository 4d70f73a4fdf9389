"""Locks and flushes on file systems that lack them, as some network and FUSE file systems do. Standard library only."""

import errno
import os
from typing import IO, Any

_LACKS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # what such a file system answers
_NO_LOCKS = (*_LACKS, errno.ENOLCK)


def flush(descriptor: int) -> None:
    """``os.fsync``; nothing happens where the file system has none, as then nobody can do better.

    Raises:
        OSError: where the disk is at fault.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _LACKS:
            raise


def lock_now(file: IO[Any], shared: bool = False) -> bool:
    """Lock a file until it is closed, without waiting. Returns whether its file system has locks at all.

    Args:
        file: that is open.
        shared: with others that do so too, rather than alone.

    Raises:
        BlockingIOError: where somebody has locked it.
        OSError: where the disk is at fault.
    """
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError) or error.errno not in _NO_LOCKS:
            raise
        return False
    return True
