"""Relays to and from a cluster: each message once and in order, whatever process or server is lost."""

import functools
import pathlib
import random
import threading
import time
from typing import Callable, Iterator, List

import pytest

import persipubsub
from persipubsub import Environment, HighWaterMark, Strategy, errors
from persipubsub.relay import Relay
from tests.api.test_relay import killed_at_the_end, relay_forever
from tests.concurrency import Task, wait_until
from tests.conformance.queues import numbered
from tests.nats.conftest import new_queue
from tests.nats.servers import Servers
from tests.nats.test_lost_answers import Lossy

NewServers = Callable[..., Servers]
KILLS = 30


@pytest.fixture(name="outbox")
def outbox_fixture(tmp_path: pathlib.Path) -> Iterator[Environment]:
    """Set up a local queue with the subscriber of a relay."""
    with persipubsub.new_environment(tmp_path / "outbox") as outbox:
        outbox.new_control(["relay", "a"])
        yield outbox


def stored(queue: Environment) -> List[bytes]:
    """Return what a queue has."""
    return [message.payload for message in queue.new_control().history()]


def has_brought(queue: Environment, count: int) -> bool:
    """Return whether a number of messages has arrived."""
    return queue.new_control().status().sent >= count


@pytest.mark.slow
def test_every_message_arrives_once_through_kills(outbox: Environment, servers: NewServers) -> None:
    """Relays are killed again and again, and so is a server, most often the leader: nothing is lost or doubled."""
    cluster, rng = servers(3), random.Random(1)
    location = new_queue(cluster)
    with persipubsub.new_environment(location) as target:
        target.new_control(["a"])
        sent = 0
        for round_ in range(KILLS):
            count = rng.randrange(20, 200)
            outbox.new_publisher().send_many(numbered(count, sent))
            sent += count
            wanted, down = sent - rng.randrange(20), None
            with killed_at_the_end(relay_forever, str(outbox.path), location, rng.choice([1, 7, 1000])):
                if round_ % 10 == 5:
                    down = cluster.leader_of(location)
                    down.kill()
                wait_until(functools.partial(has_brought, target, wanted))
            if down is not None:
                down.start()
        with Relay(outbox, target) as relay:
            relay.run(timeout=0)
        assert stored(target) == numbered(sent)


@pytest.mark.slow
def test_a_network_that_is_away(outbox: Environment, servers: NewServers) -> None:
    """A relay outlasts a server that is away for longer than an operation tries, and goes on by itself."""
    node = servers()
    location = new_queue(node)
    with persipubsub.new_environment(location) as target:
        target.new_control(["a"])
    with Relay(outbox.path, f"{location}?timeout_s=1", max_messages=3) as relay:
        running = Task(relay.run)
        outbox.new_publisher().send_many(numbered(10))
        wait_until(lambda: relay.status().backlog == 0)
        node.nodes[0].kill()
        outbox.new_publisher().send_many(numbered(10, 10))
        wait_until(lambda: isinstance(relay.status().error, errors.StorageError))
        node.nodes[0].start()
        wait_until(lambda: relay.status().backlog == 0)
        relay.stop()
        running.result()
    with persipubsub.new_environment(location) as target:
        assert stored(target) == numbered(20)


def test_an_answer_that_is_lost(outbox: Environment, node: Servers) -> None:
    """A batch whose confirmation was lost is stored once."""
    lossy = Lossy(node)
    with Relay(outbox, lossy.environment) as relay:
        running = Task(relay.run)

        def bring(number: int) -> None:
            outbox.new_publisher().send(b"%d" % number)
            wait_until(lambda: relay.status().backlog == 0)

        bring(0)
        bring(1)  # so that the next message is published without asking for anything
        lossy.lose(lambda: bring(2))
        bring(3)
        relay.stop()
        running.result()
    assert lossy.stored() == numbered(4)
    lossy.close()


def test_there_and_back(outbox: Environment, location: str, tmp_path: pathlib.Path) -> None:
    """Messages that go to a cluster and from there to a directory arrive as they were, and are counted right."""
    outbox.new_publisher().send_many(numbered(2500))
    with persipubsub.new_environment(location) as cluster, persipubsub.new_environment(tmp_path / "inbox") as inbox:
        control = cluster.new_control(["relay"])
        inbox.new_control(["a"])
        with Relay(outbox, cluster) as there, Relay(cluster, inbox) as back:
            assert there.run(timeout=0) == back.run(timeout=0) == 2500
            cluster.new_publisher().send(b"2500")
            assert control.status().sent == 2501
            assert back.run(timeout=0) == 2501
        assert list(inbox.new_subscriber("a").messages(timeout=0, acknowledge_every=100)) == numbered(2501)


def test_a_cluster_that_refuses(outbox: Environment, location: str) -> None:
    """A queue that refuses messages gets them once it has room, while others send to it, too."""
    outbox.new_publisher().send_many(numbered(30))
    with persipubsub.new_environment(location) as cluster:
        cluster.new_control(["a"], HighWaterMark(max_messages=5), Strategy.refuse)
        with Relay(outbox, cluster) as relay:
            running = Task(relay.run)
            ends, found = time.monotonic() + 60, list[bytes]()
            threading.Thread(target=lambda: cluster.new_publisher().send(b"other", timeout=60)).start()
            while len(found) < 31 and time.monotonic() < ends:
                found += cluster.new_subscriber("a").messages(timeout=0)
            relay.stop()
            running.result()
        assert [one for one in found if one != b"other"] == numbered(30) and len(found) == 31


def test_a_cluster_that_was_made_anew(outbox: Environment, servers: NewServers) -> None:
    """A queue of the same name on other servers is another queue."""
    locations = [new_queue(servers()), new_queue(servers())]
    for location in locations:
        with persipubsub.new_environment(location) as cluster:
            cluster.new_control(["a"])
    with Relay(outbox.path, locations[0]) as relay:
        relay.run(timeout=0)
    with Relay(outbox.path, locations[1]) as relay, pytest.raises(errors.ReplacedError, match="made anew"):
        relay.run(timeout=0)
