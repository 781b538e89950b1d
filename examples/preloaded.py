"""gunicorn loads the application once and forks its workers, which inherit the open queue.

Run it with ``python examples/preloaded.py``, after ``pip install 'persipubsub[examples]'``. It starts gunicorn as
``QUEUE=... gunicorn --preload --workers 2 preloaded:app`` would, asks it for some pages, and prints which worker
published what.
"""

import collections
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import urllib.request
from typing import Any, Callable, Counter, Dict, Iterable, List, Optional

import persipubsub

PAGES = 20


def load(path: str) -> persipubsub.Publisher:
    """Open the queue while the application is loaded. It may be used before the fork."""
    publisher = persipubsub.new_environment(path).new_publisher()
    publisher.send(b"loaded by %d" % os.getpid())
    return publisher


# As a program, this file only starts gunicorn, which imports it and passes it a queue.
PUBLISHER: Optional[persipubsub.Publisher] = load(os.environ["QUEUE"]) if "QUEUE" in os.environ else None


def app(environ: Dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Publish what was asked for, in a worker, through the publisher that its parent opened before the fork."""
    assert PUBLISHER is not None
    PUBLISHER.send(b"%s by %d" % (environ["PATH_INFO"].encode(), os.getpid()))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"thank you\n"]


def ask(url: str) -> None:
    """Ask for some pages."""
    for number in range(PAGES):
        with urllib.request.urlopen(f"{url}/page{number}", timeout=60) as answer:
            assert answer.read() == b"thank you\n"


def serve_and_ask(path: pathlib.Path) -> None:
    """Run gunicorn until all pages were asked for."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--log-level", "warning"]
        environment = {**os.environ, "QUEUE": str(path), "HOME": str(path.parent)}
        with subprocess.Popen([*command, "--bind", f"fd://{listening.fileno()}", "preloaded:app"],
                              cwd=pathlib.Path(__file__).parent,
                              env=environment,
                              pass_fds=[listening.fileno()]) as server:
            try:
                ask(f"http://127.0.0.1:{listening.getsockname()[1]}")
            finally:
                server.terminate()
        assert server.returncode == 0


def main() -> None:
    """Deploy the queue, serve, and look at what was published."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "pages"
        with persipubsub.new_environment(path) as env:
            env.new_control(subscriber_ids=["log"])
            serve_and_ask(path)
            pages: List[str] = []
            by_process: Counter[str] = collections.Counter()
            for msg in env.new_subscriber("log").messages(timeout=0):
                page, _, process = msg.decode().partition(" by ")
                pages.append(page)
                by_process[process] += 1
        assert pages == ["loaded", *(f"/page{number}" for number in range(PAGES))]
        for process, count in by_process.items():
            print("process", process, "published", count)


if __name__ == "__main__":
    main()
