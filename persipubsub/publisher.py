"""Sending messages."""

import datetime
import logging
from typing import TYPE_CHECKING, Any, Generic, Iterable, Optional, Sequence, Tuple

from persipubsub import errors
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import checks
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import Batch, Msg

if TYPE_CHECKING:
    from persipubsub.environment import Environment
    from persipubsub.typed import Codec

_LOGGER = logging.getLogger(__name__)


class Publisher(Generic[Msg]):
    """Sends messages to all subscribers of a queue. Made by :meth:`Environment.new_publisher`.

    A ``Publisher[bytes]`` sends bytes, one that was made with a ``message_type`` messages of that type.

    Any number of threads may use one publisher, and any number of publishers one queue.
    """

    def __init__(self,
                 environment: "Environment",
                 engine: Engine,
                 autosync: bool,
                 codec: "Optional[Codec[Any]]" = None) -> None:
        self._environment = environment
        self._engine = engine
        self._autosync = autosync
        self._codec = codec  # None: messages are bytes
        self._closed = False
        self._warned = False

    def send(self, msg: Msg, deduplication_id: Optional[str] = None) -> int:
        """Send a message. Once this returns, the message survives what the queue's durability names.

        :param msg: 0 bytes to 1 GiB, bytes-like; or a message of the publisher's type
        :param deduplication_id: 1 to 255 bytes of UTF-8 without NUL: if a message was sent with it not long ago, this
            one is not; the queue's ``deduplication_window_s`` and ``deduplication_max`` tell how long it is remembered
        :return: the message id: from 1, in the order of the queue, never given again; that of the first message which
            was sent with the same ``deduplication_id``
        :raise ArgumentTypeError: the message is not bytes-like, or of another type, or the id not a str
        :raise ArgumentError: the id is outside its limits, or a message of the publisher's type lacks required fields
        :raise MessageTooLargeError: it is over 1 GiB, or over the high-water mark of the queue
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be stored; the queue is as before
        """
        payload = checks.payload(msg if self._codec is None else self._codec.encode(msg))
        if deduplication_id is not None:
            return self._put_once(payload, checks.deduplication_id(deduplication_id))
        return self._put(Batch((payload, ), len(payload), len(payload))).start

    def send_many(self, msgs: Iterable[Msg]) -> Sequence[int]:
        """Send messages in the order given, all or none of them, in one commit.

        With ``autosync`` each message is made durable by itself, as if by :meth:`send`: an error leaves those before
        it sent, and messages of other publishers may come between.

        :param msgs: any iterable of what :meth:`send` takes; at most 1,000,000 messages and 1 GiB together
        :return: the message ids, a range unless ``autosync``
        :raise ArgumentTypeError: it is not an iterable of what :meth:`send` takes
        :raise ArgumentError: a message of the publisher's type lacks required fields
        :raise BatchTooLargeError: it is over its limits
        :raise MessageTooLargeError: one is over 1 GiB, or over the high-water mark of the queue
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: they could not be stored; the queue is as before
        """
        batch = checks.batch(msgs if self._codec is None else self._codec.encode_all(msgs))
        if self._autosync:
            return [self._put(Batch((payload, ), len(payload), len(payload))).start for payload in batch.payloads]
        return self._put(batch)

    def send_later(self,
                   msg: Msg,
                   delay_s: Optional[float] = None,
                   at: Optional[datetime.datetime] = None) -> DelayedMessage:
        """Send a message that comes later. Once this returns, it survives what the queue's durability names.

        It gets its message id, and its place in the order, when it is due. Until then it is for no subscriber, and it
        counts to no mark; but there are at most as many delayed messages as the high-water mark lets messages be.

        :param msg: 0 bytes to 1 GiB, bytes-like; or a message of the publisher's type
        :param delay_s: seconds until it is due, from 0 (at once) to 10 ** 9
        :param at: or else when it is due, with a timezone, before the year 4000; in the past: at once
        :return: by which it can be cancelled
        :raise ArgumentTypeError: an argument of the wrong type, or not exactly one of ``delay_s`` and ``at``
        :raise ArgumentError: an argument outside its limits, or a time without a timezone
        :raise MessageTooLargeError: it is over 1 GiB, or over the high-water mark of the queue
        :raise TooManyDelayedError: as many messages are delayed as the high-water mark lets be
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be stored; the queue is as before
        """
        payload = checks.payload(msg if self._codec is None else self._codec.encode(msg))
        due = checks.due(delay_s, at)
        self._require_open()
        return self._engine.put_later(payload, due)

    def cancel(self, message: DelayedMessage) -> bool:
        """Take back what was sent for later.

        :param message: what :meth:`send_later` gave, of any publisher of this queue, in any process
        :return: whether it was still delayed; if not, it has come, or was cancelled before
        :raise ArgumentTypeError: it is something else
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be cancelled; the queue is as before
        """
        if not isinstance(message, DelayedMessage):
            raise errors.ArgumentTypeError(
                f"cancel takes what send_later gave, a DelayedMessage; got {type(message).__name__}.")
        self._require_open()
        return self._engine.cancel(message)

    def _require_open(self) -> None:
        if self._closed:
            raise errors.ClosedError(f"{self!r} is closed. Make a new one with Environment.new_publisher.")

    def _put(self, batch: Batch) -> range:
        if self._closed:
            self._require_open()
        if not batch.payloads:
            return range(0)
        sent = self._engine.put(batch)
        if not sent.awaited:
            self._warn()
        return sent.ids

    def _put_once(self, payload: bytes, deduplication_id: bytes) -> int:
        self._require_open()
        sent = self._engine.put_once(Batch((payload, ), len(payload), len(payload)), deduplication_id)
        if not sent.awaited:
            self._warn()
        return sent.ids.start

    def _warn(self) -> None:
        """Say that nobody gets what is sent: nobody should find out by missing it."""
        if not self._warned:
            self._warned = True
            _LOGGER.warning("The queue at %s has no subscribers, so it stores nothing of what is sent.",
                            self._environment.path)

    def close(self) -> None:
        """Close the publisher; more than once is fine."""
        self._closed = True

    def __enter__(self) -> "Publisher[Msg]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        return type(self._environment).new_publisher, (self._environment, self._autosync,
                                                       None if self._codec is None else self._codec.message_type)

    def __repr__(self) -> str:
        messages = "" if self._codec is None else f" for {self._codec.name}"
        return f"<Publisher of {self._environment.path}{messages}{' (closed)' if self._closed else ''}>"
