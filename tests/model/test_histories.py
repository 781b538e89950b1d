"""The history of concurrent operations: what was sent is seen by every later receive."""

import contextlib
import pathlib
import random
import time
from multiprocessing.connection import Connection
from typing import List, NamedTuple, Optional, Sequence, Tuple

import pytest

import persipubsub
from persipubsub import Publisher, Subscriber
from tests.concurrency import Opened, Task, drained, numbered, process, told


class Send(NamedTuple):
    """A send that returned, and when; times are those of one clock for all processes."""

    invoked_ns: int
    responded_ns: int
    ids: Sequence[int]


class Receive(NamedTuple):
    """A receive of one subscriber, and when."""

    invoked_ns: int
    responded_ns: int
    kind: str
    ids: Sequence[int]
    full: bool  # whether there could not be more


def random_sends(publisher: Publisher, chance: random.Random, name: str, count: int) -> List[Tuple[Send, List[bytes]]]:
    """Send single messages and batches."""
    history = []
    for number in range(count):
        payloads = numbered(f"{name}/{number}", chance.choice([1, 1, 1, 2, 5]))
        start = time.monotonic_ns()
        ids = [publisher.send(payloads[0])] if len(payloads) == 1 else publisher.send_many(payloads)
        history.append((Send(start, time.monotonic_ns(), list(ids)), payloads))
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 0.002))
    return history


def random_receives(subscriber: Subscriber, chance: random.Random, count: int) -> List[Tuple[Receive, List[bytes]]]:
    """Receive in all ways."""
    history = []
    for _ in range(count):
        kind = chance.choice(["receive", "receive", "many", "many", "top"])
        timeout, limit = chance.choice([0, 0, 0.005]), chance.choice([1, 3, 100])
        start = time.monotonic_ns()
        msgs: Sequence[Optional[bytes]]
        if kind == "many":
            with subscriber.receive_many(max_messages=limit, timeout=timeout) as batch:
                msgs, end = batch, time.monotonic_ns()
        else:
            call = subscriber.receive if kind == "receive" else subscriber.receive_to_top
            limit = 1
            with call(timeout=timeout) as msg:
                msgs, end = [msg], time.monotonic_ns()
        payloads = [msg for msg in msgs if msg is not None]
        history.append((Receive(start, end, kind, [], len(payloads) == limit), payloads))
    return history


def random_history(connection: Connection, path: pathlib.Path, seed: str) -> None:
    """Send and receive from several threads at once: the main function of a process."""
    with persipubsub.new_environment(path) as environment:
        publisher = environment.new_publisher()
        connection.send("ready")
        told(connection)
        senders = [
            Task(lambda name=name: random_sends(publisher, random.Random(name), name, 60))  # type: ignore[misc]
            for name in (f"{seed} sender {number}" for number in range(2))
        ]
        receivers = {
            name:
            Task(lambda name=name: random_receives(  # type: ignore[misc]
                environment.new_subscriber(name), random.Random(seed + name), 150))
            for name in (f"{seed} subscriber {number}" for number in range(2))
        }
        connection.send(([sender.result() for sender in senders], {
            name: receiver.result()
            for name, receiver in receivers.items()
        }))


def check_sends(sends: Sequence[Send]) -> None:
    """Verify that ids are unique, together in a batch, and follow the order of sends that do not overlap."""
    ids = sorted(message_id for send in sends for message_id in send.ids)
    assert ids == list(range(1, len(ids) + 1))
    assert all(list(send.ids) == list(range(send.ids[0], send.ids[0] + len(send.ids))) for send in sends)
    by_invocation = sorted(sends)
    by_response = sorted(sends, key=lambda send: send.responded_ns)
    ended, highest = 0, 0
    for send in by_invocation:
        while by_response[ended].responded_ns < send.invoked_ns:
            highest = max(highest, by_response[ended].ids[-1])
            ended += 1
        assert send.ids[0] > highest


def check_receives(receives: Sequence[Receive], sends: Sequence[Send]) -> None:
    """Verify that one subscriber got the messages in order, and saw in each receive all that was sent before it."""
    invoked = {message_id: send.invoked_ns for send in sends for message_id in send.ids}
    next_id = 1
    for receive in receives:
        sent_before = max((send.ids[-1] for send in sends if send.responded_ns < receive.invoked_ns), default=0)
        if receive.kind == "top":
            assert not receive.ids or receive.ids[0] >= max(next_id, sent_before)
        else:
            assert list(receive.ids) == list(range(next_id, next_id + len(receive.ids)))
        assert all(invoked[message_id] < receive.responded_ns for message_id in receive.ids)
        if receive.ids:
            next_id = receive.ids[-1] + 1
        if not receive.full:
            assert next_id > sent_before


@pytest.mark.parametrize("seed", range(3))
def test_history_is_linearizable(opened: Opened, seed: int) -> None:
    """What was sent before send returned is seen by every later receive, of every thread and process, in one order."""
    seeds = [f"{seed}/{number}" for number in range(2)]
    opened.environment.new_control([f"{one} subscriber {number}" for one in seeds for number in range(2)])
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(process(random_history, opened.environment.path, one)) for one in seeds]
        for connection in connections:
            assert told(connection) == "ready"
        for connection in connections:
            connection.send("go")
        results = [told(connection) for connection in connections]
    sent: List[Tuple[Send,
                     List[bytes]]] = [pair for histories, _ in results for history in histories for pair in history]
    sends = [send for send, _ in sent]
    ids = {payload: message_id for send, payloads in sent for payload, message_id in zip(payloads, send.ids)}
    check_sends(sends)
    assert [ids[payload] for payload in opened.drain()] == list(range(1, len(ids) + 1))
    for name, history in [pair for _, receivers in results for pair in receivers.items()]:
        last = Receive(time.monotonic_ns(), 2**63, "rest", [], False)
        history.append((last, drained(opened.environment.new_subscriber(name))))
        check_receives([receive._replace(ids=[ids[payload] for payload in payloads]) for receive, payloads in history],
                       sends)
