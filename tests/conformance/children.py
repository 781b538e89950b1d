"""What the suite runs in other processes, which are started afresh and know a queue by its location alone."""

import logging.handlers
import multiprocessing
import os
import queue
import signal
import sys
import traceback
from typing import Any, Callable, List

from tests.conformance.engines import Location, engine_of
from tests.conformance.forms import WAIT_S

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.conformance.children"])


class Child:
    """A process that runs a function of this module, which may say something through a pipe."""

    def __init__(self, function: Callable[..., None], engine_name: str, location: Location, *args: Any) -> None:
        self._said, saying = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=function, args=(engine_name, location, saying.send, *args), daemon=True)
        self._process.start()
        saying.close()

    def says(self) -> Any:
        """Wait for what it says next."""
        assert self._said.poll(WAIT_S), "it has said nothing"
        return self._said.recv()

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(WAIT_S)

    def join(self) -> None:
        """Wait for its end, which has to be a good one."""
        self._process.join(WAIT_S)
        assert self._process.exitcode == 0


def send(engine_name: str, location: Location, say: Callable[[Any], None], name: str, count: int) -> None:
    """Send messages one by one, and say the id of each."""
    with engine_of(engine_name).open(location) as environment:
        publisher = environment.new_publisher()
        for number in range(count):
            say(publisher.send(f"{name}:{number}".encode()))


def send_with_room(engine_name: str, location: Location, say: Callable[[Any], None], msgs: List[bytes]) -> None:
    """Send messages one by one, waiting for room, and say the id of each."""
    with engine_of(engine_name).open(location) as environment:
        publisher = environment.new_publisher()
        for msg in msgs:
            say(publisher.send(msg, timeout=WAIT_S))


def send_batches(engine_name: str, location: Location, say: Callable[[Any], None], size: int) -> None:
    """Send batches until it is killed, and say how many there were."""
    with engine_of(engine_name).open(location) as environment:
        publisher, sent = environment.new_publisher(), 0
        while True:
            publisher.send_many(b"%d" % number for number in range(sent, sent + size))
            sent += size
            say(sent)


def receive(engine_name: str, location: Location, say: Callable[[Any], None], identifier: str, count: int) -> None:
    """Receive messages, waiting for each, and say them all."""
    with engine_of(engine_name).open(location) as environment:
        subscriber, msgs = environment.new_subscriber(identifier), list[Any]()
        say("ready")
        while len(msgs) < count:
            with subscriber.receive_many(timeout=WAIT_S) as some:
                assert some, "nothing has come"
                msgs += some
        say(msgs)


def hold(engine_name: str, location: Location, say: Callable[[Any], None], identifier: str, finished: int) -> None:
    """Receive and acknowledge some messages, and end in the block of the next one, when it is killed."""
    with engine_of(engine_name).open(location) as environment:
        subscriber = environment.new_subscriber(identifier)
        for _ in range(finished):
            with subscriber.receive(timeout=WAIT_S):
                pass
        with subscriber.receive(timeout=WAIT_S) as msg:
            say(msg)
            signal.pause()


def count_warnings(engine_name: str, location: Location, say: Callable[[Any], None], identifier: str) -> None:
    """Open a subscriber, and say how many warnings that was."""
    found: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
    logging.getLogger("persipubsub").addHandler(logging.handlers.QueueHandler(found))
    with engine_of(engine_name).open(location) as environment:
        environment.new_subscriber(identifier)
    say(found.qsize())


def use(_engine_name: str, _location: Location, say: Callable[[Any], None], made: List[Any]) -> None:
    """Use what came through pickle: an Environment, a Control, a Publisher and a Subscriber."""
    environment, control, publisher, subscriber = made
    control.add_subscriber("of the child")
    publisher.send(b"x")
    with subscriber.receive(timeout=WAIT_S) as msg:
        say(msg)
    say(environment.new_subscriber("of the child").front())


def set_up(engine_name: str, location: Location, say: Callable[[Any], None], identifier: str) -> None:
    """Set up a queue."""
    with engine_of(engine_name).open(location) as environment:
        environment.new_control([identifier])
    say("done")


def forked(function: Callable[[], object]) -> None:
    """Run a function in a forked child, and wait for its end, which has to be a good one."""
    sys.stderr.flush()  # what is left in it would be written twice
    child = os.fork()
    if not child:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # pylint: disable=broad-exception-caught  # nothing may return into the parent's code
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)  # pylint: disable=protected-access  # what tests do at their end is their parent's
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
