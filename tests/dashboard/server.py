"""Start the command ``persipubsub dashboard`` and ask it over HTTP."""

import contextlib
import json
import signal
import subprocess
import sys
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

import httpx

#: The longest wait, unless the machine is broken.
WAIT_S = 40
TOKEN = "a-token-of-these-tests"
#: What has a token has to say so.
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


class Server(NamedTuple):
    """A dashboard that runs."""

    process: "subprocess.Popen[str]"
    url: str
    #: None if it has printed none.
    token: Optional[str]

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask for a path."""
        return httpx.get(self.url + path, timeout=WAIT_S, **options)

    def queues(self, until: "Callable[[Dict[str, Any]], bool]", **options: Any) -> Dict[str, Any]:
        """Follow the events until the queues, by their names, are as wanted, and return them."""
        for event in self.events("api/events", **options):
            found = {queue["name"]: queue for queue in event["queues"]}
            if until(found):
                return found
        raise AssertionError("the events have ended")

    def events(self, path: str, **options: Any) -> Iterator[Any]:
        """Follow a stream of events."""
        with httpx.stream("GET", self.url + path, timeout=WAIT_S, **options) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    def id_of(self, name: str) -> str:
        """Return how addresses name a queue."""
        return str(self.queues(lambda found: name in found)[name]["id"])

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End the process, which must succeed, and return what it wrote to standard error."""
        self.process.send_signal(number)
        _, written = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0, written
        return written


def command(*arguments: object) -> List[str]:
    """Return the command with arguments."""
    return [sys.executable, "-m", "persipubsub", "dashboard", *map(str, arguments), "--interval", "0.1s"]


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    """Run a dashboard on a free port during the block."""
    with subprocess.Popen(command(*arguments, *([] if "--listen" in arguments else ["--listen", "127.0.0.1:0"])),
                          stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Serving on http://"), process.communicate(timeout=WAIT_S)
            asked_for = "--token" in arguments or "--allow-changes" in arguments or "--allow-host" in arguments
            token = process.stdout.readline().rpartition("#token=")[2].strip() if asked_for else None
            yield Server(process, line.split()[-1], token)
        finally:
            process.kill()
