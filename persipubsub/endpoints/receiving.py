"""What subscribers for threads and for asyncio tasks share: they find, decode and report messages.

A receiver reads the queue itself. Its writes are returned as commands, which the subscriber runs.
"""

import logging
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence

from persipubsub import clock, errors, moments
from persipubsub.endpoints import spans
from persipubsub.engine import checks, headers
from persipubsub.engine.commands import Acknowledge, Fail, Settlement
from persipubsub.engine.limits import MESSAGE_ID_END, RECEIVE_BYTES_MAX
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import NOTHING, Failure, Found, Settled, Subscription, failure_of, make
from persipubsub.message import Delivery, Reject, Retry

if TYPE_CHECKING:
    from persipubsub.typed.coding import Coding

#: Recorded for the message at which a loop over messages() ended: a break and an exception look alike from inside.
LEFT = Failure("GeneratorExit", "The loop over messages() was left, by an exception or a break.")
#: The maximum number of messages of one block whose failure is counted here.
FAILURES_MAX = 10_000
_LOGGER = logging.getLogger("persipubsub.subscriber")  # the name that programs filter by


class _Pause(NamedTuple):
    """A message that is to be delivered again, but not before a time."""

    message_id: int
    until_us: int

    def applies(self, found: Found) -> bool:
        """Return whether what was found begins with the message, or skips it, and the time has not come."""
        first_id = found.ids[0] if found.since is None else found.since
        return first_id <= self.message_id <= found.ids[0] and clock.boottime_us() < self.until_us


class Ending(NamedTuple):
    """What to do at the end of a block that raised."""

    commands: Sequence[Settlement]
    #: Whether the exception ends there.
    swallows: bool


class Loop:
    """The batch of a loop over messages(), so that close() can acknowledge the finished messages."""

    __slots__ = ("_batch", "finished")

    def __init__(self) -> None:
        self._batch: List[Found] = []
        self.finished = 0  # number of messages of the batch

    def begin(self, batch: Found) -> None:
        """Start a batch."""
        self.finished = 0
        self._batch.append(batch)

    def end(self) -> Optional[Found]:
        """Return the batch to the first caller: the loop itself, or the thread that closes the subscriber."""
        try:
            return self._batch.pop()
        except IndexError:
            return None


# pylint: disable-next=too-many-instance-attributes,too-many-public-methods  # the state of a subscriber, for two forms
class Receiver:
    """What a plain subscriber for threads and one for asyncio tasks share."""

    def __init__(self, engine: Engine, location: object, identifier: str, subscription: Subscription,
                 codec: "Optional[Coding[Any]]") -> None:
        """Prepare to receive.

        :param location: of the queue, for error messages
        :param codec: None if messages are bytes
        """
        self.engine = engine
        self.identifier = identifier
        self.subscription = subscription
        self.codec = codec
        self.closed = False
        self.stopped = False
        #: The current loops over messages.
        self.loops: Dict[Loop, None] = {}
        self.location = location
        self._pause: Optional[_Pause] = None  # after a Retry
        # How many times the last messages that failed did so, by their ids.
        self._failures: Dict[int, int] = {}

    # Reads

    def look(self, max_messages: int = 1, max_bytes: int = RECEIVE_BYTES_MAX, detailed: bool = False) -> Found:
        """Find the next messages, decoded if the subscriber has a message type.

        :param detailed: whether :meth:`deliveries` needs them
        :raise DecodeError: the first is not a message of the type
        """
        if self.stopped:
            return NOTHING
        found = self.engine.look(self.subscription, max_messages, max_bytes, detailed or spans.tracer is not None)
        if self._pause is not None:
            found = self._after_pause(self._pause, found)
        if self.codec is None:
            return found
        try:
            return self._decoded(found)
        except errors.DecodeError as error:
            self.settle(self.engine.run(Fail(self.subscription, found.ids[:1], failure_of(error))))
            raise

    def glance(self) -> Found:
        """Find the next message if that needs neither a wait nor a read of a file, as event loops must not do."""
        if self.closed or self.stopped or self._pause is not None or self.codec is not None or spans.tracer is not None:
            return NOTHING
        return self.engine.glance(self.subscription)

    def look_at_top(self) -> Found:
        """Find the latest message."""
        if self.stopped:
            return NOTHING
        found = self.engine.look_at_top(self.subscription, spans.tracer is not None)
        return self._decoded(found if self._pause is None else self._after_pause(self._pause, found))

    def _after_pause(self, pause: _Pause, found: Found) -> Found:
        """Return what was found, or nothing if it has to wait for a message that is to be delivered again."""
        if found.ids and pause.applies(found):
            return NOTHING._replace(due_us=pause.until_us)
        self._pause = None
        return found

    def announce(self) -> None:
        """Warn once if another process receives as the same plain subscriber."""
        if self.engine.announce(self.subscription):
            _LOGGER.warning(
                "Another process receives as the subscriber %r of the queue at %s. One name is one reader: both may "
                "receive the same message. Add a subscriber for each, or share one among workers with shared=True.",
                self.identifier, self.location)

    def close(self) -> None:
        """Close the subscriber, after acknowledging what loops have finished."""
        self.acknowledge_finished()
        if not self.closed:
            self.closed = True
            self.engine.renounce(self.subscription)

    def stop(self) -> None:
        """Find nothing from now on, and end all waits. A signal handler may call this."""
        self.stopped = True
        self.engine.interrupt()

    def deliveries(self, found: Found) -> List[Delivery[Any]]:
        """Return what was found as deliveries."""
        return [
            Delivery(payload, one.message_id,
                     moments.utc(one.sent_us), one.deliveries or 1 + self._failures.get(one.message_id, 0),
                     headers.decoded(one.headers)) for payload, one in zip(found.payloads, found.details)
        ]

    def front(self, detailed: bool = False) -> Found:
        """Find the next message, without counting it as delivered."""
        found = self.engine.look(self.subscription, 1, RECEIVE_BYTES_MAX, detailed)
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
        return found if self.codec is None else self.codec.decoded(found, self.identifier, self.location)

    # Writes

    def acknowledge(self, found: Found, count: int) -> Sequence[Settlement]:
        """Return the commands that acknowledge the first messages of those found, even if the subscriber is closed."""
        return [make(Acknowledge, (self.subscription, found.ids[:count], found.since))]

    def fail(self, found: Found, error: BaseException) -> Sequence[Settlement]:
        """Return the commands for messages whose block raised."""
        if not isinstance(error, Exception) or self.closed:
            return []
        return self._failed(found.ids, failure_of(error))

    def _failed(self, ids: Sequence[int], failure: Failure) -> Sequence[Settlement]:
        """Count a failed delivery of messages here, and return the commands that count it in the queue."""
        earlier = self._failures
        # Those of later messages stay: of a batch that failed, perhaps only the first message was received again.
        self._failures = {message_id: times for message_id, times in earlier.items() if message_id > ids[-1]}
        self._failures.update((message_id, 1 + earlier.get(message_id, 0)) for message_id in ids[:FAILURES_MAX])
        return [Fail(self.subscription, ids, failure)]

    def retry(self, found: Found, error: Retry) -> Sequence[Settlement]:
        """Return the commands for messages that are to be delivered again; the subscriber waits until then."""
        if error.delay_s:
            self._pause = _Pause(found.ids[0], clock.boottime_us() + checks.microseconds(error.delay_s))
        return self.fail(found, error)

    def reject(self, found: Found, error: Reject) -> Sequence[Settlement]:
        """Return the commands for messages that become dead letters at once.

        :raise SubscriberKindError: the latest message was received, and others before it are pending
        """
        if found.since is not None and found.since < found.ids[0]:
            raise errors.SubscriberKindError(
                f"The subscriber {self.identifier!r} cannot reject a message that receive_to_top found, since it would "
                "skip those before it. Receive messages in their order to reject one.")
        return [Fail(self.subscription, found.ids, failure_of(error), True)]

    def leave(self, found: Found, finished: int, begun: int) -> Sequence[Settlement]:
        """Return the commands for messages of a batch whose iteration has not ended, or has not begun."""
        if begun <= finished or self.closed:
            return []
        return self._failed(found.ids[finished:begun], LEFT)

    def extend(self) -> Sequence[Settlement]:
        """Return the commands that restart the leases of all messages.

        :raise SubscriberKindError: the subscriber is not shared
        """
        self.require_open()
        raise errors.SubscriberKindError(
            f"The subscriber {self.identifier!r} is not shared: its messages have no lease. "
            "See Control.add_subscriber.")

    def at_end(self, found: Found, error: BaseException) -> "Ending":
        """Return what to do at the end of a block that raised."""
        if isinstance(error, Retry):
            return Ending(self.retry(found, error), True)
        if isinstance(error, Reject):
            return Ending(self.reject(found, error), True)
        return Ending(self.fail(found, error), False)

    def acknowledge_finished(self) -> None:
        """Acknowledge the messages that loops have finished, before the subscriber is closed."""
        for loop in list(self.loops):
            found = loop.end()
            if found is None or not loop.finished or self.closed:
                continue
            try:
                self.run(self.acknowledge(found, loop.finished))
            except errors.PersipubsubError as error:
                _LOGGER.warning(
                    "Messages that a loop over messages() of %r had finished could not be acknowledged, so they "
                    "will be delivered again: %s", self, error)

    def run(self, commands: Sequence[Settlement]) -> None:
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
                f"the first of them {settled.lost[0] % MESSAGE_ID_END}: their lease had ended and another worker "
                "received them, or they were pruned, or the subscriber was moved back. Set a longer lease_s with "
                "Control.add_subscriber, or call extend_lease() in time.")

    def settle_extension(self, settled: Optional[Settled]) -> None:
        """Report leases that could not be extended."""
        self.settle(settled)

    def warn(self, dropped: int) -> None:
        """Warn that dead letters were deleted, so that their loss is not silent."""
        if dropped:
            _LOGGER.warning(
                "The subscriber %r of the queue at %s has too many dead letters: the oldest %d were deleted.",
                self.identifier, self.location, dropped)

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
        return (f"<Subscriber {self.identifier!r} of {self.location}{messages}"
                f"{' (closed)' if self.closed else ''}>")
