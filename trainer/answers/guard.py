"""Runs a command for as long as the process that asked for it lives. A script, of the standard library alone.

``python guard.py NUMBER COMMAND…``: the number is that of a pipe whose other end is the asking process's. When that end
is closed, however that comes, the whole group of processes is killed: a function that hangs in C code has no say in
it. The exit status is the command's; of one that a signal ended, 128 and the signal's number.
"""

import os
import select
import signal
import sys


def main() -> None:
    lifeline = int(sys.argv[1])
    ended, ends = os.pipe()
    os.set_blocking(ends, False)
    signal.set_wakeup_fd(ends)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(lifeline)
        try:
            os.execvp(sys.argv[2], sys.argv[2:])
        except OSError as error:
            os.write(2, f"{sys.argv[2]}: {error.strerror}\n".encode())
        os._exit(127)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # the command's alone, so that who reads them sees their end
        os.dup2(nothing, stream)
    while True:
        ready = select.select([lifeline, ended], [], [])[0]
        if lifeline in ready:
            os.killpg(0, signal.SIGKILL)
        os.read(ended, 64)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
