"""What publishers for threads and for asyncio tasks share: they check and encode. Commands run elsewhere."""

import datetime
import functools
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from persipubsub import errors
from persipubsub.delayed import DelayedMessage
from persipubsub.engine import checks
from persipubsub.engine import headers as encoded_headers
from persipubsub.engine.commands import Cancel, Put, PutLater, PutOnce
from persipubsub.engine.values import Batch, batch_of, make
from persipubsub.message import Envelope

if TYPE_CHECKING:
    from persipubsub.typed.coding import Coding


class Sender:
    """What a publisher for threads and one for asyncio tasks share."""

    def __init__(self, location: object, autosync: bool, codec: "Optional[Coding[Any]]", name: str) -> None:
        """Prepare to send.

        :param location: of the queue, for error messages
        :param codec: None if messages are bytes
        :param name: the class name of the publisher
        """
        self.autosync = autosync
        self.codec = codec
        self.closed = False
        self.stopped = False
        self.location = location
        self._name = name

    def put(self,
            msg: Any,
            deduplication_id: Optional[str] = None,
            headers: Optional[Mapping[str, str]] = None) -> Union[Put, PutOnce]:
        """Return the command that sends a message."""
        if headers is not None or deduplication_id is not None or isinstance(msg, Envelope):
            return self._put_envelope(_envelope(msg, headers, deduplication_id))
        payload = checks.payload(msg if self.codec is None else self.codec.encode(msg))
        if self.closed:
            raise self.closed_error()
        size_bytes = len(payload)
        return make(Put, ((payload, ), size_bytes, size_bytes, None))

    def _put_envelope(self, envelope: "Envelope[Any]") -> Union[Put, PutOnce]:
        payload, encoded, identifier = self._opened(envelope)
        batch = batch_of((payload, ), (encoded, ))
        return Put(*batch) if identifier is None else PutOnce(batch, (identifier, ))

    def _opened(self, envelope: "Envelope[Any]") -> Tuple[bytes, bytes, Optional[bytes]]:
        """Return what an envelope contains, encoded: payload, headers and deduplication id."""
        msg, identifier = envelope.message, envelope.deduplication_id
        payload = checks.payload(msg if self.codec is None else self.codec.encode(msg))
        encoded = encoded_headers.encoded(envelope.headers)
        if self.closed:
            raise self.closed_error()
        return payload, encoded, None if identifier is None else checks.deduplication_id(identifier)

    def put_many(self, msgs: Iterable[Any]) -> Sequence[Union[Put, PutOnce]]:
        """Return the commands that send messages: one for all, or with autosync one for each."""
        envelopes: Dict[int, Envelope[Any]] = {}
        batch = checks.batch(msgs, functools.partial(self._encoded, envelopes), self.codec is not None)
        if self.closed:
            raise self.closed_error()
        identifiers: Sequence[Optional[bytes]] = ()
        if envelopes:
            batch, identifiers = _with_envelopes(batch, envelopes)
        if self.autosync:
            every = range(len(batch.payloads))
            return [_put(batch.part(index, index + 1), identifiers[index:index + 1]) for index in every]
        return [_put(batch, identifiers)] if batch.payloads else []

    def _encoded(self, envelopes: "Dict[int, Envelope[Any]]", start: int, chunk: List[Any]) -> List[bytes]:
        """Return the payloads of messages, some of which may be in envelopes.

        :param envelopes: those that are found are added, by their index
        :param start: the index of the first message
        """
        if any(issubclass(kind, Envelope) for kind in set(map(type, chunk))):
            found = {index: msg for index, msg in enumerate(chunk, start) if isinstance(msg, Envelope)}
            envelopes.update(found)
            chunk = [msg.message if isinstance(msg, Envelope) else msg for msg in chunk]
        if self.codec is not None:
            return self.codec.encode_chunk(start, chunk)
        return [checks.element(index, msg) for index, msg in enumerate(chunk, start)]

    def put_later(self, msg: Any, delay_s: Optional[float], at: Optional[datetime.datetime],
                  headers: Optional[Mapping[str, str]], deduplication_id: Optional[str]) -> PutLater:
        """Return the command that stores a message until it is due."""
        payload, encoded, identifier = self._opened(_envelope(msg, headers, deduplication_id))
        return PutLater(payload, checks.due(delay_s, at), encoded, identifier)

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

    def __repr__(self) -> str:
        messages = "" if self.codec is None else f" for {self.codec.name}"
        return f"<{self._name} of {self.location}{messages}{' (closed)' if self.closed else ''}>"


def _envelope(msg: Any, headers: Optional[Mapping[str, str]], deduplication_id: Optional[str]) -> "Envelope[Any]":
    """Return the envelope of a message and of the arguments beside it."""
    if not isinstance(msg, Envelope):
        return Envelope(msg, headers, deduplication_id)
    for name, inside, beside in (("headers", msg.headers, headers), ("deduplication_id", msg.deduplication_id,
                                                                     deduplication_id)):
        if inside is not None and beside is not None:
            raise errors.ArgumentTypeError(f"Got {name} both in the Envelope and beside it. Leave one out.")
    return Envelope(msg.message, msg.headers if headers is None else headers,
                    msg.deduplication_id if deduplication_id is None else deduplication_id)


def _with_envelopes(batch: Batch, envelopes: "Dict[int, Envelope[Any]]") -> Tuple[Batch, Sequence[Optional[bytes]]]:
    """Return a batch with the headers of its envelopes, and the deduplication ids, none if no message has one."""
    headers = [b""] * len(batch.payloads)
    identifiers: List[Optional[bytes]] = [None] * len(batch.payloads)
    size_bytes = batch.size_bytes
    for index, envelope in envelopes.items():
        try:
            headers[index] = encoded_headers.encoded(envelope.headers)
            if envelope.deduplication_id is not None:
                identifiers[index] = checks.deduplication_id(envelope.deduplication_id)
        except (errors.ArgumentError, errors.ArgumentTypeError) as error:
            raise type(error)(f"Message {index} of the batch: {error} None was sent.") from error
        size_bytes += len(headers[index])
        checks.require_batch(len(headers), size_bytes)
    return batch_of(batch.payloads, headers), identifiers if any(identifiers) else ()


def _put(batch: Batch, identifiers: Sequence[Optional[bytes]]) -> Union[Put, PutOnce]:
    return PutOnce(batch, identifiers) if any(identifiers) else Put(*batch)
