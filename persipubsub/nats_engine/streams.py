"""The two streams of a queue: their names, their settings, and the requests about them.

The *stream of messages* has each message once. Its sequence numbers are the message ids. A delayed message is in it
from the beginning, under a subject that no subscriber reads, so it takes an id, too.
The *stream of state* has one record for the queue and one for each subscriber, and the dead letters. A record is
replaced by compare-and-set: the write names the revision that it replaces.
"""

import base64
import datetime
import functools
import json
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import msgspec

from persipubsub import clock, errors
from persipubsub.nats_engine.client import Headers, Lost, Publication, Reply
from persipubsub.nats_engine.connection import REPLY_S, Connection
from persipubsub.nats_engine.messages import Stored, stored

#: The server remembers the ids of messages for this time at least, so that a send can be tried again.
WINDOW_S_MIN = 120
#: A batch may take longer to arrive, by its size.
BYTES_PER_S = 10 * 1024**2
#: The server's limit for a batch that is stored as a whole.
BATCH_MESSAGES_MAX = 1000
#: How long a measurement of the servers' time is used.
MEASURED_US = 60 * 10**6

# Error codes of the server.
NO_MESSAGE = 10037
NO_STREAM = 10059
EXISTS = 10058
WRONG_LAST = (10071, 10070, 10164)
BATCH_DUPLICATE = 10201
ROLLUP_REFUSED = 10111
#: The account, or the disk of a server, has no space for more.
NO_SPACE = (10002, 10023, 10028, 10047, 10077)
NO_ROOM_FOR_REPLICAS = (10005, 10074)


class ApiError(Exception):
    """The server refused a request."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code


class Ack(msgspec.Struct):
    """The answer to a message that was published into a stream."""

    seq: int = 0
    duplicate: bool = False
    count: int = 1
    error: Optional[Dict[str, Any]] = None


_ACKS = msgspec.json.Decoder(Ack)


class State(NamedTuple):
    """What a stream has at one moment."""

    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    #: How many messages each subject has, as far as they were asked for.
    subjects: Mapping[str, int]
    config: Mapping[str, Any]
    cluster: Mapping[str, Any]


class Names:  # pylint: disable=too-many-instance-attributes  # one for each name
    """The names of the streams and subjects of a queue."""

    def __init__(self, queue: str) -> None:
        self.messages = f"persipubsub-messages-{queue}"
        self.state = f"persipubsub-state-{queue}"
        root = f"persipubsub.{queue}"
        #: Where sends go, and where delayed messages go when they are due.
        self.sent = f"{root}.m.s"
        self.due = f"{root}.m.d"
        #: All that subscribers read.
        self.read = f"{root}.m.>"
        #: Before the number and the size of a delayed message.
        self.delayed = f"{root}.d"
        #: How far each relay has come that brings messages, by its identity.
        self.relayed = f"{root}.r"
        self.records = f"{root}.s.r"
        self.queue = f"{root}.s.r.queue"
        self.subscribers = f"{root}.s.r.sub"
        self.letters = f"{root}.s.letter"
        self.failures = f"{root}.s.failure"
        #: When delayed messages with deduplication ids are due.
        self.due_times = f"{root}.s.due"
        self.all_state = f"{root}.s.>"
        #: What wakes the processes that wait; no stream has these subjects.
        self.pushed = f"{root}.w"
        self.readers = f"{root}.w.reader"

    def subscriber(self, identifier: bytes) -> str:
        """Return the subject of the record of a subscriber, whatever characters its identifier has."""
        return f"{self.subscribers}.{base64.b32encode(identifier).decode().rstrip('=').lower()}"


def identifier_of(subject: str) -> bytes:
    """Return the identifier of the subscriber whose record has a subject."""
    token = subject.rpartition(".")[2].upper()
    return base64.b32decode(token + "=" * (-len(token) % 8))


def messages_config(names: Names, replicas: int, window_us: int, message_timeout_us: Optional[int]) -> Dict[str, Any]:
    """Return the settings of the stream of messages.

    :param window_us: for how long ids are remembered
    :param message_timeout_us: when messages expire. The server deletes them then or later, and readers look at their
        age
    """
    window_ns = max(window_us * 1000, WINDOW_S_MIN * 10**9)
    return {
        **_config(names.messages, [names.read, f"{names.delayed}.>", f"{names.relayed}.>"], replicas),
        "allow_direct": True,
        "allow_msg_schedules": True,
        "allow_msg_ttl": True,
        "allow_rollup_hdrs": True,
        "duplicate_window": window_ns,
        # Not below the window, which the server would refuse.
        "max_age": 0 if message_timeout_us is None else max(message_timeout_us * 1000, window_ns),
        "republish": {
            "src": names.read,
            "dest": f"{names.pushed}.m.>",
            "headers_only": True
        },
    }


def state_config(names: Names, replicas: int) -> Dict[str, Any]:
    """Return the settings of the stream of state."""
    return {
        **_config(names.state, [names.all_state], replicas),
        "allow_msg_ttl": True,
        "max_msgs_per_subject": 1,
        "republish": {
            "src": f"{names.records}.>",
            "dest": f"{names.pushed}.r.>"
        },
    }


def _config(name: str, subjects: List[str], replicas: int) -> Dict[str, Any]:
    return {
        "name": name,
        "subjects": subjects,
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": replicas,
        "allow_atomic": True,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
    }


class ServerTime:
    """The time of the servers, which may differ from that of this machine."""

    def __init__(self) -> None:
        self._ahead_us = 0
        self._error_us = 2**63
        self._noted_us = -MEASURED_US

    @property
    def is_known(self) -> bool:
        """Return whether it was measured recently."""
        return clock.boottime_us() - self._noted_us < MEASURED_US

    def now_us(self) -> int:
        """Return the time since the epoch."""
        return clock.boottime_us() + self._ahead_us

    def since_boot_us(self, time_us: int) -> int:
        """Return a time of the servers on the clock of this machine."""
        return time_us - self._ahead_us

    def note(self, time_us: int, asked_us: int, answered_us: int) -> None:
        """Note the time of a server, and when it was asked and had answered by the clock of this machine."""
        error_us = answered_us - asked_us
        if error_us <= self._error_us or not self.is_known:
            self._ahead_us, self._error_us = time_us - (asked_us + answered_us) // 2, error_us
            self._noted_us = answered_us


class Api:
    """Requests to JetStream. Each is tried again until it succeeds, or until waiting is given up."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.time = ServerTime()

    async def call(self,
                   name: str,
                   request: Optional[Mapping[str, Any]] = None,
                   writes: bool = False) -> Dict[str, Any]:
        """Return the answer to a request.

        :param writes: whether it changes something
        :raise ApiError: the server refuses it
        """
        payload = b"" if request is None else json.dumps(request).encode()

        async def attempt() -> Dict[str, Any]:
            reply = await self.connection.request(f"$JS.API.{name}", payload)
            answer: Dict[str, Any] = json.loads(reply.data)
            _raise_error(answer.get("error"))
            return answer

        return await self.connection.persist(attempt, writes)

    async def state(self, stream: str, subjects: Optional[str] = None) -> State:
        """Return what a stream has, as its leader knows it.

        :param subjects: a pattern of the subjects to count
        """
        asked_us = clock.boottime_us()
        answer = await self.call(f"STREAM.INFO.{stream}", {} if subjects is None else {"subjects_filter": subjects})
        self.time.note(microseconds(answer["ts"]), asked_us, clock.boottime_us())
        state, found = answer["state"], dict(answer["state"].get("subjects") or {})
        while subjects is not None and len(found) < answer.get("total", 0):  # a page has 100,000 subjects
            request = {"subjects_filter": subjects, "offset": len(found)}
            page = (await self.call(f"STREAM.INFO.{stream}", request))["state"].get("subjects")
            if not page:
                break
            found.update(page)
        return State(state["messages"], state["bytes"], state["first_seq"], state["last_seq"], found, answer["config"],
                     answer.get("cluster") or {})

    async def get(self, stream: str, **request: Any) -> Optional[Stored]:
        """Return a message, as the leader of the stream knows it; None if there is none."""
        try:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", request)
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        return stored(message["seq"], microseconds(message["time"]), message["subject"],
                      base64.b64decode(message.get("hdrs", "")), base64.b64decode(message.get("data", "")))

    async def get_many(self, stream: str, **request: Any) -> List[Reply]:
        """Return the answers to a request for many messages, from any replica: it may lack the latest ones."""
        payload = json.dumps(request).encode()

        async def attempt() -> List[Reply]:
            replies = await self.connection.requests(f"$JS.API.DIRECT.GET.{stream}", payload, _ends_batch)
            last = replies.pop()
            if last.status not in (204, 404):
                raise Lost(last.header[9:].decode(errors="replace").strip(), maybe_done=False)
            return replies

        return await self.connection.persist(attempt, writes=False)

    async def publish(self, subject: str, payload: bytes, headers: Optional[Headers] = None) -> Ack:
        """Publish a message into a stream, once. The header has to make another try harmless.

        :raise Lost: the outcome is unknown, or nobody answers
        :raise ApiError: the server refuses it
        """
        reply = await self.connection.request(subject, payload, headers, REPLY_S + len(payload) / BYTES_PER_S)
        return _acknowledged(reply)

    async def publish_batch(self, batch_id: str, batch: Sequence[Publication]) -> Ack:
        """Publish a batch into one stream, once, all or none of it.

        :raise Lost: the outcome is unknown, or nobody answers
        :raise ApiError: the server refuses it
        """
        for number, publication in enumerate(batch, 1):
            publication.headers["Nats-Batch-Id"] = batch_id
            publication.headers["Nats-Batch-Sequence"] = str(number)
        last = batch[-1]
        last.headers["Nats-Batch-Commit"] = "1"
        reply_s = REPLY_S + sum(len(publication.payload) for publication in batch) / BYTES_PER_S
        reply = await self.connection.request(last.subject, last.payload, last.headers, reply_s, batch[:-1])
        return _acknowledged(reply)

    async def purge(self, stream: str, **request: Any) -> int:
        """Delete messages; return how many."""
        return int((await self.call(f"STREAM.PURGE.{stream}", request, writes=True))["purged"])


def _ends_batch(reply: Reply) -> bool:
    return reply.status != 0


def _acknowledged(reply: Reply) -> Ack:
    ack = _ACKS.decode(reply.data)
    _raise_error(ack.error)
    return ack


def _raise_error(error: Optional[Mapping[str, Any]]) -> None:
    if error is not None:
        code, text = error.get("err_code", 0), error.get("description", "")
        if error.get("code") == 503 or code in IN_PROGRESS or OFFLINE in text:
            raise Lost(text, maybe_done=code in IN_PROGRESS)
        raise ApiError(code, text)


#: In the text of an error, since its code is also that of too few servers.
OFFLINE = "peer offline"
#: A message with this id is being stored just now.
IN_PROGRESS = (10158, )


def microseconds(timestamp: str) -> int:
    """Return a timestamp of the server in microseconds since the epoch."""
    main, _, fraction = timestamp.rstrip("Z").partition(".")
    return _seconds(main) * 10**6 + int(fraction[:6].ljust(6, "0"))


@functools.lru_cache(maxsize=100)  # many messages are sent within a second
def _seconds(timestamp: str) -> int:
    return int(datetime.datetime.fromisoformat(timestamp).replace(tzinfo=datetime.timezone.utc).timestamp())


def timestamp_of(time_us: int) -> str:
    """Return a time since the epoch as the server reads it."""
    moment = datetime.datetime.fromtimestamp(time_us // 10**6, datetime.timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_us % 10**6:06}Z"


def refused(error: ApiError, shown: str) -> errors.StorageError:
    """Return the error of a request that the servers refused for a reason that is not the caller's."""
    kind = errors.DiskFullError if error.code in NO_SPACE else errors.StorageError
    return kind(f"The cluster of {shown} refused a request: {error}. Nothing was changed. Check the limits and the "
                "state of the streams with: nats stream report")


def not_initialized(shown: str) -> errors.NotInitializedError:
    """Return the error of a location without a queue."""
    return errors.NotInitializedError(f"There is no queue at {shown}. Set it up once, with Environment.new_control or "
                                      "with persipubsub create.")
