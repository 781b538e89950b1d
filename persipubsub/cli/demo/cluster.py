"""The servers of the demo: three nodes on this machine, whose leader is killed once."""

import contextlib
import pathlib
import tempfile
from typing import Iterator, Optional

from persipubsub.cli import output
from persipubsub.cli.formats import counted
from persipubsub.local_cluster import LocalCluster, Node

_QUEUE = "demo"


class Outage:
    """Kills the leader of a queue's messages, once."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._killed: Optional[Node] = None

    @property
    def location(self) -> str:
        """Return the URL of the queue."""
        return f"{self._cluster.queue(_QUEUE)}?replicas={len(self._cluster.nodes)}"

    def begin(self, received: int) -> None:
        """Kill the leader, unless one was killed before.

        :param received: how many messages have arrived, to say so
        """
        if self._killed is None and (leader := self._cluster.leader(_QUEUE)) is not None:
            self._killed = leader
            leader.kill()
            output.line(f"killed the leader, server {leader.name}, after {counted(received, 'message')} had arrived")


@contextlib.contextmanager
def outage() -> Iterator[Outage]:
    """Run three servers within the block.

    :raise UnavailableError: the servers are not installed, or do not start
    """
    with tempfile.TemporaryDirectory(prefix="persipubsub-demo-") as directory:
        with LocalCluster(pathlib.Path(directory)) as cluster:
            output.line(f"started {', '.join(node.name for node in cluster.nodes)} at {cluster.url}")
            yield Outage(cluster)
