"""Deduplication ids in envelopes, in batches, and of delayed messages."""

from typing import Any, List, Optional

import pytest

from persipubsub import Envelope, HighWaterMark, Strategy, errors
from tests.conformance.queues import NewQueue, PassTime, drained, numbered, received

pytestmark = [pytest.mark.capability("deduplication"), pytest.mark.both_forms]


def once(*names: Optional[str]) -> List[Envelope[bytes]]:
    """Return messages with deduplication ids; None stands for a message without one."""
    return [Envelope((name or "none").encode(), deduplication_id=name) for name in names]


def test_an_id_in_an_envelope(new_queue: NewQueue) -> None:
    """An id in an envelope has the same effect as one beside the message."""
    queue = new_queue("a")
    publisher = queue.publisher()
    first = publisher.send(Envelope(b"1", deduplication_id="id"))
    assert publisher.send(b"2", deduplication_id="id") == first
    assert publisher.send(Envelope(b"3", deduplication_id="id")) == first
    assert drained(queue.subscriber()) == [b"1"]


def test_an_id_inside_and_beside(new_queue: NewQueue) -> None:
    """An id both in an envelope and beside it is refused; the envelope may have something else."""
    queue = new_queue("a")
    with pytest.raises(errors.ArgumentTypeError, match="deduplication_id"):
        queue.publisher().send(Envelope(b"x", deduplication_id="1"), deduplication_id="1")
    queue.publisher().send(Envelope(b"x", {"name": "text"}), deduplication_id="1")
    queue.publisher().send(b"x", deduplication_id="1", headers={"name": "another"})
    with queue.subscriber().receive_deliveries(timeout=0) as found:
        assert [one.headers for one in found] == [{"name": "text"}]


def test_a_batch_with_ids(new_queue: NewQueue) -> None:
    """Of a batch, messages that were sent before are not sent again; all ids are returned, in the order given."""
    queue = new_queue("a")
    publisher = queue.publisher()
    assert list(publisher.send_many(once("x", "y"))) == [1, 2]
    assert list(publisher.send_many(once("y", None, "z", "x", None))) == [2, 3, 4, 1, 5]
    assert drained(queue.subscriber()) == [b"x", b"y", b"none", b"z", b"none"]


def test_a_batch_that_is_sent_again(new_queue: NewQueue) -> None:
    """A batch whose messages all have ids can be sent again without harm, also in parts."""
    queue = new_queue("a")
    publisher, msgs = queue.publisher(), once("x", "y", "z")
    ids = list(publisher.send_many(msgs))
    assert list(publisher.send_many(msgs)) == ids
    assert list(publisher.send_many(msgs[1:])) == ids[1:]
    assert drained(queue.subscriber()) == [b"x", b"y", b"z"]
    assert publisher.send(b"next") == ids[-1] + 1


def test_an_id_twice_in_a_batch(new_queue: NewQueue) -> None:
    """Of messages with one id in a batch, the first is sent, and its message id is returned for each."""
    queue = new_queue("a")
    msgs = [Envelope(msg, deduplication_id="id") for msg in numbered(3)]
    assert list(queue.publisher().send_many([b"before", *msgs, b"behind"])) == [1, 2, 2, 2, 3]
    assert drained(queue.subscriber()) == [b"before", b"0", b"behind"]


@pytest.mark.capability("durability")
def test_ids_with_autosync(new_queue: NewQueue) -> None:
    """With ``autosync``, a batch with ids sends each message once as well."""
    queue = new_queue("a")
    publisher = queue.publisher(autosync=True)
    assert list(publisher.send_many(once("x", None, "x", "y"))) == [1, 2, 1, 3]
    assert list(publisher.send_many(once("y", "x"))) == [3, 1]


@pytest.mark.parametrize("wrong, kind", [("", errors.ArgumentError), ("x" * 256, errors.ArgumentError),
                                         ("a\0", errors.ArgumentError), (b"x", errors.ArgumentTypeError)])
def test_invalid_ids_in_a_batch(wrong: Any, kind: type, new_queue: NewQueue) -> None:
    """A batch with an id outside the limits is refused, and none of it is sent."""
    queue = new_queue("a")
    with pytest.raises(kind, match="Message 1 of the batch: .*deduplication_id"):
        queue.publisher().send_many([b"x", Envelope(b"y", deduplication_id=wrong)])
    assert queue.subscriber().front() is None


@pytest.mark.capability("high_water_mark")
def test_a_batch_with_ids_that_fails(new_queue: NewQueue) -> None:
    """A batch that could not be sent leaves no ids: all of it can be sent again."""
    queue = new_queue("a", high_watermark=HighWaterMark(hwm_db_size=100_000))
    with pytest.raises(errors.MessageTooLargeError):
        queue.publisher().send_many([*once("x"), Envelope(bytes(100_001), deduplication_id="y")])
    assert list(queue.publisher().send_many(once("x", "y"))) == [1, 2]
    assert drained(queue.subscriber()) == [b"x", b"y"]


@pytest.mark.capability("refuse")
def test_a_batch_with_ids_in_a_full_queue(new_queue: NewQueue) -> None:
    """Only messages that were not sent before need room; a batch that is refused leaves no ids."""
    queue = new_queue("a", high_watermark=HighWaterMark(max_messages=2), strategy=Strategy.refuse)
    publisher = queue.publisher()
    publisher.send_many(once("x", "y"))
    assert list(publisher.send_many(once("y", "x", "y"))) == [2, 1, 2]
    with pytest.raises(errors.QueueFullError):
        publisher.send_many(once("x", "z"))
    assert received(queue.subscriber()) == b"x"
    assert list(publisher.send_many(once("x", "z", "z"))) == [1, 3, 3]
    assert drained(queue.subscriber()) == [b"y", b"z"]


@pytest.mark.capability("delayed")
@pytest.mark.parametrize("enveloped", [False, True])
def test_an_id_of_a_delayed_message(enveloped: bool, new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message that is sent again with its id is returned as it was, and arrives once."""
    queue = new_queue("a")
    publisher = queue.publisher()

    def send(msg: bytes, delay_s: float) -> Any:
        if enveloped:
            return publisher.send_later(Envelope(msg, deduplication_id="id"), delay_s=delay_s)
        return publisher.send_later(msg, delay_s=delay_s, deduplication_id="id")

    first = send(b"first", 1)
    assert send(b"second", 2) == send(b"third", 0) == first
    assert publisher.send(b"now", deduplication_id="id") == 0
    new_id, known_id = publisher.send_many([b"x", *once("id")])
    assert new_id > 0 and known_id == 0
    pass_time(2.1)
    assert drained(queue.subscriber()) == [b"x", b"first"]
    assert send(b"fourth", 0) == first and publisher.send(b"now", deduplication_id="id") == 0
    assert queue.subscriber().front() is None


@pytest.mark.capability("delayed")
def test_an_id_of_a_delayed_message_that_is_cancelled(new_queue: NewQueue, pass_time: PassTime) -> None:
    """The message that ``send_later`` returns again can be cancelled; its id stays remembered."""
    queue = new_queue("a")
    publisher = queue.publisher()
    publisher.send_later(b"x", delay_s=1, deduplication_id="id")
    assert publisher.cancel(publisher.send_later(b"y", delay_s=1, deduplication_id="id"))
    assert not publisher.cancel(publisher.send_later(b"z", delay_s=1, deduplication_id="id"))
    pass_time(1.1)
    assert queue.subscriber().front() is None


@pytest.mark.capability("delayed")
def test_a_delayed_message_with_the_id_of_another(new_queue: NewQueue, pass_time: PassTime) -> None:
    """A delayed message with the id of a message that was sent before is not sent, and cannot be cancelled."""
    queue = new_queue("a")
    publisher = queue.publisher()
    publisher.send(b"x", deduplication_id="id")
    message = publisher.send_later(b"y", delay_s=1, deduplication_id="id")
    assert not publisher.cancel(message)
    pass_time(1.1)
    assert drained(queue.subscriber()) == [b"x"]


@pytest.mark.capability("delayed", "clock")
def test_the_window_of_a_delayed_message(new_queue: NewQueue, pass_time: PassTime) -> None:
    """The window of an id begins when the delayed message is sent, not when it is due."""
    queue = new_queue("a", deduplication_window_s=10)
    publisher = queue.publisher()
    first = publisher.send_later(b"first", delay_s=60, deduplication_id="id")
    pass_time(9)
    assert publisher.send_later(b"second", delay_s=60, deduplication_id="id") == first
    pass_time(2)
    assert publisher.send_later(b"third", delay_s=60, deduplication_id="id") != first
    pass_time(61)
    assert drained(queue.subscriber()) == [b"first", b"third"]
