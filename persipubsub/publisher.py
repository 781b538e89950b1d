"""Send messages."""

import datetime
from typing import TYPE_CHECKING, Any, Generic, Iterable, Mapping, Optional, Sequence, Tuple, Union

from persipubsub.delayed import DelayedMessage
from persipubsub.endpoints import room, spans
from persipubsub.endpoints.room import SendingCommand
from persipubsub.endpoints.sending import Sender
from persipubsub.engine import checks
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import Origin, Sendable
from persipubsub.message import Envelope

if TYPE_CHECKING:
    from persipubsub.typed.coding import Coding


class Publisher(Generic[Sendable]):
    """Sends messages to all subscribers of a queue. Made by :meth:`Environment.new_publisher`.

    A ``Publisher[bytes]`` sends bytes. A publisher that was made with a ``message_type`` sends messages of that type.

    Any number of threads may use one publisher, and any number of publishers may use one queue.
    """

    def __init__(self, origin: Origin, engine: Engine, autosync: bool, codec: "Optional[Coding[Any]]" = None) -> None:
        self._origin = origin
        self._engine = engine
        self._sender = Sender(origin.location, autosync, codec, "Publisher")

    def send(self,
             msg: Union[Sendable, Envelope[Sendable]],
             deduplication_id: Optional[str] = None,
             headers: Optional[Mapping[str, str]] = None,
             timeout: Optional[float] = 0) -> int:
        """Send a message. Once this returns, the message survives what the queue's durability promises.

        :param msg: 0 bytes to 1 GiB, bytes-like; or a message of the publisher's type; or an Envelope of either
        :param deduplication_id: 1 to 255 bytes of UTF-8 without NUL: the message is not sent if the queue remembers one
            with this id; ``deduplication_window_s`` and ``deduplication_max`` say how long it remembers
        :param headers: names and texts that travel with the message, such as ``traceparent``; at most 64, and 64 KiB as
            JSON; names of 1 to 255 visible ASCII characters without a colon
        :param timeout: seconds to wait for room if the queue refuses messages at its high-water mark; 0 does not wait,
            None waits forever
        :return: the message id: from 1, in the order of the queue, never reused; with a ``deduplication_id``, the id of
            the first message that was sent with it, or 0 if that was sent with :meth:`send_later`
        :raise ArgumentTypeError: the message is neither bytes-like nor of the publisher's type, or another argument has
            a wrong type
        :raise ArgumentError: an argument is outside its limits, or the message cannot be encoded
        :raise MessageTooLargeError: it is over 1 GiB, or over the high-water mark of the queue
        :raise QueueFullError: the queue refuses messages at its high-water mark, and had no room in time
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be stored; the queue is as before
        """
        command = self._sender.put(msg, deduplication_id, headers)
        if timeout == 0 and spans.tracer is None:
            return self._engine.run(command)[0]
        ids: Sequence[int] = self._run(command, timeout)
        return ids[0]

    def send_many(self,
                  msgs: Iterable[Union[Sendable, Envelope[Sendable]]],
                  timeout: Optional[float] = 0) -> Sequence[int]:
        """Send messages in the order given, all or none of them, in one commit.

        With ``autosync`` each message is made durable by itself, as if by :meth:`send`. After an error, the messages
        before it are sent; messages of other publishers may come between.

        :param msgs: any iterable of what :meth:`send` accepts; at most 1,000,000 messages and 1 GiB together
        :param timeout: as that of :meth:`send`; with ``autosync``, for each message
        :return: the message ids, a range unless ``autosync`` or a message has a ``deduplication_id``
        :raise ArgumentTypeError: it is not an iterable of what :meth:`send` accepts
        :raise ArgumentError: an argument is outside its limits, or a message cannot be encoded
        :raise BatchTooLargeError: the batch is over its limits, or never fits below the mark of a queue that refuses
        :raise MessageTooLargeError: one is over 1 GiB, or over the high-water mark of the queue
        :raise QueueFullError: the queue refuses messages at its high-water mark, and had no room in time
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: they could not be stored; the queue is as before
        """
        timeout = checks.timeout(timeout)
        all_ids = [self._run(command, timeout) for command in self._sender.put_many(msgs)]
        if self._sender.autosync:
            return [ids[0] for ids in all_ids]
        return all_ids[0] if all_ids else range(0)

    def send_later(self,
                   msg: Union[Sendable, Envelope[Sendable]],
                   delay_s: Optional[float] = None,
                   at: Optional[datetime.datetime] = None,
                   headers: Optional[Mapping[str, str]] = None,
                   deduplication_id: Optional[str] = None,
                   timeout: Optional[float] = 0) -> DelayedMessage:
        """Send a message that subscribers receive later. It survives what the queue's durability promises.

        It gets its message id, and its position in the order, when it is due. It does not count toward the high-water
        mark until then, and is not refused then; but the number of delayed messages is limited by the ``max_messages``
        of the mark.

        :param msg: as that of :meth:`send`
        :param delay_s: seconds until it is due, from 0 (at once) to 10 ** 9
        :param at: or instead the time at which it is due, with a timezone, before the year 4000; in the past: at once
        :param headers: as those of :meth:`send`
        :param deduplication_id: as that of :meth:`send`; what was sent with it first is returned
        :param timeout: as that of :meth:`send`, for a message that is due at once
        :return: what :meth:`cancel` needs
        :raise ArgumentTypeError: an argument of the wrong type, or not exactly one of ``delay_s`` and ``at``
        :raise ArgumentError: an argument outside its limits, or a time without a timezone
        :raise MessageTooLargeError: it is over 1 GiB, or over the high-water mark of the queue
        :raise TooManyDelayedError: the number of delayed messages has reached the high-water mark
        :raise QueueFullError: it is due, the queue refuses messages at its high-water mark, and had no room in time
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be stored; the queue is as before
        """
        command = self._sender.put_later(msg, delay_s, at, headers, deduplication_id)
        delayed: DelayedMessage = self._run(command, timeout)
        return delayed

    def _run(self, command: SendingCommand, timeout: Optional[float]) -> Any:
        """Run a command, in a span if this process traces."""
        if spans.tracer is None:
            return self._put(command, timeout)
        with spans.tracer.sending(self._sender.location, command) as span:
            try:
                return span.sent(self._put(span.command, timeout))
            except spans.TOO_LARGE:
                return span.sent(self._put(command, timeout))

    def _put(self, command: SendingCommand, timeout: Optional[float]) -> Any:
        """Run a command, and wait for room if the queue refuses messages."""
        if timeout == 0:
            return self._engine.run(command)
        return room.run(self._engine, command, self._sender, timeout)

    def cancel(self, message: DelayedMessage) -> bool:
        """Cancel a delayed message.

        :param message: what :meth:`send_later` returned, of any publisher of this queue, in any process
        :return: whether it was still delayed; if not, it was due already, or was cancelled before
        :raise ArgumentTypeError: it is not a DelayedMessage
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be cancelled; the queue is as before
        """
        return self._engine.run(self._sender.cancel(message))

    def stop(self) -> None:
        """End waits for room now: they raise QueueFullError. Any thread and a signal handler may call this."""
        self._sender.stopped = True
        self._engine.interrupt()

    def close(self) -> None:
        """Close the publisher; more than once is fine."""
        self._sender.closed = True

    def __enter__(self) -> "Publisher[Sendable]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        codec = self._sender.codec
        return self._origin.reopening("new_publisher", self._sender.autosync,
                                      None if codec is None else codec.message_type)

    def __repr__(self) -> str:
        return repr(self._sender)
