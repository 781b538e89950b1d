"""Worker programs: real processes, which get real signals and real deaths."""

import concurrent.futures
import datetime
import functools
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, List

import pytest

import persipubsub  # pylint: disable=unused-import  # in an annotation
from persipubsub import Delivery, errors, worker
from persipubsub.worker.backoff import Backoff
from persipubsub.worker.handlers import Handler
from tests.concurrency import WAIT_S, wait_until
from tests.worker_programs import Shop, shop_fixture  # pylint: disable=unused-import  # a fixture

if TYPE_CHECKING:
    import persipubsub.message as for_checkers

pytestmark = pytest.mark.slow  # starts many processes, or waits

both = pytest.mark.parametrize("processes", [1, 2], ids=["one process", "a supervisor"])

# Stopping


@both
def test_a_job_that_runs_is_finished(shop: Shop, processes: int) -> None:
    """SIGTERM during a job of 2 s lets it end, acknowledges it, takes no other one, and ends with status 0."""
    shop.send(*["sleep 2"] * processes, "do nothing")
    program = shop.start(processes=processes)
    for _ in range(processes):
        program.begun()
    assert program.stop() == 0
    assert program.rest() == ["end sleep 2"] * processes
    assert (shop.pending, program.errors()) == (1, "")


@both
def test_an_idle_program_ends_at_once(shop: Shop, processes: int) -> None:
    """SIGTERM ends a program that waits for messages at once, with status 0."""
    shop.send(*["do"] * 2 * processes)
    program = shop.start(processes=processes)
    program.lines(4 * processes)
    wait_until(lambda: shop.pending == 0)
    start = time.monotonic()
    assert program.stop() == 0
    assert time.monotonic() - start < 2  # under 0.1 s on a machine that does nothing else
    assert program.rest() == []


def test_ctrl_c_stops_all_processes(shop: Shop) -> None:
    """Ctrl-C in a terminal, which reaches every process, is a warm stop as well."""
    shop.send("sleep 1", "sleep 1")
    program = shop.start(processes=2)
    program.begun()
    program.begun()
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.status() == 0
    assert program.rest() == ["end sleep 1"] * 2
    assert (shop.pending, program.errors()) == (0, "")


def test_one_process_is_stopped(shop: Shop) -> None:
    """SIGTERM to one of the processes, even several times, lets its job end; then the process is replaced."""
    shop.send("sleep 1", "do")
    program = shop.start(max_seconds=600)
    process = int(program.begun()[2])
    for _ in range(10):
        os.kill(process, signal.SIGTERM)
        time.sleep(0.01)  # signals that are not handled yet count as one
    assert program.lines(1) == ["end sleep 1"]
    assert int(program.begun()[2]) != process
    assert program.stop() == 0
    assert program.errors() == ""


def test_ctrl_c_while_processes_start(shop: Shop) -> None:
    """Ctrl-C in a terminal before the processes are ready ends all of them, with status 0."""
    shop.directory.joinpath("slow.py").write_text(
        "import time\nfrom jobs import obey, tell\ntell('importing')\ntime.sleep(1)\n", encoding="utf-8")
    program = shop.start("slow:obey", processes=2)
    assert program.lines(3) == ["importing"] * 3  # once to find mistakes
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.status() == 0
    assert program.rest() == []
    assert program.errors() == ""


@pytest.mark.parametrize("handler", ["jobs:obey", "jobs:obey_async"])
@both
def test_a_second_signal_aborts(shop: Shop, processes: int, handler: str) -> None:
    """A second signal ends the program at once, and its message is given back as if it had not been delivered."""
    shop.send("sleep 600")
    program = shop.start(handler, processes=processes)
    program.begun()
    program.send_signal(signal.SIGTERM)
    program.send_signal(signal.SIGINT)
    assert program.status() in (128 + signal.SIGINT, 128 + signal.SIGTERM)  # the system may swap them
    assert program.rest() == []
    with shop.env.new_subscriber("workers").receive_delivery(timeout=1) as delivery:
        assert delivery is not None and delivery.delivery_count == 1


@both
def test_the_grace_ends(shop: Shop, processes: int) -> None:
    """A job that outlives the grace is given back, and the exit status is 1."""
    shop.send("sleep 600")
    program = shop.start(processes=processes, grace_s=0.1)
    program.begun()
    assert program.stop() == 1
    assert "ends after 0.1 s of grace" in program.errors()
    with shop.env.new_subscriber("workers").receive(timeout=1) as message:
        assert message == b"sleep 600"


def test_a_blocked_event_loop_is_aborted(shop: Shop) -> None:
    """A second signal ends a process although its event loop is blocked; its message comes again after the lease."""
    shop.set(lease_s=2)
    shop.directory.joinpath("blocking.py").write_text(
        "import jobs, time\nasync def block(message):\n    jobs.tell('begin')\n    time.sleep(600)\n", encoding="utf-8")
    shop.send("do")
    program = shop.start("blocking:block", grace_s=0)
    program.lines(1)
    assert program.stop() == 1
    with shop.env.new_subscriber("workers").receive(timeout=WAIT_S) as message:
        assert message == b"do"


def test_a_handler_may_end_the_program(shop: Shop) -> None:
    """The exit status of a handler that calls sys.exit is that of the program, and its message is given back."""
    shop.send("exit 3")
    program = shop.start()
    assert program.status() == 3
    with shop.env.new_subscriber("workers").receive_delivery(timeout=1) as delivery:
        assert delivery is not None and delivery.delivery_count == 1


# Processes


def test_a_killed_process_is_replaced(shop: Shop) -> None:
    """A process that dies is reported and replaced, and its message comes again once its lease has ended."""
    shop.set(lease_s=2)
    shop.send("sleep 3")
    program = shop.start(processes=2)
    *_, first, count, begin = program.begun()
    os.kill(int(first), signal.SIGKILL)
    *_, second, again, later = program.begun()
    assert (count, again) == ("1", "2") and float(later) - float(begin) > 1.9
    assert program.lines(1) == ["end sleep 3"]
    shop.send("sleep 1", "sleep 1")
    workers = {program.begun()[2], program.begun()[2]}
    assert len(workers) == 2 and second in workers and first not in workers
    assert program.stop() == 0
    assert "was killed by SIGKILL. Another one starts in 1 s." in program.errors()


def test_processes_do_not_outlive_their_supervisor(shop: Shop) -> None:
    """Once the supervisor is killed, its processes finish what they handle, and end."""
    shop.send("sleep 1", "do", "do")
    program = shop.start(processes=2)
    program.lines(5)
    program.send_signal(signal.SIGKILL)
    assert program.status() == -signal.SIGKILL
    assert program.rest() == ["end sleep 1"]
    assert shop.pending == 0


def test_processes_are_recycled_after_messages(shop: Shop) -> None:
    """With max_messages, a process handles exactly that number, and another one continues."""
    shop.send(*(f"do {number}" for number in range(6)))
    program = shop.start(max_messages=2)
    lines = [line.split() for line in program.lines(12)]
    workers = [line[3] for line in lines if line[0] == "begin"]
    assert workers[0::2] == workers[1::2] and len(set(workers)) == 3
    assert [line[2] for line in lines if line[0] == "end"] == list("012345")
    assert program.stop() == 0
    assert (shop.pending, program.errors()) == (0, "")


def test_processes_are_recycled_after_a_time(shop: Shop) -> None:
    """With max_seconds, a process finishes its job, and another one continues."""
    shop.send("sleep 1.5", "sleep 0.1")
    program = shop.start(max_seconds=1)
    first = program.begun()[2]
    assert program.lines(1) == ["end sleep 1.5"]
    assert program.begun()[2] != first
    assert program.lines(1) == ["end sleep 0.1"]
    assert program.stop() == 0


def test_pauses_grow() -> None:
    """The pauses are 1 s, 2 s and so on up to a minute, and short again after a success."""
    backoff = Backoff()
    assert [backoff.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next_s() == 1


# Messages


@pytest.mark.parametrize("handler", ["jobs:obey", "jobs:obey_async"])
def test_messages_are_handled_at_the_same_time(shop: Shop, handler: str) -> None:
    """One process handles as many messages at a time as it has threads or tasks: here they wait for each other."""
    shop.send(*["meet"] * 4)
    program = shop.start(handler, threads=4)
    lines = program.lines(8)
    assert sorted(line.split()[0] for line in lines) == ["begin"] * 4 + ["end"] * 4
    assert program.stop() == 0
    assert shop.pending == 0


def test_leases_are_extended(shop: Shop) -> None:
    """A job that takes much longer than the lease is handled once, although other workers wait."""
    shop.set(lease_s=0.6)
    shop.send("sleep 2")
    program = shop.start(processes=2)
    other = shop.start("jobs:obey_async")
    wait_until(lambda: shop.pending == 0)
    assert (program.stop(), other.stop()) == (0, 0)
    assert sorted(line.split()[0] for line in program.rest() + other.rest()) == ["begin", "end"]
    assert (program.errors(), other.errors()) == ("", "")


def test_a_lost_lease_is_logged_once(shop: Shop) -> None:
    """A job whose message was taken away meanwhile is reported once, and the program continues."""
    shop.set(lease_s=0.3)
    shop.send("sleep 2")
    program = shop.start()
    program.begun()
    shop.control.prune_all_messages_for("workers")
    shop.send("do")
    program.lines(3)
    assert program.stop() == 0
    assert shop.pending == 0
    assert program.errors().count("no longer holds") == 1
    assert "message 1 of the subscriber 'workers' (delivery 1) may be handled twice" in program.errors()


@pytest.mark.parametrize("processes", [1, 4])
def test_retries_come_after_their_delays(shop: Shop, processes: int) -> None:
    """Retry with 1, 2 and 4 units of time is followed by deliveries after these times, to any worker."""
    unit_s = 0.2
    shop.send(f"retry {unit_s}")
    program = shop.start(processes=processes)
    times = [float(program.begun()[4]) for _ in range(4)]
    pauses = [later - earlier for earlier, later in zip(times, times[1:])]
    assert all(pause >= scale * unit_s for pause, scale in zip(pauses, (1, 2, 4))), pauses
    assert program.lines(1) == [f"end retry {unit_s}"]
    assert program.stop() == 0
    assert (shop.pending, program.errors()) == (0, "")


def test_rejected_messages_are_dead_letters(shop: Shop) -> None:
    """Reject makes a message a dead letter at once, with its headers and the reason."""
    shop.env.new_publisher().send(b"reject no stock", headers={"traceparent": "00-1-2-01"})
    program = shop.start()
    program.begun()
    wait_until(lambda: shop.pending == 0)
    assert program.stop() == 0
    letter, = shop.control.dead_letters("workers")
    assert (letter.reason, letter.error_text, letter.deliveries) == ("rejected", "no stock", 1)
    assert letter.headers == {"traceparent": "00-1-2-01"}
    assert program.errors() == ""


@pytest.mark.parametrize(("handler", "message", "error"), [
    ("jobs:obey", "fail for good", "ValueError: for good"),
    ("jobs:obey_async", "cancel", "RuntimeError: The handler awaited something that was cancelled."),
    ("jobs:forget_to_await", "do", "The handler jobs:forget_to_await returned something to await."),
])
def test_exceptions_are_logged_and_retried(shop: Shop, handler: str, message: str, error: str) -> None:
    """An exception is logged with message, delivery and traceback, and counts as a failed delivery."""
    shop.set(max_deliveries=2)
    shop.send(message)
    program = shop.start(handler)
    wait_until(lambda: shop.control.status().subscribers["workers"].dead_letters == 1)
    assert program.stop() == 0
    for delivery in (1, 2):
        assert (f"The handler {handler} failed on message 1 of the subscriber 'workers' (delivery {delivery}).\n"
                "Traceback (most recent call last):\n") in program.errors()
    assert error in program.errors()
    letter, = shop.control.dead_letters("workers")
    assert letter.deliveries == 2 and error.split(": ")[-1] in letter.error_text


def test_messages_of_a_type(shop: Shop) -> None:
    """A message type may be named. What cannot be decoded becomes a dead letter, and the others are handled."""
    shop.set(max_deliveries=1)
    shop.send("no order", '{"item":"cup"}')
    program = shop.start("jobs:take_order", message_type="jobs:Order")
    assert program.lines(1) == ["order Order(item='cup')"]
    wait_until(lambda: shop.pending == 0)
    assert program.stop() == 0
    letter, = shop.control.dead_letters("workers")
    assert letter.error_type == "persipubsub.errors.DecodeError"
    assert "goes on after an error: Message 1 of the queue" in program.errors()


def test_a_plain_subscriber_keeps_the_order(shop: Shop) -> None:
    """A plain subscriber is served too. Its failed message comes again after a pause, before those that follow."""
    shop.control.add_subscriber("plain", max_deliveries=2)
    shop.send("fail", "do")
    program = shop.start(subscriber="plain")
    first, second = program.begun(), program.begun()
    assert (first[0], second[0]) == ("fail", "fail") and float(second[-1]) - float(first[-1]) >= 1
    assert program.begun()[0] == "do" and program.lines(1) == ["end do"]
    assert program.stop() == 0
    assert shop.control.status().subscribers["plain"].pending == 0


def test_errors_of_the_disk_pass(shop: Shop) -> None:
    """If the disk refuses writes for a time, the program reports it and goes on later."""
    shop.set(lease_s=2)
    shop.send("limit 1.5", "do")
    program = shop.start()
    begun = [line.split()[1] for line in program.lines(6) if line.startswith("begin")]
    assert sorted(begun) == ["do", "limit", "limit"]
    assert program.stop() == 0
    assert shop.pending == 0
    assert "The subscriber 'workers' goes on after an error: " in program.errors()


# Errors


def test_a_plain_subscriber_has_one_worker(shop: Shop) -> None:
    """More than one process or thread needs a shared subscriber, and the error says how to share it."""
    shop.control.add_subscriber("plain")
    many: List[Dict[str, Any]] = [{"processes": 2}, {"threads": 2}, {"threads": 2, "max_messages": 1}]
    for arguments in many:
        with pytest.raises(errors.SubscriberKindError, match="only one process with one thread .* shared=True"):
            worker.run(shop.env.path, "plain", print, **arguments)


@pytest.mark.parametrize(("arguments", "error", "text"), [
    ({
        "handler": "no_such_module:function"
    }, errors.ArgumentError, "No module named 'no_such_module'"),
    ({
        "handler": "persipubsub:no_such_function"
    }, errors.ArgumentError, "no_such_function"),
    ({
        "handler": "persipubsub"
    }, errors.ArgumentError, "must be named as module:name"),
    ({
        "handler": "persipubsub:__version__"
    }, errors.ArgumentTypeError, "must be a function"),
    ({
        "handler": lambda: None
    }, errors.ArgumentTypeError, "must take one argument"),
    ({
        "handler": lambda message: None,
        "processes": 2
    }, errors.ArgumentTypeError, "cannot be pickled"),
    ({
        "message_type": "persipubsub:NoSuchType"
    }, errors.ArgumentError, "The message type persipubsub:NoSuchType"),
    ({
        "subscriber": "nobody"
    }, errors.UnknownSubscriberError, "'workers'"),
    ({
        "subscriber": ""
    }, errors.ArgumentError, "1 to 255 bytes"),
    ({
        "processes": 0
    }, errors.ArgumentError, "processes must be at least 1"),
    ({
        "threads": True
    }, errors.ArgumentTypeError, "threads must be an int"),
    ({
        "grace_s": -1
    }, errors.ArgumentError, "grace_s must be from 0 to"),
    ({
        "max_messages": 0
    }, errors.ArgumentError, "max_messages must be at least 1"),
    ({
        "max_seconds": "1"
    }, errors.ArgumentTypeError, "max_seconds must be a number of seconds"),
])
def test_mistakes_are_found_before_a_message_is_received(shop: Shop, arguments: Any, error: Any, text: str) -> None:
    """A mistake is an error that names it, and no message is delivered."""
    shop.send("do")
    for more in ({}, {"processes": 2}):
        with pytest.raises(error, match=text):
            worker.run(shop.env.path, **{"subscriber": "workers", "handler": print, **more, **arguments})
    with shop.env.new_subscriber("workers").receive_delivery(timeout=0) as delivery:
        assert delivery is not None and delivery.delivery_count == 1


@both
def test_only_the_main_thread_handles_signals(shop: Shop, processes: int) -> None:
    """In another thread, an error names the main one, and no message is delivered."""
    shop.send("do")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        called = pool.submit(worker.run, shop.env.path, "workers", print, processes=processes)
        with pytest.raises(errors.UnsupportedError, match="only in the main thread"):
            called.result(WAIT_S)
    with shop.env.new_subscriber("workers").receive_delivery(timeout=0) as delivery:
        assert delivery is not None and delivery.delivery_count == 1


def test_a_daemonic_process_cannot_start_others(shop: Shop) -> None:
    """Where multiprocessing starts no processes, an error says what does."""
    program = shop.start_command([sys.executable, "-c", DAEMONIC])
    assert (program.status(),
            program.lines(1)) == (0, ["UnsupportedError: Python does not let this process start others."])


DAEMONIC = '''
import multiprocessing
from persipubsub import errors, worker

def run():
    try:
        worker.run("queue", "workers", print, processes=2)
    except errors.UnsupportedError as error:
        print("UnsupportedError:", str(error).partition(" Call")[0], flush=True)

process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
process.start()
process.join()
'''


@both
def test_a_removed_subscriber(shop: Shop, processes: int) -> None:
    """If the subscriber is removed, a single process ends with the error, and a supervisor goes on trying."""
    shop.send(*["do"] * 2 * processes)
    program = shop.start(processes=processes)
    program.lines(4 * processes)
    shop.control.remove_subscriber("workers")
    wait_until(lambda: "UnknownSubscriberError" in program.errors() or "Another one starts" in program.errors())
    if processes == 1:
        assert program.status() == 1
    else:
        shop.set()
        shop.send("do")
        program.begun()
        assert program.stop() == 0


# Handlers

# pylint: disable=unused-argument  # of handlers that are not called


def of_message(message: bytes) -> None:
    """Handle a message."""


def of_delivery(delivery: Delivery) -> None:  # type: ignore[type-arg]  # as users write it
    """Handle a delivery."""


def of_delivery_of_bytes(delivery: Delivery[bytes], _other: int = 0) -> None:
    """Handle a delivery of bytes."""


def of_quoted(delivery: "persipubsub.Delivery[bytes]") -> None:
    """Handle a delivery whose annotation is text."""


def of_unknown(delivery: "for_checkers.Delivery[bytes]") -> None:
    """Handle a delivery whose annotation is known to type checkers only."""


class Callable:
    """Objects that can be called handle deliveries as well."""

    def __call__(self, delivery: Delivery[bytes]) -> None:
        """Handle a delivery."""

    async def handle(self, delivery: Delivery[bytes]) -> None:
        """Handle a delivery in a task."""


class AsyncCallable:
    """Objects whose calls are awaited."""

    async def __call__(self, message: bytes) -> None:
        """Handle a message."""


@pytest.mark.parametrize(("function", "wants_delivery", "is_async"), [
    (of_message, False, False),
    (of_delivery, True, False),
    (of_delivery_of_bytes, True, False),
    (of_quoted, True, False),
    (of_unknown, True, False),
    (functools.partial(of_delivery_of_bytes, _other=1), True, False),
    (Callable(), True, False),
    (Callable().handle, True, True),
    (AsyncCallable(), False, True),
    (print, False, False),
    (bytearray, False, False),
])
def test_what_a_handler_gets(function: Any, wants_delivery: bool, is_async: bool) -> None:
    """A handler whose parameter is annotated with Delivery gets one, and any other one gets the message."""
    delivery = Delivery(b"1", 1, datetime.datetime.now(datetime.timezone.utc), 1, {})
    handler = Handler(function)
    assert handler.argument(delivery) is (delivery if wants_delivery else delivery.message)
    assert handler.is_async == is_async
