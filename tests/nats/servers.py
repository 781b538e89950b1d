"""Servers for tests: those of :mod:`persipubsub.local_cluster`, with other configurations, and proxies between them."""

import asyncio
import contextlib
import os  # pylint: disable=unused-import  # in an annotation
import pathlib
import time
from typing import Dict, Iterator, Sequence, Tuple, Union

import nats

from persipubsub.local_cluster import LocalCluster, Node, routes_of
from tests.nats.proxy import Proxy

Location = Union[str, "os.PathLike[str]"]

#: An election takes less than 10 s; on a busy machine, several may fail.
ELECTION_S_MAX = 60
#: Nobody listens there: nodes that learn of each other connect only through the proxies that they were given.
UNREACHABLE = ', advertise: "127.0.0.1:1"'


class Servers(LocalCluster):  # pylint: disable=too-many-instance-attributes  # one for each option
    """A cluster of nodes, or one node alone."""

    def __init__(self,
                 directory: pathlib.Path,
                 count: int = 1,
                 sync: str = "always",
                 more: str = "",
                 credentials: str = "",
                 scheme: str = "nats",
                 stores: Sequence[pathlib.Path] = (),
                 linked: bool = False) -> None:
        """Prepare the servers.

        :param sync: the ``sync_interval`` of the servers
        :param more: more lines of their configuration
        :param credentials: what stands before the hosts of :attr:`url`
        :param stores: the directory of the streams of each node
        :param linked: whether nodes reach each other through proxies, so that one can be cut off
        """
        super().__init__(directory, count)
        self._sync = sync
        self._more = more
        self._credentials = credentials
        self._scheme = scheme
        self._stores = stores
        self._linked = linked
        self._links: Dict[Tuple[int, int], Proxy] = {}

    @property
    def url(self) -> str:
        """Return the URL of all nodes, without the name of a queue."""
        return f"{self._scheme}://{self._credentials}{self.hosts}"

    def configure(self, nodes: Sequence[Node], routes: Sequence[int]) -> None:
        """Write the configuration of each node."""
        for node, store in zip(nodes, self._stores):
            node.store = store
        for number, node in enumerate(nodes):
            node.configure(self._sync, self._routes(number, routes) + self._more)

    def _routes(self, number: int, ports: Sequence[int]) -> str:
        """Return the configuration by which a node finds the others."""
        if not self._linked:
            return routes_of(number, ports)
        links = {(number, other): Proxy(port) for other, port in enumerate(ports) if other != number}
        self._links.update(links)
        return routes_of(number, ports, [proxy.port for proxy in links.values()], UNREACHABLE)

    @contextlib.contextmanager
    def cut_off(self, node: Node) -> Iterator[None]:
        """Cut a node off from the others during a block; clients still reach it."""
        number = self.nodes.index(node)
        with contextlib.ExitStack() as stack:
            for pair, proxy in self._links.items():
                if number in pair:
                    stack.enter_context(proxy.losing_all())
            yield

    def stop(self) -> None:
        """End all processes."""
        super().stop()
        for proxy in self._links.values():
            proxy.close()
        self._links.clear()

    def leader_of(self, location: str) -> Node:
        """Return the node that leads the stream of messages of a queue. After a fault, one is elected first."""
        deadline = time.monotonic() + ELECTION_S_MAX
        while (leader := self.leader(_name_of(location))) is None:
            assert time.monotonic() < deadline, "no leader was elected"
            time.sleep(0.1)
        return leader


def delete_queues(locations: Sequence[Location]) -> None:
    """Delete queues: hundreds of them, with three servers for each, keep a small machine busy."""
    if locations:
        asyncio.run(_delete([str(location) for location in locations]))


async def _delete(locations: Sequence[str]) -> None:
    client = await nats.connect(locations[0].rpartition("/")[0].split(","))
    try:
        for location in locations:
            for kind in ("messages", "state"):
                subject = f"$JS.API.STREAM.DELETE.persipubsub-{kind}-{_name_of(location)}"
                await client.request(subject, timeout=ELECTION_S_MAX)
    finally:
        await client.close()


def _name_of(location: str) -> str:
    return location.rpartition("/")[2].partition("?")[0]
