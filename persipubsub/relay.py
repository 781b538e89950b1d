"""Bring the messages of one queue into another, in order and each exactly once.

The queues may belong to different engines: a relay from a local queue to a cluster makes the local queue an outbox that
outlasts a lost network.
"""

import bisect
import contextlib
import dataclasses
import logging
import os  # pylint: disable=unused-import  # in an annotation
from typing import Iterator, List, NoReturn, Optional, Sequence, Union

from persipubsub import clock, errors, moments
from persipubsub.engine import checks, headers
from persipubsub.engine.commands import PutOnce, PutRelayed
from persipubsub.engine.limits import MESSAGE_ID_END
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import Details, Found, Position, Relayed, batch_of
from persipubsub.environment import Environment, engine_of, new_environment
from persipubsub.message import Reject
from persipubsub.queue import Durability
from persipubsub.status import SubscriberStatus
from persipubsub.subscriber import SharedSubscriber, Subscriber, receive_found

__all__ = ["ORIGIN_HEADER", "Relay", "RelayStatus"]

#: The header that says where a message was sent first: the identity of that queue and the message id there.
ORIGIN_HEADER = "persipubsub-origin"
#: How long a relay waits after an error that may pass, at first and at most.
RETRY_S_MIN = 0.1
RETRY_S_MAX = 10.0
#: It waits in parts of this length, so that it can be stopped. A signal handler cannot end a wait for a lock.
WAIT_S = 0.1
#: How long an error has to last until a warning tells of it: a full queue often has room at once.
WARNING_S = 1.0
#: No further message is added to a commit that is larger.
RELAYED_BYTES_MAX = 16 * 1024**2
_LOGGER = logging.getLogger(__name__)

#: The target refuses messages: because of their number, their size, or because it is full.
_REFUSALS = (errors.BatchTooLargeError, errors.MessageTooLargeError, errors.QueueFullError)

Location = Union[str, "os.PathLike[str]", Environment]


@dataclasses.dataclass(frozen=True)
class RelayStatus:
    """How far a relay has come."""

    #: How many messages this object has brought.
    relayed: int
    #: How many messages wait in the source.
    backlog: int
    #: Seconds since the oldest of them was sent; 0 if none waits.
    lag_s: float
    #: The last error that it waits out; None if the last attempt succeeded.
    error: Optional[errors.PersipubsubError]


class Relay:  # pylint: disable=too-many-instance-attributes  # both ends, and what status() tells
    """Brings the messages of a queue to another queue. Several relays may bring messages into one queue.

    It receives as a plain subscriber of the source, which must exist. The target stores in one commit the messages and
    how far the relay has come, so each message arrives exactly once, however often the relay, either queue's processes
    or the network fail, and for however long. A dead letter that was requeued arrives once within the deduplication
    window of the target.

    Each message keeps its headers, and gets the header :data:`ORIGIN_HEADER` unless it has one.

    A message that is too large for the target becomes a dead letter of the subscriber, if that has ``max_deliveries``.

    :param source: the directory or URL of the queue to receive from, or its Environment
    :param target: that of the queue to send to
    :param subscriber: the name of the subscriber of the source
    :param max_messages: the largest number of messages in one commit
    :raise ArgumentTypeError: an argument of the wrong type
    :raise ArgumentError: an argument outside its limits
    """

    def __init__(self, source: Location, target: Location, subscriber: str = "relay", max_messages: int = 1000) -> None:
        self._max_messages = checks.at_least_one("max_messages", max_messages)
        checks.identifier(subscriber)
        self._opened = contextlib.ExitStack()
        self._source, self._target = self._environment(source), self._environment(target)
        self._identifier = subscriber
        self._subscriber: Optional[Subscriber[bytes]] = None  # while it runs
        self._stopped = False
        self._relayed = 0
        self._error: Optional[errors.PersipubsubError] = None
        self._waiting_since_s = 0.0
        self._warned = False  # of an error that lasts

    def _environment(self, location: Location) -> Environment:
        """Return the Environment of a queue; one that was made here is closed with the relay."""
        if isinstance(location, Environment):
            return location
        return self._opened.enter_context(new_environment(location))

    @property
    def source(self) -> str:
        """Return the location of the source."""
        return str(self._source.location)

    @property
    def target(self) -> str:
        """Return the location of the target."""
        return str(self._target.location)

    @property
    def subscriber(self) -> str:
        """Return the name of the subscriber of the source."""
        return self._identifier

    def run(self, timeout: Optional[float] = None) -> int:
        """Relay until stop() is called, or until nothing has arrived for a time. One thread at a time may call this.

        Errors that may pass, such as a lost network, a full disk or a full queue, are waited out; a warning says so.

        :param timeout: seconds without a message after which this ends; None: never
        :return: how many messages this object has brought
        :raise NotInitializedError: there is no queue at one of the locations
        :raise UnknownSubscriberError: the source has no such subscriber
        :raise SubscriberKindError: the subscriber is shared
        :raise ReplacedError: one of the queues was made anew, or restored from a backup
        :raise MessageTypeError: the queues are bound to different message types
        :raise MessageTooLargeError: a message is too large for the target, and the subscriber has no dead letters
        :raise ArgumentError: both are the same queue
        :raise PersipubsubError: a queue cannot be used, as for :meth:`Environment.new_subscriber`
        """
        checks.timeout(timeout)
        wait_s, passage = RETRY_S_MIN, None
        with contextlib.ExitStack() as stack:
            while not self._stopped:
                try:
                    passage = passage or stack.enter_context(self._passage())
                    count = passage.bring(timeout)
                except (errors.StorageError, errors.QueueFullError) as error:
                    self._wait_out(error, wait_s)
                    wait_s = min(2 * wait_s, RETRY_S_MAX)
                    continue
                self._go_on()
                wait_s = RETRY_S_MIN
                if count is None:
                    break
                self._relayed += count
        return self._relayed

    @contextlib.contextmanager
    def _passage(self) -> "Iterator[_Passage]":
        with self._source.new_subscriber(self._identifier) as subscriber:
            self._subscriber = subscriber
            try:
                if self._stopped:
                    subscriber.stop()
                yield _Passage(subscriber, self._source, self._target, self._max_messages)
            finally:
                self._subscriber = None

    def _wait_out(self, error: errors.PersipubsubError, seconds: float) -> None:
        if self._error is None:
            self._waiting_since_s = clock.monotonic_s()
        self._error = error
        if not self._warned and clock.monotonic_s() - self._waiting_since_s > WARNING_S:
            self._warned = True
            _LOGGER.warning("%r waits: %s", self, error)
        until_s = clock.monotonic_s() + seconds
        while not self._stopped and (left_s := until_s - clock.monotonic_s()) > 0:
            clock.sleep(min(left_s, WAIT_S))

    def _go_on(self) -> None:
        self._error = None
        if self._warned:
            self._warned = False
            _LOGGER.warning("%r goes on.", self)

    def stop(self) -> None:
        """End run() after its current batch. Any thread or signal handler may call this."""
        self._stopped = True
        subscriber = self._subscriber
        if subscriber is not None:
            subscriber.stop()

    def status(self) -> RelayStatus:
        """Return how far the relay has come. Any thread may call this.

        :raise UnknownSubscriberError: the source has no such subscriber
        :raise PersipubsubError: the source cannot be read
        """
        one = _status_of(engine_of(self._source), self._identifier)
        return RelayStatus(self._relayed, one.pending, one.oldest_pending_age_s or 0, self._error)

    def close(self) -> None:
        """Close the queues that the relay opened. Environments that it was given stay open. May be called again."""
        self._opened.close()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Relay from {self.source} as {self._identifier!r} to {self.target}>"


class _Passage:  # pylint: disable=too-many-instance-attributes  # both ends, and how far it has come
    """From the source to the target, while both are open: it knows how far the relay has come.

    :raise PersipubsubError: the queues cannot be relayed
    """

    def __init__(self, subscriber: "Subscriber[bytes]", source: Environment, target: Environment,
                 max_messages: int) -> None:
        if isinstance(subscriber, SharedSubscriber):
            raise errors.SubscriberKindError(
                f"The subscriber {subscriber.identifier!r} is shared, so that its messages "
                "have no order. Relay those of a subscriber that is not shared.")
        self._subscriber = subscriber
        self._source, self._target = engine_of(source), engine_of(target)
        self._names = f"the queue at {source.location} to the one at {target.location}"
        self._max_messages = self._messages = max_messages
        self._queue = self._source.administration.identity().hex()
        self._relayed = Relayed()
        self._origin = self._required_origin()
        self._require_known(self._target.administration.relayed(self._origin))
        self._warn()

    # Both queues are those that they were

    def _required_origin(self) -> bytes:
        """Return the identity of the relay, whose route must lead to the target."""
        identity = self._target.administration.identity()
        if identity.hex() == self._queue:
            raise errors.ArgumentError(f"The relay would bring messages from {self._names}, which are the same queue.")
        message_type = self._source.administration.status().message_type
        if message_type is not None:
            self._target.administration.require_message_type(message_type)
        route = self._source.administration.route(self._subscriber.identifier.encode(), identity)
        if route.target != identity:
            raise errors.ReplacedError(
                f"The subscriber {self._subscriber.identifier!r} has been relayed to another queue before: the relay "
                f"would bring messages from {self._names}, which was made anew or is another one. Messages that were "
                "acknowledged may be missing there. To relay to this one, add a subscriber with another name, at "
                "'earliest' for all messages that are still stored.")
        return route.origin

    def _require_known(self, found: Relayed) -> None:
        """Continue where the relay has come, which may be further than this object knows.

        :raise ReplacedError: the source or the target has gone back
        """
        next_id = self._source.administration.status().next_id
        if found.message_id < self._relayed.message_id:
            self._refuse(f"brought message {self._relayed.message_id}, but the target knows only of message "
                         f"{found.message_id}: the target was restored from a backup, or made anew. Start the relay "
                         "again to go on")
        if found.message_id >= next_id:
            self._refuse(f"has brought message {found.message_id}, but the next message of the source is "
                         f"{next_id}: the source has lost messages, or was restored from a backup. {_AFRESH}")
        if found.message_id >= _status_of(self._source, self._subscriber.identifier).next_id:
            # Brought, but not acknowledged. Another message with this id would be taken for it. Only one that was sent
            # within 10 ms, before the source was copied, put back and used again, can have the same time.
            position, end = Position(found.message_id), Position(found.message_id + 1)
            for stored in self._source.administration.history(position, end):
                if stored.time != moments.utc(found.sent_us):
                    self._refuse(f"has brought a message {found.message_id} that was sent at "
                                 f"{moments.utc(found.sent_us)}, but that of the source was sent at {stored.time}: the "
                                 f"source has lost messages, or was restored from a backup. {_AFRESH}")
        self._relayed = found

    def _refuse(self, why: str) -> NoReturn:
        raise errors.ReplacedError(f"The relay from {self._names} {why}.")

    def _warn(self) -> None:
        """Warn about what may lose messages."""
        next_id = _status_of(self._source, self._subscriber.identifier).next_id
        if 0 < self._relayed.message_id < next_id - 1:
            _LOGGER.warning(
                "The subscriber %r has acknowledged the messages up to %d, but the relay from %s has brought those up "
                "to %d. If the target was restored from a backup, rewind the subscriber: what the target has is not "
                "brought again.", self._subscriber.identifier, next_id - 1, self._names, self._relayed.message_id)
        if self._source.administration.status().durability == Durability.PROCESS_CRASH:
            _LOGGER.warning(
                "The source of the relay from %s has the durability PROCESS_CRASH. If a power loss takes back messages "
                "that were brought, the relay stops with ReplacedError. Set POWER_LOSS.", self._names)

    # Messages

    def bring(self, timeout: Optional[float]) -> Optional[int]:
        """Bring the next messages; return how many the target did not have, or None if none arrives in time.

        :raise StorageError: one of the queues cannot be used at the moment; the messages stay
        :raise QueueFullError: the target has no room; the messages stay
        """
        while True:
            receipt = receive_found(self._subscriber, self._messages, timeout, RELAYED_BYTES_MAX)
            count, refusal = None, None
            with receipt as found:
                try:
                    if found.ids:
                        count = self._put(found)
                except _REFUSALS as error:
                    receipt.give_back()
                    refusal = error
                except BaseException:
                    receipt.give_back()  # so that it does not count as a failed delivery
                    raise
            if refusal is None:
                self._messages = min(2 * self._messages, self._max_messages)
                return count
            if len(found.ids) == 1:
                self._reject(found, refusal)
            self._messages = max(1, len(found.ids) // 2)
            if isinstance(refusal, errors.BatchTooLargeError):  # it will be too large the next time, too
                self._max_messages = self._messages

    def _reject(self, found: Found, refusal: errors.PersipubsubError) -> None:
        """Make a message that is too large for the target a dead letter.

        :raise QueueFullError: it may have room later
        :raise MessageTooLargeError: the subscriber has no dead letters
        """
        if isinstance(refusal, errors.QueueFullError):
            raise refusal
        what = f"Message {found.details[0].message_id} of the relay from {self._names} is refused there: {refusal}"
        try:
            with receive_found(self._subscriber, 1, 0, 1) as again:
                if again.ids == found.ids:
                    raise Reject(str(refusal))
        except errors.SubscriberKindError as error:
            raise errors.MessageTooLargeError(
                f"{what} Raise the limit there, or give the subscriber {self._subscriber.identifier!r} a "
                "max_deliveries, so that such messages become dead letters.") from error
        _LOGGER.error("%s It is a dead letter of %r now.", what, self._subscriber.identifier)

    def _put(self, found: Found) -> int:
        """Store messages in the target, except those that it has; return how many were stored."""
        if found.ids[0] >= MESSAGE_ID_END:  # a requeued dead letter, which is out of order and comes alone
            identifier = f"{self._origin.hex()}:{found.details[0].message_id}".encode()
            self._target.run(PutOnce(batch_of(found.payloads, self._headers(found.details)), [identifier]))
            return 1
        last = Relayed(found.ids[-1], found.details[-1].sent_us)
        while (start := bisect.bisect_right(found.ids, self._relayed.message_id)) < len(found.ids):
            batch = batch_of(found.payloads[start:], self._headers(found.details[start:]))
            relayed = self._target.run(PutRelayed(batch, self._origin, self._relayed, last))
            if relayed == last:
                self._relayed = last
                return len(found.ids) - start
            self._require_known(relayed)  # another process relays the same subscriber, or has done so
        return 0

    def _headers(self, details: Sequence[Details]) -> List[bytes]:
        """Return the encoded headers of messages, and where each comes from unless another relay has said so."""
        return [self._with_origin(one) for one in details]

    def _with_origin(self, one: Details) -> bytes:
        origin = f"{self._queue}:{one.message_id}"
        if not one.headers:
            return f'{{"{ORIGIN_HEADER}":"{origin}"}}'.encode()
        try:
            return headers.encoded({ORIGIN_HEADER: origin, **headers.decoded(one.headers)})
        except errors.ArgumentError:  # it has as many headers as it may have
            return one.headers


#: What to do if ids of the source are used again.
_AFRESH = ("Messages with the same ids cannot be told apart: add a subscriber with another name, at the first message "
           "that is missing in the target, and relay as that one")


def _status_of(engine: Engine, identifier: str) -> SubscriberStatus:
    """Return the status of a subscriber.

    :raise UnknownSubscriberError: there is none
    """
    while (found := engine.administration.status().subscribers.get(identifier)) is None:
        engine.subscribe(identifier.encode())  # raises the error, unless it was added meanwhile
    return found
