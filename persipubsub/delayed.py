"""Delayed messages, which come when they are due."""

import dataclasses
import datetime

from persipubsub import clock


@dataclasses.dataclass(frozen=True, order=True)
class DelayedMessage:
    """A message that was sent for later, by which :meth:`Publisher.cancel` knows it. It can be pickled."""

    #: When it is due, in microseconds since the epoch by the queue's clock.
    due_us: int
    #: Tells it from others of the same queue that are due at the same time; they come in this order.
    number: int

    @property
    def due(self) -> datetime.datetime:
        """Tell when it is due, in UTC."""
        return clock.utc(self.due_us)
