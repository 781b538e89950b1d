"""Send messages."""

import datetime
from typing import TYPE_CHECKING, Any, Generic, Iterable, Optional, Sequence, Tuple

from persipubsub.delayed import DelayedMessage
from persipubsub.endpoints.sending import Sender
from persipubsub.engine.protocols import Engine
from persipubsub.engine.values import Msg, Origin

if TYPE_CHECKING:
    from persipubsub.typed import Codec


class Publisher(Generic[Msg]):
    """Sends messages to all subscribers of a queue. Made by :meth:`Environment.new_publisher`.

    A ``Publisher[bytes]`` sends bytes. A publisher that was made with a ``message_type`` sends messages of that type.

    Any number of threads may use one publisher, and any number of publishers may use one queue.
    """

    def __init__(self, origin: Origin, engine: Engine, autosync: bool, codec: "Optional[Codec[Any]]" = None) -> None:
        self._origin = origin
        self._engine = engine
        self._sender = Sender(origin.location, autosync, codec, "Publisher")

    def send(self, msg: Msg, deduplication_id: Optional[str] = None) -> int:
        """Send a message. Once this returns, the message survives what the queue's durability promises.

        :param msg: 0 bytes to 1 GiB, bytes-like; or a message of the publisher's type
        :param deduplication_id: 1 to 255 bytes of UTF-8 without NUL: the message is not sent if the queue remembers one
            with this id; ``deduplication_window_s`` and ``deduplication_max`` say how long it remembers
        :return: the message id: from 1, in the order of the queue, never reused; with a ``deduplication_id``, the id of
            the first message that was sent with it
        :raise ArgumentTypeError: the message is not bytes-like or of another type, or the id is not a str
        :raise ArgumentError: the id is outside its limits, or a message of the publisher's type lacks required fields
        :raise MessageTooLargeError: it is over 1 GiB, or over the high-water mark of the queue
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be stored; the queue is as before
        """
        sent = self._engine.run(self._sender.put(msg, deduplication_id))
        if not sent.awaited:
            self._sender.warn()
        return sent.ids.start

    def send_many(self, msgs: Iterable[Msg]) -> Sequence[int]:
        """Send messages in the order given, all or none of them, in one commit.

        With ``autosync`` each message is made durable by itself, as if by :meth:`send`. After an error, the messages
        before it are sent; messages of other publishers may come between.

        :param msgs: any iterable of what :meth:`send` accepts; at most 1,000,000 messages and 1 GiB together
        :return: the message ids, a range unless ``autosync``
        :raise ArgumentTypeError: it is not an iterable of what :meth:`send` accepts
        :raise ArgumentError: a message of the publisher's type lacks required fields
        :raise BatchTooLargeError: the batch is over its limits
        :raise MessageTooLargeError: one is over 1 GiB, or over the high-water mark of the queue
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: they could not be stored; the queue is as before
        """
        commands = self._sender.put_many(msgs)
        if self._sender.autosync:
            return [self._sender.note(self._engine.run(command)).start for command in commands]
        return self._sender.note(self._engine.run(commands[0])) if commands else range(0)

    def send_later(self,
                   msg: Msg,
                   delay_s: Optional[float] = None,
                   at: Optional[datetime.datetime] = None) -> DelayedMessage:
        """Send a message that subscribers receive later. It survives what the queue's durability promises.

        It gets its message id, and its position in the order, when it is due. It does not count toward the high-water
        mark until then; but the number of delayed messages is limited by the ``max_messages`` of the mark.

        :param msg: 0 bytes to 1 GiB, bytes-like; or a message of the publisher's type
        :param delay_s: seconds until it is due, from 0 (at once) to 10 ** 9
        :param at: or instead the time at which it is due, with a timezone, before the year 4000; in the past: at once
        :return: what :meth:`cancel` needs
        :raise ArgumentTypeError: an argument of the wrong type, or not exactly one of ``delay_s`` and ``at``
        :raise ArgumentError: an argument outside its limits, or a time without a timezone
        :raise MessageTooLargeError: it is over 1 GiB, or over the high-water mark of the queue
        :raise TooManyDelayedError: the number of delayed messages has reached the high-water mark
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be stored; the queue is as before
        """
        return self._engine.run(self._sender.put_later(msg, delay_s, at))

    def cancel(self, message: DelayedMessage) -> bool:
        """Cancel a delayed message.

        :param message: what :meth:`send_later` returned, of any publisher of this queue, in any process
        :return: whether it was still delayed; if not, it was due already, or was cancelled before
        :raise ArgumentTypeError: it is not a DelayedMessage
        :raise ClosedError: the publisher or its Environment is closed
        :raise StorageError: it could not be cancelled; the queue is as before
        """
        return self._engine.run(self._sender.cancel(message))

    def close(self) -> None:
        """Close the publisher; more than once is fine."""
        self._sender.closed = True

    def __enter__(self) -> "Publisher[Msg]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Tuple[object, ...]:
        codec = self._sender.codec
        return self._origin.reopening("new_publisher", self._sender.autosync,
                                      None if codec is None else codec.message_type)

    def __repr__(self) -> str:
        return repr(self._sender)
