"""Checkpoints are written in a thread of their own, so that the engine's thread goes on training meanwhile.

The engine's thread takes a snapshot (``Engine.snapshot``); the writer writes and seals it, removes older checkpoints,
and uploads where the sweep folder is in a bucket. Only then is anybody told.
"""

import queue
import threading
import traceback
from collections.abc import Callable

from analysis.folder import TrialFolder
from sweeps.store.node_copy import NodeCopy
from trainer.engines.checkpoints import remove, scored_rung

KEPT_CHECKPOINTS = 2  # of rungs; a third is kept where a worker left between two of them
MOST_SNAPSHOTS = 4  # in memory at a time, each three times its adapter; one more where a slot is given up meanwhile


class CheckpointWriter:
    """Writes one checkpoint after the other, in the order in which they were given.

    Args:
        room: called in the writer's thread after each, when there is room for another snapshot.
    """

    def __init__(self, room: Callable[[], None]):
        self._room = room
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None], Callable[[Exception | None], None]]]
        self._jobs = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._pending: list[str] = []  # trials whose snapshots are held
        threading.Thread(target=self._run, name="checkpoints", daemon=True).start()

    @property
    def full(self) -> bool:
        """Whether as many snapshots are held as may be."""
        return len(self._pending) >= MOST_SNAPSHOTS

    def put(self, trial_id: str, write: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """Have a trial's checkpoint written.

        Args:
            trial_id: to ``wait`` for.
            write: holds the snapshot; freed once it was called.
            then: called with what ``write`` raised, or None, in the writer's thread.
        """
        with self._changed:
            self._pending.append(trial_id)
        self._jobs.put((trial_id, write, then))

    def wait(self, trial_id: str) -> None:
        """Wait until nothing of a trial is to be written, and all its ``then`` were called."""
        with self._changed:
            self._changed.wait_for(lambda: trial_id not in self._pending)

    def _run(self) -> None:
        while True:
            try:
                self._write_next()
            except Exception:  # of ``then``: those that come after are still to be written
                traceback.print_exc()

    def _write_next(self) -> None:  # a call of its own, so that no snapshot is held while the next one is waited for
        trial_id, write, then = self._jobs.get()
        error: Exception | None = None
        try:
            write()
        except Exception as raised:
            error = raised
        del write
        try:
            then(error)
        finally:
            with self._changed:
                self._pending.remove(trial_id)
                self._changed.notify_all()
            self._room()


def complete(copy: NodeCopy, folder: TrialFolder, step: int, write: Callable[[], None]) -> None:
    """Write a trial's checkpoint; when it is sealed, remove older ones, and upload.

    Of those, the last of rungs stay, and the last between two rungs.

    Args:
        copy: of the sweep folder on this machine.
        folder: of the trial.
        step: of the checkpoint.
        write: what ``Engine.snapshot`` gave.
    """
    write()
    steps = [it for it in folder.checkpoints() if it <= step]  # later ones were damaged: they were not gone on from
    of_rungs = [it for it in steps if scored_rung(folder.checkpoint_dir(it)) == it][-KEPT_CHECKPOINTS:]
    oldest = of_rungs[0] if len(of_rungs) == KEPT_CHECKPOINTS else 0
    between = [it for it in steps if it not in of_rungs and it > oldest][-1:]
    for old in set(folder.checkpoints()) - {*of_rungs, *between}:
        remove(folder.checkpoint_dir(old))
    copy.save(folder)
