"""A client of one server, by nats-py: messages go to handlers as they come, without queues and tasks between."""

import asyncio
import contextlib
import ssl
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import nats.aio.client
import nats.errors

#: How long one try to connect, or to close, may take.
CONNECT_S = 2
#: What goes wrong with a connection.
PROBLEMS = (OSError, asyncio.TimeoutError, nats.errors.Error)

Handler = Callable[[bytes, bytes, bytes], None]
Headers = Dict[str, str]


class Reply(NamedTuple):
    """An answer of the server."""

    header: bytes
    data: bytes

    @property
    def status(self) -> int:
        """Return the status of an answer without a message; 0 for a message."""
        return int(self.header[9:12]) if self.header.startswith(b"NATS/1.0 ") else 0


class Publication(NamedTuple):
    """A message to publish."""

    subject: str
    payload: bytes
    headers: Dict[str, str]


class Lost(Exception):
    """A try that failed, and whether the server may have done what was asked."""

    def __init__(self, reason: str, maybe_done: bool) -> None:
        super().__init__(reason)
        self.maybe_done = maybe_done


def parsed_header(header: bytes) -> Dict[bytes, bytes]:
    """Return the header of a message as a dictionary."""
    found = {}
    for line in header.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        found[name] = value[1:] if value.startswith(b" ") else value
    return found


class Client(nats.aio.client.Client):
    """A client of one server. It calls a handler for each message of a subscription."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: Dict[int, Optional[Handler]] = {}
        self.listening: Dict[str, Any] = {}
        self.was_connected = False

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # as nats-py calls it
    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self.handlers.get(sid)
        if handler is not None:
            handler(bytes(subject), bytes(headers or b""), bytes(data))
        elif reply and sid in self.handlers:
            await self.publish(bytes(reply).decode())

    async def listen(self, subject: str, handler: Optional[Handler]) -> None:
        """Pass the messages of a subject to a handler; answer them if there is none."""
        subscription = await self.subscribe(subject)
        self.listening[subject] = subscription
        self.handlers[subscription._id] = handler  # pylint: disable=protected-access  # nats-py has no other name

    async def ignore(self, subject: str) -> None:
        """Stop passing on the messages of a subject."""
        subscription = self.listening.pop(subject, None)
        if subscription is not None and self.is_connected:
            with contextlib.suppress(*PROBLEMS):  # a lost connection passes nothing on, either
                await subscription.unsubscribe()
                await self.flush(CONNECT_S)


class Timer:
    """Ends a wait for answers when none has come for some time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reply_s: float, end: Callable[[None], None],
                 replies: List[Reply]) -> None:
        self._loop = loop
        self._reply_s = reply_s
        self._end = end
        self._replies = replies
        self._set()

    def _set(self) -> None:
        self._handle = self._loop.call_later(self._reply_s, self._check, len(self._replies))

    def _check(self, before: int) -> None:
        if len(self._replies) > before:
            self._set()
        else:
            self._end(None)

    def cancel(self) -> None:
        """Stop the timer."""
        self._handle.cancel()


def is_refusal(error: BaseException) -> bool:
    """Return whether trying again is useless: the server refuses this user, or one side the other's certificate."""
    return (isinstance(error, (nats.errors.AuthorizationError, ssl.SSLCertVerificationError))
            or "authorization" in str(error).lower() or "authentication" in str(error).lower())


async def end(client: Client) -> None:
    """Close a client, whatever state it is in."""
    try:
        await asyncio.wait_for(client.close(), CONNECT_S)
    except Exception:  # pylint: disable=broad-exception-caught  # it is given up in any case
        pass
