"""The pytest plugin, as another project meets it: pytest is started there and finds the plugin by its entry point."""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import math
import os
import pathlib
import subprocess
import sys
import time
from typing import Any, List

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from persipubsub import Envelope, HighWaterMark, Retry, Strategy, clock, errors
from persipubsub.testing import FORWARD_S_MAX, Clock, QueueFactory, drain, drain_deliveries, publish
from tests.concurrency import WAIT_S
from tests.docs.test_repository import ROOT, code_blocks

pytestmark = pytest.mark.slow  # starts many processes, or waits

pytest_plugins = ["pytester"]

MANUAL = "\n".join(code_blocks((ROOT / "docs" / "testing.rst").read_text(encoding="utf-8"), "python"))

HEAD = """
import pathlib, shutil, sys
import lmdb, pytest
from persipubsub.lmdb_engine import open_queues
from persipubsub import Durability, HighWaterMark, Strategy, clock, errors
from persipubsub.testing import drain, publish
"""


def run(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    """Run pytest in a project of its own, whose tests are ``code``."""
    pytester.makepyfile(code)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *options)


# The entry point


def test_entry_point_is_installed() -> None:
    """The installed package names the plugin to pytest; a checkout installed before it had one must be so again."""
    found = importlib.metadata.entry_points(group="pytest11", name="persipubsub")
    assert [point.value for point in found] == ["pytest_persipubsub"]


def test_a_project_without_the_fixtures_does_not_import_the_package(pytester: pytest.Pytester) -> None:
    """Pytest loads the plugin, and neither persipubsub nor LMDB, where no test uses the fixtures."""
    result = run(
        pytester, """
        import sys

        def test_it():
            assert "pytest_persipubsub" in sys.modules
            assert not {"persipubsub", "lmdb", "icontract"} & set(sys.modules)
        """)
    result.assert_outcomes(passed=1)


def test_a_project_may_set_up_before_the_package_is_imported(pytester: pytest.Pytester) -> None:
    """What a conftest.py sets before it imports persipubsub is there in time, such as ICONTRACT_SLOW of our own."""
    pytester.makeconftest("""
        import sys
        assert "persipubsub" not in sys.modules
        import persipubsub
        """)
    run(pytester, HEAD + """
def test_it(persipubsub_queue):
    assert publish(persipubsub_queue(["a"]), b"x") == [1]
""").assert_outcomes(passed=1)


# Queues


def test_queues_are_apart(persipubsub_queue: QueueFactory) -> None:
    """Each call makes another queue, with the given arguments."""
    first, second = persipubsub_queue(["a"]), persipubsub_queue(["a", "b"],
                                                                HighWaterMark(max_messages=7),
                                                                retention_s=5)
    publish(first, b"x")
    assert first.path != second.path
    assert drain(second, "a") == [] and drain(first, "a") == [b"x"]
    status = second.new_control().status()
    assert (status.high_watermark.max_messages, status.retention_s) == (7, 5)
    assert list(second.new_control().status().subscribers) == ["a", "b"]


def test_arguments_are_those_of_new_control(pytester: pytest.Pytester) -> None:
    """Strategy and durability are applied, and a bad argument is the same error, with nothing left to tear down."""
    run(
        pytester, HEAD + """
def test_given(persipubsub_queue):
    env = persipubsub_queue(strategy=Strategy.prune_last, durability=Durability.POWER_LOSS)
    status = env.new_control().status()
    assert (status.strategy, status.durability) == (Strategy.prune_last, Durability.POWER_LOSS)

def test_left_out(persipubsub_queue):
    assert persipubsub_queue().new_control().status().durability is Durability.PROCESS_CRASH

def test_bad(persipubsub_queue):
    with pytest.raises(errors.ArgumentTypeError):
        persipubsub_queue(subscriber_ids=["a"], high_watermark=7)
""").assert_outcomes(passed=3)


def test_queues_are_closed_after_the_test(pytester: pytest.Pytester) -> None:
    """After the test no queue is open, also after one that failed, and one may have closed or deleted its own."""
    run(
        pytester, HEAD + """
MADE = []

def test_fails(persipubsub_queue):
    MADE.extend([persipubsub_queue(["a"]), persipubsub_queue(["a"])])
    publish(MADE[0], b"x")
    assert False

def test_closes(persipubsub_queue):
    MADE.append(persipubsub_queue(["a"]))
    MADE[-1].close()

def test_deletes(persipubsub_queue):
    MADE.append(persipubsub_queue(["a"]))
    MADE[-1].close()
    shutil.rmtree(MADE[-1].path)

def test_afterwards():
    assert [env.closed for env in MADE] == [True] * 4
    assert not open_queues._OPEN
""").assert_outcomes(passed=3, failed=1)


@pytest.mark.damages_queues
def test_a_broken_invariant_fails_the_teardown(pytester: pytest.Pytester) -> None:
    """A queue that a test leaves broken is an error of its teardown, in the invariant's words; others are closed."""
    result = run(
        pytester, HEAD + """
MADE = []

def test_damages(persipubsub_queue):
    MADE.extend([persipubsub_queue(["a"]), persipubsub_queue(["a"])])
    path = MADE[0].path
    MADE[0].close()
    with lmdb.Environment(str(path), max_dbs=32) as raw:
        database = raw.open_db(b"index_db", create=False)
        with raw.begin(write=True) as txn:
            txn.put(b"\\0\\0\\0\\7" + b"\\0" * 7 + b"\\1", b"", db=database)

def test_afterwards():
    assert MADE[1].closed and not open_queues._OPEN
""")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*The queue at */queue is broken: I6 (every entry of index_db, *belongs to*"])


@pytest.mark.damages_queues
def test_a_queue_that_cannot_be_opened_fails_the_teardown(pytester: pytest.Pytester) -> None:
    """A queue whose file is of something else is an error of the teardown, which names the queue."""
    result = run(
        pytester, HEAD + """
def test_overwrites(persipubsub_queue):
    env = persipubsub_queue(["a"])
    env.close()
    (env.path / "data.mdb").write_bytes(b"something else" * 1000)
""")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*The queue at */queue cannot be verified: *"])


# Sending and receiving


def test_publish_and_drain(persipubsub_queue: QueueFactory) -> None:
    """``publish`` returns the ids in order, ``drain`` acknowledges everything for one subscriber, however much."""
    env = persipubsub_queue(["a", "b"])
    assert not publish(env) and not drain(env, "a")
    messages = [b"%d" % index for index in range(2500)]
    assert publish(env, *messages) == list(range(1, 2501))
    assert drain(env, "a") == messages and drain(env, "a") == []
    assert publish(env, b"last") == [2501]
    assert drain(env, "a") == [b"last"] and drain(env, "b") == messages + [b"last"]


def test_publish_and_drain_of_nobody(persipubsub_queue: QueueFactory) -> None:
    """A message that is not bytes and a missing subscriber are errors of the library; nothing is sent."""
    env = persipubsub_queue(["a"])
    with pytest.raises(errors.ArgumentTypeError, match="Message 1 of the batch"):
        publish(env, b"x", "y")  # type: ignore[call-overload]  # the mistake under test
    with pytest.raises(errors.UnknownSubscriberError, match="'b'"):
        drain(env, "b")
    assert drain(env, "a") == []


@dataclasses.dataclass
class Order:
    """What a customer wants."""

    item: str
    count: int = 1


@pytest.mark.parametrize("messages, message_type", [
    ([Order("cup", 2), Order("tea")], Order),
    ([{
        "item": "cup"
    }, {}], dict),
    ([StringValue(value="cup"), StringValue()], StringValue),
])
@pytest.mark.parametrize("shared", [False, True])
def test_publish_and_drain_of_a_type(messages: List[Any], message_type: Any, shared: bool,
                                     persipubsub_queue: QueueFactory) -> None:
    """Messages of a type come back as they were published, from a subscriber of either kind; others are refused."""
    env = persipubsub_queue(message_type=message_type)
    env.new_control().add_subscriber("a", shared=shared)
    assert publish(env, *messages, message_type=message_type) == [1, 2]
    assert drain(env, "a", message_type) == messages and drain(env, "a", message_type) == []
    with pytest.raises(errors.ArgumentTypeError):
        publish(env, 7, message_type=message_type)
    publish(env, b"\xff")
    with pytest.raises(errors.DecodeError):
        drain(env, "a", message_type)


def test_envelopes_and_deliveries(persipubsub_queue: QueueFactory) -> None:
    """An envelope is published with its headers and its deduplication id, and a delivery has what is known of it."""
    env = persipubsub_queue(["a"])
    order = Envelope(Order("cup"), {"trace": "1"}, "order-1")
    assert publish(env, order, Order("tea"), order, message_type=Order) == [1, 2, 1]
    cup, tea = drain_deliveries(env, "a", Order)
    assert (cup.message, cup.id, cup.headers, cup.delivery_count) == (Order("cup"), 1, {"trace": "1"}, 1)
    assert (tea.message, tea.id, tea.headers) == (Order("tea"), 2, {})
    assert 0 <= (tea.sent_at - cup.sent_at).total_seconds() < WAIT_S and cup.sent_at.tzinfo is not None
    publish(env, Envelope(b"plain", {"kind": "bytes"}))
    assert [(one.message, one.headers) for one in drain_deliveries(env, "a")] == [(b"plain", {"kind": "bytes"})]
    assert not drain_deliveries(env, "a")


def test_publish_at_a_limit(persipubsub_queue: QueueFactory) -> None:
    """At the limit of a queue that refuses, publish raises at once; what drain acknowledges makes room."""
    env = persipubsub_queue(["a"], HighWaterMark(max_messages=2), Strategy.refuse)
    publish(env, b"1", b"2")
    with pytest.raises(errors.QueueFullError):
        publish(env, b"3")
    assert drain(env, "a") == [b"1", b"2"] and publish(env, b"3")


# The clock


def test_the_clock_moves_delays(persipubsub_queue: QueueFactory, persipubsub_clock: Clock) -> None:
    """A delayed message is delivered when the clock has reached its due time, and not before."""
    env = persipubsub_queue(["a"])
    with env.new_publisher() as publisher:
        publisher.send_later(b"later", delay_s=3600)
        persipubsub_clock.forward(3590)
        assert drain(env, "a") == []
        persipubsub_clock.forward(10)
        assert drain(env, "a") == [b"later"]


def test_the_clock_ends_leases(persipubsub_queue: QueueFactory, persipubsub_clock: Clock) -> None:
    """When the clock has passed the end of a lease, another worker receives the message, and not before."""
    env = persipubsub_queue()
    env.new_control().add_subscriber("workers", shared=True, lease_s=600)
    publish(env, b"x")
    with pytest.raises(errors.LeaseLostError), env.new_subscriber("workers").receive(timeout=0) as message:
        persipubsub_clock.forward(590)
        assert message == b"x" and drain(env, "workers") == []
        persipubsub_clock.forward(10)
        assert [one.delivery_count for one in drain_deliveries(env, "workers")] == [2]


@pytest.mark.parametrize("failure", [Retry(60), Retry(), ValueError()], ids=repr)
def test_the_clock_moves_retries_of_workers(failure: Exception, persipubsub_queue: QueueFactory,
                                            persipubsub_clock: Clock) -> None:
    """A failed message of a shared subscriber is delivered again when the clock has passed its delay."""
    env = persipubsub_queue()
    env.new_control().add_subscriber("workers", shared=True, retry_delay_s=60)
    publish(env, b"x")
    with contextlib.suppress(ValueError), env.new_subscriber("workers").receive(timeout=0):
        raise failure
    persipubsub_clock.forward(50)
    assert drain(env, "workers") == []
    persipubsub_clock.forward(10)
    assert drain(env, "workers") == [b"x"]


def test_the_clock_moves_retries_of_a_plain_subscriber(persipubsub_queue: QueueFactory,
                                                       persipubsub_clock: Clock) -> None:
    """A plain subscriber waits with all messages until the clock has passed the delay of a Retry."""
    env = persipubsub_queue(["a"])
    publish(env, b"1", b"2")
    with env.new_subscriber("a") as subscriber:
        with subscriber.receive(timeout=0):
            raise Retry(60)
        persipubsub_clock.forward(50)
        assert not list(subscriber.messages(timeout=0))
        persipubsub_clock.forward(10)
        assert list(subscriber.messages(timeout=0)) == [b"1", b"2"]


def test_the_clock_ends_retention_and_the_deduplication_window(persipubsub_queue: QueueFactory,
                                                               persipubsub_clock: Clock) -> None:
    """Acknowledged messages and deduplication ids are kept until the clock has passed their time."""
    env = persipubsub_queue(["a"], retention_s=600, deduplication_window_s=600)
    control, order = env.new_control(), Envelope(b"x", deduplication_id="order-1")
    assert publish(env, order) == [1] and drain(env, "a") == [b"x"]
    persipubsub_clock.forward(590)
    assert control.status().retained == 1 and publish(env, order) == [1]
    persipubsub_clock.forward(20)
    assert control.status().retained == 0 and publish(env, order) == [2]


def test_a_wait_notices_that_the_clock_was_moved(persipubsub_queue: QueueFactory, persipubsub_clock: Clock) -> None:
    """A thread that waits for a delayed message gets it soon after the clock was moved to its due time."""
    env = persipubsub_queue(["a"])
    env.new_publisher().send_later(b"later", delay_s=3600)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, env.new_subscriber("a").messages(timeout=WAIT_S), b"nothing")
        persipubsub_clock.forward(3600)
        assert waiting.result() == b"later"


def test_time_moves_forward(persipubsub_queue: QueueFactory, persipubsub_clock: Clock) -> None:
    """A message expires when its time is over, and not before; queues made before and after a move go by it alike."""
    persipubsub_clock.forward(seconds=5e8)
    hwm = HighWaterMark(message_timeout=3600)
    queues = [persipubsub_queue(["a"], hwm)]
    persipubsub_clock.forward(10.5)
    queues.append(persipubsub_queue(["a"], hwm))
    for env in queues:
        publish(env, b"old")
    persipubsub_clock.forward(seconds=1800)
    for env in queues:
        publish(env, b"young")
        assert env.new_control().status().messages == 2
    persipubsub_clock.forward(seconds=1801)
    assert [drain(env, "a") for env in queues] == [[b"young"], [b"young"]]


def test_time_goes_on_by_itself(persipubsub_clock: Clock) -> None:
    """A clock that was moved is as far ahead of the machine's all the time."""
    persipubsub_clock.forward(100)
    first_us = clock.boottime_us()
    deadline = time.monotonic() + WAIT_S
    while clock.boottime_us() == first_us and time.monotonic() < deadline:
        pass
    persipubsub_clock.forward(0)
    assert 0 < clock.boottime_us() - first_us < 50e6


@pytest.mark.parametrize("seconds", [-1, -math.inf, math.inf, math.nan, FORWARD_S_MAX + 1])
def test_time_does_not_go_back_or_too_far(seconds: float, persipubsub_clock: Clock) -> None:
    """A move back, or over the limit, is refused with the limits named, and moves nothing."""
    persipubsub_clock.forward(1)
    before_us = clock.boottime_us()
    with pytest.raises(errors.ArgumentError, match="seconds must be from 0 to"):
        persipubsub_clock.forward(seconds)
    assert clock.boottime_us() - before_us < 50e6
    with pytest.raises(errors.ArgumentTypeError, match="got str"):
        persipubsub_clock.forward("1")  # type: ignore[arg-type]  # the mistake under test


def test_the_limit_holds_for_all_moves_together(persipubsub_clock: Clock) -> None:
    """Moves that are each within the limit are refused where their sum is over it."""
    persipubsub_clock.forward(FORWARD_S_MAX)
    with pytest.raises(errors.ArgumentError):
        persipubsub_clock.forward(1)


def test_time_is_real_after_the_test(pytester: pytest.Pytester) -> None:
    """After the test the functions of the machine stand where they stood, and undoing patches does not end it early."""
    run(
        pytester, HEAD + """
REAL = clock.boottime_us, clock.wall_us

def test_moves(monkeypatch, persipubsub_queue, persipubsub_clock):
    persipubsub_clock.forward(seconds=10000)
    monkeypatch.undo()
    assert clock.boottime_us() - REAL[0]() > 9e9 and clock.wall_us() - REAL[1]() > 9e9
    publish(persipubsub_queue(["a"]), b"x")

def test_afterwards():
    assert (clock.boottime_us, clock.wall_us) == REAL
""").assert_outcomes(passed=2)


# In other projects


@pytest.mark.slow
def test_xdist(pytester: pytest.Pytester) -> None:
    """The workers of pytest-xdist have queues and clocks of their own."""
    result = run(
        pytester, HEAD + """
@pytest.mark.parametrize("number", range(20))
def test_one_of_many(number, persipubsub_queue, persipubsub_clock):
    env = persipubsub_queue(["a"], HighWaterMark(message_timeout=60))
    publish(env, b"old")
    persipubsub_clock.forward(seconds=61)
    assert publish(env, b"%d" % number) == [2]
    assert drain(env, "a") == [b"%d" % number]
""", "-n", "2")
    result.assert_outcomes(passed=20)
    result.stdout.fnmatch_lines(["*2 workers*"])


@pytest.mark.slow
def test_manual_runs(pytester: pytest.Pytester) -> None:
    """What the manual shows are the tests of a project, and they pass."""
    run(pytester, MANUAL).assert_outcomes(passed=MANUAL.count("def test_"))


def mypy(code: str, directory: pathlib.Path) -> List[str]:
    """Return what ``mypy --strict`` finds in the code of a project."""
    (directory / "test_downstream.py").write_text(code, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "test_downstream.py"],
        cwd=directory,
        env={
            **os.environ, "MYPYPATH": str(ROOT)
        },
        capture_output=True,
        text=True,
        check=False)
    assert not result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_types(tmp_path: pathlib.Path) -> None:
    """What the manual shows passes ``mypy --strict``, and a mistake in a call of a fixture is found."""
    assert not mypy(MANUAL, tmp_path)
    wrong = MANUAL.replace("seconds=3601", "minutes=61").replace('["billing", "audit"]', "7")
    found = mypy(wrong, tmp_path)
    assert any('"minutes" for "forward" of "Clock"' in line for line in found)
    assert any('"subscriber_ids" to "__call__" of "QueueFactory"' in line for line in found)
