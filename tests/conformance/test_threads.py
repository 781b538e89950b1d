"""Threads: all objects may be used by several threads at the same time."""

import functools
from typing import Dict, List

import pytest

from persipubsub import HighWaterMark, errors
from tests.conformance.queues import NewQueue, drained, numbered, start

THREADS = 8


def by_thread(msgs: List[bytes]) -> Dict[bytes, List[int]]:
    """Return the numbers that each thread has sent, in the order of their arrival."""
    found: Dict[bytes, List[int]] = {}
    for msg in msgs:
        name, number = msg.split(b":")
        found.setdefault(name, []).append(int(number))
    return found


def test_threads_that_share_a_publisher(new_queue: NewQueue) -> None:
    """Whatever threads send at the same time arrives once, with ids of its own, each thread's in its order."""
    queue = new_queue("a", "b")
    publisher = queue.environment.new_publisher()

    def send(thread: int) -> Dict[int, bytes]:
        msgs = [b"%d:%d" % (thread, number) for number in range(20)]
        return {publisher.send(msg): msg for msg in msgs}

    sending = [start(functools.partial(send, thread)) for thread in range(THREADS)]
    sent = {message_id: msg for one in sending for message_id, msg in one.result(60).items()}
    msgs = drained(queue.subscriber("a"))
    assert msgs == [sent[message_id] for message_id in sorted(sent)] == drained(queue.subscriber("b"))
    assert by_thread(msgs) == {b"%d" % thread: list(range(20)) for thread in range(THREADS)}


def test_a_batch_is_in_one_piece(new_queue: NewQueue) -> None:
    """No message of another thread comes between those of a batch."""
    queue = new_queue("a")
    publisher = queue.environment.new_publisher()

    def send(thread: int) -> None:
        for batch in range(5):
            publisher.send_many(b"%d:%d" % (thread, 10 * batch + number) for number in range(10))

    for one in [start(functools.partial(send, thread)) for thread in range(4)]:
        one.result(60)
    msgs = drained(queue.subscriber())
    for begin in range(0, len(msgs), 10):
        numbers, *others = by_thread(msgs[begin:begin + 10]).values()
        assert not others and numbers == list(range(numbers[0], numbers[0] + 10))


def test_threads_of_one_plain_subscriber(new_queue: NewQueue) -> None:
    """Threads that receive as one plain subscriber miss nothing; some may get what others got."""
    queue = new_queue("a")
    queue.publisher().send_many(numbered(50))
    subscriber = queue.environment.new_subscriber("a")
    receiving = [start(lambda: list(subscriber.messages(timeout=0))) for _ in range(4)]
    seen = [one.result(60) for one in receiving]
    assert {msg for msgs in seen for msg in msgs} == set(numbered(50))
    assert not drained(subscriber)


@pytest.mark.capability("high_water_mark")
def test_a_send_that_fails_fails_alone(new_queue: NewQueue) -> None:
    """Of threads that send at the same time, the one with a message over the mark gets the error, and no other."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=100_000))
    publisher = queue.environment.new_publisher()
    for _ in range(5):
        good = [start(lambda: publisher.send(b"good")) for _ in range(THREADS)]
        bad = start(lambda: publisher.send(bytes(100_001)))
        with pytest.raises(errors.MessageTooLargeError):
            bad.result(60)
        assert len({one.result(60) for one in good}) == THREADS
        assert drained(queue.subscriber()) == [b"good"] * THREADS


def test_a_control_while_others_work(new_queue: NewQueue) -> None:
    """Subscribers come and go while threads send: each gets a run without gaps up to its removal."""
    queue = new_queue("a")
    publisher = queue.environment.new_publisher()
    sending = start(lambda: [publisher.send(msg) for msg in numbered(100)])
    for number in range(5):
        name = f"late {number}"
        queue.control.add_subscriber(name)
        seen = [int(msg) for msg in drained(queue.subscriber(name))]
        assert seen == list(range(seen[0], seen[0] + len(seen))) if seen else True
        queue.control.remove_subscriber(name)
    sending.result(60)
    assert drained(queue.subscriber("a")) == numbered(100)
