"""Threads and a process use one queue at random; tests/model/history.py judges if what they saw can be right.

When the programs' operations meet depends on the machine, so a failure need not come again: what is reported is the
whole history, which can be judged by itself.
"""

import contextlib
import functools
import logging
import multiprocessing
import multiprocessing.sharedctypes
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Hashable
from multiprocessing.connection import Connection
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import hypothesis
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub import Durability, HighWaterMark, Strategy, clock, errors
from persipubsub.lmdb_engine.rules import message_log
from persipubsub.queue import UNCHANGED
from tests.model import history
from tests.model.history import EMPTY, UNKNOWN, Done, Operation, Step, Subscription, is_linearizable, told
from tests.model.model import Model

WAIT_S = 60

NAMES = st.sampled_from(["a", "b"])
COUNTS = st.integers(1, 4)
STRATEGIES = st.sampled_from([*Strategy, Strategy.refuse])
HIGH_WATERMARKS = st.builds(HighWaterMark,
                            message_timeout=st.sampled_from([2.5, 2.5, 1, 10, None, UNCHANGED]),
                            max_messages=st.sampled_from([2, 5, 8, 8, 12, 12, None, UNCHANGED]))
#: What a thread does: the name of a method of Worker, and its arguments.
SENDS = [
    st.tuples(st.just("send"), st.sampled_from([0, 0, 0.002])),
    st.tuples(st.just("send_many"), COUNTS, st.sampled_from([0, 0, 0.002]))
]
RECEIVES = [
    st.tuples(st.just("receive"), NAMES, COUNTS, st.sampled_from([True] * 3 + [False])),
    st.tuples(st.just("receive_one"), NAMES, st.sampled_from([0, 0, 0.002])),
    st.tuples(st.just("receive_to_top"), NAMES),
    st.tuples(st.just("loop"), NAMES, COUNTS, COUNTS),
    st.tuples(st.sampled_from(["pop", "front"]), NAMES)
]
CHANGES = [
    st.tuples(st.just("set_hwm"), HIGH_WATERMARKS),
    st.tuples(st.just("set_strategy"), STRATEGIES),
    st.tuples(st.just("add"), NAMES),
    st.tuples(st.sampled_from(["remove", "subscribe", "prune_all_for"]), NAMES),
    st.tuples(st.sampled_from(["prune_dangling", "clear", "clear_subscribers", "status"]))
]
OPERATIONS = st.one_of(*SENDS * 4, *RECEIVES * 2, *CHANGES)
THREADS = 3
#: How many messages are sent first, how much time passes then, and what each thread does, the last one a process.
ROUNDS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0, 0, 1_000_000, 2_000_000, 3_000_000]),
                            st.lists(st.lists(OPERATIONS, min_size=1, max_size=4), min_size=THREADS, max_size=THREADS)),
                  min_size=1,
                  max_size=3)


class Worker:
    """One thread, or a process: does things with the queue and records them."""

    def __init__(self, thread: int, environment: persipubsub.Environment, names: Sequence[str]) -> None:
        self._thread = thread
        self._environment = environment
        self._control = environment.new_control()
        self._publisher = environment.new_publisher()
        self._subscribers: Dict[str, Tuple[persipubsub.Subscriber, Subscription]] = {}
        self._sent = 0
        self.operations: List[Operation] = []
        for name in names:
            self.subscribe(name)

    def run(self, program: Sequence[Tuple[Any, ...]]) -> None:
        """Do one thing after the other."""
        for name, *arguments in program:
            getattr(self, name)(*arguments)

    def _record(self, name: str, step: Step, call: Callable[[], Hashable]) -> Hashable:
        begun_ns = time.monotonic_ns()
        try:
            outcome = call()
        except errors.UnknownSubscriberError:
            outcome = UNKNOWN
        except errors.EmptyError:
            outcome = EMPTY
        except (errors.QueueFullError, errors.BatchTooLargeError) as error:
            outcome = type(error).__name__
        ended_ns = time.monotonic_ns()
        self.operations.append(Operation(self._thread, begun_ns, ended_ns, name, step, outcome))
        return outcome

    def _payloads(self, count: int) -> Tuple[bytes, ...]:
        self._sent += count
        return tuple(b"%d.%d" % (self._thread, number) for number in range(self._sent - count, self._sent))

    def send(self, timeout: float) -> None:
        """Send one message, and perhaps wait for room."""
        payloads = self._payloads(1)
        self._record(f"send {payloads}, waiting {timeout} s", (put_with(timeout), payloads), lambda:
                     (self._publisher.send(payloads[0], timeout=timeout), ))

    def send_many(self, count: int, timeout: float = 0) -> None:
        """Send messages in one commit, and perhaps wait for room."""
        payloads = self._payloads(count)
        self._record(f"send_many {payloads}, waiting {timeout} s", (put_with(timeout), payloads),
                     lambda: tuple(self._publisher.send_many(payloads, timeout)))

    # Receiving. A block is two operations: what comes before its beginning, and what comes before its end.

    def _block(self, name: str, subscription: Subscription, step: Step, receipt: Any, taken: bool) -> None:
        stack = contextlib.ExitStack()
        received = self._record(f"{name} {subscription}", step, lambda: _listed(stack.enter_context(receipt)))
        if not taken or not isinstance(received, tuple) or not received:
            stack.pop_all()  # as if the block had raised: nothing is acknowledged
            return
        # The record of the send has the id of the message.
        self._record(f"end of {name} {subscription}", (taken_up_to, subscription, received[-1]), stack.close)

    def receive(self, name: str, count: int, taken: bool) -> None:
        """Receive some messages, and acknowledge them or not."""
        if name in self._subscribers:
            subscriber, subscription = self._subscribers[name]
            self._block("receive_many", subscription, (history.look, subscription, False, count, (history.give, )),
                        subscriber.receive_many(count, timeout=0), taken)

    def receive_one(self, name: str, timeout: float) -> None:
        """Receive a message, and wait for it."""
        if name in self._subscribers:
            subscriber, subscription = self._subscribers[name]
            again = (subscription, False, 1)
            then: Step = (history.give_or_wait, again) if timeout else (history.give, )
            self._block("receive", subscription, (history.look, *again, then), subscriber.receive(timeout), True)

    def receive_to_top(self, name: str) -> None:
        """Receive the latest message."""
        if name in self._subscribers:
            subscriber, subscription = self._subscribers[name]
            self._block("receive_to_top", subscription, (history.look, subscription, True, 1, (history.give, )),
                        subscriber.receive_to_top(timeout=0), True)

    def loop(self, name: str, every: int, turns: int) -> None:
        """Receive messages in a loop, and leave it."""

        if name not in self._subscribers:
            return
        subscriber, subscription = self._subscribers[name]

        def messages() -> Hashable:
            given: List[bytes] = []
            for msg in subscriber.messages(timeout=0, acknowledge_every=every):
                given.append(msg)
                if len(given) == turns:
                    break
            return tuple(given)

        self._record(f"loop {subscription} of {turns}, acknowledging {every}", history.loop(subscription, every, turns),
                     messages)

    def front(self, name: str) -> None:
        """Look at the next message."""
        if name in self._subscribers:
            subscriber, subscription = self._subscribers[name]
            self._record(f"front {subscription}", (history.look, subscription, False, 1, (history.give, )),
                         lambda: _listed(subscriber.front()))

    def pop(self, name: str) -> None:
        """Acknowledge the next message unread."""
        if name in self._subscribers:
            subscriber, subscription = self._subscribers[name]
            self._record(f"pop {subscription}", (history.look, subscription, False, 1, (history.pop, subscription)),
                         subscriber.pop)

    # Control

    def subscribe(self, name: str) -> None:
        """Open a subscriber of its own."""

        def number() -> Hashable:
            opened.append(self._environment.new_subscriber(name))
            # No other way shows which one of that name it is.
            subscription = opened[0]._receiver.subscription  # pylint: disable=protected-access
            return subscription.number

        opened: List[persipubsub.Subscriber] = []
        outcome = self._record(f"new_subscriber {name}", (history.subscribe, name), number)
        if isinstance(outcome, int):
            self._subscribers[name] = opened[0], Subscription(name, outcome)

    def add(self, name: str) -> None:
        """Add a subscriber and open it."""
        self._record(f"add {name}", (history.add, name), lambda: self._control.add_subscriber(name))
        self.subscribe(name)

    def remove(self, name: str) -> None:
        """Remove a subscriber."""
        self._record(f"remove {name}", (history.remove, name), lambda: self._control.remove_subscriber(name))

    def set_hwm(self, mark: HighWaterMark) -> None:
        """Set another mark."""
        self._record(f"set_hwm {mark}", (history.set_limits, mark), lambda: self._control.set_hwm(mark))

    def set_strategy(self, strategy: Strategy) -> None:
        """Set another strategy."""
        self._record(f"set_strategy {strategy}", (history.set_strategy, strategy),
                     lambda: self._control.set_strategy(strategy))

    def prune_all_for(self, name: str) -> None:
        """Move a subscriber to the end."""
        self._record(f"prune_all_messages_for {name}", (history.prune_all_for, name),
                     lambda: self._control.prune_all_messages_for(name))

    def prune_dangling(self) -> None:
        """Expire what is too old."""
        self._record("prune_dangling_messages", (history.prune_dangling, ), self._control.prune_dangling_messages)

    def clear(self) -> None:
        """Remove all messages."""
        self._record("clear_messages", (history.clear, False), self._control.clear_messages)

    def clear_subscribers(self) -> None:
        """Remove all subscribers."""
        self._record("clear_all_subscribers", (history.clear, True), self._control.clear_all_subscribers)

    def status(self) -> None:
        """Look at the queue."""

        def seen() -> Hashable:
            status = self._control.status()
            subscribers = {name: (one.next_id, one.pending) for name, one in status.subscribers.items()}
            return (status.messages, status.next_id, status.floor, status.high_watermark, status.strategy,
                    tuple(sorted(subscribers.items())))

        self._record("status", (history.status, ), seen)

    def forward(self, boottime_us: Any, step_us: int) -> None:
        """Let time pass; nobody else may be doing anything."""

        def step() -> None:
            boottime_us.value += step_us

        self._record(f"{step_us} us pass", (history.forward, step_us), step)


def put_with(timeout: float) -> Callable[[Model, Sequence[bytes]], history.Next]:
    """Return the step of a send."""
    return history.put_or_wait if timeout else history.put


def _listed(received: object) -> Tuple[bytes, ...]:
    """Return what a block received as a tuple."""
    if isinstance(received, bytes):
        return (received, )
    return tuple(received) if isinstance(received, list) else ()


def taken_up_to(_model: Model, _subscription: Subscription, payload: bytes) -> history.Next:
    """Represent the acknowledgement of a message of which only the payload is known: `with_ids` replaces it."""
    raise AssertionError(f"nobody sent {payload!r}")


def with_ids(operations: Sequence[Operation]) -> List[Operation]:
    """Say by their ids which messages were acknowledged."""
    ids: Dict[bytes, int] = {}
    for one in operations:
        if one.step[0] in (history.put, history.put_or_wait) and isinstance(one.outcome, tuple):
            ids.update(zip(one.step[1], one.outcome))
    return [
        one._replace(step=(history.take, one.step[1], ids[one.step[2]],
                           Done(None))) if one.step[0] is taken_up_to and one.step[2] in ids else one
        for one in operations
    ]


def serve(connection: "Connection[Any, Any]") -> None:
    """Be the worker in another process: of one queue after the other, until nobody asks any more."""
    with contextlib.suppress(EOFError):
        while True:
            path, names = connection.recv()
            with persipubsub.new_environment(path) as environment:
                worker = Worker(THREADS, environment, names)
                connection.send(None)
                while (program := connection.recv()) is not None:
                    connection.send(None)
                    connection.recv()
                    worker.run(program)
                    connection.send(None)
            # Once it is closed: whoever asked deletes the queue now.
            connection.send(worker.operations)


def answer(connection: "Connection[Any, Any]") -> Any:
    """Wait for what the other process says."""
    assert connection.poll(WAIT_S), "the other process does not answer"
    return connection.recv()


class Runner:
    """Runs programs on fresh queues, and judges what happened."""

    def __init__(self, boottime_us: Any, connection: "Connection[Any, Any]") -> None:
        self._boottime_us = boottime_us
        self._connection = connection

    def run(  # pylint: disable=too-many-locals  # what a queue is set up with
            self, names: List[str], mark: HighWaterMark, strategy: Strategy, rounds: Sequence[Any],
            shared: bool) -> List[Operation]:
        """Run all rounds, and look at what is there in the end."""
        model = Model()
        model.high_watermark = model.with_limits(mark)
        model.strategy, model.durability = strategy, Durability.PROCESS_CRASH
        self._boottime_us.value = model.boottime_us
        with contextlib.ExitStack() as stack:
            path = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="persipubsub-"))) / "queue"
            environments = [stack.enter_context(persipubsub.new_environment(path)) for _ in range(THREADS)]
            control = environments[0].new_control(names, mark, strategy, Durability.PROCESS_CRASH)
            model.write()
            for name in names:
                model.add(name)
            workers = [Worker(number, environments[0 if shared else number], names) for number in range(THREADS)]
            self._connection.send((path, names))
            answer(self._connection)
            for backlog, step_us, programs in rounds:
                workers[0].send_many(backlog)
                workers[0].forward(self._boottime_us, step_us)
                self._run_together(workers[1:], programs)
            self._connection.send(None)
            operations = [one for worker in workers for one in worker.operations] + answer(self._connection)
            workers[0].operations = []
            workers[0].status()
            for name in "ab":
                workers[0].subscribe(name)
                workers[0].receive(name, 1000, False)
            assert control.check() == ()
        operations = with_ids(operations + workers[0].operations)
        assert is_linearizable(operations, model), f"no order of this gives what was seen:\n{told(operations)}"
        return operations

    def _run_together(self, workers: Sequence[Worker], programs: Sequence[Any]) -> None:
        failures: List[BaseException] = []
        start = threading.Barrier(len(programs), timeout=WAIT_S)

        def run(function: Callable[[], None]) -> None:
            try:
                start.wait()
                function()
            except BaseException as error:  # pylint: disable=broad-exception-caught  # raised in the test's thread
                failures.append(error)

        def run_there() -> None:
            self._connection.send(None)
            answer(self._connection)

        self._connection.send(programs[-1])
        answer(self._connection)
        functions = [functools.partial(worker.run, program) for worker, program in zip(workers, programs)]
        threads = [threading.Thread(target=run, args=(function, )) for function in [*functions, run_there]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "a thread hangs"
        if failures:
            raise failures[0]


@pytest.fixture(name="runner", params=[3, message_log.DELETIONS_MAX], ids="deletions_max={}".format)
def runner_fixture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """Have another process, with the same clock, and threads that are switched often."""
    model = Model()
    boottime_us = multiprocessing.sharedctypes.RawValue("q", 0)
    monkeypatch.setattr(clock, "boottime_us", lambda: boottime_us.value)
    monkeypatch.setattr(clock, "wall_us", lambda: model.wall_us)
    monkeypatch.setattr(clock, "boot_id", lambda: model.boot.to_bytes(16, "big"))
    monkeypatch.setattr(message_log, "DELETIONS_MAX", request.param)
    monkeypatch.setattr(logging.getLogger("persipubsub.publisher"), "disabled", True)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, ), daemon=True)
    process.start()
    theirs.close()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield Runner(boottime_us, ours)
    finally:
        sys.setswitchinterval(interval_s)
        ours.close()
        process.kill()
        process.join()


def hold(runner: Runner, **settings: Any) -> None:
    """Run many programs."""

    @hypothesis.settings(deadline=None,
                         phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck),
                         **settings)
    @hypothesis.given(names=st.sampled_from([["a"], ["a", "b"]]),
                      mark=HIGH_WATERMARKS,
                      strategy=STRATEGIES,
                      rounds=ROUNDS,
                      shared=st.booleans())
    def run(**program: Any) -> None:
        runner.run(**program)

    run()  # pylint: disable=no-value-for-parameter  # hypothesis passes them


@pytest.mark.slow
def test_threads_and_processes_see_one_order(runner: Runner) -> None:
    """Whatever threads and processes do at the same time, it looks as if they had done it one after the other."""
    hold(runner, max_examples=60, derandomize=True, database=None)


@pytest.mark.long
def test_threads_and_processes_see_one_order_for_long(runner: Runner) -> None:
    """The same holds in many more programs, other ones each time."""
    hold(runner, max_examples=5000)


# The judge

A1 = Subscription("a", 1)
FRONT: Step = (history.look, A1, False, 1, (history.give, ))
POP: Step = (history.look, A1, False, 1, (history.pop, A1))


def sent(payload: bytes) -> Step:
    """Return the step of a send."""
    return history.put, (payload, )


#: What fills a queue that refuses messages.
FULL_QUEUE: List[Tuple[int, int, int, Step,
                       Hashable]] = [(1, 0, 1, (history.set_limits, HighWaterMark(max_messages=1)), None),
                                     (1, 2, 3, (history.set_strategy, Strategy.refuse), None),
                                     (1, 4, 5, sent(b"x"), (1, ))]
LATE: Step = (history.put_or_wait, (b"late", ))

#: Histories of a queue with the subscriber "a": thread, begin, end, step, outcome; and whether they are possible.
HISTORIES: Dict[str, Tuple[bool, List[Tuple[int, int, int, Step, Hashable]]]] = {
    "a send is seen": (True, [(1, 0, 1, sent(b"x"), (1, )), (2, 2, 3, FRONT, (b"x", ))]),
    "a send is not seen": (False, [(1, 0, 1, sent(b"x"), (1, )), (2, 2, 3, FRONT, ())]),
    "a send is not seen yet": (True, [(1, 0, 3, sent(b"x"), (1, )), (2, 2, 4, FRONT, ())]),
    "a send is seen and not seen": (False, [(1, 0, 9, sent(b"x"), (1, )), (2, 1, 2, FRONT, (b"x", )),
                                            (3, 3, 4, FRONT, ())]),
    "ids are in order": (True, [(1, 0, 3, sent(b"x"), (2, )), (2, 2, 4, sent(b"y"), (1, ))]),
    "ids are out of order": (False, [(1, 0, 1, sent(b"x"), (2, )), (2, 2, 3, sent(b"y"), (1, ))]),
    "a message is invented": (False, [(1, 0, 1, FRONT, (b"x", ))]),
    "a message is taken by one": (False, [(1, 0, 1, sent(b"x"), (1, )), (1, 2, 3, POP, None), (2, 4, 5, POP, None)]),
    "a message is taken by two at one time": (True, [(1, 0, 1, sent(b"x"), (1, )), (1, 2, 4, POP, None),
                                                     (2, 3, 5, POP, None)]),
    "a message is lost": (False, [(1, 0, 1, sent(b"x"), (1, )), (1, 2, 3, sent(b"y"), (2, )),
                                  (2, 4, 5, FRONT, (b"y", ))]),
    "a queue without limits refuses": (False, [(1, 0, 1, sent(b"x"), (1, )), (1, 2, 3, sent(b"y"), history.FULL)]),
    "a full queue refuses": (True, [*FULL_QUEUE, (1, 6, 7, sent(b"y"), history.FULL), (2, 8, 9, FRONT, (b"x", ))]),
    "a full queue accepts": (False, [*FULL_QUEUE, (1, 6, 7, sent(b"y"), (2, ))]),
    "a queue with room refuses": (False, [*FULL_QUEUE, (2, 6, 7, POP, None), (1, 8, 9, sent(b"y"), history.FULL)]),
    "a send waits for room": (True, [*FULL_QUEUE, (1, 6, 9, LATE, (2, )), (2, 7, 8, POP, None)]),
    "a send does not wait for room": (False, [*FULL_QUEUE, (1, 6, 7, LATE, (2, )), (2, 8, 9, POP, None)]),
    "a send waits in vain": (True, [*FULL_QUEUE, (1, 6, 7, LATE, history.FULL), (2, 8, 9, POP, None)]),
    "a message was cleared": (True, [(1, 0, 1, sent(b"x"), (1, )), (1, 2, 3, (history.clear, False), 1),
                                     (2, 4, 5, FRONT, ())]),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_the_judge(name: str) -> None:
    """Of what can have happened, the search finds an order; of what cannot, it finds none."""
    model = Model()
    model.write()
    model.add("a")
    possible, operations = HISTORIES[name]
    assert is_linearizable(
        [Operation(thread, begun, ended, name, step, outcome) for thread, begun, ended, step, outcome in operations],
        model) == possible
