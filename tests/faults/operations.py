"""The operations of a queue at which faults are injected: each of the public API, and what it may change."""

import pathlib
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Reject, Strategy, compaction
from tests.faults import shared_operations
from tests.faults.journal import envelope, message, name_of, name_with_headers
from tests.faults.shared_operations import BATCH_MESSAGES, WORKERS, Action

SUBSCRIBERS = ("a", "b")
#: What the queue holds before an operation: more than two pages of short messages, some in several parts, and most with
#: headers, as all messages below but the first.
FILL = [message("before", number, 150_000 if number % 10 == 0 else 300) for number in range(30)]
ONE = [message("op", 0, 300)]
WITH_HEADERS = [message("op", 1, 300)]
LONG = [message("op", 2, 500_000)]
MANY = [message("op", number, 100_000 if number % 8 == 0 else 300) for number in range(20)]


class Operation(NamedTuple):
    """An operation: ``prepare`` opens the queue and returns the action, during which the fault happens."""

    name: str
    prepare: Callable[[pathlib.Path], Action]
    sends: Sequence[bytes] = ()
    #: How many messages the subscriber acknowledges.
    takes: int = 0
    taker: str = "a"
    #: Whether b has acknowledged everything before: then what a acknowledges is deleted.
    is_last: bool = False
    #: The subscribers whose messages may be dropped.
    prunes: Tuple[str, ...] = ()
    #: Whether it makes the queue.
    creates: bool = False


def fill(path: pathlib.Path, durability: Durability) -> List[str]:
    """Make the queue that operations find; return the names of its messages."""
    with persipubsub.new_environment(path) as environment:
        environment.new_control(SUBSCRIBERS, durability=durability)
        environment.new_publisher().send_many(map(envelope, FILL[:20]))
        for payload in FILL[20:]:
            environment.new_publisher().send(envelope(payload))
    return [name_of(payload) for payload in FILL]


def _send(msgs: Sequence[bytes]) -> Callable[[pathlib.Path], Action]:

    def prepare(path: pathlib.Path) -> Action:
        publisher = persipubsub.new_environment(path).new_publisher()
        return lambda: publisher.send(envelope(msgs[0]))

    return prepare


def _send_many(path: pathlib.Path) -> Action:
    publisher = persipubsub.new_environment(path).new_publisher()
    return lambda: publisher.send_many(map(envelope, MANY))


def _overflow(path: pathlib.Path) -> Action:
    environment = persipubsub.new_environment(path)
    environment.new_control().set_hwm(HighWaterMark(max_messages=len(FILL)))
    publisher = environment.new_publisher()
    return lambda: publisher.send(ONE[0])


def _give_way(path: pathlib.Path) -> Action:
    """Send to a full queue that refuses messages, so that retained ones are deleted for it."""
    _rewind(path)
    environment = persipubsub.new_environment(path)
    environment.new_control(high_watermark=HighWaterMark(max_messages=len(FILL)), strategy=Strategy.refuse)
    publisher = environment.new_publisher()
    return lambda: publisher.send(envelope(WITH_HEADERS[0]))


def _reject(path: pathlib.Path) -> Action:
    """Reject a message of a subscriber that is not shared, so that its cursor moves on."""
    environment = persipubsub.new_environment(path)
    environment.new_control().add_subscriber("a", max_deliveries=5)
    receipt = environment.new_subscriber("a").receive(timeout=0)
    assert receipt.__enter__() is not None  # pylint: disable=unnecessary-dunder-call  # it is left elsewhere
    return lambda: receipt.__exit__(Reject, Reject("on purpose"), None)


def _first_send(path: pathlib.Path) -> Action:
    environment = persipubsub.new_environment(path)

    def action() -> None:
        environment.new_publisher().send(envelope(ONE[0]))

    return action


def _receive(path: pathlib.Path) -> Action:
    subscriber = persipubsub.new_environment(path).new_subscriber("a")

    def action() -> None:
        with subscriber.receive(timeout=0) as msg:
            assert msg is not None

    return action


def _receive_many(path: pathlib.Path) -> Action:
    subscriber = persipubsub.new_environment(path).new_subscriber("a")

    def action() -> None:
        with subscriber.receive_many(max_messages=15, timeout=0) as msgs:
            assert len(msgs) == 15

    return action


def _receive_last(path: pathlib.Path) -> Action:
    """Raise the low-water mark, so that what nobody awaits any more is deleted."""
    environment = persipubsub.new_environment(path)
    with environment.new_subscriber("b").receive_many(timeout=0):
        pass
    return _receive_many(path)


def _send_once(path: pathlib.Path) -> Action:
    publisher = persipubsub.new_environment(path).new_publisher()
    return lambda: publisher.send(envelope(WITH_HEADERS[0]), deduplication_id="op")


def _send_later(path: pathlib.Path) -> Action:
    publisher = persipubsub.new_environment(path).new_publisher()
    return lambda: publisher.send_later(envelope(LONG[0]), delay_s=10**6)


def _cancel(path: pathlib.Path) -> Action:
    publisher = persipubsub.new_environment(path).new_publisher()
    delayed = publisher.send_later(envelope(LONG[0]), delay_s=10**6)
    return lambda: publisher.cancel(delayed)


def _append_due(path: pathlib.Path) -> Action:
    """Have a message become due; whoever looks afterwards appends it, too."""
    environment = persipubsub.new_environment(path)
    control = environment.new_control()
    environment.new_publisher().send_later(envelope(LONG[0]), delay_s=0.02)
    time.sleep(0.03)
    return control.status


def _rewind(path: pathlib.Path) -> Action:
    environment = persipubsub.new_environment(path)
    control = environment.new_control(retention_s=400)
    for identifier in SUBSCRIBERS:
        with environment.new_subscriber(identifier).receive_many(max_messages=20, timeout=0):
            pass
    return lambda: control.rewind("a", "earliest")


def _end_retention(path: pathlib.Path) -> Action:
    """End the retention, so that retained messages are deleted."""
    _rewind(path)
    control = persipubsub.new_environment(path).new_control()
    return lambda: control.set_retention(0)


def _change(change: Callable[[Control, Environment], object]) -> Callable[[pathlib.Path], Action]:

    def prepare(path: pathlib.Path) -> Action:
        environment = persipubsub.new_environment(path)
        control = environment.new_control()
        return lambda: change(control, environment)

    return prepare


def _create(path: pathlib.Path) -> Action:
    environment = persipubsub.new_environment(path)

    def action() -> None:
        environment.new_control(SUBSCRIBERS)

    return action


def _close(path: pathlib.Path) -> Action:
    environment = persipubsub.new_environment(path)
    environment.new_publisher()
    return environment.close


#: A further operation is one more line.
OPERATIONS = [
    Operation("send", _send(ONE), sends=ONE),
    Operation("send a long message", _send(LONG), sends=LONG),
    Operation("send with headers", _send(WITH_HEADERS), sends=WITH_HEADERS),
    Operation("send_many", _send_many, sends=MANY),
    Operation("send over the mark", _overflow, sends=ONE, prunes=SUBSCRIBERS),
    Operation("send that retained messages give way to", _give_way, sends=WITH_HEADERS, prunes=SUBSCRIBERS),
    Operation("open and send", _first_send, sends=ONE),
    Operation("receive", _receive, takes=1),
    Operation("reject in order", _reject, takes=1),
    Operation("receive_many", _receive_many, takes=15),
    Operation("receive_many and delete", _receive_last, takes=15, is_last=True),
    Operation("prune_all_messages_for", _change(lambda control, _: control.prune_all_messages_for("a")),
              prunes=("a", )),
    Operation("prune_dangling_messages", _change(lambda control, _: control.prune_dangling_messages())),
    Operation("clear_messages", _change(lambda control, _: control.clear_messages()), prunes=SUBSCRIBERS),
    Operation("add_subscriber", _change(lambda control, _: control.add_subscriber("c"))),
    Operation("remove_subscriber", _change(lambda control, _: control.remove_subscriber("a")), prunes=("a", )),
    Operation("set_hwm", _change(lambda control, _: control.set_hwm(HighWaterMark(max_messages=7000)))),
    Operation("set_strategy", _change(lambda control, _: control.set_strategy(Strategy.prune_last))),
    Operation("to POWER_LOSS",
              _change(lambda _, environment: environment.new_control(durability=Durability.POWER_LOSS))),
    Operation("to PROCESS_CRASH",
              _change(lambda _, environment: environment.new_control(durability=Durability.PROCESS_CRASH))),
    Operation("send with an id", _send_once, sends=WITH_HEADERS),
    Operation("send_later", _send_later),
    Operation("cancel", _cancel),
    Operation("append what is due", _append_due, sends=LONG),
    Operation("rewind", _rewind, prunes=SUBSCRIBERS),
    Operation("set_retention", _end_retention, prunes=SUBSCRIBERS),
    Operation("add_subscriber at the earliest",
              _change(lambda control, _: control.add_subscriber("c", start="earliest"))),
    Operation("claim", shared_operations.claim),
    Operation("claim what came back", shared_operations.claim_again),
    Operation("acknowledge", shared_operations.acknowledge, takes=BATCH_MESSAGES, taker=WORKERS),
    Operation("acknowledge and delete",
              shared_operations.acknowledge_last,
              takes=BATCH_MESSAGES,
              taker=WORKERS,
              is_last=True),
    Operation("give back", shared_operations.give_back),
    Operation("retry", shared_operations.retry),
    Operation("reject", shared_operations.reject),
    Operation("give back unbegun", shared_operations.give_back_unbegun),
    Operation("bury what raised", shared_operations.bury_what_raised),
    Operation("bury what ran out", shared_operations.bury_what_ran_out),
    Operation("requeue_dead_letters", shared_operations.requeue),
    Operation("acknowledge what was dead", shared_operations.acknowledge_requeued, takes=BATCH_MESSAGES, taker=WORKERS),
    Operation("discard_dead_letters", shared_operations.discard, prunes=(WORKERS, )),
    Operation("extend_lease", shared_operations.extend_lease),
    Operation("close", _close),
    Operation("compact", lambda path: lambda: compaction.compact(path)),
    Operation("new_control", _create, creates=True),
]


class State(NamedTuple):
    """What there is to see of a queue: before an operation, after it, or after a fault."""

    left: Dict[str, List[str]]
    settings: List[str]
    next_id: int
    violations: List[str]


class _Keep(Exception):
    """Leave what was received in the queue."""


def look(path: pathlib.Path) -> Optional[State]:
    """Look at a queue, in a process that has not used it; None if it was never made."""
    with persipubsub.new_environment(path) as environment:
        try:
            environment.new_publisher()
        except persipubsub.errors.NotInitializedError:
            return None
        control = environment.new_control()
        status = control.status()
        left: Dict[str, List[str]] = {}
        for identifier in sorted(status.subscribers.keys() - {WORKERS}):
            try:
                with environment.new_subscriber(identifier).receive_deliveries(timeout=0) as deliveries:
                    left[identifier] = [name_with_headers(one.message, one.headers) for one in deliveries]
                    raise _Keep
            except _Keep:
                pass
        settings = [repr(status.high_watermark), status.strategy.name, status.durability.name]
        settings += [f"retention {status.retention_s}, {status.retained} retained, {status.delayed} delayed"]
        shared = shared_operations.look(path)
        if WORKERS in status.subscribers:
            left[WORKERS] = shared.names
            settings += shared.deliveries + shared.letters
        return State(left, settings, status.next_id, [str(violation) for violation in control.check()])
