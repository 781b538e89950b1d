"""A relay brings each message of one queue into another exactly once, in order, through every crash."""

import contextlib
import functools
import itertools
import logging
import pathlib
import random
import shutil
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Callable, Iterator, List, Tuple

import pytest

import persipubsub
from persipubsub import Durability, Envelope, Environment, HighWaterMark, Strategy, errors
from persipubsub.engine.headers import HEADERS_MAX
from persipubsub.metrics import RELAY_METRICS, RelayCollector
from persipubsub.relay import ORIGIN_HEADER, Relay
from persipubsub.testing import Clock
from tests.concurrency import CONTEXT, Task, hold_write_lock, numbered, process, told, wait_until

MakeEnvironment = Callable[..., Environment]
KILLS = 30


@pytest.fixture(name="source")
def source_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a source with the subscriber of the relay."""
    return new_environment("relay", name="source")


@pytest.fixture(name="target")
def target_fixture(new_environment: MakeEnvironment) -> Environment:
    """Set up a target with one subscriber."""
    return new_environment("a", name="target")


@pytest.fixture(name="relay")
def relay_fixture(source: Environment, target: Environment) -> Iterator[Relay]:
    """Make a relay between both."""
    with Relay(source.path, target.path) as relay:
        yield relay


def received(queue: Environment) -> List[bytes]:
    """Receive all messages of a queue."""
    return list(queue.new_subscriber("a").messages(timeout=0, acknowledge_every=1000))


def numbers(start: int, stop: int) -> List[bytes]:
    """Return messages with the numbers of a range."""
    return [b"%d" % number for number in range(start, stop)]


def relay_once(source: Environment, target: Environment, subscriber: str = "relay", max_messages: int = 1000) -> int:
    """Bring what is there by a new relay; return how many messages that were."""
    with Relay(source, target, subscriber, max_messages) as relay:
        return relay.run(timeout=0)


# What arrives


def test_messages_arrive_with_their_headers_and_origin(source: Environment, target: Environment, relay: Relay) -> None:
    """Payloads and headers arrive unchanged, with a header of the first queue and the id there."""
    ids = source.new_publisher().send_many([b"1", Envelope(b"2", {"traceparent": "00-1"})])
    assert relay.run(timeout=0) == 2
    first, second = target.new_subscriber("a").deliveries(timeout=0)
    assert (first.message, second.message, second.headers["traceparent"]) == (b"1", b"2", "00-1")
    assert [one.headers[ORIGIN_HEADER].partition(":")[2] for one in (first, second)] == list(map(str, ids))
    assert (set(first.headers), set(second.headers)) == ({ORIGIN_HEADER}, {ORIGIN_HEADER, "traceparent"})


def test_the_first_origin_stays(new_environment: MakeEnvironment, source: Environment, target: Environment) -> None:
    """A message that passes two relays says which queue it was sent to first."""
    between = new_environment("relay", name="between")
    message_id = source.new_publisher().send_many([b"before", b"1"])[1]
    between.new_publisher().send(b"other")
    assert relay_once(source, between) == 2 and relay_once(between, target) == 3
    other, _, found = target.new_subscriber("a").deliveries(timeout=0)
    assert found.headers[ORIGIN_HEADER].endswith(f":{message_id}")
    assert found.headers[ORIGIN_HEADER].partition(":")[0] != other.headers[ORIGIN_HEADER].partition(":")[0]


def test_headers_at_their_limit_arrive_unchanged(source: Environment, target: Environment, relay: Relay) -> None:
    """A message that may have no further header arrives with those that it has."""
    full = {f"name-{number}": "text" for number in range(HEADERS_MAX)}
    source.new_publisher().send(Envelope(b"1", full))
    relay.run(timeout=0)
    assert [one.headers for one in target.new_subscriber("a").deliveries(timeout=0)] == [full]


def test_several_sources_share_a_target(new_environment: MakeEnvironment, target: Environment) -> None:
    """Messages of two sources with the same ids all arrive."""
    for name in ("one", "two"):
        source = new_environment("relay", name=name)
        source.new_publisher().send_many([name.encode(), b"again"])
        assert relay_once(source, target) == 2
        assert relay_once(source, target) == 0
    assert received(target) == [b"one", b"again", b"two", b"again"]


# Crashes


def relay_forever(connection: Connection, source: str, target: str, max_messages: int) -> None:
    """Relay until somebody kills this process."""
    with Relay(source, target, max_messages=max_messages) as relay:
        connection.send("ready")
        relay.run()


def send_forever(connection: Connection, source: str, sender: int) -> None:
    """Send messages that say who sent them, one by one and in batches, until killed."""
    with persipubsub.new_environment(source) as environment:
        publisher = environment.new_publisher()
        connection.send("ready")
        for number in itertools.count():
            publisher.send_many(numbered(f"{sender}-{number}", (1, 2, 1, 10)[number % 4]))


@contextlib.contextmanager
def killed_at_the_end(function: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    """Run a function in another process, from when it is ready until the end of the block, which kills it."""
    ours, theirs = CONTEXT.Pipe()
    running = CONTEXT.Process(target=function, args=(theirs, *arguments), daemon=True)
    running.start()
    try:
        assert told(ours) == "ready"
        yield running
    finally:
        running.kill()
        running.join()
        assert running.exitcode == -signal.SIGKILL
        ours.close()
        theirs.close()


def has_sent(queue: Environment, next_id: int) -> bool:
    """Return whether the messages before an id were sent."""
    return queue.new_control().status().next_id >= next_id


@pytest.mark.slow  # starts many processes
def test_every_message_arrives_once_through_kills(source: Environment, target: Environment) -> None:
    """Relays and senders that are killed again and again, both in the middle of their work, lose and double nothing."""
    source.new_control().add_subscriber("a")
    rng, paths = random.Random(1), (str(source.path), str(target.path))
    for sender in range(KILLS):
        size, count = rng.choice([1, 7, 100]), rng.randrange(1, 50)
        wanted = target.new_control().status().next_id + count
        with killed_at_the_end(send_forever, paths[0], sender), killed_at_the_end(relay_forever, *paths, size):
            wait_until(functools.partial(has_sent, target, wanted))
    relay_once(source, target)
    found = received(target)
    assert found == received(source) and len(set(found)) == len(found)


@contextlib.contextmanager
def not_acknowledged(source: Environment, target: Environment, messages: List[bytes]) -> Iterator[None]:
    """Have a relay die after the target has stored messages, and before the source knows."""
    relay_once(source, target)  # makes the route, so that the next relay writes to the source only to acknowledge
    source.new_publisher().send_many(messages)
    wanted = target.new_control().status().next_id + len(messages)
    with process(hold_write_lock, source.path) as holder:
        assert told(holder) == "held"
        with killed_at_the_end(relay_forever, str(source.path), str(target.path), 1000):
            wait_until(lambda: target.new_control().status().next_id == wanted)
        holder.send("let go")
    assert source.new_control().status().subscribers["relay"].pending == len(messages)
    yield


def test_what_was_brought_before_a_kill_is_not_brought_again(source: Environment, target: Environment) -> None:
    """A relay that dies between the commit of the target and the acknowledgement of the source doubles nothing."""
    with not_acknowledged(source, target, numbers(0, 50)):
        source.new_publisher().send_many(numbers(50, 60))
        assert relay_once(source, target, max_messages=7) == 10
    assert received(target) == numbers(0, 60)


def test_two_relays_of_one_subscriber_bring_each_message_once(source: Environment, target: Environment) -> None:
    """Processes that relay the same subscriber at the same time neither lose, double nor reorder a message."""
    paths = str(source.path), str(target.path)
    with killed_at_the_end(relay_forever, *paths, 3), killed_at_the_end(relay_forever, *paths, 5):
        for start in range(0, 1000, 10):
            source.new_publisher().send_many(numbers(start, start + 10))
        wait_until(lambda: source.new_control().status().subscribers["relay"].pending == 0)
    relay_once(source, target)
    assert received(target) == numbers(0, 1000)


# Queues that are not those that they were


def test_a_target_that_was_made_anew_is_refused(new_environment: MakeEnvironment, source: Environment,
                                                target: Environment) -> None:
    """A relay does not begin if its target is another queue than before, and a new subscriber can relay to that."""
    source.new_control().add_subscriber("other")
    source.new_publisher().send(b"1")
    relay_once(source, target)
    target.close()
    shutil.rmtree(target.path)
    source.new_publisher().send(b"2")
    anew = new_environment("a", name="target")
    with pytest.raises(errors.ReplacedError, match="'relay' has been relayed to another queue before.*made anew"):
        relay_once(source, anew)
    source.new_control().add_subscriber("again", start="earliest")
    assert relay_once(source, anew, "again") == 2
    assert received(anew) == [b"1", b"2"]


def test_a_subscriber_that_is_added_again_is_relayed_anew(source: Environment, target: Environment,
                                                          new_environment: MakeEnvironment) -> None:
    """The route of a subscriber ends with it."""
    relay_once(source, target)
    source.new_control().remove_subscriber("relay")
    source.new_control().add_subscriber("relay")
    source.new_publisher().send(b"1")
    other = new_environment("a", name="other")
    assert relay_once(source, other) == 1 and received(other) == [b"1"]


@pytest.mark.parametrize("name", ["source", "target"])
def test_a_queue_that_is_replaced_ends_its_relay(name: str, source: Environment, target: Environment,
                                                 relay: Relay) -> None:
    """A relay that runs while one of its queues is deleted and made anew raises ReplacedError."""
    source.new_publisher().send(b"1")
    running = Task(relay.run)
    wait_until(lambda: relay.status().backlog == 0)
    replaced = source if name == "source" else target
    shutil.rmtree(replaced.path)
    with persipubsub.new_environment(replaced.path) as anew:
        anew.new_control(["relay", "a"])
        if name == "target":
            source.new_publisher().send(b"2")
        error = running.exception()
    assert isinstance(error, errors.ReplacedError), error


def test_a_source_that_was_made_anew_is_another_source(new_environment: MakeEnvironment, source: Environment,
                                                       target: Environment) -> None:
    """The messages of a new source all arrive, though their ids have been brought before."""
    source.new_publisher().send_many([b"1", b"2"])
    relay_once(source, target)
    source.close()
    shutil.rmtree(source.path)
    source = new_environment("relay", name="source")
    source.new_publisher().send_many([b"3", b"4"])
    relay_once(source, target)
    assert received(target) == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("sent_since", [0, 1, 2])
def test_a_source_that_went_back_is_refused(sent_since: int, source: Environment, target: Environment,
                                            tmp_path: pathlib.Path, persipubsub_clock: Clock) -> None:
    """New messages of a source that was restored from a backup have old ids, so the relay does not begin."""
    source.new_publisher().send(b"1")
    persipubsub_clock.forward(1)  # messages that are sent within 10 ms have the same time
    relay_once(source, target)
    source.new_control().backup(tmp_path / "backup")
    source.new_publisher().send(b"2")
    relay_once(source, target)
    with persipubsub.new_environment(tmp_path / "backup") as restored:
        if sent_since:
            restored.new_publisher().send_many(numbers(0, sent_since))
        with pytest.raises(errors.ReplacedError, match="was restored from a backup"):
            relay_once(restored, target)
        assert restored.new_control().status().subscribers["relay"].pending == sent_since
    assert received(target) == [b"1", b"2"]


def test_a_copy_of_the_source_is_refused_while_the_relay_runs(source: Environment, target: Environment,
                                                              tmp_path: pathlib.Path) -> None:
    """Of two machines that begin with copies of one source, the second one to bring a message is told."""
    relay_once(source, target)
    source.new_control().backup(tmp_path / "copy")
    with persipubsub.new_environment(tmp_path / "copy") as copy, Relay(copy, target) as second:
        running = Task(second.run)
        wait_until(lambda: second._subscriber is not None)  # pylint: disable=protected-access  # that it has begun
        source.new_publisher().send(b"of the first")
        relay_once(source, target)
        copy.new_publisher().send(b"of the second")
        assert isinstance(running.exception(), errors.ReplacedError)
        assert copy.new_control().status().subscribers["relay"].pending == 1
    assert received(target) == [b"of the first"]


def test_a_target_that_was_restored_gets_what_it_lacks(source: Environment, target: Environment, tmp_path: pathlib.Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    """After a target was restored from a backup, a rewound relay brings what is missing there, and only that."""
    source.new_control().set_retention(3600)
    source.new_publisher().send_many([b"1", b"2"])
    relay_once(source, target)
    target.new_control().backup(tmp_path / "backup")
    source.new_publisher().send_many([b"3", b"4"])
    relay_once(source, target)
    target.close()
    shutil.copy(tmp_path / "backup" / "data.mdb", target.path / "data.mdb")
    with persipubsub.new_environment(target.path) as restored:
        assert relay_once(source, restored) == 0
        assert "has acknowledged the messages up to 4" in caplog.text and "rewind the subscriber" in caplog.text
        source.new_control().rewind("relay", "earliest")
        relay_once(source, restored)
        assert received(restored) == [b"1", b"2", b"3", b"4"]


# Errors that may pass


def test_a_full_target_is_waited_out(source: Environment, new_environment: MakeEnvironment) -> None:
    """A target that refuses messages gets them once it has room, and the relay says what it waits for."""
    target = new_environment("a", name="target", high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse)
    source.new_control().add_subscriber("limited", max_deliveries=1)
    source.new_publisher().send_many([b"1", b"2"])
    with Relay(source, target, "limited") as relay:
        running = Task(relay.run)
        wait_until(lambda: isinstance(relay.status().error, errors.QueueFullError))
        assert received(target) == [b"1"]
        wait_until(lambda: relay.status().backlog == 0)
        relay.stop()
        assert running.result() == 2
        assert relay.status().error is None
    assert received(target) == [b"2"]
    assert source.new_control().status().subscribers["limited"].dead_letters == 0


def test_a_long_error_is_told_once(source: Environment, new_environment: MakeEnvironment,
                                   caplog: pytest.LogCaptureFixture) -> None:
    """One warning says that a relay waits, and one that it goes on, however often it tries."""
    caplog.set_level(logging.WARNING, "persipubsub.relay")
    target = new_environment("a", name="target", high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse)
    source.new_publisher().send_many([b"1", b"2"])
    with Relay(source, target) as relay:
        running = Task(relay.run)
        wait_until(lambda: "waits" in caplog.text)
        received(target)
        wait_until(lambda: "goes on" in caplog.text)
        relay.stop()
        running.result()
    assert len(caplog.records) == 2


def test_a_target_that_takes_smaller_batches_gets_them(source: Environment, new_environment: MakeEnvironment) -> None:
    """Batches are made as small as the target wants them."""
    target = new_environment("a",
                             name="target",
                             high_watermark=HighWaterMark(max_messages=10),
                             strategy=Strategy.refuse)
    source.new_publisher().send_many(numbers(0, 100))
    with Relay(source, target) as relay:
        running = Task(relay.run)
        found: List[bytes] = []
        while len(found) < 100:
            found += received(target)
        relay.stop()
        running.result()
    assert found == numbers(0, 100)


@pytest.mark.parametrize("has_dead_letters", [False, True])
def test_a_message_that_is_too_large(has_dead_letters: bool, source: Environment,
                                     new_environment: MakeEnvironment) -> None:
    """What the target can never have becomes a dead letter, or ends the relay; all before it has arrived."""
    target = new_environment("a", name="target", high_watermark=HighWaterMark(hwm_db_size=10**6))
    control = source.new_control()
    if has_dead_letters:
        control.add_subscriber("relay", max_deliveries=3)
    source.new_publisher().send_many([b"1", b"2", bytes(2 * 10**6), b"3"])
    if has_dead_letters:
        assert relay_once(source, target) == 3
        letter, = control.dead_letters("relay")
        assert letter.id == 3 and "over the high-water mark" in letter.error_text
    else:
        with pytest.raises(errors.MessageTooLargeError, match="Message 3 of the relay .* max_deliveries"):
            relay_once(source, target)
        assert control.status().subscribers["relay"].pending == 2
    assert received(target) == [b"1", b"2", b"3"][:3 if has_dead_letters else 2]


def test_a_requeued_dead_letter_arrives_once(source: Environment, new_environment: MakeEnvironment) -> None:
    """A message that the target can have after all arrives when it is requeued, though later ones were brought."""
    target = new_environment("a", name="target", high_watermark=HighWaterMark(hwm_db_size=10**6))
    control = source.new_control()
    control.add_subscriber("relay", max_deliveries=3)
    source.new_publisher().send_many([b"1", bytes(2 * 10**6), b"3"])
    relay_once(source, target)
    target.new_control().set_hwm(HighWaterMark(hwm_db_size=10**7))
    control.requeue_dead_letters("relay")
    with process(hold_write_lock, source.path) as holder:
        assert told(holder) == "held"
        with killed_at_the_end(relay_forever, str(source.path), str(target.path), 1000):
            wait_until(lambda: target.new_control().status().sent == 3)
        holder.send("let go")
    source.new_publisher().send(b"4")
    assert relay_once(source, target) == 2
    assert received(target) == [b"1", b"3", bytes(2 * 10**6), b"4"]


# Mistakes


def test_mistakes_end_a_relay_before_it_begins(source: Environment, target: Environment, tmp_path: pathlib.Path,
                                               new_environment: MakeEnvironment) -> None:
    """What cannot be relayed is an error that says why, and nothing is acknowledged."""
    source.new_control().add_subscriber("shared", shared=True)
    source.new_publisher().send(b"1")
    cases: List[Tuple[Callable[[], object], type, str]] = [
        (lambda: relay_once(source, target, "nobody"), errors.UnknownSubscriberError, "'nobody'"),
        (lambda: relay_once(source, target, "shared"), errors.SubscriberKindError, "is shared"),
        (lambda: relay_once(source, source), errors.ArgumentError, "the same queue"),
        (lambda: relay_once(source, persipubsub.new_environment(tmp_path / "nowhere")), errors.NotInitializedError,
         "There is no queue"),
        (lambda: relay_once(source, target, max_messages=0), errors.ArgumentError, "max_messages"),
        (lambda: Relay("", "b"), errors.ArgumentError, "path"),
        (lambda: Relay("a", "b", ""), errors.ArgumentError, "identifier"),
    ]
    for call, kind, told_why in cases:
        with pytest.raises(kind, match=told_why):
            call()
    orders, invoices = (new_environment("relay", name=name, message_type=f"shop.{name}") for name in ("one", "two"))
    with pytest.raises(errors.MessageTypeError, match="shop.two, not to shop.one"):
        relay_once(orders, invoices)
    subscribers = source.new_control().status().subscribers
    assert [subscribers[name].pending for name in ("relay", "shared")] == [1, 1]


def test_a_source_that_may_go_back_is_warned_of(new_environment: MakeEnvironment, target: Environment,
                                                caplog: pytest.LogCaptureFixture) -> None:
    """A relay warns of a source whose commits a power loss can take back."""
    source = new_environment("relay", name="source", durability=Durability.PROCESS_CRASH)
    relay_once(source, target)
    assert "PROCESS_CRASH" in caplog.text


# Stopping, and looking


def test_a_relay_stops_at_once_while_it_waits(source: Environment, target: Environment, relay: Relay) -> None:
    """A relay that waits for messages ends when it is stopped, and does not begin again."""
    running = Task(relay.run)
    source.new_publisher().send(b"1")
    wait_until(lambda: relay.status().backlog == 0)
    relay.stop()
    assert running.result() == 1
    source.new_publisher().send(b"2")
    assert relay.run() == 1 and received(target) == [b"1"]


def test_a_signal_handler_stops_a_relay_that_waits_out_an_error(source: Environment,
                                                                new_environment: MakeEnvironment) -> None:
    """A stop ends the wait for a full queue, also from a signal handler of the thread that waits."""
    target = new_environment("a", name="target", high_watermark=HighWaterMark(max_messages=1), strategy=Strategy.refuse)
    source.new_publisher().send_many([b"1", b"2"])
    with Relay(source, target) as relay:

        def stop_soon() -> None:
            wait_until(lambda: relay.status().error is not None)
            signal.pthread_kill(main, signal.SIGUSR1)

        main = threading.get_ident()
        before = signal.signal(signal.SIGUSR1, lambda *_: relay.stop())
        try:
            stopping = Task(stop_soon)
            assert relay.run() == 1
            stopping.result()
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert source.new_control().status().subscribers["relay"].pending == 1


def test_environments_of_the_program_stay_open(source: Environment, target: Environment) -> None:
    """A relay closes only what it has opened."""
    with Relay(source, target) as relay:
        relay.run(timeout=0)
    assert not source.closed and not target.closed
    with Relay(source.path, target.path) as relay:
        relay.run(timeout=0)
    with pytest.raises(errors.ClosedError):
        relay.run(timeout=0)


def test_the_status_and_the_metrics(source: Environment, target: Environment, relay: Relay) -> None:
    """Both tell how many messages were brought, how many wait, and for how long."""
    source.new_publisher().send_many([b"1", b"2"])
    relay.run(timeout=0)
    source.new_publisher().send(b"3")
    wait_until(lambda: relay.status().lag_s > 0)
    status = relay.status()
    assert (status.relayed, status.backlog, status.error) == (2, 1, None)
    collector = RelayCollector([relay])
    assert {one.name for one in collector.describe()} == {one.name.removesuffix("_total") for one in RELAY_METRICS}
    samples = {one.name: one for family in collector.collect() for one in family.samples}
    assert all(one.labels == {
        "source": str(source.path),
        "target": str(target.path),
        "subscriber": "relay"
    } for one in samples.values())
    values = {name.removeprefix("persipubsub_relay_"): one.value for name, one in samples.items()}
    assert values.pop("lag_seconds") >= status.lag_s
    assert values == {"up": 1, "messages_total": 2, "backlog_messages": 1}
    source.new_control().remove_subscriber("relay")
    assert [one.value for family in collector.collect() for one in family.samples] == [0]
