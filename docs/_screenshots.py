"""Make the picture of the dashboard: set up queues with some trouble, start the command, and look with Chromium.

Run it as ``python docs/_screenshots.py [TARGET]``. It needs Chromium, and what the extra ``[dev]`` installs.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Iterator, Sequence

from PIL import Image
from playwright.sync_api import sync_playwright

import persipubsub
from persipubsub import Durability, HighWaterMark, Strategy

TARGET = pathlib.Path(__file__).with_name("_static") / "dashboard.png"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()
WATCHED_S = 75
#: A busy disk does not matter.
FAST = Durability.PROCESS_CRASH


def orders(directory: pathlib.Path) -> Iterator[None]:
    """Run a queue that works, but whose packers fail at some messages."""
    env = persipubsub.new_environment(directory / "orders")
    control = env.new_control(["audit", "billing"],
                              HighWaterMark(604800.0, 10000, None),
                              durability=FAST,
                              retention_s=3600.0)
    control.add_subscriber("packing", shared=True, max_deliveries=2, retry_delay_s=0)
    publisher, step = env.new_publisher(), 0
    publisher.send_many([b'{"item": "cup"}'] * 1900)
    while True:
        step += 1
        for number in range(30 + 17 * (step % 5)):
            publisher.send(json.dumps({
                "order": step * 100 + number,
                "item": "plate"
            }).encode(),
                           headers={"content-type": "application/json"})
        for name, most in (("audit", 90), ("billing", 55 + 20 * (step // 40 % 3)), ("packing", 64)):
            subscriber = env.new_subscriber(name)
            for index in range(most):
                with contextlib.suppress(KeyError), subscriber.receive(timeout=0) as message:
                    if message is not None and name == "packing" and step % 50 == 7 and index < 4:
                        raise KeyError("address")
            subscriber.close()
        yield


def steady(name: str, subscribers: Sequence[str], most: int, directory: pathlib.Path) -> Iterator[None]:
    """Run a queue whose subscribers keep up."""
    env = persipubsub.new_environment(directory / name)
    env.new_control(subscribers, HighWaterMark(None, 50 * most, None), durability=FAST)
    publisher, step = env.new_publisher(), 0
    while True:
        step += 1
        publisher.send_many([b"something to do"] * (most // 2 + most * (step * 7 % 11) // 11))
        for subscriber in map(env.new_subscriber, subscribers):
            with subscriber.receive_many(most):
                pass
            subscriber.close()
        yield


def invoices(directory: pathlib.Path) -> Iterator[None]:
    """Run a queue that is full and refuses, since its reader has ended."""
    env = persipubsub.new_environment(directory / "invoices")
    env.new_control(["archive"], HighWaterMark(None, 500, None), Strategy.refuse)
    env.new_publisher().send_many([b"invoice"] * 500)
    while True:
        yield


def thumbnails(directory: pathlib.Path) -> Iterator[None]:
    """Run a queue whose worker is stuck with a message."""
    env = persipubsub.new_environment(directory / "thumbnails")
    control = env.new_control()
    control.add_subscriber("resizers", shared=True, lease_s=30)
    env.new_publisher().send_many([f"/photos/{number}.jpg".encode() for number in range(43)])
    with env.new_subscriber("resizers").receive():
        while True:
            yield


def emails(directory: pathlib.Path) -> Iterator[None]:
    """Run a queue with little to do, and delayed messages."""
    env = persipubsub.new_environment(directory / "emails")
    env.new_control(["senders"])
    publisher, subscriber = env.new_publisher(), env.new_subscriber("senders")
    publisher.send(b"hello", headers={"to": "ann@example.org"})
    for number in range(12):
        publisher.send_later(b"reminder", 3600.0 + number)
    while True:
        publisher.send(b"hello")
        with subscriber.receive(timeout=0):
            pass
        yield


@contextlib.contextmanager
def busy(directory: pathlib.Path) -> Iterator[None]:
    """Have the queues work during the block."""
    stop = threading.Event()

    def work() -> None:
        programs = [make(directory) for make in (orders, invoices, thumbnails, emails)]
        programs += [
            steady("payments", ["ledger"], 40, directory),
            steady("search", ["index", "audit"], 250, directory)
        ]
        while not stop.is_set():
            for program in programs:
                next(program)
            time.sleep(0.5)
        for program in programs:
            program.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def served(directory: pathlib.Path) -> Iterator[str]:
    """Serve the dashboard during the block, and provide its URL."""
    names = ["orders", "payments", "invoices", "search", "thumbnails", "emails"]
    command = [
        sys.executable, "-m", "persipubsub", "dashboard", *names, "--listen", "127.0.0.1:0", "--interval", "0.5s"
    ]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def shoot(browser: Any, url: str, target: pathlib.Path) -> None:
    """Write the picture of a page."""
    page = browser.new_page(viewport={"width": 1280, "height": 985})
    page.goto(url)
    page.locator(".finding").filter(has_text="thumbnails").wait_for(timeout=WATCHED_S * 1000)
    page.screenshot(path=target)
    # Few colours are enough for a page without photographs, and make a small file.
    Image.open(target).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Make the picture."""
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    with tempfile.TemporaryDirectory(prefix="shop-", dir="/tmp") as name:
        directory = pathlib.Path(name)
        with busy(directory), served(directory) as url, sync_playwright() as playwright:
            time.sleep(WATCHED_S)
            with playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
                shoot(browser, url, target)


if __name__ == "__main__":
    main()
