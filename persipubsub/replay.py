"""The history of a queue: messages that are still stored."""

import dataclasses
import datetime


@dataclasses.dataclass(frozen=True)
class StoredMessage:
    """A message of the history."""

    #: The message id.
    id: int
    #: When it was committed, in UTC, by the queue's clock; up to 10 ms before that.
    time: datetime.datetime
    payload: bytes
