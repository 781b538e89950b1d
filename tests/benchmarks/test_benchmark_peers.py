"""Test the peers of the benchmarks that are installed here, and what all of them share without any."""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks import peers
from benchmarks.peers import pool, servers, waiting

PEERS = peers.available()

MESSAGES = [b"message %d" % number for number in range(100)] + [b"", bytes(range(256)) * 40]

#: Listens on the port given, and says so before it does.
LISTENER = """
import signal, socket, sys
print("a server starts", flush=True)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    signal.pause()
"""

#: Ignores the polite signal.
STUBBORN_LISTENER = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN){LISTENER}"

#: Keeps a server running until it is killed.
KEEPER = """
import pathlib, sys
from benchmarks.peers import servers
with servers.running([sys.executable, "-c", sys.argv[3], sys.argv[2]], pathlib.Path(sys.argv[1]), int(sys.argv[2])):
    print("running", flush=True)
    sys.stdin.read()
"""

TIMEOUT_S = 60.0

if PEERS:  # an empty list of parameters would be a skipped test

    @pytest.mark.slow
    @pytest.mark.parametrize("peer, durable", [(peer, durable) for peer in PEERS for durable in peer.durabilities],
                             ids=lambda value: getattr(value, "name", f"durable={value}"))
    def test_round_trip(peer: peers.Peer, durable: bool, tmp_path: pathlib.Path) -> None:
        """With two subscribers, the first gets everything in order, however it is published and received."""
        with contextlib.closing(peer.open(tmp_path, durable, 2)) as session:
            session.publish(MESSAGES[0])
            try:
                session.publish_batch(MESSAGES[1:])
            except NotImplementedError:
                for message in MESSAGES[1:]:
                    session.publish(message)

            taken = [session.take()]
            with contextlib.suppress(NotImplementedError):
                taken += session.take_batch(70)
            taken += [session.take() for _ in MESSAGES[len(taken):]]
            assert taken == MESSAGES
        assert not list(tmp_path.iterdir())

    # diskcache leaves the connections of other threads to the garbage collector.
    @pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
    @pytest.mark.slow
    @pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.name != "queuelib"], ids=lambda peer: peer.name)
    def test_threads_publish(peer: peers.Peer, tmp_path: pathlib.Path) -> None:
        """Several threads may publish in one session, but for the one peer whose note forbids it."""
        with contextlib.closing(peer.open(tmp_path, peer.durabilities[0], 1)) as session:
            with concurrent.futures.ThreadPoolExecutor(4) as executor:
                list(executor.map(session.publish, MESSAGES))
            assert sorted(session.take() for _ in MESSAGES) == sorted(MESSAGES)

    @pytest.mark.slow
    @pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
    def test_wait_latencies(peer: peers.Peer, tmp_path: pathlib.Path) -> None:
        """A process that waits gets what is published, later than it was."""
        with contextlib.closing(peer.open(tmp_path, False, 2)) as session:
            with contextlib.suppress(NotImplementedError):
                found = session.wait_latencies(3)
                assert 1 <= len(found) <= 3 and all(0 < seconds < waiting.RECEIVE_TIMEOUT_S for seconds in found)


def test_durability_that_a_peer_lacks(tmp_path: pathlib.Path) -> None:
    """A peer that cannot be durable says so, and leaves nothing behind."""
    for peer in PEERS:
        if True not in peer.durabilities:
            with pytest.raises(NotImplementedError):
                peer.open(tmp_path, True, 1)
            assert not list(tmp_path.iterdir())


def test_what_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries and servers that are missing are named on standard error, and nothing else is lost."""
    for name in list(sys.modules):
        if name.startswith("benchmarks.peers."):
            monkeypatch.delitem(sys.modules, name)
    libraries = [
        "persistqueue", "litequeue", "diskcache", "localqueue", "simplebroker", "leanqueuedb", "equeue", "queuelib"
    ]
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(shutil, "which", lambda program, path=None: None)

    assert not peers.available()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and all("is left out: " in line for line in lines)
    assert "persistqueue" in lines[0]


def listens(port: int) -> bool:
    """Return whether someone listens on a port."""
    with contextlib.suppress(OSError):
        socket.create_connection((servers.HOST, port), timeout=1).close()
        return True
    return False


@pytest.mark.parametrize("program", [LISTENER, STUBBORN_LISTENER], ids=["polite", "stubborn"])
def test_server_stops_when_the_block_raises(program: str, tmp_path: pathlib.Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is reachable in its block and stopped afterwards, by force if need be."""
    monkeypatch.setattr(servers, "STOP_TIMEOUT_S", 0.2)
    port = servers.free_port()
    with pytest.raises(KeyError):
        with servers.running([sys.executable, "-c", program, str(port)], tmp_path, port):
            assert listens(port)
            raise KeyError
    assert not listens(port)


def test_server_that_ends_at_once(tmp_path: pathlib.Path) -> None:
    """The error shows the exit status and what the server wrote."""
    command = [sys.executable, "-c", "import sys; sys.exit('no such option')"]
    with pytest.raises(RuntimeError, match="exit status 1: no such option"):
        with servers.running(command, tmp_path, servers.free_port()):
            pass


@pytest.mark.slow
def test_server_that_never_listens(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for a server ends, and so does the server."""
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 1.0)
    elsewhere, port = servers.free_port(), servers.free_port()
    with pytest.raises(TimeoutError, match="after 1 s: a server starts"):
        with servers.running([sys.executable, "-c", LISTENER, str(elsewhere)], tmp_path, port):
            pass
    assert not listens(elsewhere)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="nothing ties the life of a server to that of its starter")
def test_server_does_not_outlive_a_killed_benchmark(tmp_path: pathlib.Path) -> None:
    """A benchmark that is killed takes its server with it."""
    port = servers.free_port()
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER, tmp_path, str(port), LISTENER],
            cwd=pathlib.Path(peers.__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None and keeper.stdout.readline() == b"running\n"
        assert listens(port)
        keeper.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not listens(port)


def test_pool_lends_each_connection_once() -> None:
    """A connection is lent to one user at a time, and none is made while one is idle."""
    made = iter("abc")
    closed: list[str] = []
    connections = pool.Pool(lambda: next(made))
    with connections.lent() as first, connections.lent() as second:
        assert first + second == "ab"
    with connections.lent() as again:
        assert again in "ab"
    connections.close(closed.append)
    assert sorted(closed) == ["a", "b"]


def receive_lines(path: str) -> Iterator[bytes]:
    """Receive what is written to a named pipe, line by line."""
    with open(path, "rb") as lines:
        for line in lines:
            yield line.rstrip()


def test_latencies_of_a_named_pipe(tmp_path: pathlib.Path) -> None:
    """As many latencies come as were asked for, and a message that was not expected is an error."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    # Opened for reading as well, it does not wait for the other process, which never sees its end.
    with open(path, "r+b", buffering=0) as pipe:

        def publish(message: bytes) -> None:
            pipe.write(message + b"\n")

        found = waiting.latencies(publish, receive_lines, (str(path), ), 2)
        assert len(found) == 2 and all(0 < seconds < TIMEOUT_S for seconds in found)

        publish(b"stray")
        with pytest.raises(ValueError, match="expected message 0, got b'stray'"):
            waiting.latencies(publish, receive_lines, (str(path), ), 1)
