"""What the tests of forks share: children, and a parent that is busy while it forks."""

import faulthandler
import itertools
import os
import signal
import sys
import threading
from typing import Any, Callable, Dict, List

import pytest

import persipubsub
from persipubsub import Subscriber, errors
from tests.children import start_child, status_of
from tests.concurrency import WAIT_S, Accounts, Opened, Task

#: How a child ends that could not use the queue, and got an error.
FORK_ERROR = 7


def limit_time() -> None:
    """Have this process, if it hangs, say where, and end."""
    faulthandler.unregister(signal.SIGALRM)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Not dump_traceback_later: it hangs in the child of a process that uses it.
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    signal.alarm(WAIT_S)


def fork(function: Callable[[], object]) -> int:
    """Run a function in a forked child; return its id. Its status is the outcome; one that hangs ends itself."""

    def run() -> int:
        sys.setprofile(None)
        # What measures the coverage may wait for a lock that a thread of the parent held.
        sys.settrace(None)
        limit_time()
        try:
            function()
        except errors.ForkError as error:
            return FORK_ERROR if "spawn or forkserver" in str(error) else 1
        return 0

    return start_child(run)


def use(opened: Opened, name: str) -> None:
    """Send and receive: with what is there, inherited or not, and with what is opened afresh."""
    opened.publisher.send(f"{name}:0".encode())
    with persipubsub.new_environment(opened.environment.path) as fresh:
        fresh.new_publisher().send(f"{name}:1".encode())
        with opened.subscriber.receive(timeout=WAIT_S) as msg:
            assert msg is not None
        with fresh.new_subscriber("b").receive(timeout=WAIT_S) as msg:
            assert msg is not None


def use_without_hope(opened: Opened) -> None:
    """Make sure that every use raises ForkError."""
    for attempt in (opened.send(b"x"), opened.subscriber.front, opened.subscriber.pop, opened.control.status,
                    lambda: opened.environment.new_subscriber("a"),
                    lambda: opened.environment.new_publisher().send(b"x"),
                    lambda: persipubsub.new_environment(opened.environment.path).new_publisher().send(b"x")):
        with pytest.raises(errors.ForkError, match="spawn or forkserver"):
            attempt()


class Busy:
    """Threads that write, read and wait all the time, and what they have sent."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._stop = threading.Event()
        opened.control.add_subscriber("waiting")
        waiting = opened.environment.new_subscriber("waiting")
        self._tasks: List[Task[Any]] = [Task(self._read), Task(lambda: self._wait(waiting))]
        self._writers = [
            Task(lambda name=name: self._write(name))  # type: ignore[misc]
            for name in ("parent 0", "parent 1")
        ]

    def _write(self, name: str) -> List[bytes]:
        sent: List[bytes] = []
        while not self._stop.is_set():
            payload = f"{name}:{len(sent)}".encode()
            self._opened.publisher.send(payload)
            sent.append(payload)
        return sent

    def _read(self) -> None:
        while not self._stop.is_set():
            self._opened.environment.new_subscriber("waiting").front()

    def _wait(self, waiting: Subscriber) -> None:
        for payload in waiting.messages(timeout=WAIT_S):
            if payload == b"stop:0":
                return
        raise AssertionError("the wait ended without a message")

    def __enter__(self) -> "Busy":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()

    def sent(self) -> Dict[str, List[bytes]]:
        """Stop; return what was sent by whom, as :func:`by_sender` would find it in the queue."""
        self._stop.set()
        sent = {f"parent {number}": writer.result() for number, writer in enumerate(self._writers)}
        self._opened.publisher.send(b"stop:0")
        for task in self._tasks:
            task.result()
        return {"stop": [b"stop:0"], **{name: payloads for name, payloads in sent.items() if payloads}}


class ForkingAccounts(Accounts):
    """Knows also what children have sent."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._process = os.getpid()
        self._children = itertools.count()

    def fork_and_send(self) -> None:
        """Have a child send a message, if it can."""
        if os.getpid() != self._process:
            return  # in a fork that was interrupted: nobody would learn of it
        payload = b"child:%d" % next(self._children)
        self.unknown.add(payload)
        status = status_of(fork(self._opened.send(payload)))
        if not status:
            self.sent.add(payload)
        else:
            assert status == FORK_ERROR
