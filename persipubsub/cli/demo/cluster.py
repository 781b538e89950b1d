"""The servers of the demo: three nodes on this machine, whose leader is killed once."""

import contextlib
import pathlib
import tempfile
from typing import Iterator

from persipubsub.cli import output
from persipubsub.cli.formats import counted
from persipubsub.local_cluster import LocalCluster

_QUEUE = "demo"


class Outage:
    """Kills the leader of a queue's messages, once."""

    def __init__(self, cluster: LocalCluster, after: float) -> None:
        """Prepare for it.

        :param after: the number of messages that have to arrive before
        """
        self._cluster = cluster
        self._after = after
        self._is_over = False

    @property
    def location(self) -> str:
        """Return the URL of the queue."""
        return f"{self._cluster.queue(_QUEUE)}?replicas={len(self._cluster.nodes)}"

    def received(self, count: int) -> None:
        """Kill the leader if enough messages have arrived, and if there is one at the moment."""
        if count > self._after and not self._is_over and (leader := self._cluster.leader(_QUEUE)) is not None:
            self._is_over = True
            leader.kill()
            output.line(f"killed the leader, server {leader.name}, after {counted(count, 'message')} had arrived")


@contextlib.contextmanager
def outage(after: float) -> Iterator[Outage]:
    """Run three servers within the block. The argument is that of :class:`Outage`.

    :raise UnavailableError: the servers are not installed, or do not start
    """
    with tempfile.TemporaryDirectory(prefix="persipubsub-demo-") as directory:
        with LocalCluster(pathlib.Path(directory)) as cluster:
            output.line(f"started {', '.join(node.name for node in cluster.nodes)} at {cluster.url}")
            yield Outage(cluster, after)
