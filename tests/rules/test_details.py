"""What a delivery says of its message: id, time of sending, number of deliveries and headers."""

from typing import List, Tuple

import pytest

from persipubsub.engine.commands import Fail, GiveBack
from persipubsub.engine.values import Details, Failure, Found, batch_of
from persipubsub.lmdb_engine.records.layouts import PART_BYTES
from tests.rules import queues
from tests.rules.queues import Queue

HEADERS = b'{"trace":"1"}'
FAILURE = Failure("ValueError", "wrong")
#: Headers that fill more than a page.
LONG_HEADERS = b'{"long":"%s"}' % bytes([65] * 60_000)


def send(queue: Queue, *headers: bytes, payload: bytes = b"payload") -> None:
    """Send messages with headers, all together."""
    queue.put(batch_of([payload] * len(headers), headers))


def sent_us(queue: Queue, message_id: int) -> int:
    """Return when a stored message was sent, as the history says."""
    stored, = queue.control.history(message_id, message_id + 1)
    return round(stored.time.timestamp() * 10**6)


@pytest.mark.parametrize("payload", [b"", b"short", bytes(PART_BYTES - 1), bytes(PART_BYTES), bytes(3 * PART_BYTES)])
def test_headers_of_messages_of_every_length(payload: bytes) -> None:
    """Each message of a batch has its own headers, or none, however many parts it has."""
    with queues.opened("a") as queue:
        send(queue, HEADERS, b"", LONG_HEADERS, payload=payload)
        found = queue.look()
        assert found.payloads == [payload] * 3
        assert [one.headers for one in found.details] == [HEADERS, b"", LONG_HEADERS]
        assert [one.message_id for one in found.details] == [1, 2, 3]


def test_the_time_of_sending() -> None:
    """Each message has the time at which it was sent, by the queue's clock."""
    with queues.opened("a") as queue:
        for _ in range(3):
            send(queue, b"")
            queue.pass_s(7)
        times = [one.sent_us for one in queue.look().details]
        assert [time - times[0] for time in times] == [0, 7_000_000, 14_000_000]
        assert times == [sent_us(queue, message_id) for message_id in (1, 2, 3)]


def test_a_plain_subscriber_counts_no_deliveries() -> None:
    """The queue does not count the deliveries to a subscriber without a limit of them, which 0 says."""
    with queues.opened("a") as queue:
        send(queue, HEADERS, b"")
        queue.run(Fail(queue.subscription(), [1], FAILURE))
        assert [one.deliveries for one in queue.look().details] == [0, 0]


def test_failed_deliveries_are_counted() -> None:
    """A message that failed twice is delivered for the third time; the one after it for the first."""
    with queues.opened() as queue:
        queue.control.add_subscriber("a", max_deliveries=5)
        send(queue, HEADERS, b"")
        for failed in range(3):
            assert queue.look().details[0].deliveries == failed + 1
            queue.run(Fail(queue.subscription(), [1], FAILURE))
        assert queue.acknowledge(1) == [b"payload"]
        assert [one.deliveries for one in queue.look().details] == [1]


def test_deliveries_to_workers_are_counted() -> None:
    """Every claim of a message counts: those that failed, those whose lease has ended, and this one."""
    with queues.opened() as queue:
        queue.control.add_subscriber("workers", shared=True, lease_s=10, max_deliveries=9, retry_delay_s=0)
        send(queue, HEADERS, b"")
        first = queue.claim(2, "workers")
        assert counted(first) == [(1, 1, HEADERS), (2, 1, b"")]
        queue.run(GiveBack(queue.subscription("workers"), [1], first.token, FAILURE))
        assert counted(queue.claim(2, "workers")) == [(1, 2, HEADERS)]
        queue.pass_s(11)
        assert counted(queue.claim(2, "workers")) == [(1, 3, HEADERS)]
        assert counted(queue.claim(2, "workers")) == [(2, 2, b"")]


def counted(found: Found) -> List[Tuple[int, int, bytes]]:
    """Return the id, the number of deliveries and the headers of what was found."""
    return [(one.message_id, one.deliveries, one.headers) for one in found.details]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("payload, headers", [(b"short", HEADERS), (bytes(3 * PART_BYTES), LONG_HEADERS),
                                              (b"short", b"")])
def test_a_requeued_message_is_the_same(shared: bool, payload: bytes, headers: bytes) -> None:
    """A requeued dead letter has the id, the time of sending and the headers of its message, and counts from 1."""
    with queues.opened() as queue:
        queue.control.add_subscriber("a", shared=shared, max_deliveries=1)
        send(queue, headers, payload=payload)
        before = sent_us(queue, 1)
        queue.pass_s(5)
        fail_next(queue, shared)
        queue.pass_s(5)
        letter, = queue.control.dead_letters("a")
        assert (letter.payload, round(letter.sent_time_s * 10**6)) == (payload, before)
        queue.control.requeue_dead_letters("a")
        found = queue.claim(1, "a") if shared else queue.look()
        assert found.payloads == [payload]
        assert list(found.details) == [Details(1, before, 1, headers)]


def fail_next(queue: Queue, shared: bool) -> None:
    """Have the next message become a dead letter."""
    if shared:
        claimed = queue.claim(1, "a")
        queue.run(GiveBack(queue.subscription(), claimed.ids, claimed.token, FAILURE))
    else:
        queue.run(Fail(queue.subscription(), queue.look(1).ids, FAILURE))
