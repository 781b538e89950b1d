"""What publishers for threads and for asyncio tasks share: they check, encode and report. Commands run elsewhere."""

import datetime
import logging
from typing import TYPE_CHECKING, Any, Iterable, List, Optional, Union

from persipubsub import errors
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import checks
from persipubsub.engine.commands import Cancel, Put, PutLater, PutOnce
from persipubsub.engine.values import Batch, Sent

if TYPE_CHECKING:
    from persipubsub.typed import Codec

_LOGGER = logging.getLogger("persipubsub.publisher")  # the name that programs filter by


class Sender:
    """What a publisher for threads and one for asyncio tasks share."""

    def __init__(self, location: object, autosync: bool, codec: "Optional[Codec[Any]]", name: str) -> None:
        """Prepare to send.

        :param location: of the queue, for error messages
        :param codec: None if messages are bytes
        :param name: the class name of the publisher
        """
        self.autosync = autosync
        self.codec = codec
        self.closed = False
        self._location = location
        self._name = name
        self._warned = False

    def put(self, msg: Any, deduplication_id: Optional[str]) -> Union[Put, PutOnce]:
        """Return the command that sends a message."""
        payload = checks.payload(msg if self.codec is None else self.codec.encode(msg))
        size_bytes = len(payload)
        command: Union[Put, PutOnce] = Put((payload, ), size_bytes, size_bytes)
        if deduplication_id is not None:
            command = PutOnce(Batch((payload, ), size_bytes, size_bytes), checks.deduplication_id(deduplication_id))
        if self.closed:
            raise self.closed_error()
        return command

    def put_many(self, msgs: Iterable[Any]) -> List[Put]:
        """Return the commands that send messages: one for all, or with autosync one for each."""
        batch = checks.batch(msgs if self.codec is None else self.codec.encode_all(msgs))
        if self.closed:
            raise self.closed_error()
        if self.autosync:
            return [Put((payload, ), len(payload), len(payload)) for payload in batch.payloads]
        return [Put(*batch)] if batch.payloads else []

    def put_later(self, msg: Any, delay_s: Optional[float], at: Optional[datetime.datetime]) -> PutLater:
        """Return the command that stores a message until it is due."""
        payload = checks.payload(msg if self.codec is None else self.codec.encode(msg))
        command = PutLater(payload, checks.due(delay_s, at))
        if self.closed:
            raise self.closed_error()
        return command

    def cancel(self, message: DelayedMessage) -> Cancel:
        """Return the command that deletes a delayed message."""
        if not isinstance(message, DelayedMessage):
            raise errors.ArgumentTypeError(
                f"cancel takes a DelayedMessage, which send_later returns; got {type(message).__name__}.")
        if self.closed:
            raise self.closed_error()
        return Cancel(message)

    def closed_error(self) -> errors.ClosedError:
        """Return the error of a closed publisher."""
        return errors.ClosedError(f"{self!r} is closed. Make a new one with Environment.new_publisher.")

    def note(self, sent: Sent) -> range:
        """Return the ids of what was sent; warn if no subscriber awaits it."""
        if not sent.awaited:
            self.warn()
        return sent.ids

    def warn(self) -> None:
        """Warn once that no subscriber awaits what is sent: nobody should find out by missing it."""
        if not self._warned:
            self._warned = True
            _LOGGER.warning("The queue at %s has no subscribers, so it does not store what is sent.", self._location)

    def __repr__(self) -> str:
        messages = "" if self.codec is None else f" for {self.codec.name}"
        return f"<{self._name} of {self._location}{messages}{' (closed)' if self.closed else ''}>"
