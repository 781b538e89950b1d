"""Delayed messages, which subscribers receive once they are due."""

import dataclasses
import datetime

from persipubsub import moments


@dataclasses.dataclass(frozen=True, order=True)
class DelayedMessage:
    """What :meth:`Publisher.send_later` returns and :meth:`Publisher.cancel` accepts. It can be pickled."""

    #: When it is due, in microseconds since the epoch by the queue's clock.
    due_us: int
    #: Distinguishes and orders the messages of one queue that are due at the same time.
    number: int

    @property
    def due(self) -> datetime.datetime:
        """Return the due time in UTC."""
        return moments.utc(self.due_us)
