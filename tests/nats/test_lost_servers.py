"""Lost servers: sends and receives wait for others, and each message is there once."""

import contextlib
import shutil
import signal
import threading
import time
from typing import Callable, Iterator, List, Set, Type

import pytest

import persipubsub
from persipubsub import errors
from persipubsub.local_cluster import Node
from persipubsub.nats_engine import state
from tests.concurrency import Task
from tests.nats.conftest import new_queue
from tests.nats.servers import Servers

NewServers = Callable[..., Servers]


class Traffic:  # pylint: disable=too-many-instance-attributes  # what was confirmed, and what arrived
    """A publisher, one of batches and a subscriber in threads; notes what was confirmed and what arrived."""

    def __init__(self, environment: persipubsub.Environment, batch: int = 0) -> None:
        self.confirmed: List[bytes] = []
        self.arrived: List[bytes] = []
        self.failed: List[BaseException] = []
        self.unknown: Set[bytes] = set()
        self.longest_s = 0.0
        self._batch = batch
        self._environment = environment
        self._ends, self._sent = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(one, )) for one in (self._send, self._receive)]

    def _guarded(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised by the test
            self.failed.append(error)

    def _send(self) -> None:
        number = 0
        with self._environment.new_publisher() as publisher:
            while not self._ends.is_set():
                msgs = [b"%d" % one for one in range(number, number + max(1, self._batch))]
                begin = time.monotonic()
                if self._batch:
                    publisher.send_many(msgs)
                else:
                    publisher.send(msgs[0])
                self.longest_s = max(self.longest_s, time.monotonic() - begin)
                self.confirmed += msgs
                number += len(msgs)
            self._sent.set()
            publisher.send(b"%d" % number)  # so that the subscriber looks once more

    def _receive(self) -> None:
        with self._environment.new_subscriber("a") as subscriber:
            for msg in subscriber.messages(timeout=60, acknowledge_every=10):
                if self._sent.is_set() and msg == b"%d" % len(self.confirmed):
                    return
                self.arrived.append(msg)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run until the end of the block, and until all that was confirmed has arrived."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ends.set()
            for thread in self._threads:
                thread.join(90)

    def check(self) -> None:
        """Make sure that nothing failed, and that each message has arrived once, in order."""
        assert not self.failed, self.failed
        numbers, sent = list(map(int, self.arrived)), set(map(int, self.confirmed))
        lost, doubled = sorted(sent - set(numbers)), len(numbers) - len(set(numbers))
        behind = [number for before, number in zip(numbers, numbers[1:]) if number < before]
        assert (lost[:10], doubled, behind[:10]) == ([], 0, []), f"of {len(sent)}, {len(lost)} lost"


def kill(node: Node) -> None:
    """Kill a server, and start it again some seconds later."""
    node.kill()
    time.sleep(3)
    node.start()


def freeze(node: Node) -> None:
    """Stop the process of a server for longer than an election takes."""
    node.send_signal(signal.SIGSTOP)
    time.sleep(12)
    node.send_signal(signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [pytest.param(0, marks=pytest.mark.long), 20])
@pytest.mark.parametrize("fault", [kill, pytest.param(freeze, marks=pytest.mark.long)])
@pytest.mark.parametrize("leads", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_lost_server(leads: bool, fault: Callable[[Node], None], batch: int, servers: NewServers) -> None:
    """While a server is killed or frozen, each message is stored once, in order, and nobody gets an error."""
    cluster = servers(3)
    location = new_queue(cluster)
    with persipubsub.new_environment(location) as environment:
        environment.new_control(["a"])
        leader, traffic = cluster.leader_of(location), Traffic(environment, batch)
        with traffic.running():
            time.sleep(1)
            fault(leader if leads else next(node for node in cluster.nodes if node is not leader))
            time.sleep(2)
        traffic.check()
        print(f"{len(traffic.confirmed)} messages, the longest send {traffic.longest_s:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [pytest.param(0, marks=pytest.mark.long), 20])
def test_all_servers_are_killed(batch: int, servers: NewServers) -> None:
    """After all servers were killed and started again, what was confirmed is there once, and sending goes on."""
    cluster = servers(3)
    with persipubsub.new_environment(new_queue(cluster)) as environment:
        environment.new_control(["a"])
        traffic = Traffic(environment, batch)
        with traffic.running():
            time.sleep(1)
            for node in cluster.nodes:
                node.kill()
            time.sleep(1)
            for node in cluster.nodes:
                node.start()
            time.sleep(10)
        traffic.check()
        print(f"{len(traffic.confirmed)} messages, the longest send {traffic.longest_s:.1f} s")


@pytest.mark.slow
def test_one_server_that_is_restarted(servers: NewServers) -> None:
    """A send waits for the only server, and a subscriber that waits gets the message."""
    node = servers(1)
    with persipubsub.new_environment(new_queue(node)) as environment:
        environment.new_control(["a"])
        traffic = Traffic(environment)
        with traffic.running():
            for _ in range(3):
                time.sleep(0.5)
                node.nodes[0].kill()
                node.nodes[0].start()
            time.sleep(2)
        traffic.check()


@pytest.mark.slow
def test_a_server_that_does_not_come_back(servers: NewServers) -> None:
    """A send that is given up raises UnavailableError if nothing was sent, and looking does, too."""
    node = servers(1)
    with persipubsub.new_environment(f"{new_queue(node)}?timeout_s=1") as environment:
        environment.new_control(["a"])
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
        publisher.send(b"x")
        node.stop()
        time.sleep(0.2)
        with pytest.raises(errors.UnavailableError, match="Nothing was changed"):
            publisher.send(b"y")
        with pytest.raises(errors.UnavailableError):
            subscriber.front()
        node.nodes[0].start()
        node.wait_until_ready()
        publisher.send(b"z")
        assert list(subscriber.messages(timeout=0)) == [b"x", b"z"]


@pytest.mark.slow
def test_a_server_that_loses_what_it_confirmed(servers: NewServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that knows more than a server whose data was put back goes on with what the server knows."""
    monkeypatch.setattr(state, "BEHIND_S", 1)
    one = servers(1)
    node = one.nodes[0]
    with persipubsub.new_environment(new_queue(one)) as environment:
        environment.new_control(["a"])
        publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
        publisher.send_many([b"0", b"1", b"2"])
        node.end()
        shutil.copytree(node.store, node.directory / "copy")
        node.start()
        for _ in range(2):
            with subscriber.receive(timeout=60):
                pass
        node.kill()
        shutil.rmtree(node.store)
        (node.directory / "copy").rename(node.store)
        node.start()
        one.wait_until_ready()
        with subscriber.receive(timeout=60) as msg:
            assert msg is not None
        publisher.send(b"3")
        with persipubsub.new_environment(environment.location) as other:
            assert list(other.new_subscriber("a").messages(timeout=0))[-1] == b"3"


@pytest.mark.slow
@pytest.mark.parametrize("sends, error", [(False, errors.ClosedError), (True, errors.CommitUnknownError)])
def test_closing_while_a_server_does_not_answer(sends: bool, error: Type[errors.PersipubsubError],
                                                servers: NewServers) -> None:
    """What waits for a server that is frozen ends when another thread closes the queue, and says what is known."""
    one = servers(1)
    with persipubsub.new_environment(new_queue(one)) as environment:
        control, publisher = environment.new_control(["a"]), environment.new_publisher()
        publisher.send(b"0")  # so that the next one need not ask for the settings
        one.nodes[0].send_signal(signal.SIGSTOP)
        waiting: "Task[object]" = Task(lambda: publisher.send(b"1") if sends else control.status())
        time.sleep(0.5)
        environment.close()
        assert isinstance(waiting.exception(), error)
