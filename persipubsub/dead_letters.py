"""Dead letters: messages that a subscriber did not acknowledge in any of the allowed deliveries."""

import dataclasses
from typing import Mapping


@dataclasses.dataclass(frozen=True)
class DeadLetter:  # pylint: disable=too-many-instance-attributes  # one per fact
    """A message that a subscriber did not acknowledge in any of the allowed deliveries."""

    #: The message id that ``send`` returned.
    id: int
    #: The message.
    payload: bytes
    #: ``"raised"``: the last block that received it raised an exception; ``"lease ran out"``: its last worker died or
    #: held it for longer than the lease; ``"rejected"``: a block raised :class:`.Reject`.
    reason: str
    #: How many times it was delivered.
    deliveries: int
    #: Class and module of the last exception that a block raised; empty if none did.
    error_type: str
    #: Text of that exception, at most 1,000 characters.
    error_text: str
    #: When it was sent, in seconds since the epoch.
    sent_time_s: float
    #: When it became a dead letter, in seconds since the epoch.
    died_time_s: float
    #: Its headers.
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    #: Where that exception was raised: the innermost frames of its traceback, at most 1,000 characters.
    error_traceback: str = ""
