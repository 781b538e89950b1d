"""Processes that multiprocessing, subprocess and servers start while the queue is open."""

# pylint: disable=protected-access  # an Environment keeps its path to itself

import concurrent.futures
import multiprocessing
import os
import pathlib
import socket
import subprocess
import sys
import urllib.request
from typing import Any, Dict

import pytest

import persipubsub
from persipubsub import Publisher, Subscriber
from tests.concurrency import WAIT_S, Opened, by_sender, numbered
from tests.process.forking import Busy


def use_in_process(publisher: Publisher, subscriber: Subscriber) -> None:
    """Use inherited or unpickled objects, and fresh ones: the main function of a process."""
    publisher.send(b"process:0")
    with subscriber.receive(timeout=WAIT_S) as msg:
        assert msg is not None
    with persipubsub.new_environment(publisher._origin.location) as fresh:
        fresh.new_publisher().send(b"process:1")
        with fresh.new_subscriber("b").receive(timeout=WAIT_S) as msg:
            assert msg is not None


@pytest.mark.usefixtures("patient_forks")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(opened: Opened, method: str) -> None:
    """Processes of multiprocessing use passed objects, and open their own, while threads of the parent write."""
    context: Any = multiprocessing.get_context(method)
    with Busy(opened) as busy:
        running = context.Process(target=use_in_process, args=(opened.publisher, opened.subscriber))
        running.start()
        running.join(WAIT_S)
        assert running.exitcode == 0
        expected = busy.sent()
    expected["process"] = numbered("process", 2)
    assert by_sender(opened.sent()) == expected


SUBPROCESS = """
import os, sys, persipubsub
print([name for fd in os.listdir("/proc/self/fd") if (name := os.path.realpath(f"/proc/self/fd/{fd}"))
       .startswith(sys.argv[1])])
with persipubsub.new_environment(sys.argv[1]) as environment:
    environment.new_publisher().send(b"subprocess:0")
    environment.new_subscriber("a").pop()
"""


@pytest.mark.parametrize("start", [{}, {
    "close_fds": False
}, {
    "preexec_fn": lambda: None
}],
                         ids=["plain", "open files", "with a function"])
def test_subprocess_while_threads_write(opened: Opened, start: Dict[str, Any]) -> None:
    """A subprocess starts while threads write, inherits no file of the queue, and uses it."""
    with Busy(opened) as busy:
        found = subprocess.run([sys.executable, "-c", SUBPROCESS, opened.environment.path],
                               env={
                                   **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)
                               },
                               timeout=WAIT_S,
                               check=True,
                               capture_output=True,
                               text=True,
                               **start)
        expected = busy.sent()
    # LMDB leaves data.mdb open to whoever asks for all files.
    data_file = opened.environment.path / "data.mdb"
    assert found.stdout in ("[]\n", f"['{data_file}']\n" if "close_fds" in start else "")
    expected["subprocess"] = numbered("subprocess", 1)
    assert by_sender(opened.sent()) == expected


GUNICORN_APP = """
import os, persipubsub

environment = persipubsub.new_environment(os.environ["QUEUE"])
publisher = environment.new_publisher()
publisher.send(b"loaded")


def app(request, start_response):
    publisher.send(request["QUERY_STRING"].encode())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


def test_gunicorn_with_preload_app(opened: Opened, tmp_path: pathlib.Path) -> None:
    """Workers of gunicorn publish through what the application opened before they were forked; nothing is lost."""
    (tmp_path / "application.py").write_text(GUNICORN_APP)
    (tmp_path / "gunicorn.conf.py").write_text("preload_app = True\nworkers = 2\nlogconfig_dict = {}\n")
    payloads = [b"%d" % number for number in range(60)]
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/?"
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listening.fileno()}", "application:app"]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
            "QUEUE": os.fspath(opened.environment.path),
            "HOME": os.fspath(tmp_path)
        }
        with subprocess.Popen(command, cwd=tmp_path, env=environment, pass_fds=[listening.fileno()]) as server:
            try:
                with concurrent.futures.ThreadPoolExecutor(4) as pool:
                    workers = set(pool.map(lambda payload: fetched(url + payload.decode()), payloads))
            finally:
                server.terminate()
            assert server.wait(WAIT_S) == 0
    assert workers and str(server.pid).encode() not in workers
    sent = opened.sent()
    assert sent[0] == b"loaded"
    assert sorted(sent[1:]) == sorted(payloads)


def fetched(url: str) -> bytes:
    """Return what a server answers."""
    with urllib.request.urlopen(url, timeout=WAIT_S) as response:
        content: bytes = response.read()
    return content
