"""How many files and connections a process may have open at once."""

import contextlib

from analysis.errors import HardwareError

LEAST = 256  # with which a sweep of 200 trials ran; with 64, and with 128, Ray ended or hung without a word
MOST = 65536  # as Ray has it: some programs close every number up to the limit


def allow_many() -> int | None:
    """Raise this process's limit, which all that it starts have too, to what is allowed without more rights.

    Ray does so in the driver alone, when what is started before it has the old limit.

    Returns:
        The limit that holds now; None where there is none to be known.
    """
    try:
        import resource
    except ImportError:  # no Unix
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return None if soft == resource.RLIM_INFINITY else soft
    with contextlib.suppress(OSError, ValueError):  # such as where the system allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


def require_enough() -> None:
    """Raises HardwareError where fewer files may be open than a sweep needs, as Ray then dies or hangs silently."""
    limit = allow_many()
    if limit is not None and limit < LEAST:
        raise HardwareError(
            f"This process may have {limit} files open (ulimit -n): a sweep needs {LEAST} at least, more with many"
            " trials at a time. Raise the hard limit (ulimit -Hn, /etc/security/limits.conf, docker run --ulimit"
            " nofile=65536) and run the command again."
        )
