"""Setting up a queue, changing it, looking at it and clearing it."""

import datetime
import logging
import os
import pathlib
from typing import Iterable, Iterator, List, Optional, Tuple, Union

import icontract

from persipubsub import errors
from persipubsub.dead_letters import DeadLetter
from persipubsub.engine import checks
from persipubsub.engine.protocols import Administration
from persipubsub.engine.values import Configuration, Origin, Position
from persipubsub.queue import HighWaterMark, Strategy
from persipubsub.replay import StoredMessage
from persipubsub.status import QueueStatus, Violation

_LOGGER = logging.getLogger(__name__)


# Each contract that stands for a documented error is enabled: else python -O would switch it off.
def _closed_error(self: "Control") -> errors.ClosedError:
    return errors.ClosedError(f"{self!r} is closed. Make a new one with Environment.new_control.")


class Control:
    """Changes a queue and tells about it. Made by :meth:`Environment.new_control`.

    Every change holds at once for all publishers and subscribers in all processes, and is on the disk when the method
    returns, under either durability.
    """

    def __init__(self, origin: Origin, administration: Administration) -> None:
        self._origin = origin
        self._administration = administration
        self._closed = False

    @property
    def closed(self) -> bool:
        """Tell whether close() was called."""
        return self._closed

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def is_initialized(self) -> bool:
        """Tell whether the queue exists, which it does unless somebody deleted its files.

        :raise PathError: its directory may not be looked into
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
        """Add a subscriber, which gets what is sent from then on, or before; or change how messages are handed to it.

        What is left out stays as stored, or is the default. A subscriber of which nothing but the identifier is given
        stays as it is, and one that exists stays at its place. One that becomes shared, or ceases to be, keeps its
        place; whoever has it open gets UnknownSubscriberError and opens it anew.

        :param identifier: 1 to 255 bytes of UTF-8 without NUL
        :param start: of a new one: ``"latest"``; ``"earliest"`` for all that is stored; or a time with a timezone, for
            what is stored of all that was sent from then on, and perhaps in the 10 ms before
        :param shared: whether its workers share its messages, so that each message goes to one of them; default False
        :param lease_s: of a shared one: seconds after which a message that is neither acknowledged nor given back goes
            to another worker; 0.01 to 10 ** 9, default 30
        :param max_deliveries: how often a message is handed out before it becomes a dead letter; 1 to 10 ** 9, default
            5; default without limit for one that is not shared, of which only those count whose block raised
        :param retry_delay_s: of a shared one: seconds until a message comes again whose block raised; doubled each
            time; 0 to 10 ** 9, default 1
        :param retry_delay_max_s: of a shared one: the longest such delay; default 60
        :param dead_letters_max: how many dead letters it keeps, the latest by message id; 1 to 1,000,000, default
            10,000
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: outside the limits, a time without a timezone, not for this kind of subscriber, or another
            kind than that of one that has messages in flight, or dead letters
        """
        encoded, position = checks.identifier(identifier), checks.position("start", start, "latest", ids=False)
        given = checks.delivering(shared, lease_s, max_deliveries, retry_delay_s, retry_delay_max_s, dead_letters_max)
        dropped = self._administration.add_subscriber(encoded, position, given)
        if dropped:
            _LOGGER.warning(
                "The subscriber %r of the queue at %s had too many dead letters: the oldest were deleted, %d.",
                identifier, self._origin.location, dropped)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def rewind(self, identifier: str, to: Union[int, str, datetime.datetime]) -> int:
        """Move a subscriber back, so that it gets again what is still stored; give how many messages it then awaits.

        One that is behind already stays where it is: it is never moved on. A message that was handed out before and is
        taken afterwards moves it on only if nothing before that message would be skipped. What workers of a shared
        subscriber hold behind the place is theirs no more.

        :param identifier: of the subscriber
        :param to: a message id; ``"earliest"`` for all that is stored; or a time with a timezone, for what is stored of
            all that was sent from then on, and perhaps in the 10 ms before
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
        """Iterate over the stored messages, of whichever subscriber, in order; nothing is taken.

        What is sent after the first is asked for is not among them, and what goes meanwhile is left out.

        :param start: the first message id, or a time with a timezone, which may let in what was sent in the 10 ms
            before; None for the oldest message
        :param end: the message id before which it ends, or a time likewise; None for the latest message
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
    def peek(self, identifier: str, max_messages: int = 1) -> List[bytes]:
        """Return the messages that a subscriber would be handed out next; nothing is handed out, so nothing counts.

        Those that workers of a shared subscriber hold, and those that wait for a retry, are not among them.

        :param identifier: of the subscriber, shared or not
        :param max_messages: at most this many
        :raise ArgumentTypeError: an argument of the wrong type
        :raise ArgumentError: an argument outside its limits
        :raise UnknownSubscriberError: there is no such subscriber
        """
        return self._administration.peek(checks.identifier(identifier),
                                         checks.at_least_one("max_messages", max_messages))

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def remove_subscriber(self, identifier: str) -> None:
        """Remove a subscriber. Who waits as it gets UnknownSubscriberError; what nobody else awaits is deleted.

        Its dead letters are deleted, too, with a warning in the log.

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
        """Let what is older than the timeout expire now, and delete what nobody awaits; give how many messages went."""
        return self._administration.expire_and_prune()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def prune_all_messages_for(self, identifier: str) -> int:
        """Take all that is pending for a subscriber, unread; give how many messages it will not get.

        :raise UnknownSubscriberError: there is no such subscriber
        """
        encoded = checks.identifier(identifier)
        return self._administration.acknowledge_all(encoded)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def clear_messages(self) -> int:
        """Delete all messages, also delayed ones; the subscribers stay. Give how many messages went.

        Those that had expired do not count: they had gone already.
        Dead letters, and those that were requeued, are not in the log and stay.
        """
        return self._administration.clear_messages()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.ensure(lambda result: result >= 0)
    def clear_all_subscribers(self) -> int:
        """Remove all subscribers and with them all messages; publishers go on. Give how many messages went.

        The dead letters are deleted, too, with a warning in the log.
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
                message_timeout: Optional[float] = None,
                max_messages: Optional[int] = None,
                hwm_db_size: Optional[int] = None) -> None:
        """Set the high-water mark, or some of its limits. It holds from the next send on: what is over it now goes then.

        :param hwm: all three limits
        :param message_timeout: or else a limit, as in :class:`HighWaterMark`; those that are left out stay as stored
        :param max_messages: likewise
        :param hwm_db_size: likewise
        :raise ArgumentTypeError: an argument of the wrong type, or both a mark and a limit, or neither
        :raise ArgumentError: the message timeout is below the retention, or a limit is outside its limits
        """
        some = {"message_timeout": message_timeout, "max_messages": max_messages, "hwm_db_size": hwm_db_size}
        given = {name: value for name, value in some.items() if value is not None}
        if (hwm is None) == (not given):
            raise errors.ArgumentTypeError("set_hwm takes either a HighWaterMark or some of its limits; got "
                                           f"{'both' if given else type(hwm).__name__}.")
        HighWaterMark(message_timeout, max_messages, hwm_db_size)  # so that a mistake is found here
        self._configure(Configuration(high_watermark=hwm, limits=given))

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    @icontract.require(
        lambda strategy: isinstance(strategy, Strategy),
        error=lambda strategy: errors.ArgumentTypeError(f"strategy must be a Strategy, got {type(strategy).__name__}."),
        enabled=True)
    def set_strategy(self, strategy: Strategy) -> None:
        """Set which messages go when the queue overflows."""
        self._configure(Configuration(strategy=strategy))

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def set_retention(self, retention_s: float) -> None:
        """Set for how long messages are kept that all subscribers have taken: for those who want to read them again.

        They count to the high-water mark, and are the first to go where it is reached.

        :param retention_s: seconds since they were sent, at most the message timeout; 0: they go at once
        :raise ArgumentTypeError: not a number
        :raise ArgumentError: outside the limits
        """
        self._configure(Configuration(retention_s=checks.retention(retention_s)))

    def _configure(self, configuration: Configuration) -> None:
        self._administration.configure(configuration, (), None)

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def dead_letters(self, identifier: str) -> Iterator[DeadLetter]:
        """Iterate over the dead letters of a subscriber, in the order in which they were sent.

        They are read a few at a time; those that come or go meanwhile may be there or not.

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
        """Hand dead letters out again to their subscriber, and to no other one, as if for the first time.

        Where they are more than 10,000 it takes several commits, so that nobody else waits for all of it.

        :param ids: message ids; those that are none of its dead letters are passed over. None for all
        :return: how many dead letters there were among them
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
        """Tell what the queue looks like at this moment."""
        return self._administration.status()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def check(self) -> Tuple[Violation, ...]:
        """Read the whole queue and return the violations of its invariants; empty if there are none.

        This verifies that every record can be read, that the records agree with each other, and that every message has
        all its parts. It cannot notice that bytes within a message have changed: there are no checksums. It does not
        verify the pages that hold the records; ``persipubsub check`` does so while nobody has the queue open.
        """
        return self._administration.check()

    @icontract.require(lambda self: not self.closed, error=_closed_error, enabled=True)
    def backup(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Write a compact, consistent copy of the queue while everything runs.

        Do not copy the files yourself: a plain open and close of ``lock.mdb`` inside a process that uses the queue
        drops LMDB's locks, and then two writers at one time lose messages.

        :param path: a directory that does not exist or is empty; it becomes a queue
        :raise ArgumentTypeError: not a str or PathLike
        :raise ArgumentError: empty, or with a NUL
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
