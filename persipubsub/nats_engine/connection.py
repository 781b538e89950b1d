"""The connection of this process to a cluster: requests, which wait for lost servers, and subscriptions.

nats-py speaks the protocol; it is told not to reconnect. After some errors of the server it would give up for good, and
it keeps what it could not send, and sends that later. So a lost connection is replaced by a new one here.
"""

import asyncio
import itertools
import os
import random
from typing import Any, Awaitable, Callable, Dict, List, Optional, Sequence, TypeVar

from persipubsub import errors
from persipubsub.nats_engine.client import (CONNECT_S, PROBLEMS, Client, Handler, Headers, Lost, Publication, Reply,
                                            Timer, end, is_refusal)
from persipubsub.nats_engine.url import Target

T = TypeVar("T")

#: How long an operation goes on trying, which outlasts elections and restarts.
PATIENCE_S = 30.0
#: How long one try waits for its answer.
REPLY_S = 2.0
#: The pauses between tries and between connections.
PAUSE_S = 0.1
#: Requests in a row without an answer, after which another server is tried.
SILENT_MAX = 2
PING_S = 5


class Connection:  # pylint: disable=too-many-instance-attributes  # the state of a connection
    """A connection that is restored whenever it is lost. All methods run on the loop, except __init__."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.patience_s: float = target.timeout_s or PATIENCE_S
        self.users = 0
        #: Rises with each new connection: what was pushed over an older one may be incomplete.
        self.epoch = 0
        self.max_payload = 2**20
        self._client: Optional[Client] = None
        self._connecting: "Optional[asyncio.Task[None]]" = None
        self._prefix = f"_INBOX.pps{os.urandom(12).hex()}."
        self._tokens = itertools.count()
        self._waiting: Dict[bytes, Callable[[Optional[Reply]], None]] = {}
        self._subscriptions: Dict[str, Optional[Handler]] = {}
        self._reconnected: List[Callable[[], None]] = []
        self._silent = 0
        self._problem = "it has not answered yet"
        self._refused: Optional[errors.PersipubsubError] = None
        self._closed = False

    # Connecting

    async def connected(self, ends_s: float) -> Client:
        """Return the client once there is a connection.

        :param ends_s: by the clock of the loop, when to give up
        :raise Lost: there is none in time
        :raise PathError: a server refuses this user or these certificates
        """
        while self._client is None or not self._client.is_connected:
            if self._closed:
                raise Lost("the queue was closed meanwhile", maybe_done=False)
            if self._connecting is None or self._connecting.done():
                self._refused = None
                self._connecting = asyncio.get_running_loop().create_task(self._connect())
            left_s = ends_s - asyncio.get_running_loop().time()
            await asyncio.wait([self._connecting], timeout=max(0.0, left_s))
            if self._refused is not None:
                raise self._refused
            if not self._connecting.done():
                raise Lost(self._problem, maybe_done=False)
        return self._client

    async def _connect(self) -> None:
        """Try one server after another until one accepts."""
        servers = self.target.servers()
        random.shuffle(servers)
        for server in itertools.cycle(servers):
            if self._closed:
                return
            try:
                await self._connect_to(server)
                return
            except errors.PersipubsubError as error:
                self._refused = error
                return
            except PROBLEMS as error:
                self._problem = f"{server}: {str(error) or type(error).__name__}"
                if is_refusal(error):
                    self._refused = errors.PathError(
                        f"{server} refuses the connection for {self.target.shown}: {error}. Correct the user, the "
                        "password, the credentials or the certificates.")
                    return
            await asyncio.sleep(PAUSE_S)

    async def _connect_to(self, server: str) -> None:
        target, client = self.target, Client()

        async def fail(error: Exception) -> None:
            # Otherwise the client would try the same server again, and sleep for seconds in between.
            if not client.was_connected:
                raise error

        async def lose() -> None:
            self._lose(client)

        secret = target.known_secret()
        login = {"token": secret} if target.user is None else {"user": target.user, "password": secret}
        options: Dict[str, Any] = {name: value for name, value in login.items() if value is not None}
        if target.credentials is not None:
            options["user_credentials"] = target.readable_credentials()
        tls = target.ssl_context()
        if tls is not None:
            options["tls"] = tls
        try:
            await asyncio.wait_for(
                client.connect([server],
                               name="persipubsub",
                               allow_reconnect=False,
                               connect_timeout=CONNECT_S,
                               ping_interval=PING_S,
                               max_outstanding_pings=1,
                               error_cb=fail,
                               closed_cb=lose,
                               **options), 2 * CONNECT_S)
            client.was_connected = True
            await client.listen(f"{self._prefix}*", self._answer)
            for subject, handler in self._subscriptions.items():
                await client.listen(subject, handler)
            await client.flush(CONNECT_S)
        except BaseException:
            await end(client)
            raise
        self._client, self.max_payload, self._silent = client, client.max_payload, 0
        self.epoch += 1
        for callback in list(self._reconnected):
            callback()

    def _lose(self, client: Client) -> None:
        """Let all requests of a connection that has ended fail."""
        if client is self._client:
            self._client = None
            self._problem = f"{self.target.shown}: the connection was lost"
            waiting, self._waiting = self._waiting, {}
            for answer in waiting.values():
                answer(None)

    def _replace(self, client: Client) -> None:
        """Abandon a connection whose server no longer answers."""
        self._lose(client)
        task = asyncio.get_running_loop().create_task(end(client))
        task.add_done_callback(lambda _: None)

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        client = self._client
        if client is not None:
            self._lose(client)
            await end(client)

    def on_connection(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call a function at each new connection; return a function that cancels these calls."""
        self._reconnected.append(callback)
        return lambda: self._reconnected.remove(callback)

    async def subscribe(self, subject: str, handler: Optional[Handler]) -> None:
        """Pass the messages of a subject to a handler, or answer them, also after a reconnection."""
        self._subscriptions[subject] = handler
        client = self._client
        if client is not None and client.is_connected:
            await client.listen(subject, handler)
            await client.flush(CONNECT_S)

    async def answer(self, subject: str) -> None:
        """Answer each request for a subject with an empty message."""
        await self.subscribe(subject, None)

    async def unsubscribe(self, subject: str) -> None:
        """Stop passing on the messages of a subject."""
        if subject in self._subscriptions:
            del self._subscriptions[subject]
            if self._client is not None:
                await self._client.ignore(subject)

    async def is_cluster(self) -> bool:
        """Return whether the servers are a cluster."""
        loop = asyncio.get_running_loop()

        async def attempt() -> bool:
            client = await self.connected(loop.time() + REPLY_S)
            return "cluster" in client._server_info  # pylint: disable=protected-access  # nats-py does not show it

        return await self.persist(attempt, writes=False)

    # Requests

    def _answer(self, subject: bytes, header: bytes, data: bytes) -> None:
        waiting = self._waiting.get(subject[len(self._prefix):])
        if waiting is not None:
            self._silent = 0
            waiting(Reply(header, data))

    async def request(self,
                      subject: str,
                      payload: bytes,
                      headers: Optional[Headers] = None,
                      reply_s: float = REPLY_S,
                      before: Sequence["Publication"] = ()) -> Reply:
        """Send a request once, and return the answer.

        :param reply_s: how long to wait for it
        :param before: what to publish before it, over the same connection
        :raise Lost: there is no connection, or no answer
        """
        replies = await self.requests(subject, payload, _always, headers, reply_s, before)
        return replies[0]

    # pylint: disable-next=too-many-locals  # arguments, and what the answers need
    async def requests(self,
                       subject: str,
                       payload: bytes,
                       is_last: Callable[[Reply], bool],
                       headers: Optional[Headers] = None,
                       reply_s: float = REPLY_S,
                       before: Sequence["Publication"] = ()) -> List[Reply]:
        """Send a request once, and return all its answers. Arguments and errors are those of :meth:`request`.

        :param is_last: returns whether an answer is the last one
        """
        client = self._client
        if client is None or not client.is_connected:
            raise Lost(self._problem, maybe_done=False)
        loop = asyncio.get_running_loop()
        done: "asyncio.Future[None]" = loop.create_future()
        token, replies = b"%x" % next(self._tokens), list[Reply]()

        def answer(reply: Optional[Reply]) -> None:
            if reply is not None:
                replies.append(reply)
            if (reply is None or is_last(reply)) and not done.done():
                done.set_result(None)

        self._waiting[token] = answer
        timer = Timer(loop, reply_s, answer, replies)
        try:
            for publication in before:
                await client.publish(publication.subject, publication.payload, "", publication.headers)
            await client.publish(subject, payload, f"{self._prefix}{token.decode()}", headers)
            await done
        except PROBLEMS as error:
            raise Lost(f"{self.target.shown}: {error}", maybe_done=True) from error
        finally:
            timer.cancel()
            self._waiting.pop(token, None)
        if not replies or not is_last(replies[-1]):
            self._note_silence(client)
            raise Lost(f"{self.target.shown}: no answer", maybe_done=True)
        if replies[0].status == 503:
            raise Lost(f"{self.target.shown}: no server answers: no leader is elected now, or JetStream is not enabled",
                       maybe_done=False)
        return replies

    def _note_silence(self, client: Client) -> None:
        self._silent += 1
        if self._silent >= SILENT_MAX and client is self._client:
            self._replace(client)

    async def persist(self, attempt: Callable[[], Awaitable[T]], writes: bool) -> T:
        """Try something until it succeeds, or for :data:`PATIENCE_S`.

        :param attempt: may be tried again whatever became of it before; raises Lost for a try that failed
        :param writes: whether it changes the queue
        :raise UnavailableError: no try succeeded, and the queue is unchanged
        :raise ClosedError: the connection was closed meanwhile, and the queue is unchanged
        :raise CommitUnknownError: no try succeeded, but one of them may have changed the queue
        """
        loop = asyncio.get_running_loop()
        ends_s, maybe_done = loop.time() + self.patience_s, False
        while True:
            try:
                await self.connected(ends_s)
                return await attempt()
            except Lost as error:
                maybe_done = maybe_done or (error.maybe_done and writes)
                if loop.time() >= ends_s or self._closed:
                    raise self._gave_up(error, maybe_done) from error
            await asyncio.sleep(PAUSE_S)

    def _gave_up(self, error: Lost, maybe_done: bool) -> errors.PersipubsubError:
        if self._closed and not maybe_done:
            return errors.ClosedError(f"The queue at {self.target.shown} was closed meanwhile. Nothing was changed.")
        if self._closed:
            return errors.CommitUnknownError(
                f"The queue at {self.target.shown} was closed before the cluster confirmed a change. Whether it is "
                "stored is unknown. Stop whatever sends before you close the queue.")
        if maybe_done:
            return errors.CommitUnknownError(
                f"The cluster of {self.target.shown} did not confirm a change within {self.patience_s:g} seconds "
                f"({error}). Whether it is stored is unknown. A repeat with its deduplication_id is stored once.")
        return errors.UnavailableError(
            f"The cluster of {self.target.shown} was not available for {self.patience_s:g} seconds ({error}). "
            "Nothing was changed. Check the servers with: nats server list")


def _always(_reply: Reply) -> bool:
    return True
