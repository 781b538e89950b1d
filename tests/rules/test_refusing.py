"""A queue that refuses messages at its high-water mark drops nothing, and refuses only what does not fit."""

import dataclasses
from typing import List, Optional, Sequence, Tuple, Type

import hypothesis
import pytest
from hypothesis import strategies as st

from persipubsub import HighWaterMark, Strategy, errors
from persipubsub.engine.commands import PutLater
from persipubsub.engine.values import Batch, DueTime, batch_of
from persipubsub.lmdb_engine.rules import appending, message_log
from persipubsub.queue import RECORD_BYTES_MAX
from tests.rules import queues
from tests.rules.queues import Queue

TIMEOUT_S = 100


def numbered(first: int, count: int, headers: bytes = b"") -> Batch:
    """Return a batch of messages that say their numbers."""
    return batch_of([b"%d" % number for number in range(first, first + count)], [headers] * count)


@dataclasses.dataclass
class Model:
    """What a queue with a limit of messages holds."""

    mark: int
    retains: bool
    awaited: List[bytes] = dataclasses.field(default_factory=list)
    retained: int = 0
    next_id: int = 1

    def refuses(self, count: int) -> Optional[Type[errors.PersipubsubError]]:
        """Return the error for a batch that does not fit; retained messages do not keep it out."""
        if count > self.mark:
            return errors.BatchTooLargeError
        return errors.QueueFullError if len(self.awaited) + count > self.mark else None

    def put(self, payloads: Sequence[bytes], gives_way: bool) -> None:
        """Append messages; as many retained ones as necessary give way."""
        surplus = len(self.awaited) + self.retained + len(payloads) - self.mark
        if gives_way and surplus > 0:
            self.retained -= surplus
        self.awaited += payloads
        self.next_id += len(payloads)

    def acknowledge(self, count: int) -> List[bytes]:
        """Acknowledge the first messages."""
        taken, self.awaited = self.awaited[:count], self.awaited[count:]
        self.retained += len(taken) if self.retains else 0
        return taken


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(mark=st.integers(1, 12),
                  retains=st.booleans(),
                  headers=st.sampled_from([b"", b'{"name":"text"}']),
                  steps=st.lists(st.tuples(st.sampled_from(["put", "put", "accept", "acknowledge", "expire"]),
                                           st.integers(1, 14)),
                                 max_size=25))
def test_messages(mark: int, retains: bool, headers: bytes, steps: List[Tuple[str, int]]) -> None:
    """A batch is stored as a whole or refused as a whole, exactly if it does not fit beside the awaited messages."""
    model = Model(mark, retains)
    with queues.opened("a",
                       high_watermark=HighWaterMark(TIMEOUT_S, mark),
                       strategy=Strategy.refuse,
                       retention_s=TIMEOUT_S if retains else 0) as queue:
        for what, count in steps:
            batch = numbered(model.next_id, count, headers)
            refused = model.refuses(count)
            if what == "expire":
                queue.pass_s(TIMEOUT_S + 1)
                model = Model(mark, retains, next_id=model.next_id)
                continue
            if what == "acknowledge":
                assert queue.acknowledge(count) == model.acknowledge(count)
            elif what == "accept":
                queue.write(appending.put_accepted, batch)
                model.put(batch.payloads, gives_way=False)
            elif refused is not None:
                with pytest.raises(refused):
                    queue.put(batch)
            else:
                assert queue.put(batch) == range(model.next_id, model.next_id + count)
                model.put(batch.payloads, gives_way=True)
            queue.write(message_log.expire)
            assert queue.read(message_log.live_messages) == len(model.awaited) + model.retained
        found = queue.look()
        assert found.payloads == model.awaited
        assert {one.headers for one in found.details} <= {headers}


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(mark_bytes=st.integers(1, 2**20),
                  steps=st.lists(st.tuples(
                      st.sampled_from(["put", "put", "acknowledge"]),
                      st.lists(st.sampled_from([0, 1, 100, 4000, 70_000]), min_size=1, max_size=20),
                      st.sampled_from([b"", b'{"name":"text"}'])),
                                 max_size=15))
def test_bytes(mark_bytes: int, steps: List[Tuple[str, List[int], bytes]]) -> None:
    """The messages stay within the limit of bytes; a queue that is empty or half full takes what fits."""
    stored: List[int] = []
    with queues.opened("a", high_watermark=HighWaterMark(hwm_db_size=mark_bytes), strategy=Strategy.refuse) as queue:
        for what, sizes, headers in steps:
            if what == "acknowledge":
                stored = stored[len(queue.acknowledge(len(sizes))):]
                continue
            batch = batch_of(list(map(bytes, sizes)), [headers] * len(sizes))
            records_bytes = sum(stored) + batch.size_bytes + RECORD_BYTES_MAX * (len(stored) + len(sizes))
            try:
                queue.put(batch)
                stored += batch.sizes()
            except (errors.BatchTooLargeError, errors.MessageTooLargeError):
                assert batch.size_bytes > mark_bytes
            except errors.QueueFullError:
                assert stored and 2 * records_bytes + 16 * 4096 >= mark_bytes
            assert sum(stored) <= mark_bytes
        assert [len(payload) for payload in queue.look().payloads
                ] == [size - len(one.headers) for size, one in zip(stored,
                                                                   queue.look().details)]


def retain(queue: Queue, payload: bytes, count: int) -> None:
    """Send messages and acknowledge them."""
    queue.put(batch_of([payload] * count))
    assert len(queue.acknowledge(count)) == count


def test_retained_messages_give_way_for_bytes() -> None:
    """Retained messages are deleted for a message that has no room in bytes."""
    with queues.opened("a",
                       high_watermark=HighWaterMark(TIMEOUT_S, hwm_db_size=100_000),
                       strategy=Strategy.refuse,
                       retention_s=TIMEOUT_S) as queue:
        retain(queue, bytes(10_000), 6)
        assert queue.control.status().retained == 6
        queue.put(batch_of([bytes(90_000)]))
        assert (queue.control.status().retained, len(queue.look().ids)) == (0, 1)


def test_refused_messages_leave_the_retained_ones() -> None:
    """A batch that does not fit, even if all retained messages gave way, leaves them as they are."""
    with queues.opened("a",
                       high_watermark=HighWaterMark(TIMEOUT_S, 10),
                       strategy=Strategy.refuse,
                       retention_s=TIMEOUT_S) as queue:
        retain(queue, b"retained", 4)
        queue.put(numbered(1, 5))
        with pytest.raises(errors.QueueFullError):
            queue.put(numbered(6, 6))
        assert (queue.control.status().retained, len(queue.look().ids)) == (4, 5)


def test_the_error_says_how_full_the_queue_is() -> None:
    """The error of a full queue names its limits, how full it is and what helps; it names no limit that is not set."""
    with queues.opened("a", high_watermark=HighWaterMark(max_messages=2), strategy=Strategy.refuse) as queue:
        queue.put(numbered(1, 2))
        with pytest.raises(errors.QueueFullError, match=r"has 2 messages of \d+ bytes.* max_messages=2\. .*timeout"):
            queue.put(numbered(3, 1))
        with pytest.raises(errors.BatchTooLargeError, match=r"A batch of 3 messages .* max_messages=2\. .*set_hwm"):
            queue.put(numbered(3, 3))


@pytest.mark.parametrize("strategy, left", [(Strategy.prune_first, [b"small"]), (Strategy.prune_last, [b"small"]),
                                            (Strategy.refuse, [bytes(5000), b"small"])])
def test_accepted_messages_over_a_lowered_limit(strategy: Strategy, left: List[bytes]) -> None:
    """A message that was accepted before the limit was lowered is dropped, but by no queue that refuses messages."""
    with queues.opened("a", high_watermark=HighWaterMark(hwm_db_size=4999), strategy=strategy) as queue:
        queue.write(appending.put_accepted, batch_of([bytes(5000), b"small"], [b"", b'{"a":"b"}']))
        found = queue.look()
        assert found.payloads == left and found.details[-1].headers == b'{"a":"b"}'
        assert queue.control.status().next_id == 3
        assert queue.control.status().pruned.overflow == 2 - len(left)


def test_a_due_message_is_refused_like_any_other() -> None:
    """A message that is sent to be due at once is refused if the queue is full, unless what fills it has expired."""
    with queues.opened("a", high_watermark=HighWaterMark(TIMEOUT_S, 1), strategy=Strategy.refuse) as queue:
        queue.put(numbered(1, 1))
        with pytest.raises(errors.QueueFullError):
            queue.run(PutLater(b"due", DueTime()))
        queue.pass_s(TIMEOUT_S + 1)
        queue.run(PutLater(b"due", DueTime()))
        assert queue.look().payloads == [b"due"]


def test_a_message_that_becomes_due_is_not_refused() -> None:
    """A delayed message is delivered when it is due, even if the queue is full; it counts then."""
    with queues.opened("a", high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse) as queue:
        queue.run(PutLater(b"due", DueTime(10**6), b'{"a":"b"}'))
        queue.put(numbered(1, 1))
        queue.pass_s(1)
        assert queue.look().payloads == [b"1", b"due"]
        assert queue.look().details[1].headers == b'{"a":"b"}'
        assert queue.acknowledge(1) == [b"1"]
        with pytest.raises(errors.QueueFullError):
            queue.put(numbered(3, 1))


def test_a_queue_that_nobody_receives_from_refuses_nothing() -> None:
    """Without subscribers nothing is stored, so nothing is refused."""
    with queues.opened(high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse) as queue:
        for number in range(3):
            queue.put(numbered(number, 5))
        assert (queue.control.status().messages, queue.control.status().pruned.dangling) == (0, 15)
