"""When a queue overflows, which messages it drops, and that it never holds more than its marks."""

import contextlib
import pathlib
import random
import shutil
import tempfile
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

import hypothesis
import lmdb
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Strategy, Subscriber, clock, errors
from persipubsub.engine import values
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import appending

MakeEnvironment = Callable[..., Environment]

PAGE_BYTES = 4096
KIB = 1024
MIB = 1024**2
#: More than any test reaches.
MANY = 2**63 - 1
#: The strategies that drop messages at the high-water mark.
PRUNING = [Strategy.prune_first, Strategy.prune_last]
#: What the pages of a message can hold beside its payload: the ends of its parts, and the branches of the trees.
OVERHEAD_BYTES = 12 * PAGE_BYTES


class Opened:
    """A queue with a subscriber, as one process uses it."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.control: Control = environment.new_control(["a"])
        self.publisher: Publisher = environment.new_publisher()
        self.subscriber: Subscriber = environment.new_subscriber("a")

    def drain(self) -> List[bytes]:
        """Receive and acknowledge everything that is there."""
        with self.subscriber.receive_many(max_messages=10**6, max_bytes=2**40, timeout=0) as msgs:
            return msgs

    def pages_bytes(self) -> int:
        """Measure the pages in which messages are stored, by LMDB's own account."""
        with tempfile.TemporaryDirectory() as directory:
            # Only data.mdb: opening and closing lock.mdb here would drop LMDB's locks.
            shutil.copyfile(self.environment.path / "data.mdb", pathlib.Path(directory) / "data.mdb")
            with lmdb.Environment(directory, readonly=True, lock=False, max_dbs=32) as raw:
                databases = [raw.open_db(name, create=False) for name in (b"data_db", b"chunk_db")]
                with raw.begin() as txn:
                    stats = [txn.stat(database) for database in databases]
        return sum(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
                   for stat in stats)


@pytest.fixture(name="make")
def make_fixture(new_environment: MakeEnvironment) -> Callable[..., Opened]:
    """Return a function that sets up queues that do not wait for the disk."""
    return lambda **configuration: Opened(new_environment("a", durability=Durability.PROCESS_CRASH, **configuration))


def numbers(count: int, start: int = 0) -> List[bytes]:
    """Return distinct messages."""
    return [b"%d" % number for number in range(start, start + count)]


# The number of messages


def survivors(stored: int, new: int, mark: int, strategy: Strategy) -> List[bytes]:
    """Return what is left of messages that are sent one by one after some that were there, by the documentation."""
    log = numbers(stored)
    for message in numbers(new, stored):
        while len(log) >= mark:
            count = len(log) // 2 + 1
            log = log[count:] if strategy == Strategy.prune_first else log[:-count]
        log.append(message)
    return log


@pytest.mark.parametrize("strategy, expected", [(Strategy.prune_first, [b"3", b"4"]),
                                                (Strategy.prune_last, [b"0", b"4"])])
@pytest.mark.parametrize("batch", [False, True])
def test_an_overflow(batch: bool, strategy: Strategy, expected: List[bytes], make: Callable[..., Opened]) -> None:
    """The send that meets four messages at a mark of four removes three, the oldest or the latest, and adds its own."""
    opened = make(high_watermark=HighWaterMark(max_messages=4), strategy=strategy)
    for message in numbers(4):
        opened.publisher.send(message)
    assert opened.control.status().messages == 4
    if batch:
        assert opened.publisher.send_many([b"4"]) == range(5, 6)
    else:
        assert opened.publisher.send(b"4") == 5
    assert opened.drain() == expected


@pytest.mark.parametrize("strategy", PRUNING)
@pytest.mark.parametrize("mark", [1, 2, 3, 4, 7, 10])
def test_a_batch_overflows_like_single_sends(mark: int, strategy: Strategy, make: Callable[..., Opened]) -> None:
    """One ``send_many`` leaves what single sends of its messages leave; ids and counts agree."""
    batches = make(high_watermark=HighWaterMark(max_messages=mark), strategy=strategy)
    singles = make(high_watermark=HighWaterMark(max_messages=mark), strategy=strategy, name="singles")
    for stored in (0, 1, 2, 5, 9):
        for new in (1, 2, 3, 5, 10, 11, 23, 100):
            stored_now = len(survivors(0, stored, mark, strategy))
            first, last = numbers(stored), numbers(new, stored)
            for opened in (batches, singles):
                opened.control.clear_messages()
                for message in first:
                    opened.publisher.send(message)
                assert opened.control.status().messages == stored_now
            next_id = batches.control.status().next_id
            assert batches.publisher.send_many(last) == range(next_id, next_id + new)
            for message in last:
                singles.publisher.send(message)
            expected = survivors(0, stored + new, mark, strategy)
            assert len(expected) <= mark
            for opened in (batches, singles):
                assert opened.control.status().messages == len(expected)
                assert opened.drain() == expected, (stored, new)


@pytest.mark.parametrize("strategy", PRUNING)
@pytest.mark.parametrize("batch", [False, True])
def test_max_messages_one_keeps_the_latest(batch: bool, strategy: Strategy, make: Callable[..., Opened]) -> None:
    """With ``max_messages=1`` a queue holds exactly the latest message, under both strategies that drop messages."""
    opened = make(high_watermark=HighWaterMark(max_messages=1), strategy=strategy)
    for number in range(10):
        if batch:
            opened.publisher.send_many(numbers(number % 3 + 1, 10 * number))
        else:
            opened.publisher.send(b"%d" % (10 * number + number % 3))
        assert opened.control.status().messages == 1
        assert opened.subscriber.front() == b"%d" % (10 * number + number % 3)
    assert len(opened.drain()) == 1


@pytest.mark.parametrize("strategy, expected", [(Strategy.prune_first, numbers(6, 95)),
                                                (Strategy.prune_last, numbers(5) + [b"100"])])
def test_a_lowered_mark(strategy: Strategy, expected: List[bytes], make: Callable[..., Opened]) -> None:
    """A mark set below what is stored removes nothing yet; the next send halves until it is below the mark."""
    opened = make(strategy=strategy)
    opened.publisher.send_many(numbers(100))
    opened.control.set_hwm(HighWaterMark(max_messages=10))
    assert opened.control.status().messages == 100
    opened.publisher.send(b"100")  # 100, 49, 24, 11, 5
    assert opened.drain() == expected


@pytest.mark.parametrize("strategy, expected", [(Strategy.prune_first, numbers(2, 3)),
                                                (Strategy.prune_last, [b"0", b"4"])])
def test_the_slowest_subscriber_makes_the_queue_overflow(strategy: Strategy, expected: List[bytes],
                                                         make: Callable[..., Opened]) -> None:
    """Messages that one subscriber has not acknowledged count, and may be dropped for it."""
    opened = make(high_watermark=HighWaterMark(max_messages=4), strategy=strategy)
    opened.control.add_subscriber("slow")
    taken = []
    for message in numbers(5):
        opened.publisher.send(message)
        taken += opened.drain()
    assert taken == numbers(5)
    slow = opened.environment.new_subscriber("slow")
    assert list(slow.messages(timeout=0)) == expected


def test_acknowledged_messages_do_not_count(make: Callable[..., Opened], caplog: pytest.LogCaptureFixture) -> None:
    """A queue whose messages are acknowledged in time never overflows."""
    opened = make(high_watermark=HighWaterMark(max_messages=4))
    for number in range(50):
        opened.publisher.send_many(numbers(4, 4 * number))
        assert opened.drain() == numbers(4, 4 * number)
    assert not caplog.records


@pytest.mark.parametrize("strategy", PRUNING)
def test_a_large_overflow(strategy: Strategy, make: Callable[..., Opened]) -> None:
    """An overflow of 25,000 messages leaves the right ones, counts them, and later sends continue from there."""
    opened = make(high_watermark=HighWaterMark(max_messages=40_000), strategy=strategy)
    opened.publisher.send_many(numbers(40_000))
    opened.publisher.send_many(numbers(3, 40_000))
    kept = numbers(19_999, 20_001) if strategy == Strategy.prune_first else numbers(19_999)
    assert opened.control.status().messages == 20_002
    assert opened.control.status().subscribers["a"].pending == 20_002
    assert opened.control.check() == ()
    opened.publisher.send(b"last")
    assert opened.drain() == kept + numbers(3, 40_000) + [b"last"]


# The bytes


def sizes_of(kind: str) -> Tuple[int, List[int]]:
    """Return a mark and the sizes of messages that pass it several times."""
    rng = random.Random(kind)
    return {
        "small": (128 * KIB, [rng.randrange(200) for _ in range(3000)]),
        "of a page": (256 * KIB, [rng.choice([1300, 2030, 2048, 4080, 4096]) for _ in range(400)]),
        "large": (MIB, [rng.randrange(64 * KIB, 300 * KIB) for _ in range(40)]),
        "mixed": (MIB, [rng.choice([0, 10, 1000, 5000, 65_519, 65_520, 200_000, 400_000]) for _ in range(150)]),
        "as large as the mark": (512 * KIB, [512 * KIB, 100, 512 * KIB, 512 * KIB, 100, 100, 512 * KIB]),
        "tiny mark": (1, [0, 1, 0, 1, 1, 0]),
    }[kind]


def messages_of(sizes: Sequence[int]) -> List[bytes]:
    """Return messages of these sizes, distinct where there is room."""
    return [(b"%d." % number * (size // 2 + 1))[:size] for number, size in enumerate(sizes)]


def is_subsequence(part: Sequence[bytes], whole: Sequence[bytes]) -> bool:
    """Return whether all of one sequence is in the other in that order."""
    left = iter(whole)
    return all(message in left for message in part)


KINDS = ["small", "of a page", "large", "mixed", "as large as the mark", "tiny mark"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", PRUNING)
@pytest.mark.parametrize("kind", KINDS)
def test_the_byte_mark_with_single_sends(kind: str, strategy: Strategy, make: Callable[..., Opened]) -> None:
    """A send that meets pages at or above the mark halves them first; any other send removes nothing."""
    mark_bytes, sizes = sizes_of(kind)
    opened = make(high_watermark=HighWaterMark(hwm_db_size=mark_bytes, max_messages=MANY), strategy=strategy)
    messages = messages_of(sizes)
    overflows = 0
    for number, message in enumerate(messages):
        before = opened.control.status()
        opened.publisher.send(message)
        after = opened.control.status()
        assert after.size_bytes <= mark_bytes + len(message) + OVERHEAD_BYTES
        if before.size_bytes < mark_bytes:
            assert after.messages == before.messages + 1
        else:
            overflows += 1
            assert after.size_bytes <= mark_bytes // 2 + len(message) + OVERHEAD_BYTES
            assert after.messages <= before.messages - before.messages // 2 - 1 + 1
        if number % 50 == 0:
            assert after.size_bytes == opened.pages_bytes()
    assert overflows >= 2
    received = opened.drain()
    assert received[-1] == messages[-1]
    if strategy == Strategy.prune_first:
        assert received == messages[-len(received):]
    else:
        assert is_subsequence(received, messages)
    assert opened.control.check() == ()


@pytest.mark.parametrize("strategy", PRUNING)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [7, 10_000])
def test_the_byte_mark_with_batches(batch: int, kind: str, strategy: Strategy, make: Callable[..., Opened]) -> None:
    """``send_many`` leaves at most the mark and a message, and removes no more than each overflow has to."""
    mark_bytes, sizes = sizes_of(kind)
    opened = make(high_watermark=HighWaterMark(hwm_db_size=mark_bytes, max_messages=MANY), strategy=strategy)
    messages = messages_of(sizes)
    for start in range(0, len(messages), batch):
        part = messages[start:start + batch]
        before = opened.control.status()
        opened.publisher.send_many(part)
        after = opened.control.status()
        assert after.size_bytes <= mark_bytes + max(map(len, part)) + OVERHEAD_BYTES
        assert after.size_bytes == opened.pages_bytes()
        if before.size_bytes + sum(map(len, part)) + len(part) * OVERHEAD_BYTES < mark_bytes:
            assert after.messages == before.messages + len(part)
        elif kind == "small":
            # By number half of them go, and all are small; where a page too many is left, half of the rest as well.
            assert after.size_bytes >= min(before.size_bytes, mark_bytes // 4 - 4 * PAGE_BYTES)
    received = opened.drain()
    assert received[-1] == messages[-1]
    if strategy == Strategy.prune_first:
        assert received == messages[-len(received):]
    else:
        assert is_subsequence(received, messages)


@pytest.mark.parametrize("size_bytes, count", [(0, 20_000), (10, 18_000), (2049, 120)])
def test_a_batch_of_the_most_wasteful_sizes(size_bytes: int, count: int, make: Callable[..., Opened]) -> None:
    """A batch keeps the byte mark also of messages that are small beside their pages, or half a page each."""
    opened = make(high_watermark=HighWaterMark(hwm_db_size=256 * KIB, max_messages=MANY))
    opened.publisher.send_many([bytes(size_bytes)] * count)
    assert opened.control.status().size_bytes == opened.pages_bytes() <= 256 * KIB + size_bytes + OVERHEAD_BYTES


@pytest.mark.parametrize("strategy", PRUNING)
def test_bytes_overflow_by_half_of_the_messages(strategy: Strategy, make: Callable[..., Opened]) -> None:
    """Where all messages are of one size, an overflow of bytes removes half of them and one, and no more."""
    opened = make(high_watermark=HighWaterMark(hwm_db_size=128 * KIB, max_messages=MANY), strategy=strategy)
    while not opened.control.status().pruned.overflow:
        before = opened.control.status().messages
        opened.publisher.send(bytes(3000))
    assert opened.control.status().pruned.overflow == before // 2 + 1
    assert opened.control.status().messages == before - (before // 2 + 1) + 1


@pytest.mark.parametrize("strategy", PRUNING)
@pytest.mark.parametrize("max_messages", [1, 5, 10, 40, 60, 10_000])
def test_both_marks_in_one_batch(max_messages: int, strategy: Strategy, make: Callable[..., Opened]) -> None:
    """A batch that passes both the mark of messages and that of bytes leaves no more than either, and the latest."""
    mark = HighWaterMark(hwm_db_size=256 * KIB, max_messages=max_messages)
    opened = make(high_watermark=mark, strategy=strategy)
    messages = messages_of([8000 if number % 3 else 100 for number in range(150)])
    for start in (0, 100):
        opened.publisher.send_many(messages[start:start + 100])
        status = opened.control.status()
        assert 1 <= status.messages <= max_messages
        assert status.size_bytes == opened.pages_bytes() <= 256 * KIB + 8000 + OVERHEAD_BYTES
    received = opened.drain()
    assert received[-1] == messages[-1] and is_subsequence(received, messages)
    if strategy == Strategy.prune_first:
        assert received == messages[-len(received):]


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("size_bytes", [1, 4000])
def test_small_messages_that_wait_to_be_deleted(size_bytes: int, strategy: Strategy, make: Callable[...,
                                                                                                    Opened]) -> None:
    """Small messages that were acknowledged, and are still stored, do not hide the size of large ones after them."""
    opened = make(high_watermark=HighWaterMark(hwm_db_size=256 * KIB), strategy=strategy)
    opened.publisher.send_many([bytes(size_bytes)] * 60)
    for _ in range(60):
        opened.subscriber.pop()
    assert opened.control.status().size_bytes == 0
    for number in range(1, 10):
        with contextlib.suppress(errors.QueueFullError):
            opened.publisher.send(bytes(50 * KIB))
        status = opened.control.status()
        if number <= 4:
            assert status.messages == number
            assert 50 * KIB * number <= status.size_bytes <= 50 * KIB * number + number * OVERHEAD_BYTES
        assert opened.pages_bytes() <= 256 * KIB + 50 * KIB + 60 * size_bytes + 2 * OVERHEAD_BYTES


@pytest.mark.parametrize("size_bytes", [1, 1000, 100_000])
def test_a_message_as_large_as_the_mark(size_bytes: int, make: Callable[..., Opened]) -> None:
    """A message of exactly the mark is sent; one byte more raises MessageTooLargeError and leaves all as it was."""
    opened = make(high_watermark=HighWaterMark(hwm_db_size=size_bytes))
    opened.publisher.send(b"x" * size_bytes)
    before = (opened.environment.path / "data.mdb").read_bytes()
    for call in (lambda: opened.publisher.send(b"y" * (size_bytes + 1)),
                 lambda: opened.publisher.send_many([b"", b"y" * (size_bytes + 1), b""])):
        with pytest.raises(errors.MessageTooLargeError, match=f"hwm_db_size={size_bytes}"):
            call()
    assert (opened.environment.path / "data.mdb").read_bytes() == before
    assert opened.drain() == [b"x" * size_bytes]
    opened.control.set_hwm(HighWaterMark(hwm_db_size=size_bytes + 1))
    assert opened.publisher.send(b"y" * (size_bytes + 1)) == 2


def test_a_raised_mark(make: Callable[..., Opened]) -> None:
    """A raised byte mark holds from the next send on."""
    opened = make(high_watermark=HighWaterMark(hwm_db_size=64 * KIB))
    opened.publisher.send_many([bytes(20 * KIB)] * 3)
    opened.publisher.send(bytes(20 * KIB))
    opened.control.set_hwm(HighWaterMark(hwm_db_size=10 * MIB))
    stored = opened.control.status().messages
    opened.publisher.send_many([bytes(20 * KIB)] * 100)
    assert opened.control.status().messages == stored + 100


SIZES = st.one_of(st.integers(0, 100), st.integers(1000, 2200), st.sampled_from([2024, 2025, 2030, 2032, 2038, 2040]),
                  st.integers(3900, 4200), st.integers(8000, 8300), st.integers(65_400, 65_600),
                  st.integers(130_900, 131_200), st.integers(0, 300_000))
#: A batch to send, or how many messages to acknowledge.
STEPS = st.lists(st.one_of(st.lists(SIZES, min_size=1, max_size=20), st.integers(1, 30)), min_size=1, max_size=12)


@pytest.fixture(name="shared", scope="module")
def shared_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[Strategy, Opened]]:
    """Set up a queue for each strategy, which all examples of a property share."""
    opened = {}
    for strategy in PRUNING:
        environment = persipubsub.new_environment(tmp_path_factory.mktemp("hypothesis") / "queue")
        environment.new_control(["a"], strategy=strategy, durability=Durability.PROCESS_CRASH)
        opened[strategy] = Opened(environment)
    yield opened
    for one in opened.values():
        assert one.control.check() == ()
        one.environment.close()


def without_deadline(examples: int) -> hypothesis.settings:
    """Try few examples, without a time limit for each: disks differ."""
    return hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)


def surely_below_its_pages(txn: Transaction) -> Tuple[int, bool]:
    """Return the size of the pages, and whether the totals show that the messages need less."""
    pages_bytes, log = txn.stored_bytes(), txn.log()
    newest, next_id = log.end()
    header = txn.header._replace(hwm_db_size=pages_bytes)
    # pylint: disable-next=protected-access  # its bound is what a send relies on
    return pages_bytes, appending._certainly_below_mark(header, log.oldest(), newest, values.Batch((), 0, 0), next_id)


@without_deadline(40)
@hypothesis.given(steps=STEPS)
def test_the_quick_bound_is_an_upper_bound(shared: Dict[Strategy, Opened], steps: List[object]) -> None:
    """Where the totals show that the bytes are below a mark, the pages really are."""
    opened = shared[Strategy.prune_first]
    opened.control.clear_messages()
    opened.control.set_hwm(HighWaterMark(10**11, MANY, 2**46))
    engine = open_queues.acquire(opened.environment.path)
    try:
        for step in steps:
            if isinstance(step, list):
                opened.publisher.send_many([bytes(size) for size in step])
            elif isinstance(step, int):
                with opened.subscriber.receive_many(max_messages=step, timeout=0):
                    pass
            pages_bytes, surely_below = engine.read(surely_below_its_pages)
            assert not surely_below, f"{pages_bytes} bytes of pages are taken to be less"
    finally:
        open_queues.release(engine)


@without_deadline(40)
@hypothesis.given(strategy=st.sampled_from(PRUNING), mark_bytes=st.integers(300_000, 1_000_000), steps=STEPS)
def test_the_byte_mark_holds(shared: Dict[Strategy, Opened], strategy: Strategy, mark_bytes: int,
                             steps: List[object]) -> None:
    """Whatever is sent and acknowledged in any order, the pages never exceed the mark and one message."""
    opened = shared[strategy]
    opened.control.clear_messages()
    opened.control.set_hwm(HighWaterMark(10**11, MANY, mark_bytes))
    for step in steps:
        if isinstance(step, list):
            opened.publisher.send_many([bytes(size) for size in step])
            assert opened.pages_bytes() <= mark_bytes + max(step) + OVERHEAD_BYTES
            assert opened.control.status().messages >= 1
        elif isinstance(step, int):
            with opened.subscriber.receive_many(max_messages=step, timeout=0):
                pass


# The time


@pytest.mark.parametrize("strategy", PRUNING)
def test_the_timeout(strategy: Strategy, make: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under either strategy the messages older than the timeout are deleted, and no others."""
    opened = make(high_watermark=HighWaterMark(message_timeout=10), strategy=strategy)
    start_us = clock.boottime_us()
    for second in (0, 4, 8, 12):
        monkeypatch.setattr(clock, "boottime_us", lambda now_us=start_us + second * 10**6: now_us)
        opened.publisher.send(b"%d" % second)
    assert opened.drain() == [b"4", b"8", b"12"]
