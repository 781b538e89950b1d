"""The history of a queue: messages that are still stored."""

import dataclasses
import datetime
from typing import Mapping


@dataclasses.dataclass(frozen=True)
class StoredMessage:
    """A stored message."""

    #: The message id.
    id: int
    #: The time of its commit in UTC, by the queue's clock; it may be up to 10 ms early.
    time: datetime.datetime
    payload: bytes
    #: Its headers.
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
