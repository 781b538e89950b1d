"""Write messages to standard output, and know exactly which of them were written."""

import fcntl
import os
import select
import stat
import struct
import sys
import termios
from typing import Callable, List, Sequence

from persipubsub import clock
from persipubsub.cli import output
from persipubsub.cli.waiting import LOOK_S, wait_until_ready

#: Time between two looks whether the reader of a pipe has read everything. It grows with the wait, of which it is a
#: share, since the kernel does not report that.
LOOK_S_MIN = 0.001
LOOK_SHARE = 1 / 8


def _nothing() -> None:
    pass


class Messages:
    """Writes messages to standard output, and knows which were written if it cannot continue.

    A message in a pipe counts as written once the reader of the pipe has read it: what the pipe still holds is lost
    when its reader ends.
    """

    def __init__(self) -> None:
        output.require_stdout()
        #: Is called about once a second while the output is not ready.
        self.meanwhile: Callable[[], None] = _nothing
        self._descriptor = sys.stdout.fileno()
        # If another program made it non-blocking, a write without space is an error.
        self._waits = os.get_blocking(self._descriptor)
        self._is_pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
        self._ends: List[int] = []
        self._written_bytes = 0

    @property
    def written(self) -> int:
        """Return how many messages of the latest write were written completely."""
        read_bytes = self._written_bytes - self._unread_bytes()
        return sum(end <= read_bytes for end in self._ends)

    def write(self, messages: Sequence[bytes]) -> None:
        """Write messages. After any exception, including Ctrl-C, :attr:`written` says how far it came.

        :raise BrokenPipeError: the reader of the pipe has ended
        :raise ClickException: standard output cannot be written
        """
        # Not through sys.stdout: unbuffered, it may write only a part. Buffered, it writes the rest after a Ctrl-C when
        # the program ends, or waits forever.
        left = memoryview(b"".join(messages))
        self._written_bytes, self._ends = 0, []
        for message in messages:
            self._ends.append(len(message) + (self._ends[-1] if self._ends else 0))
        while left:
            if self._waits:
                wait_until_ready(self._descriptor, select.POLLOUT, self.meanwhile)
            try:
                count = os.write(self._descriptor, left[:select.PIPE_BUF] if self._waits else left)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise output.unwritable(error) from error
            self._written_bytes += count
            left = left[count:]

    def wait_until_read(self) -> None:
        """Wait until the reader of a pipe has read everything.

        :raise BrokenPipeError: it ended before
        """
        begun_s = called_s = clock.monotonic_s()
        while self._unread_bytes():
            now_s = clock.monotonic_s()
            if self._has_no_reader(min(LOOK_S, LOOK_S_MIN + (now_s - begun_s) * LOOK_SHARE)):
                if self._unread_bytes():
                    raise BrokenPipeError
                return
            if now_s - called_s >= LOOK_S:
                self.meanwhile()
                called_s = now_s

    def require_reader(self) -> None:
        """Make sure that the output has a reader, even if there is nothing to write.

        :raise BrokenPipeError: it has none
        """
        if self._has_no_reader(0):
            raise BrokenPipeError

    def _has_no_reader(self, wait_s: float) -> bool:
        """Return whether the output has no reader, or loses it within a time."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return any(event & select.POLLERR for _, event in poll.poll(wait_s * 1000))

    def _unread_bytes(self) -> int:
        """Return how many bytes the pipe holds that its reader has not read."""
        if not self._is_pipe:
            return 0
        return int(struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)))[0])
