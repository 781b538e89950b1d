"""Dead letters: messages that a subscriber did not acknowledge, however often they were handed out."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DeadLetter:  # pylint: disable=too-many-instance-attributes  # one per fact
    """A message that a subscriber did not take, however often it was handed out."""

    #: The message id that ``send`` gave it.
    id: int
    #: The message.
    payload: bytes
    #: ``"raised"``: the block that received it last raised an exception; ``"lease ran out"``: its last worker died, or
    #: held it for longer than the lease.
    reason: str
    #: How often it was handed out.
    deliveries: int
    #: Class of the last exception of a block that received it, with its module; empty if there was none.
    error_type: str
    #: Text of that exception, at most 1,000 characters of it.
    error_text: str
    #: When it was sent, in seconds since the epoch.
    sent_time_s: float
    #: When it became a dead letter, in seconds since the epoch.
    died_time_s: float
