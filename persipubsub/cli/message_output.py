"""Messages on standard output, byte by byte, where it must be known which of them were written."""

import os
import select
import sys
from typing import List, Sequence

from persipubsub.cli import output
from persipubsub.cli.waiting import wait_until_ready


class Messages:
    """Writes messages to standard output, and knows which of them are written if it cannot go on."""

    def __init__(self) -> None:
        output.require_stdout()
        self._descriptor = sys.stdout.fileno()
        # Who made it not wait gets an error where there is no room.
        self._waits = os.get_blocking(self._descriptor)
        self._ends: List[int] = []
        self._written_bytes = 0

    @property
    def written(self) -> int:
        """Count the messages of the latest write that are written to their last byte."""
        return sum(end <= self._written_bytes for end in self._ends)

    def write(self, messages: Sequence[bytes]) -> None:
        """Write messages. Whatever this raises, also at Ctrl-C, :attr:`written` tells how far it came.

        :raise BrokenPipeError: the reader of the pipe is gone
        :raise ClickException: standard output takes no more
        """
        # Not through sys.stdout, which may write a part only where it is unbuffered, and otherwise writes the rest of
        # what Ctrl-C has stopped when the program ends, or waits for ever with it.
        left = memoryview(b"".join(messages))
        self._written_bytes, self._ends = 0, []
        for message in messages:
            self._ends.append(len(message) + (self._ends[-1] if self._ends else 0))
        while left:
            if self._waits:
                wait_until_ready(self._descriptor, select.POLLOUT)
            try:
                count = os.write(self._descriptor, left[:select.PIPE_BUF] if self._waits else left)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise output.unwritable(error) from error
            self._written_bytes += count
            left = left[count:]

    def require_reader(self) -> None:
        """Notice that nobody reads the output any more, also where there is nothing to write.

        :raise BrokenPipeError: nobody does
        """
        poll = select.poll()
        poll.register(self._descriptor, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            raise BrokenPipeError
