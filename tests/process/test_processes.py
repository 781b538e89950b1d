"""Several processes and threads on one queue: what each receives, what holds at once, and what a kill -9 leaves.

The functions that begin with ``child_`` run in spawned processes, which import this module for them.
"""

# pylint: disable=too-many-locals  # several processes are several of everything

import collections
import contextlib
import itertools
import multiprocessing
import multiprocessing.synchronize
import pathlib
import random
import threading
import time
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Sequence, Tuple

import lmdb
import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Strategy, Subscriber, errors
from persipubsub.engine.commands import Acknowledge, Put
from persipubsub.lmdb_engine.engine import RULES, LmdbEngine

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    Pipe = Connection[Any, Any]

pytestmark = pytest.mark.slow  # starts many processes, or waits

MakeEnvironment = Callable[..., Environment]
SPAWN = multiprocessing.get_context("spawn")
WAIT_S = 60  # for what happens soon unless something is broken


@contextlib.contextmanager
def started(target: Callable[..., object], *args: object) -> Iterator[Tuple[BaseProcess, "Pipe"]]:
    """Run a function in a spawned process, with a pipe as the last argument; the process ends with the block."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(*args, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def get(connection: "Pipe") -> Any:
    """Receive what a process sends next."""
    assert connection.poll(WAIT_S), "the process says nothing"
    return connection.recv()


def ended(process: BaseProcess) -> None:
    """Wait until a process has ended by itself, without an error."""
    process.join(WAIT_S)
    assert process.exitcode == 0


def kill(process: BaseProcess) -> None:
    """Kill -9, and wait until the process is gone."""
    process.kill()
    process.join(WAIT_S)
    assert process.exitcode == -9


def drain(subscriber: Subscriber) -> List[bytes]:
    """Receive and acknowledge everything that is there."""
    return list(subscriber.messages(timeout=0, acknowledge_every=100))


def tell_when_waiting(connection: "Pipe") -> None:
    """Have this process say so when a subscriber has found nothing and is about to wait."""
    original = LmdbEngine.watch

    def watch(self: LmdbEngine, longest_sleep_s: float) -> Any:
        result = original(self, longest_sleep_s)
        connection.send("waiting")
        return result

    LmdbEngine.watch = watch  # type: ignore[method-assign]  # for the rest of this process


# Everybody gets everything once and in order


def batches_of(name: str, count: int) -> Iterator[List[bytes]]:
    """Return the messages of a publisher, some alone and some to be sent together."""
    rng = random.Random(name)
    number = 0
    while number < count:
        size = min(rng.choice([1, 1, 1, 2, 5, 20]), count - number)
        yield [
            f"{name} {index}".encode() + b"." * rng.choice([0, 0, 0, 100, 70_000])
            for index in range(number, number + size)
        ]
        number += size


def send(publisher: Publisher, batch: Sequence[bytes]) -> List[int]:
    """Send a message alone, or several together; return the ids."""
    return [publisher.send(batch[0])] if len(batch) == 1 else list(publisher.send_many(batch))


def child_publish(path: pathlib.Path, name: str, count: int, connection: "Pipe") -> None:
    """Send half of the messages on a signal and half on the next one, and report all ids."""
    with persipubsub.new_environment(path) as environment, environment.new_publisher() as publisher:
        batches, ids = list(batches_of(name, count)), []
        for half in (batches[:len(batches) // 2], batches[len(batches) // 2:]):
            connection.send("ready")
            connection.recv()
            ids += [send(publisher, batch) for batch in half]
        connection.send(ids)


def child_receive(path: pathlib.Path, way: str, count: int, connection: "Pipe") -> None:
    """Receive a number of messages in one of the ways, and report them, and what is left when all are sent."""
    received: List[bytes] = []
    with persipubsub.new_environment(path) as environment, environment.new_subscriber(way) as subscriber:
        connection.send("ready")
        while len(received) < count:
            if way == "receive":
                with subscriber.receive(timeout=WAIT_S) as msg:
                    assert msg is not None
                    received.append(msg)
            elif way == "receive_many":
                with subscriber.receive_many(max_messages=17, timeout=WAIT_S) as msgs:
                    assert msgs
                    received += msgs
            else:
                received += subscriber.messages(timeout=0.05, acknowledge_every=10)
        connection.send(received)
        connection.recv()
        connection.send(drain(subscriber))


@pytest.mark.slow
@pytest.mark.parametrize("durability", Durability)
def test_publishers_and_subscribers_in_processes(durability: Durability, new_environment: MakeEnvironment) -> None:
    """Three publisher and three subscriber processes: all get every message exactly once, in the order of the ids."""
    ways, names, count = ["receive", "receive_many", "messages"], ["p", "q", "r"], 400
    environment = new_environment(*ways, durability=durability)
    with contextlib.ExitStack() as stack:
        subscribers = [stack.enter_context(started(child_receive, environment.path, way, 3 * count)) for way in ways]
        publishers = [stack.enter_context(started(child_publish, environment.path, name, count)) for name in names]
        for _, connection in subscribers + publishers:
            assert get(connection) == "ready"
        for _, connection in publishers:
            connection.send("go")
        # Nobody is through before all are at work.
        for _, connection in publishers:
            assert get(connection) == "ready"
        for _, connection in publishers:
            connection.send("go on")
        by_id: Dict[int, bytes] = {}
        for name, (process, connection) in zip(names, publishers):
            for ids, batch in zip(get(connection), batches_of(name, count)):
                assert ids == list(range(ids[0], ids[0] + len(batch)))
                by_id.update(zip(ids, batch))
            ended(process)
        assert sorted(by_id) == list(range(1, 3 * count + 1))
        for process, connection in subscribers:
            assert get(connection) == [by_id[message_id] for message_id in sorted(by_id)]
            connection.send("all are sent")
            assert get(connection) == []
            ended(process)


@pytest.mark.parametrize("durability", Durability)
def test_threads_on_one_publisher(durability: Durability, new_environment: MakeEnvironment) -> None:
    """Eight threads on one Publisher, two that receive: all messages once, in the order of their ids."""
    environment = new_environment("a", "b", durability=durability)
    publisher = environment.new_publisher()
    names, count = [f"thread{number}" for number in range(8)], 200
    by_id: Dict[int, bytes] = {}
    received: Dict[str, List[bytes]] = {}
    problems: List[BaseException] = []
    barrier = threading.Barrier(len(names) + 2)

    def publish(name: str) -> None:
        barrier.wait(WAIT_S)
        for batch in batches_of(name, count):
            ids = send(publisher, batch)
            assert len(ids) == len(batch) and not set(ids) & set(by_id)
            by_id.update(zip(ids, batch))

    def receive(identifier: str) -> None:
        with environment.new_subscriber(identifier) as subscriber:
            barrier.wait(WAIT_S)
            received[identifier] = []
            while len(received[identifier]) < len(names) * count:
                messages = subscriber.messages(timeout=0.05, acknowledge_every=1 if identifier == "a" else 50)
                received[identifier] += messages

    def run(function: Callable[[str], None], argument: str) -> None:
        try:
            function(argument)
        except BaseException as error:  # pylint: disable=broad-exception-caught  # shown by the test's own thread
            problems.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(publish, name), daemon=True) for name in names]
    threads += [threading.Thread(target=run, args=(receive, name), daemon=True) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert not problems
    expected = [by_id[message_id] for message_id in sorted(by_id)]
    assert sorted(by_id) == list(range(1, len(names) * count + 1))
    assert received == {"a": expected, "b": expected}
    for name in names:
        own = [message for message in expected if message.startswith(name.encode() + b" ")]
        assert own == [message for batch in batches_of(name, count) for message in batch]
    assert environment.new_control().status().messages == 0


def child_use_pickled(environment: Environment, control: Control, publisher: Publisher, subscriber: Subscriber,
                      connection: "Pipe") -> None:
    """Use what came through pickle."""
    received = [subscriber.front(), publisher.send(b"from the child")]
    control.add_subscriber("b")
    ids = environment.new_publisher().send_many([b"3", b"4"])
    connection.send((received, ids, drain(subscriber), control.status().next_id))


def test_pickled_into_a_process(new_environment: MakeEnvironment) -> None:
    """Environment, Control, Publisher and Subscriber work in a spawned process to which they were passed."""
    environment = new_environment("a")
    made = environment, environment.new_control(), environment.new_publisher(), environment.new_subscriber("a")
    assert made[2].send(b"from the parent") == 1
    with started(child_use_pickled, *made) as (process, connection):
        assert get(connection) == ([b"from the parent",
                                    2], range(3, 5), [b"from the parent", b"from the child", b"3", b"4"], 5)
        ended(process)
    assert made[3].front() is None and drain(environment.new_subscriber("b")) == [b"3", b"4"]
    assert made[2].send(b"x") == 5


# Kill -9


def child_publish_for_ever(path: pathlib.Path, batch: int, connection: "Pipe") -> None:
    """Send messages and report each time, after the send has returned, how many they are."""
    with persipubsub.new_environment(path) as environment:
        publisher = environment.new_publisher()
        for start in itertools.count(0, batch):
            publisher.send_many(b"%d" % number for number in range(start, start + batch))
            connection.send_bytes(b"%d" % (start + batch))


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("batch, acknowledged", [(1, 1), (1, 40), (1, 333), (10, 7), (5000, 3)])
def test_a_killed_publisher(batch: int, acknowledged: int, durability: Durability,
                            new_environment: MakeEnvironment) -> None:
    """Nothing for which a send of a killed publisher had returned is lost; a batch is there whole or not at all."""
    # A slow machine must not let the publisher reach the mark before it is killed.
    environment = new_environment("a", durability=durability, high_watermark=HighWaterMark(max_messages=10**9))
    control, subscriber, told = environment.new_control(), environment.new_subscriber("a"), 0
    with started(child_publish_for_ever, environment.path, batch) as (process, connection):
        for _ in range(acknowledged):
            assert connection.poll(WAIT_S)
            told = int(connection.recv_bytes())
        # Not just after a send: as soon as something of a later one can be seen, which must be all of it.
        deadline_s = time.monotonic() + WAIT_S
        while control.status().next_id <= told + 1 and time.monotonic() < deadline_s:
            pass
        kill(process)
        with contextlib.suppress(EOFError, OSError):
            while connection.poll(0):
                told = int(connection.recv_bytes())
    assert environment.new_publisher().send(b"after") >= told + 1
    *received, last = drain(subscriber)
    assert last == b"after" and len(received) % batch == 0 and acknowledged * batch <= told <= len(received)
    assert received == [b"%d" % number for number in range(len(received))]


def child_stop_in_transaction(path: pathlib.Path, operation: str, connection: "Pipe") -> None:
    """Write, and stop at the end of the operation, before its commit."""
    command = {"put": Put, "take": Acknowledge}[operation]
    original = RULES[command]

    def stop(*args: Any) -> Any:
        result = original(*args)
        connection.send("inside")
        connection.recv()
        return result

    with persipubsub.new_environment(path) as environment:
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
        RULES[command] = stop
        if operation == "put":
            publisher.send_many([b"lost"] * 1000)
        else:
            subscriber.pop()


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("operation", ["put", "take"])
def test_killed_in_a_transaction(operation: str, durability: Durability, new_environment: MakeEnvironment) -> None:
    """A process killed inside its write transaction leaves nothing of it, and the others go on at once."""
    environment = new_environment("a", durability=durability)
    publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
    publisher.send(b"1")
    with started(child_stop_in_transaction, environment.path, operation) as (process, connection):
        assert get(connection) == "inside"
        assert subscriber.front() == b"1" and environment.new_subscriber("a").front() == b"1"
        kill(process)
    assert publisher.send(b"2") == 2
    assert drain(subscriber) == [b"1", b"2"]


def child_stop_in_block(path: pathlib.Path, way: str, connection: "Pipe") -> None:
    """Receive, report the messages, and stop before the end of the block."""
    with persipubsub.new_environment(path) as environment:
        subscriber = environment.new_subscriber("a")
        if way == "messages":
            for message in subscriber.messages():
                connection.send(message)
                connection.recv()
        with getattr(subscriber, way)() as got:
            connection.send(got)
            connection.recv()


@pytest.mark.parametrize("way, received", [("receive", b"0"), ("receive_many", [b"0", b"1", b"2"]),
                                           ("receive_to_top", b"2"), ("messages", b"0")])
def test_a_subscriber_killed_in_its_block(way: str, received: object, new_environment: MakeEnvironment) -> None:
    """Messages whose block did not end, since the process was killed, come again."""
    environment = new_environment("a")
    environment.new_publisher().send_many([b"0", b"1", b"2"])
    with started(child_stop_in_block, environment.path, way) as (process, connection):
        assert get(connection) == received
        kill(process)
    assert drain(environment.new_subscriber("a")) == [b"0", b"1", b"2"]


def child_receive_for_ever(path: pathlib.Path, acknowledge_every: int, connection: "Pipe") -> None:
    """Receive messages, and report of each the beginning and the end of its iteration."""
    with persipubsub.new_environment(path) as environment:
        subscriber = environment.new_subscriber("a")
        if acknowledge_every == 0:
            while True:
                with subscriber.receive() as msg:
                    assert msg is not None
                    connection.send_bytes(b"begun %b" % msg)
                connection.send_bytes(b"taken %b" % msg)
        for message in subscriber.messages(acknowledge_every=acknowledge_every):
            connection.send_bytes(b"begun %b" % message)


@pytest.mark.parametrize("acknowledge_every, count", [(0, 1), (0, 100), (0, 333), (1, 100), (10, 95), (10, 100)])
def test_a_killed_subscriber(acknowledge_every: int, count: int, new_environment: MakeEnvironment) -> None:
    """After a kill in mid-stream everything not acknowledged comes again, in order, and nothing else."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    total = 2000
    environment.new_publisher().send_many(b"%d" % number for number in range(total))
    begun = taken = 0
    with started(child_receive_for_ever, environment.path, acknowledge_every) as (process, connection):
        with contextlib.suppress(EOFError, OSError):
            while connection.poll(WAIT_S if process.exitcode is None else 0):
                what, number = connection.recv_bytes().split()
                if what == b"begun":
                    assert int(number) == begun
                    begun += 1
                else:
                    taken = int(number) + 1
                if begun == count and process.exitcode is None:
                    kill(process)
    received = drain(environment.new_subscriber("a"))
    assert received == [b"%d" % number for number in range(total - len(received), total)]
    first = total - len(received)
    assert count <= begun < total and first <= begun
    # Taken were those for which the block had ended, or for which the loop had asked for the first of the next commit.
    assert first >= (taken if acknowledge_every == 0 else (begun - 1) // acknowledge_every * acknowledge_every)


# Changes hold at once


def child_publish_on_and_on(path: pathlib.Path, name: str, connection: "Pipe") -> None:
    """Send messages; on request, report the next number, send 100 more, and report how many they were."""
    with persipubsub.new_environment(path) as environment:
        publisher = environment.new_publisher()
        end = None
        for number in itertools.count():
            if end is None and connection.poll(0):
                connection.recv()
                connection.send(number)
                end = number + 100
            if number == end:
                connection.send(end)
                return
            publisher.send(f"{name} {number}".encode())


def test_a_subscriber_is_added_while_others_publish(new_environment: MakeEnvironment) -> None:
    """A new subscriber gets everything that open publishers of other processes send after ``add_subscriber``."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    control, names = environment.new_control(), ["p", "q"]
    with contextlib.ExitStack() as stack:
        publishers = [stack.enter_context(started(child_publish_on_and_on, environment.path, name)) for name in names]
        seen = collections.Counter[bytes]()
        for message in environment.new_subscriber("a").messages(timeout=WAIT_S):
            seen[message.split()[0]] += 1
            if len(seen) == len(names) and min(seen.values()) >= 20:
                break
        control.add_subscriber("late")
        firsts, ends = {}, {}
        for name, (_, connection) in zip(names, publishers):
            connection.send("added")
            firsts[name] = get(connection)
        for name, (process, connection) in zip(names, publishers):
            ends[name] = get(connection)
            ended(process)
    received = [message.decode().split() for message in drain(environment.new_subscriber("late"))]
    for name in names:
        numbers = [int(number) for sender, number in received if sender == name]
        assert 20 <= numbers[0] <= firsts[name]
        assert numbers == list(range(numbers[0], ends[name]))


def child_obey(path: pathlib.Path, connection: "Pipe") -> None:
    """Keep a publisher, a subscriber and a control open, call what is requested, and send back the result."""
    opened_with_sync: List[bool] = []
    original = lmdb.Environment

    def environment_with_note(*args: Any, **kwargs: Any) -> Any:
        opened_with_sync.append(kwargs["sync"])
        return original(*args, **kwargs)

    setattr(lmdb, "Environment", environment_with_note)
    with persipubsub.new_environment(path) as environment:
        objects = {
            "publisher": environment.new_publisher(),
            "subscriber": environment.new_subscriber("a"),
            "control": environment.new_control(),
            "syncs": opened_with_sync,
            "environment": environment,
        }
        connection.send("ready")
        while True:
            name, method, args = connection.recv()
            result = getattr(objects[name], method)(*args)
            connection.send(result if method in ("send", "front", "pop", "copy") else None)


class Other:
    """Another process that has the queue open."""

    def __init__(self, connection: "Pipe") -> None:
        self._connection = connection
        assert get(connection) == "ready"

    def __call__(self, name: str, method: str, *args: object) -> Any:
        """Have the other process call a method of one of its objects."""
        self._connection.send((name, method, args))
        return get(self._connection)


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a queue."""
    return new_environment("a")


@pytest.fixture(name="other")
def other_fixture(environment: Environment) -> Iterator[Other]:
    """Open the queue in another process as well."""
    with started(child_obey, environment.path) as (_, connection):
        yield Other(connection)


def test_marks_and_strategy_hold_in_other_processes(environment: Environment, other: Other) -> None:
    """A mark or strategy set in one process holds in another one for the very next send, in both directions."""
    control, publisher, subscriber = environment.new_control(), environment.new_publisher(), environment.new_subscriber(
        "a")

    def send_here(message: bytes) -> object:
        return publisher.send(message)

    def send_there(message: bytes) -> object:
        return other("publisher", "send", message)

    def set_here(what: str, value: object) -> None:
        getattr(control, what)(value)

    def set_there(what: str, value: object) -> None:
        other("control", what, value)

    for send_one, set_one in ((send_there, set_here), (send_here, set_there), (send_there, set_there)):
        set_one("set_hwm", HighWaterMark(None, None, None))
        set_one("set_strategy", Strategy.prune_first)
        for message in (b"1", b"2", b"3", b"4"):
            send_one(message)
        set_one("set_hwm", HighWaterMark(max_messages=4))
        send_one(b"5")
        with pytest.raises(ZeroDivisionError):  # keeps what is received
            with subscriber.receive_many(timeout=0) as msgs:
                raise ZeroDivisionError()
        assert msgs == [b"4", b"5"]
        send_one(b"6")
        send_one(b"7")
        set_one("set_strategy", Strategy.prune_last)
        send_one(b"8")
        assert drain(subscriber) == [b"4", b"8"]


def test_the_timeout_holds_in_other_processes(environment: Environment, other: Other) -> None:
    """A timeout set in one process expires messages at the next look in another one, whose handle is open."""
    environment.new_publisher().send(b"x")
    assert other("subscriber", "front") == b"x"
    environment.new_control().set_hwm(HighWaterMark(message_timeout=0.000001))
    assert other("subscriber", "front") is None


def test_durability_holds_in_other_processes(environment: Environment, other: Other) -> None:
    """A durability set in one process holds in another one for the very next write, and nothing is lost by it."""
    ids = [other("publisher", "send", b"1")]
    for durability, sync in ((Durability.PROCESS_CRASH, False), (Durability.POWER_LOSS, True),
                             (Durability.PROCESS_CRASH, False)):
        environment.new_control(durability=durability)
        ids.append(other("publisher", "send", b"x"))
        assert other("syncs", "copy")[-1] is sync
    assert ids == [1, 2, 3, 4]
    assert drain(environment.new_subscriber("a")) == [b"1", b"x", b"x", b"x"]


def test_clearing_holds_in_other_processes(environment: Environment, other: Other) -> None:
    """What one process clears, acknowledges or prunes is missing at the next look of another one."""
    control, publisher, subscriber = environment.new_control(), environment.new_publisher(), environment.new_subscriber(
        "a")
    for remove in (control.clear_messages, lambda: control.prune_all_messages_for("a"), lambda: drain(subscriber)):
        publisher.send_many([b"1", b"2"])
        assert other("subscriber", "front") == b"1"
        remove()
        assert other("subscriber", "front") is None
    control.clear_all_subscribers()
    assert other("publisher", "send", b"3") == 7  # to nobody
    control.add_subscriber("a")
    assert other("publisher", "send", b"4") == 8
    assert drain(environment.new_subscriber("a")) == [b"4"]


def child_wait(path: pathlib.Path, way: str, connection: "Pipe") -> None:
    """Wait for a message as long as it takes; report it, or the error."""
    with persipubsub.new_environment(path) as environment:
        subscriber = environment.new_subscriber("a")
        tell_when_waiting(connection)
        try:
            if way == "messages":
                connection.send(next(iter(subscriber.messages())))
            else:
                with getattr(subscriber, way)(timeout=None) as got:
                    connection.send(got)
        except errors.PersipubsubError as error:
            connection.send((type(error), str(error)))


@pytest.mark.parametrize("way, remove", [("receive", "remove_subscriber"), ("receive_many", "remove_subscriber"),
                                         ("receive_to_top", "clear_all_subscribers"), ("messages", "added again")])
def test_a_removed_subscriber_waits_in_another_process(way: str, remove: str, new_environment: MakeEnvironment) -> None:
    """Removing a subscriber ends a wait in another process with UnknownSubscriberError, for good."""
    environment = new_environment("a", "b")
    control = environment.new_control()
    with started(child_wait, environment.path, way) as (process, connection):
        assert get(connection) == "waiting"
        if remove == "clear_all_subscribers":
            control.clear_all_subscribers()
        else:
            control.remove_subscriber("a")
        if remove == "added again":
            control.add_subscriber("a")
            environment.new_publisher().send(b"for the new one")
        kind, text = get(connection)
        assert kind is errors.UnknownSubscriberError and "'a' was removed" in text
        ended(process)


@pytest.mark.parametrize("way", ["receive", "receive_many", "receive_to_top", "messages"])
def test_a_wait_in_another_process_gets_the_message(way: str, new_environment: MakeEnvironment) -> None:
    """A process that waits without end gets what another one sends meanwhile."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    with started(child_wait, environment.path, way) as (process, connection):
        assert get(connection) == "waiting"
        publisher.send(b"x")
        assert get(connection) == ([b"x"] if way == "receive_many" else b"x")
        ended(process)


# Setting up at the same moment


def child_set_up(paths: Sequence[pathlib.Path], name: str, barrier: multiprocessing.synchronize.Barrier,
                 connection: "Pipe") -> None:
    """Set up each of the queues, at the same moment as the other process."""
    ids = []
    for path in paths:
        with persipubsub.new_environment(path) as environment:
            barrier.wait(WAIT_S)
            environment.new_control([name])
            ids.append(environment.new_publisher().send(name.encode()))
            barrier.wait(WAIT_S)
    connection.send(ids)


def test_two_processes_set_up_a_queue_at_the_same_moment(tmp_path: pathlib.Path) -> None:
    """Two processes that call ``new_control`` on a fresh path make one queue, with the settings of both."""
    paths = [tmp_path / "parents" / str(number) / "queue" for number in range(20)]
    barrier, names = SPAWN.Barrier(2), ["x", "y"]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(child_set_up, paths, name, barrier)) for name in names]
        all_ids = [get(connection) for _, connection in processes]
        for process, _ in processes:
            ended(process)
    for path, *ids in zip(paths, *all_ids):
        assert sorted(ids) == [1, 2]
        with persipubsub.new_environment(path) as environment:
            control = environment.new_control()
            status = control.status()
            assert set(status.subscribers) == set(names) and status.next_id == 3 and control.check() == ()
            by_id = [name.encode() for _, name in sorted(zip(ids, names))]
            for name in names:
                received = drain(environment.new_subscriber(name))
                assert received in (by_id, by_id[by_id.index(name.encode()):]) and name.encode() in received
        assert {file.name for file in path.iterdir()} <= {"data.mdb", "lock.mdb", "use.lock", "wakeup"}
