"""Let receiving processes write before senders, and spare both the wait for LMDB's lock in the kernel.

LMDB's write lock is not fair: a process that sends without a pause gets it again before a waiting process is awake.
That process would get one message in two milliseconds. Waking up also takes longer than a write. So each process sets a
byte of a shared file while it writes or waits to write, one for sending and one for receiving:

- A sender lets the receiving processes go first, but waits only a moment. Senders do not give way to each other, since
  that would cost them most of their speed.
- A receiving process waits a moment for the end of the sends that have begun, rather than in the kernel.

The byte is a number that differs from one write to the next. So a process that has died, or that takes longer, is
waited for once.
"""

import mmap
import os
from typing import Optional

from persipubsub import clock

#: The number of bytes of each kind. If two processes share one, they may occasionally be ignored.
SLOTS = 64
SENDING = slice(128, 128 + SLOTS)
RECEIVING = slice(64, 64 + SLOTS)

#: The longest time that a sender waits for a receiving process to write. A sleep would be longer.
RECEIVING_S_MAX = 0.0002
#: The longest time that a receiving process waits for a sender.
SENDING_S_MAX = 0.00005

_NOBODY = bytes(SLOTS)


class RightOfWay:
    """The bytes of one process, and those of the others."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self._slot = os.getpid() % SLOTS
        self._turn = 0
        # The bytes of processes that were waited for in vain.
        self._slow_receivers = self._slow_senders = _NOBODY

    def begin_sending(self) -> None:
        """Let processes that receive write first. Call this before a send."""
        mapped = self._mapped
        receiving = mapped[RECEIVING]
        if receiving not in (_NOBODY, self._slow_receivers):
            self._slow_receivers = self._wait_for(RECEIVING, receiving, RECEIVING_S_MAX) or self._slow_receivers
        self._turn = turn = self._turn % 255 + 1
        mapped[SENDING.start + self._slot] = turn

    def end_sending(self) -> None:
        """Call this after a send."""
        self._mapped[SENDING.start + self._slot] = 0

    def begin_receiving(self) -> None:
        """Have senders wait, and let those write that have begun. Call this before a receiver writes."""
        mapped = self._mapped
        self._turn = turn = self._turn % 255 + 1
        mapped[RECEIVING.start + self._slot] = turn
        sending = mapped[SENDING]
        if sending not in (_NOBODY, self._slow_senders):
            self._slow_senders = self._wait_for(SENDING, sending, SENDING_S_MAX) or self._slow_senders

    def end_receiving(self) -> None:
        """Call this after a receiver has written."""
        self._mapped[RECEIVING.start + self._slot] = 0

    def _wait_for(self, kind: slice, found: bytes, longest_s: float) -> Optional[bytes]:
        """Wait until other bytes than those are found; return those if they were waited for in vain."""
        deadline = clock.monotonic_s() + longest_s
        while clock.monotonic_s() < deadline:
            os.sched_yield()  # so that the other process runs, even where there is one processor
            if self._mapped[kind] != found:
                return None
        return found
