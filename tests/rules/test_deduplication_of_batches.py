"""Deduplication of batches and of delayed messages: each id is sent once, whatever it comes with."""

import dataclasses
from typing import Dict, List, Optional, Sequence, Tuple

import hypothesis
import pytest
from hypothesis import strategies as st

from persipubsub import HighWaterMark, Strategy, errors
from persipubsub.delayed import DelayedMessage
from persipubsub.engine.commands import Cancel, PutLater
from persipubsub.engine.values import DueTime, batch_of
from persipubsub.lmdb_engine.rules import deduplication
from tests.rules import queues
from tests.rules.queues import START_US, Queue

WINDOW_S = 100
DELAY_S = 10_000
_IDS = st.one_of(st.none(), st.sampled_from([b"a", b"b", b"c", b"d"]))


def put_once(queue: Queue, identifiers: Sequence[Optional[bytes]], first: int = 0) -> Sequence[int]:
    """Send a batch of numbered messages with ids; return the message ids."""
    payloads = [b"%d" % number for number in range(first, first + len(identifiers))]
    headers = [b'{"of":"%s"}' % payload if index % 2 else b"" for index, payload in enumerate(payloads)]
    return queue.put(batch_of(payloads, headers), identifiers)


@dataclasses.dataclass
class Model:
    """What was sent, and with which ids."""

    sent: List[bytes] = dataclasses.field(default_factory=list)
    #: The message id, or what was returned of a delayed message, and when it was sent.
    remembered: Dict[bytes, Tuple[object, int]] = dataclasses.field(default_factory=dict)
    delayed: int = 0

    def before(self, identifier: Optional[bytes], now_us: int) -> object:
        """Return what is remembered of an id."""
        found, sent_us = self.remembered.get(identifier or b"", (None, 0))
        return found if sent_us >= now_us - WINDOW_S * 10**6 else None

    def put(self, identifiers: Sequence[Optional[bytes]], first: int, now_us: int) -> List[int]:
        """Send a batch; return the message ids."""
        ids = []
        for number, identifier in enumerate(identifiers, first):
            before = self.before(identifier, now_us)
            if before is not None:
                ids.append(before if isinstance(before, int) else 0)
                continue
            self.sent.append(b"%d" % number)
            ids.append(len(self.sent))
            if identifier is not None:
                self.remembered[identifier] = len(self.sent), now_us
        return ids


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(
    steps=st.lists(st.one_of(st.lists(_IDS, min_size=1, max_size=8), _IDS, st.integers(1, WINDOW_S + 1)), max_size=15))
def test_each_id_is_sent_once(steps: List[object]) -> None:
    """Within the window, a message with an id that was sent before is not sent; its sender gets what the first one got.

    A list is a batch, an id is that of a delayed message, and a number is the seconds that pass.
    """
    model, first = Model(), 0
    with queues.opened("a", deduplication_window_s=WINDOW_S) as queue:
        for step in steps:
            if isinstance(step, int):
                queue.pass_s(step)
            elif isinstance(step, list):
                assert put_once(queue, step, first) == model.put(step, first, queue.now_us)
                first += len(step)
            elif step is None or isinstance(step, bytes):
                send_later(queue, model, step)
        assert queue.look().payloads == model.sent
        assert queue.control.status().delayed == model.delayed
        assert [one.headers for one in queue.look().details if one.headers
                ] == [b'{"of":"%s"}' % payload for payload in model.sent if payload in with_headers(steps)]


def with_headers(steps: List[object]) -> List[bytes]:
    """Return the messages that were sent with headers: every second one of each batch."""
    found, first = [], 0
    for step in steps:
        if isinstance(step, list):
            found += [b"%d" % (first + index) for index in range(len(step)) if index % 2]
            first += len(step)
    return found


def send_later(queue: Queue, model: Model, identifier: Optional[bytes]) -> None:
    """Send a delayed message, of which its id shows whether it is the first."""
    found = queue.run(PutLater(b"later", DueTime(DELAY_S * 10**6), b"", identifier))
    before = model.before(identifier, queue.now_us)
    if before is None:
        model.delayed += 1
        if identifier is not None:
            model.remembered[identifier] = found, queue.now_us
    elif isinstance(before, DelayedMessage):
        assert found == before
    else:
        assert found.number == 0 and not queue.run(Cancel(found))


def test_a_batch_with_one_id_twice() -> None:
    """Two messages of a batch with one id are one: the first, whose id both senders get."""
    with queues.opened("a") as queue:
        assert put_once(queue, [b"a", None, b"a", b"b", b"a", None]) == [1, 2, 1, 3, 1, 4]
        assert queue.look().payloads == [b"0", b"1", b"3", b"5"]
        assert [one.headers for one in queue.look().details] == [b"", b'{"of":"1"}', b'{"of":"3"}', b'{"of":"5"}']


def test_a_batch_of_which_nothing_is_new() -> None:
    """A batch that was sent before stores nothing, and wakes nobody; its sender gets the ids of the first one."""
    with queues.opened("a") as queue:
        assert put_once(queue, [b"a", b"b"]) == put_once(queue, [b"a", b"b"]) == [1, 2]
        assert queue.control.status().next_id == 3


def test_a_refused_batch_remembers_nothing() -> None:
    """The ids of a batch that had no room can be sent again."""
    with queues.opened("a", high_watermark=HighWaterMark(max_messages=2), strategy=Strategy.refuse) as queue:
        put_once(queue, [b"a"])
        with pytest.raises(errors.QueueFullError):
            put_once(queue, [b"a", b"b", b"c"])
        assert put_once(queue, [b"a", b"b"]) == [1, 2]  # a message that was sent before needs no room


def test_forgetting_in_batches() -> None:
    """A batch with more ids than the queue may remember leaves the latest of them."""
    with queues.opened("a", deduplication_max=3) as queue:
        put_once(queue, [b"%d" % number for number in range(20)])
        assert queue.read(lambda txn: txn.deduplication_count()) == 3
        assert put_once(queue, [b"17", b"18", b"19", b"16"]) == [18, 19, 20, 21]


def test_ids_over_a_lowered_limit_are_forgotten_step_by_step() -> None:
    """Each new id has at most a bounded number of old ones forgotten."""
    with queues.opened("a") as queue:
        put_once(queue, [b"%d" % number for number in range(100)])
        queue.environment.new_control(deduplication_max=1)
        put_once(queue, [b"new"])
        assert queue.read(lambda txn: txn.deduplication_count()) == 101 - deduplication.FORGOTTEN_MAX


def test_a_delayed_message_that_was_sent_before() -> None:
    """Whoever sends a delayed message again gets the first one, and can cancel it; after that its id is still taken."""
    with queues.opened("a") as queue:
        later = PutLater(b"later", DueTime(DELAY_S * 10**6), b'{"a":"b"}', b"id")
        first = queue.run(later)
        queue.pass_s(1)
        again = queue.run(later._replace(payload=b"again", due=DueTime(5)))
        assert again == first == DelayedMessage(again.due_us, 1) and again.due_us - first.due_us == 0
        assert put_once(queue, [b"id"]) == [0]
        assert queue.run(Cancel(again)) and not queue.run(Cancel(first))
        assert queue.run(later) == first and queue.control.status().delayed == 0


def test_a_message_that_was_sent_before_is_not_delayed() -> None:
    """Whoever delays a message that was sent before gets what names no delayed message."""
    with queues.opened("a") as queue:
        put_once(queue, [b"id"])
        queue.pass_s(1)
        found = queue.run(PutLater(b"later", DueTime(DELAY_S * 10**6), b"", b"id"))
        assert found.number == 0 and found.due_us == queue.look().details[0].sent_us
        assert queue.control.status().delayed == 0 and queue.now_us > START_US
