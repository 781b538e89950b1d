"""What the tests of the suite share: a fresh queue, and what is done with subscribers again and again."""

import concurrent.futures
import logging
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Protocol, TypeVar

import pytest

from persipubsub import Control, Environment
from persipubsub.status import SubscriberStatus
from tests.conformance.engines import Engine, Location
from tests.conformance.forms import WAIT_S, AnyPublisher, AnySubscriber, Form

T = TypeVar("T")
PassTime = Callable[[float], None]


class Failed(Exception):
    """Raised in the block of a receive."""


class Queue:
    """A queue of one engine, with its Control, whose endpoints are of one form."""

    def __init__(self, engine: Engine, location: Location, form: Form, *subscriber_ids: str, **settings: Any) -> None:
        self.engine = engine
        self.location = location
        self._form = form
        self._opened: List[Environment] = []
        self.environment = self.opened()
        self.control: Control = self.environment.new_control(subscriber_ids, **{**engine.settings, **settings})

    def opened(self) -> Environment:
        """Open the queue once more, as another program would; it is closed after the test."""
        environment = self.engine.open(self.location)
        self._opened.append(environment)
        return environment

    def publisher(self, autosync: bool = False) -> AnyPublisher:
        """Make a publisher."""
        return self._form.publisher(self.environment, autosync)

    def subscriber(self, identifier: str = "a") -> AnySubscriber:
        """Make a subscriber."""
        return self._form.subscriber(self.environment, identifier)

    def status_of(self, identifier: str = "a") -> SubscriberStatus:
        """Return the status of one subscriber."""
        return self.control.status().subscribers[identifier]

    def close(self) -> None:
        """Close all Environments."""
        for environment in self._opened:
            environment.close()


class NewQueue(Protocol):
    """The fixture ``new_queue``."""

    def __call__(self, *subscriber_ids: str, **settings: Any) -> Queue:
        """Set up a fresh queue with what is given to new_control."""


def drained(subscriber: AnySubscriber) -> List[bytes]:
    """Receive and acknowledge all that is there, without waiting."""
    return list(subscriber.messages(timeout=0))


def received(subscriber: AnySubscriber, timeout: Optional[float] = 0) -> Optional[bytes]:
    """Receive and acknowledge one message."""
    with subscriber.receive(timeout) as msg:
        return msg


def failed(subscriber: AnySubscriber) -> Optional[bytes]:
    """Receive one message in a block that raises."""
    found = None
    with pytest.raises(Failed), subscriber.receive(timeout=0) as found:
        raise Failed(f"cannot handle {found!r}")
    return found


def held(subscriber: AnySubscriber, max_messages: int = 1) -> List[bytes]:
    """Receive messages in a block that never ends, like a worker that hangs."""
    # pylint: disable-next=unnecessary-dunder-call  # there is no end
    return subscriber.receive_many(max_messages, timeout=0).__enter__()


def start(function: Callable[[], T], after_s: float = 0) -> "concurrent.futures.Future[T]":
    """Run a function in a thread of its own, perhaps some time later."""
    future: "concurrent.futures.Future[T]" = concurrent.futures.Future()

    def run() -> None:
        time.sleep(after_s)
        try:
            future.set_result(function())
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised again by result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what becomes true soon unless something is broken."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it has not become true"
        time.sleep(0.002)


def numbered(count: int, first: int = 0) -> List[bytes]:
    """Return a number of different messages."""
    return [b"%d" % number for number in range(first, first + count)]


def pending(queue: Queue) -> Dict[str, int]:
    """Return how many messages each subscriber awaits."""
    return {name: subscriber.pending for name, subscriber in queue.control.status().subscribers.items()}


def warnings_of(caplog: pytest.LogCaptureFixture) -> List[str]:
    """Return the warnings of the library that were logged."""
    return [
        record.getMessage() for record in caplog.records
        if record.name.startswith("persipubsub") and record.levelno == logging.WARNING
    ]
