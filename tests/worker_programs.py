"""Programs that handle messages, as a user writes and runs them."""

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from typing import Any, Iterator, List, Optional

import pytest

import persipubsub
from persipubsub import Control, Environment
from tests.concurrency import WAIT_S

#: The module ``jobs``: each message says what its handler has to do.
JOBS = '''
import asyncio
import dataclasses
import os
import resource
import sys
import threading
import time

import persipubsub
from persipubsub import Delivery


@dataclasses.dataclass
class Order:
    item: str


def tell(*words):
    # In one write, so that the lines of several processes do not mix.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())


def obey(delivery: Delivery[bytes]):
    text = delivery.message.decode()
    tell("begin", text, os.getpid(), delivery.delivery_count, time.monotonic())
    word, _, argument = text.partition(" ")
    COMMANDS[word](delivery, argument)
    tell("end", text)


def fail(delivery, text):
    raise ValueError(text)


def retry(delivery, scale):
    if delivery.delivery_count < 4:
        raise persipubsub.Retry(float(scale) * 2 ** (delivery.delivery_count - 1))


def reject(delivery, reason):
    raise persipubsub.Reject(reason)


def limit(delivery, seconds):
    if delivery.delivery_count == 1:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # No message of a queue is in its first two pages, and standard error may be a short file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * os.sysconf("SC_PAGE_SIZE"), limits[1]))
        threading.Timer(float(seconds), resource.setrlimit, [resource.RLIMIT_FSIZE, limits]).start()


BARRIER = threading.Barrier(4)
COMMANDS = {
    "do": lambda delivery, argument: None,
    "sleep": lambda delivery, seconds: time.sleep(float(seconds)),
    "fail": fail,
    "retry": retry,
    "reject": reject,
    "exit": lambda delivery, status: sys.exit(int(status)),
    "limit": limit,
    "meet": lambda delivery, argument: BARRIER.wait(60),
}


met = []


async def obey_async(message):
    text = message.decode()
    tell("begin", text)
    word, _, argument = text.partition(" ")
    if word == "sleep":
        await asyncio.sleep(float(argument))
    elif word == "meet":
        met.append(text)
        while len(met) < 4:
            await asyncio.sleep(0.01)
    elif word == "cancel":
        sleeping = asyncio.ensure_future(asyncio.sleep(60))
        sleeping.cancel()
        await sleeping
    tell("end", text)


def forget_to_await(message):
    return obey_async(message)


def take_order(order):
    tell("order", order)
'''

#: A program that calls ``run``.
PROGRAM = '''
import json
import sys

from persipubsub import worker

if __name__ == "__main__":
    worker.run("queue", **json.loads(sys.argv[1]))
'''


class Program:
    """A running worker program. The end of its output is the end of all of its processes."""

    def __init__(self, directory: pathlib.Path, command: List[str]) -> None:
        self._errors = open(directory / "errors", "a+", encoding="utf-8")  # pylint: disable=consider-using-with  # kill
        # A session of its own, so that all of its processes can be killed.
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with  # see kill
            command,
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True)
        self._lines: "queue.SimpleQueue[Optional[str]]" = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self) -> Optional[str]:
        """Return the next line of the output, or None once all processes have ended."""
        return self._lines.get(timeout=WAIT_S)

    def lines(self, count: int) -> List[str]:
        """Return the next lines."""
        found = [self.line() for _ in range(count)]
        assert None not in found, (found, self.errors())
        return [str(line) for line in found]

    def rest(self) -> List[str]:
        """Wait for the end of all processes, and return the lines that are left."""
        found: List[str] = []
        while (line := self.line()) is not None:
            found.append(line)
        return found

    def begun(self) -> List[str]:
        """Wait for the beginning of a job, and return its words after the first."""
        line, = self.lines(1)
        assert line.startswith("begin "), line
        return line.split()[1:]

    def send_signal(self, number: int) -> None:
        """Send a signal to the main process only."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait for the end of the main process, and return its exit status."""
        return self.process.wait(WAIT_S)

    def stop(self) -> int:
        """Stop it warmly, and return the exit status."""
        self.send_signal(signal.SIGTERM)
        return self.status()

    def errors(self) -> str:
        """Return what was written to standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def kill(self) -> None:
        """Kill whatever is left of it."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._errors.close()


class Shop:
    """A queue with the shared subscriber "workers", and the programs that work on it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        (directory / "jobs.py").write_text(JOBS, encoding="utf-8")
        (directory / "program.py").write_text(PROGRAM, encoding="utf-8")
        self.env: Environment = persipubsub.new_environment(directory / "queue")
        self.control: Control = self.env.new_control()
        self.set()
        self._programs: List[Program] = []

    def set(self, **settings: Any) -> None:
        """Set what messages of the subscriber experience."""
        self.control.add_subscriber("workers", **{"shared": True, "retry_delay_s": 0.01, **settings})

    def send(self, *texts: str) -> None:
        """Send messages, each of which says what to do."""
        self.env.new_publisher().send_many([text.encode() for text in texts])

    def start(self, handler: str = "jobs:obey", **arguments: Any) -> Program:
        """Start a program that calls ``run``."""
        return self.start_command(
            [sys.executable, "program.py",
             json.dumps({
                 "subscriber": "workers",
                 "handler": handler,
                 **arguments
             })])

    def work(self, *arguments: str) -> Program:
        """Start the command."""
        return self.start_command([sys.executable, "-m", "persipubsub", "work", *arguments])

    def start_command(self, command: List[str]) -> Program:
        """Start a program, which is killed at the end of the test."""
        self._programs.append(Program(self.directory, command))
        return self._programs[-1]

    @property
    def pending(self) -> int:
        """Return how many messages are not acknowledged."""
        return self.control.status().subscribers["workers"].pending

    def close(self) -> None:
        """End everything."""
        for program in self._programs:
            program.kill()
        self.env.close()


@pytest.fixture(name="shop")
def shop_fixture(tmp_path: pathlib.Path) -> Iterator[Shop]:
    """Set up a queue to work on."""
    shop = Shop(tmp_path)
    yield shop
    shop.close()
