"""Set up a queue, change it, inspect it and clear it."""

import datetime
import functools
import logging
import os
import pathlib
from typing import Callable, Iterable, Iterator, List, Optional, Tuple, Union

import icontract

from persipubsub import clock, errors
from persipubsub.dead_letters import DeadLetter
from persipubsub.engine import checks
from persipubsub.engine.limits import MESSAGES_MAX, SLEEP_S_MAX
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import Configuration, Origin, Position
from persipubsub.queue import UNCHANGED, HighWaterMark, Strategy, Unchanged
from persipubsub.replay import StoredMessage
from persipubsub.status import QueueStatus, Violation

_LOGGER = logging.getLogger(__name__)


# A contract that raises a documented error is always enabled: python -O would switch it off otherwise.
def _closed_error(self: "Control") -> errors.ClosedError:
    return errors.ClosedError(f"{self!r} is closed. Make a new one with Environment.new_control.")


class Control:  # pylint: disable=too-many-public-methods  # one for each thing that an operator does
    """Changes and inspects a queue. Made by :meth:`Environment.new_control`.

    Every change applies at once to all publishers and subscribers in all processes. It is on disk when the method
    returns, under either durability.
    """

    def __init__(self, origin: Origin, engine: Engine) -> None:
        self._origin = origin
        self._engine = engine
        self._administration = engine.administration
        self._closed = False

    @property
    def closed(self) -> bool:
        """Return whether close() was called."""
        return self._closed

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def is_initialized(self) -> bool:
        """Return whether the queue exists, which it does unless its files were deleted.

        :raise PathError: the permissions of its directory forbid looking
        """
        return self._administration.is_initialized()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def add_subscriber(self,
                       identifier: str,
                       start: Union[str, datetime.datetime] = "latest",
                       shared: Optional[bool] = None,
                       lease_s: Optional[float] = None,
                       max_deliveries: Optional[int] = None,
                       retry_delay_s: Optional[float] = None,
                       retry_delay_max_s: Optional[float] = None,
                       dead_letters_max: Optional[int] = None) -> None:
        """Add a subscriber, or change how messages are delivered to it.

        Arguments that are left out keep their stored values, or have the defaults for a new subscriber. An existing
        subscriber keeps its cursor. If it becomes shared, or stops being shared, whoever has it open gets
        UnknownSubscriberError and must open it again.

        :param identifier: 1 to 255 bytes of UTF-8 without NUL
        :param start: where a new subscriber begins: ``"latest"``; ``"earliest"`` for all stored messages; or a time
            with a timezone, for the stored messages that were sent from then on, and perhaps in the 10 ms before
        :param shared: whether its workers share its messages, so that one worker receives each message; default False
        :param lease_s: for a shared subscriber: seconds after which a message that is neither acknowledged nor given
            back is delivered to another worker; 0.01 to 10 ** 9, default 30
        :param max_deliveries: how many times a message is delivered before it becomes a dead letter; 1 to 10 ** 9. The
            default is 5 for a shared subscriber, and no limit for another one. If the subscriber is not shared, a
            delivery counts only if its block raised
        :param retry_delay_s: for a shared subscriber: seconds until a message whose block raised is delivered again;
            doubled each time; 0 to 10 ** 9, default 1
        :param retry_delay_max_s: for a shared subscriber: the longest such delay; default 60
        :param dead_letters_max: how many dead letters it keeps, those with the latest message ids; 1 to 1,000,000,
            default 10,000
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: an argument outside its limits, a time without a timezone, or an argument for another kind
            of subscriber; or the kind cannot change, since there are messages in flight or dead letters
        """
        encoded, position = checks.identifier(identifier), checks.position("start", start, "latest", ids=False)
        given = checks.delivering(shared, lease_s, max_deliveries, retry_delay_s, retry_delay_max_s, dead_letters_max)
        dropped = self._administration.add_subscriber(encoded, position, given)
        if dropped:
            _LOGGER.warning(
                "The subscriber %r of the queue at %s had too many dead letters: the oldest %d were deleted.",
                identifier, self._origin.location, dropped)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def rewind(self, identifier: str, to: Union[int, str, datetime.datetime]) -> int:
        """Move the cursor of a subscriber back, so that it receives stored messages again.

        The cursor never moves forward: a subscriber that is further behind stays where it is. A message that was
        delivered before the rewind and is acknowledged afterwards advances the cursor only if no message is skipped.
        Workers of a shared subscriber lose their leases on messages after this position.

        :param identifier: of the subscriber
        :param to: a message id; ``"earliest"`` for all stored messages; or a time with a timezone, for the stored
            messages that were sent from then on, and perhaps in the 10 ms before
        :return: how many messages are then pending for the subscriber
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: outside the limits, or a time without a timezone
        :raise UnknownSubscriberError: there is no such subscriber
        """
        encoded, position = checks.identifier(identifier), checks.position("to", to, "", ids=True)
        return self._administration.rewind(encoded, position)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def history(self,
                start: Union[None, int, datetime.datetime] = None,
                end: Union[None, int, datetime.datetime] = None) -> Iterator[StoredMessage]:
        """Iterate over the stored messages of all subscribers, in order; nothing is acknowledged.

        Messages that are sent after the iteration has begun are not included, nor are those deleted meanwhile.

        :param start: the first message id, or a time with a timezone, which may include messages of the 10 ms
            before; None for the oldest message
        :param end: the message id before which the iteration ends, or such a time; None for no end
        :return: an iterator of :class:`persipubsub.replay.StoredMessage`
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: outside the limits, or a time without a timezone
        :raise ClosedError: the control was closed, also meanwhile
        """
        return self._history(*checks.span(start, end))

    def _history(self, start: Position, end: Position) -> Iterator[StoredMessage]:
        self._require_open()
        for message in self._administration.history(start, end):
            yield message
            self._require_open()

    def _require_open(self) -> None:
        if self.closed:
            raise _closed_error(self)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def peek(self, identifier: str, max_messages: int = 1, timeout: Optional[float] = 0) -> List[bytes]:
        """Return the messages that a subscriber would receive next, without delivering them.

        Messages that workers of a shared subscriber hold, and messages that wait for a retry, are not included.

        :param identifier: of the subscriber, shared or not
        :param max_messages: return at most this number
        :param timeout: seconds to wait for the first message; 0 looks once, None waits forever. A message that becomes
            available without a send, such as a delayed one, may be found up to a second late
        :return: the messages, none if there was none in time
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: an argument outside its limits
        :raise UnknownSubscriberError: there is no such subscriber, or it was removed meanwhile
        :raise ClosedError: the control was closed, also meanwhile
        """
        look = functools.partial(self._administration.peek, checks.identifier(identifier),
                                 min(checks.at_least_one("max_messages", max_messages), MESSAGES_MAX))
        timeout_s = checks.timeout(timeout)
        return look() or ([] if timeout_s == 0 else self._wait_for(look, timeout_s))

    def _wait_for(self, look: Callable[[], List[bytes]], timeout_s: Optional[float]) -> List[bytes]:
        """Look until something is found or the timeout has passed."""
        deadline_s = None if timeout_s is None else clock.monotonic_s() + timeout_s
        watch = self._engine.watch(SLEEP_S_MAX)
        try:
            while True:
                watch.arm()
                self._require_open()
                found = look()
                left_s = SLEEP_S_MAX if deadline_s is None else deadline_s - clock.monotonic_s()
                if found or left_s <= 0:
                    return found
                watch.wait(min(SLEEP_S_MAX, left_s))
        finally:
            watch.close()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def remove_subscriber(self, identifier: str) -> None:
        """Remove a subscriber, and delete the messages that no other subscriber awaits.

        Its dead letters are also deleted, with a warning in the log. Whoever waits as this subscriber gets
        UnknownSubscriberError.

        :raise UnknownSubscriberError: there is no such subscriber
        """
        encoded = checks.identifier(identifier)
        dead = self._administration.remove_subscriber(encoded)
        if dead:
            _LOGGER.warning("The subscriber %r of the queue at %s was removed with its dead letters: %d.", identifier,
                            self._origin.location, dead)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def prune_dangling_messages(self) -> int:
        """Delete expired messages, and messages that no subscriber awaits; return how many were deleted."""
        return self._administration.expire_and_prune()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def prune_all_messages_for(self, identifier: str) -> int:
        """Acknowledge all messages that are pending for a subscriber, unread; return how many there were.

        :raise UnknownSubscriberError: there is no such subscriber
        """
        encoded = checks.identifier(identifier)
        return self._administration.acknowledge_all(encoded)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def clear_messages(self) -> int:
        """Delete all messages, including delayed ones, and return how many; the subscribers stay.

        Messages that had expired do not count. Dead letters stay, and so do dead letters that were requeued.
        """
        return self._administration.clear_messages()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def clear_all_subscribers(self) -> int:
        """Remove all subscribers and all messages; return how many messages were deleted. Publishers can go on.

        The dead letters are also deleted, with a warning in the log.
        """
        messages, dead = self._administration.clear_subscribers()
        if dead:
            _LOGGER.warning("All subscribers of the queue at %s were removed with their dead letters: %d.",
                            self._origin.location, dead)
        return messages

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.require(
        lambda hwm: hwm is None or isinstance(hwm, HighWaterMark),
        error=lambda hwm: errors.ArgumentTypeError(f"hwm must be a HighWaterMark, got {type(hwm).__name__}."),
        enabled=True)
    def set_hwm(self,
                hwm: Optional[HighWaterMark] = None,
                message_timeout: Union[float, None, Unchanged] = UNCHANGED,
                max_messages: Union[int, None, Unchanged] = UNCHANGED,
                hwm_db_size: Union[int, None, Unchanged] = UNCHANGED) -> None:
        """Set limits of the queue; None removes a limit, and those that are left out stay as stored.

        Unless the strategy is ``refuse``, the next send deletes what exceeds them.

        :param hwm: the limits
        :param message_timeout: or instead of ``hwm``, one or more limits, as in :class:`HighWaterMark`
        :param max_messages: likewise
        :param hwm_db_size: likewise
        :raise ArgumentTypeError: an argument of the wrong type, or both a HighWaterMark and a limit, or neither
        :raise ArgumentError: the message timeout is below the retention, or a limit is outside its limits
        """
        mark = HighWaterMark(message_timeout, max_messages, hwm_db_size)
        if (hwm is None) == (not mark.given):
            raise errors.ArgumentTypeError("set_hwm takes either a HighWaterMark or some of its limits; got "
                                           f"{'both' if mark.given else type(hwm).__name__}.")
        self._configure(Configuration(high_watermark=mark if hwm is None else hwm))

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.require(
        lambda strategy: isinstance(strategy, Strategy),
        error=lambda strategy: errors.ArgumentTypeError(f"strategy must be a Strategy, got {type(strategy).__name__}."),
        enabled=True)
    def set_strategy(self, strategy: Strategy) -> None:
        """Set what happens when a message is sent and the queue has reached its high-water mark."""
        self._configure(Configuration(strategy=strategy))

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def set_retention(self, retention_s: float) -> None:
        """Set how long messages are kept that all subscribers have acknowledged, so that they can be read again.

        They count toward the high-water mark, and are deleted first when it is reached.

        :param retention_s: seconds since they were sent, at most the message timeout; 0 deletes them at once
        :raise ArgumentTypeError: not a number
        :raise ArgumentError: outside the limits
        """
        self._configure(Configuration(retention_s=checks.retention(retention_s)))

    def _configure(self, configuration: Configuration) -> None:
        self._administration.configure(configuration, (), None)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def dead_letters(self, identifier: str) -> Iterator[DeadLetter]:
        """Iterate over the dead letters of a subscriber, in the order in which they were sent.

        They are read a few at a time; dead letters that are added or deleted meanwhile may be missing or included.

        :raise UnknownSubscriberError: there is no such subscriber
        :raise ClosedError: the control was closed, also meanwhile
        """
        return self._dead_letters(self._administration.dead_letters(checks.identifier(identifier)))

    def _dead_letters(self, found: Iterator[DeadLetter]) -> Iterator[DeadLetter]:
        for dead_letter in found:
            yield dead_letter
            self._require_open()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def requeue_dead_letters(self, identifier: str, ids: Optional[Iterable[int]] = None) -> int:
        """Deliver dead letters again to their subscriber, and to no other one, as if for the first time.

        More than 10,000 dead letters take several commits, so that other writers do not wait for all of them.

        :param ids: message ids; ids that are not of its dead letters are ignored. None for all
        :return: how many dead letters were requeued
        :raise ArgumentTypeError: an argument of the wrong type
        :raise UnknownSubscriberError: there is no such subscriber
        """
        return self._administration.requeue_dead_letters(checks.identifier(identifier), checks.message_ids(ids))

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def discard_dead_letters(self, identifier: str, ids: Optional[Iterable[int]] = None) -> int:
        """Delete dead letters of a subscriber. Arguments, result and errors are those of requeue_dead_letters."""
        return self._administration.discard_dead_letters(checks.identifier(identifier), checks.message_ids(ids))

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def status(self) -> QueueStatus:
        """Return what the queue looks like at this moment.

        This writes nothing, so it does not wait for other processes that write. A delayed message that is due counts as
        delayed until a send, a receive or a change appends it.
        """
        return self._administration.status()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def check(self) -> Tuple[Violation, ...]:
        """Read the whole queue and return the violations of its invariants; empty if there are none.

        This verifies that every record can be read, that the records agree with each other, and that every message has
        all its parts. It cannot detect changed bytes within a message, since there are no checksums. It does not verify
        the pages that hold the records; ``persipubsub check`` does so while no process has the queue open.
        """
        return self._administration.check()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def backup(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Write a compact, consistent copy of the queue while it is in use.

        Do not copy the files yourself. If a process that uses the queue opens and closes ``lock.mdb``, it drops LMDB's
        locks; then two processes may write at the same time, and messages are lost.

        :param path: a directory that does not exist or is empty; it becomes a queue
        :raise ArgumentTypeError: not a str or PathLike
        :raise ArgumentError: the path is empty or contains a NUL
        :raise PathError: the directory cannot be made, or it is not empty
        """
        self._administration.backup(pathlib.Path(os.path.abspath(checks.directory(path))))

    def close(self) -> None:
        """Close the control; more than once is fine."""
        self._closed = True

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        return self._origin.reopening("new_control")

    def __repr__(self) -> str:
        return f"<Control of {self._origin.location}{' (closed)' if self._closed else ''}>"
