"""Named places at which a process can be made to die, for those who prove that nothing is lost when it does.

``PGLOCKSTEP_FAILPOINT=name`` or ``name:count`` ends the process with SIGKILL the first, or the count-th, time it
comes by. Without that variable a failpoint costs a comparison.
"""

from __future__ import annotations

import os
import signal

#: Every failpoint, and what has just happened, or is about to.
NAMES = {
    "journal.write": "a block is about to be written to the journal",
    "journal.written": "a block was written, and is not on the disk yet",
    "journal.sync": "the journal is about to be flushed",
    "journal.synced": "the journal was flushed, and the source does not know yet",
    "journal.segment": "a new segment was begun",
    "journal.drop": "a segment is about to be removed",
    "confirm.send": "the source is about to be told what is durable",
    "confirm.sent": "the source was told what is durable",
    "apply.begin": "a batch is about to be applied",
    "apply.part": "a part of a large transaction was applied",
    "apply.commit": "a batch is about to be committed on the target",
    "apply.committed": "a batch was committed on the target",
    "poll.part": "a part of what a poll found was written to the journal",
    "poll.commit": "all that a poll found was written, and its transaction is not complete yet",
    "restore.begun": "what is to be put back on the source has begun its transaction there",
    "restore.commit": "what was put back on the source is about to be committed",
    "restore.committed": "what was put back on the source was committed, and nobody knows yet",
    "refill.begun": "what the source lacks has begun to be put back, in a transaction there",
    "refill.commit": "the refilled source is about to commit",
    "refill.committed": "the refilled source has committed, and nobody knows yet",
    "adopt.slot": "a source that is followed anew has its slot, and the target does not know yet",
    "adopt.commit": "the target is about to follow its source anew",
    "adopt.committed": "the target follows its source anew, and the incident is still open",
    "heal.begun": "a heal of the target has begun its transaction there",
    "heal.commit": "a heal of the target is about to be committed",
    "heal.committed": "a heal of the target was committed, and nobody knows yet",
    "repair.commit": "rows that a person had repaired are about to be committed",
    "progress.move": "progress is about to follow an idle source",
}

_name, _, _count = os.environ.get("PGLOCKSTEP_FAILPOINT", "").partition(":")
_left = int(_count or 1)


def reach(name: str) -> None:
    """The process has come to the failpoint `name`."""
    if name == _name:
        _reached()


def _reached() -> None:
    global _left  # noqa: PLW0603
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
