"""A message as the servers store it: its payload, and the headers that its publisher gave it."""

from typing import Dict, NamedTuple

from persipubsub.engine.values import Details
from persipubsub.nats_engine.client import Publication, parsed_header

#: The header of a message that holds the headers of its publisher, as JSON.
HEADERS = "Persipubsub-Headers"
#: The header of a message whose payload begins with the headers of its publisher: their size.
HEADERS_SIZE = "Persipubsub-Headers-Bytes"
_HEADERS_SIZE = HEADERS_SIZE.encode()
#: Longer headers are stored in the payload, since the servers limit all headers of a message to 64 KiB.
HEADERS_BYTES_MAX = 32 * 1024


class Stored(NamedTuple):
    """A message in a stream."""

    seq: int
    time_us: int
    subject: str
    header: bytes
    payload: bytes


def publication(subject: str, payload: bytes, headers: bytes) -> Publication:
    """Return a message to publish.

    :param headers: those of its publisher, as JSON; empty if it has none
    """
    own: Dict[str, str] = {}
    if len(headers) > HEADERS_BYTES_MAX:
        payload, own[HEADERS_SIZE] = headers + payload, str(len(headers))
    elif headers:
        own[HEADERS] = headers.decode()
    return Publication(subject, payload, own)


def stored(seq: int, time_us: int, subject: str, header: bytes, payload: bytes) -> Stored:
    """Return a message that a server has sent, with the headers of its publisher in the header."""
    if _HEADERS_SIZE in header:
        size = int(parsed_header(header)[_HEADERS_SIZE])
        header = b"%b%b: %b\r\n" % (header, HEADERS.encode(), payload[:size])
        payload = payload[size:]
    return Stored(seq, time_us, subject, header, payload)


def headers_of(message: Stored) -> bytes:
    """Return the headers that a publisher gave a message, as JSON; empty if it has none."""
    return parsed_header(message.header).get(HEADERS.encode(), b"")


def details_of(message: Stored, deliveries: int) -> Details:
    """Return what is known of a message beside its payload."""
    return Details(message.seq, message.time_us, deliveries, headers_of(message))
