"""What subscribers for threads and for asyncio tasks share: they find, decode and report messages.

A receiver reads the queue itself. Its writes are returned as commands, which the subscriber runs.
"""

import logging
import os
from typing import TYPE_CHECKING, Any, Dict, FrozenSet, List, Optional, Sequence

from persipubsub import errors
from persipubsub.engine.commands import Acknowledge, AcknowledgeClaimed, Extend, Fail, GiveBack, Settlement
from persipubsub.engine.limits import RECEIVE_BYTES_MAX
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import NOTHING, Failure, Found, Settled, Subscription, failure_of

if TYPE_CHECKING:
    from persipubsub.typed import Codec

#: Recorded for the message at which a loop over messages() ended: a break and an exception look alike from inside.
LEFT = Failure("GeneratorExit", "The loop over messages() was left, by an exception or a break.")
_LOGGER = logging.getLogger("persipubsub.subscriber")  # the name that programs filter by


class Receiver:
    """What a plain subscriber for threads and one for asyncio tasks share."""

    def __init__(self, engine: Engine, location: object, identifier: str, subscription: Subscription,
                 codec: "Optional[Codec[Any]]") -> None:
        """Prepare to receive.

        :param location: of the queue, for error messages
        :param codec: None if messages are bytes
        """
        self.engine = engine
        self.identifier = identifier
        self.subscription = subscription
        self.codec = codec
        self.closed = False
        self._location = location

    # Reads

    def look(self, max_messages: int = 1, max_bytes: int = RECEIVE_BYTES_MAX) -> Found:
        """Find the next messages, decoded if the subscriber has a message type.

        :raise DecodeError: the first is not a message of the type
        """
        found = self.engine.look(self.subscription, max_messages, max_bytes)
        if self.codec is None:
            return found
        try:
            return self._decoded(found)
        except errors.DecodeError as error:
            self.settle(self.engine.run(Fail(self.subscription, found.ids[:1], failure_of(error))))
            raise

    def glance(self) -> Found:
        """Find the next message if that needs neither a wait nor a read of a file, as event loops must not do."""
        if self.closed or self.codec is not None:
            return NOTHING
        return self.engine.glance(self.subscription)

    def look_at_top(self) -> Found:
        """Find the latest message."""
        return self._decoded(self.engine.look_at_top(self.subscription))

    def front(self) -> Found:
        """Find the next message, without counting it as delivered."""
        found = self.engine.look(self.subscription, 1, RECEIVE_BYTES_MAX)
        return found if self.codec is None else self._decoded(found)

    def undecoded(self) -> Found:
        """Find the payload of the next message.

        :raise EmptyError: there is none
        """
        found = self.engine.look(self.subscription, 1, RECEIVE_BYTES_MAX)
        if not found.ids:
            raise errors.EmptyError(f"Nothing is pending for the subscriber {self.identifier!r}. "
                                    "Look with front(), or receive with a timeout.")
        return found

    def _decoded(self, found: Found) -> Found:
        return found if self.codec is None else self.codec.decoded(found, self.identifier, self._location)

    # Writes

    def acknowledge(self, found: Found, count: int) -> List[Settlement]:
        """Return the commands that acknowledge the first messages of those found.

        :raise ClosedError: the subscriber is closed
        """
        if self.closed:
            raise self.closed_error()
        return [Acknowledge(self.subscription, found.ids[:count], found.since)]

    def fail(self, found: Found, error: BaseException) -> List[Settlement]:
        """Return the commands for messages whose block raised."""
        if not isinstance(error, Exception) or self.closed:
            return []
        return [Fail(self.subscription, found.ids, failure_of(error))]

    def leave(self, found: Found, finished: int, begun: int) -> List[Settlement]:
        """Return the commands for messages of a batch whose iteration has not ended, or has not begun."""
        if begun <= finished or self.closed:
            return []
        return [Fail(self.subscription, found.ids[finished:begun], LEFT)]

    def extend(self) -> List[Settlement]:
        """Return the commands that restart the leases of all messages.

        :raise SubscriberKindError: the subscriber is not shared
        """
        self.require_open()
        raise errors.SubscriberKindError(
            f"The subscriber {self.identifier!r} is not shared: its messages have no lease. "
            "See Control.add_subscriber.")

    def run(self, commands: List[Settlement]) -> None:
        """Run commands of this receiver, and report what they did."""
        for command in commands:
            settled = self.engine.run(command)
            if settled is not None:
                self.settle(settled)

    def settle(self, settled: Optional[Settled]) -> None:
        """Report messages whose lease was lost, and dead letters that were deleted.

        :raise LeaseLostError: another worker holds some of the messages
        """
        if settled is None:
            return
        self.warn(settled.dropped)
        if settled.lost:
            raise errors.LeaseLostError(
                f"This worker of the subscriber {self.identifier!r} no longer holds {len(settled.lost)} messages, "
                f"the first of them {settled.lost[0]}: their lease had ended and another worker received them, or they "
                "were pruned, or the subscriber was moved back. Set a longer lease_s with Control.add_subscriber, or "
                "call extend_lease() in time.")

    def settle_extension(self, settled: Optional[Settled]) -> None:
        """Report leases that could not be extended."""
        self.settle(settled)

    def warn(self, dropped: int) -> None:
        """Warn that dead letters were deleted, so that their loss is not silent."""
        if dropped:
            _LOGGER.warning(
                "The subscriber %r of the queue at %s has too many dead letters: the oldest %d were deleted.",
                self.identifier, self._location, dropped)

    def require_open(self) -> None:
        """Make sure that the subscriber is open.

        :raise ClosedError: it is closed
        """
        if self.closed:
            raise self.closed_error()

    def closed_error(self) -> errors.ClosedError:
        """Return the error of a closed subscriber."""
        return errors.ClosedError(f"{self!r} is closed. Make a new one with Environment.new_subscriber.")

    def require_plain(self, _method: str) -> None:
        """Make sure that the subscriber is open, and that a method makes sense for its kind.

        :raise ClosedError: it is closed
        :raise SubscriberKindError: it is shared
        """
        if self.closed:
            raise self.closed_error()

    def __repr__(self) -> str:
        messages = "" if self.codec is None else f" for {self.codec.name}"
        return (f"<Subscriber {self.identifier!r} of {self._location}{messages}"
                f"{' (closed)' if self.closed else ''}>")


class SharedReceiver(Receiver):
    """What a shared subscriber for threads and one for asyncio tasks share: they claim messages."""

    # The messages that this object claimed and has neither acknowledged nor given back, by the token of the claim.
    _claims: Dict[bytes, Sequence[int]] = {}
    _process = 0  # the process that claimed them; none yet
    _inherited: FrozenSet[bytes] = frozenset()  # the tokens of the parent's claims, in a forked child

    def _own_claims(self) -> Dict[bytes, Sequence[int]]:
        """Return the claims of this process. Claims that a forked child inherits belong to its parent."""
        process = os.getpid()
        if self._process != process:
            self._inherited = frozenset(self._claims)
            self._claims, self._process = {}, process
        return self._claims

    def glance(self) -> Found:
        """Find nothing: messages of a shared subscriber have to be claimed."""
        return NOTHING

    def look(self, max_messages: int = 1, max_bytes: int = RECEIVE_BYTES_MAX) -> Found:
        """Claim the next messages, decoded if the subscriber has a message type.

        :raise DecodeError: the first is not a message of the type
        """
        found = self.engine.claim(self.subscription, max_messages, max_bytes)
        if found.ids:
            self._own_claims()[found.token] = found.ids
        if found.dropped:
            self.warn(found.dropped)
        return found if self.codec is None else self._read(found)

    def _read(self, found: Found) -> Found:
        """Decode messages; give back a message that cannot be decoded, and those after it."""
        try:
            decoded = self._decoded(found)
        except errors.DecodeError as error:
            self.run(self._give_back(found, 1, len(found.ids), None))
            self.run(self._give_back(found, 0, 1, failure_of(error)))
            raise
        if len(decoded.ids) < len(found.ids):
            self.run(self._give_back(found, len(decoded.ids), len(found.ids), None))
            self._own_claims()[found.token] = decoded.ids
        return decoded

    def acknowledge(self, found: Found, count: int) -> List[Settlement]:
        """Return the commands that acknowledge the first messages of a claim."""
        self._own_claims().pop(found.token, None)
        self.require_open()
        if found.token in self._inherited:
            raise errors.LeaseLostError(
                f"{count} messages of the subscriber {self.identifier!r} were received before this process was forked, "
                "so they belong to its parent. Receive messages after the fork.")
        return [AcknowledgeClaimed(self.subscription, found.ids[:count], found.token)]

    def fail(self, found: Found, error: BaseException) -> List[Settlement]:
        """Return the commands that give back messages whose block raised."""
        return self._give_back(found, 0, len(found.ids), failure_of(error) if isinstance(error, Exception) else None)

    def leave(self, found: Found, finished: int, begun: int) -> List[Settlement]:
        """Return the commands that give messages back; they count as delivered only if their iteration has begun."""
        return [
            *self._give_back(found, begun, len(found.ids), None),
            *self._give_back(found, finished, begun, LEFT),
        ]

    def _give_back(self, found: Found, start: int, stop: int, failure: Optional[Failure]) -> List[Settlement]:
        self._own_claims().pop(found.token, None)
        if found.token in self._inherited:
            return []  # a forked child leaves alone what its parent works on
        if start >= stop or self.closed:
            return []  # once the subscriber is closed, the lease ends by itself
        return [GiveBack(self.subscription, found.ids[start:stop], found.token, failure)]

    def extend(self) -> List[Settlement]:
        """Return the commands that restart the leases of all messages."""
        self.require_open()
        claims = dict(self._own_claims())
        return [Extend(self.subscription, claims)] if claims else []

    def settle_extension(self, settled: Optional[Settled]) -> None:
        """Report the messages that were lost, except those that another thread has just acknowledged."""
        lost = set(settled.lost) if settled is not None else set()
        held = (message_id for ids in list(self._own_claims().values()) for message_id in ids)
        self.settle(Settled(lost=[message_id for message_id in held if message_id in lost]))

    def require_plain(self, method: str) -> None:
        """Raise SubscriberKindError, since other workers receive messages at the same time."""
        self.require_open()
        raise errors.SubscriberKindError(
            f"The subscriber {self.identifier!r} is shared, so {method}() makes no sense: other workers receive "
            "messages at the same time. Use receive, receive_many or messages.")
