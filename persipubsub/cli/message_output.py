"""Write messages to standard output, and know exactly which of them were written."""

import os
import select
import sys
from typing import Callable, List, Sequence

from persipubsub.cli import output
from persipubsub.cli.waiting import wait_until_ready


def _nothing() -> None:
    pass


class Messages:
    """Writes messages to standard output, and knows which were written if it cannot continue."""

    def __init__(self) -> None:
        output.require_stdout()
        #: Is called about once a second while the output is not ready.
        self.meanwhile: Callable[[], None] = _nothing
        self._descriptor = sys.stdout.fileno()
        # If another program made it non-blocking, a write without space is an error.
        self._waits = os.get_blocking(self._descriptor)
        self._ends: List[int] = []
        self._written_bytes = 0

    @property
    def written(self) -> int:
        """Return how many messages of the latest write were written completely."""
        return sum(end <= self._written_bytes for end in self._ends)

    def forget_written(self) -> None:
        """Set :attr:`written` to 0. Call this before messages are received."""
        self._written_bytes, self._ends = 0, []

    def write(self, messages: Sequence[bytes]) -> None:
        """Write messages. After any exception, including Ctrl-C, :attr:`written` says how far it came.

        :raise BrokenPipeError: the reader of the pipe has ended
        :raise ClickException: standard output cannot be written
        """
        # Not through sys.stdout: unbuffered, it may write only a part. Buffered, it writes the rest after a Ctrl-C when
        # the program ends, or waits forever.
        left = memoryview(b"".join(messages))
        self.forget_written()
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

    def require_reader(self) -> None:
        """Make sure that the output has a reader, even if there is nothing to write.

        :raise BrokenPipeError: it has none
        """
        poll = select.poll()
        poll.register(self._descriptor, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            raise BrokenPipeError
