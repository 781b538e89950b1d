"""What a message survives is a setting of the servers: a warning says so where it can be seen."""

from typing import Callable

import pytest

import persipubsub
from persipubsub import errors
from tests.conformance.queues import warnings_of
from tests.nats.servers import Servers

NewServers = Callable[..., Servers]


@pytest.mark.parametrize("sync, warns", [('"2m"', True), ("always", False)])
def test_what_the_servers_survive(sync: str, warns: bool, servers: NewServers,
                                  caplog: pytest.LogCaptureFixture) -> None:
    """A server that confirms messages before they are on the disk is a warning, once, if its port is known."""
    node = servers(1, sync=sync)
    location = f"{node.queue('orders')}?monitoring={node.nodes[0].monitor}"
    for _ in range(2):
        with persipubsub.new_environment(location) as environment:
            environment.new_control(["a"])
    assert ["sync_interval: always" in text for text in warnings_of(caplog)] == [True] * warns


def test_a_monitoring_port_that_does_not_answer(location: str, node: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong monitoring port changes nothing."""
    with persipubsub.new_environment(f"{location}?monitoring={node.nodes[0].port}") as environment:
        environment.new_control(["a"])
        environment.new_publisher().send(b"x")
    assert not warnings_of(caplog)


@pytest.mark.parametrize("settings, word", [({
    "durability": persipubsub.Durability.PROCESS_CRASH
}, "sync_interval"), ({
    "strategy": persipubsub.Strategy.prune_last
}, "refuse"), ({
    "deduplication_max": 5
}, "deduplication_window_s"), ({
    "mode": 0o660
}, "permissions")])
def test_settings_that_a_cluster_lacks(settings: "dict[str, object]", word: str, location: str) -> None:
    """A setting that a cluster cannot have raises UnsupportedError, which says what to do there; nothing changes."""
    with persipubsub.new_environment(location) as environment:
        control = environment.new_control(["a"])
        before = control.status()
        with pytest.raises(errors.UnsupportedError, match=word):
            environment.new_control(**settings)  # type: ignore[arg-type]  # of several types
        assert control.status() == before


def test_methods_that_a_cluster_lacks(location: str) -> None:
    """Checks, backups and a strategy raise UnsupportedError, which names what to do instead."""
    with persipubsub.new_environment(location) as environment:
        control = environment.new_control(["a"])
        with pytest.raises(errors.UnsupportedError, match="Strategy.refuse"):
            control.set_strategy(persipubsub.Strategy.prune_last)
        for method in (control.check, lambda: control.backup("copy")):
            with pytest.raises(errors.UnsupportedError, match="nats stream"):
                method()


def test_a_batch_over_the_limit_of_the_servers(location: str) -> None:
    """A batch of more than 1,000 messages raises BatchTooLargeError, and none of it is sent."""
    with persipubsub.new_environment(location) as environment:
        environment.new_control(["a"])
        with pytest.raises(errors.BatchTooLargeError, match="at most 1000 messages"):
            environment.new_publisher().send_many([b"x"] * 1001)
        assert environment.new_subscriber("a").front() is None
        assert len(environment.new_publisher().send_many([b"x"] * 1000)) == 1000
