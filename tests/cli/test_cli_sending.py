"""Test the options of ``send``, as a user runs them."""

import datetime
import pathlib
import time
from typing import List

import pytest

import persipubsub
from persipubsub import HighWaterMark, Strategy
from tests.cli.test_cli_messages import TIMEOUT_S, pending, put, run, started, wait_until

pytestmark = pytest.mark.slow  # starts many processes, or waits


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue with a subscriber."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["a"])
    return tmp_path / "queue"


def refuse(path: pathlib.Path, max_messages: int) -> None:
    """Let the queue refuse messages at a mark."""
    with persipubsub.new_environment(path) as env:
        env.new_control(high_watermark=HighWaterMark(max_messages=max_messages), strategy=Strategy.refuse)


def later(seconds: float) -> str:
    """Return a time as a user writes it."""
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize("options", [["--delay", "1s"], ["--at"]], ids=lambda options: options[0])
def test_delayed_messages(options: List[str], path: pathlib.Path) -> None:
    """Each line comes after the delay or at the time, in order, and not before."""
    if options == ["--at"]:
        options = ["--at", later(1)]
    before_s = time.monotonic()
    assert run("send", path, *options, stdin=b"1\n2\n").stdout == b"2 messages sent\n"
    with persipubsub.new_environment(path) as env:
        subscriber = env.new_subscriber("a")
        for expected in (b"1", b"2"):
            with subscriber.receive(timeout=TIMEOUT_S) as message:
                assert message == expected
        if options[0] == "--delay":
            assert time.monotonic() - before_s >= 1
    assert run("send", path, "--at", "2000-01-01T00:00:00Z", stdin=b"past\n").returncode == 0
    assert run("send", path, "--delay", "7d", stdin=b"next week\n").returncode == 0
    assert pending(path) == [b"past"]
    with persipubsub.new_environment(path) as env:
        assert env.new_control().status().delayed == 1


def test_a_deduplication_id(path: pathlib.Path) -> None:
    """A message is not sent again with the same id, delayed or not; for lines the id is wrong usage."""
    for options in ([], [], ["--delay", "0"]):
        result = run("send", path, "--whole", "--deduplication-id", "order-17", *options, stdin=b"order")
        assert result.returncode == 0
    assert run("send", path, "--whole", "--deduplication-id", "order-18", stdin=b"other").returncode == 0
    assert pending(path) == [b"order", b"other"]
    assert run("send", path, "--deduplication-id", "order-19", stdin=b"1\n").returncode == 2
    assert pending(path) == [b"order", b"other"]


@pytest.mark.parametrize("options", [[], ["--whole"], ["--delay", "0"]], ids=" ".join)
def test_headers(options: List[str], path: pathlib.Path) -> None:
    """Each message has all headers; a text may have any character, such as an equals sign."""
    result = run("send", path, "--header", "traceparent=00-4bf9", "--header", "x=a=ä b", *options, stdin=b"1\n2")
    assert result.returncode == 0
    with persipubsub.new_environment(path) as env:
        found = list(env.new_control().history())
    assert [one.payload for one in found] == ([b"1\n2"] if options == ["--whole"] else [b"1", b"2"])
    assert {tuple(one.headers.items()) for one in found} == {(("traceparent", "00-4bf9"), ("x", "a=ä b"))}


@pytest.mark.parametrize("options, status, told", [
    (["--header", "traceparent"], 2, "'traceparent' has no '='. Write it as NAME=TEXT"),
    (["--header", "a=1", "--header", "a=2"], 2, "The header 'a' is given twice"),
    (["--header", "a b=1"], 1, "name of a header must have"),
    (["--delay", "1x"], 2, "'1x' is not a time"),
    (["--delay", "20000d"], 1, "delay_s must be from 0"),
    (["--at", "tomorrow"], 2, "'tomorrow' is not a time such as"),
    (["--at", "2026-01-31T12:00:00"], 2, "has no timezone. Write 2026-01-31T12:00:00Z"),
    (["--delay", "1", "--at", "2026-01-31T12:00:00Z"], 2, "Use either --delay or --at"),
    (["--wait", "-1"], 2, "'-1' is not a time"),
])  # yapf: disable
def test_mistakes(options: List[str], status: int, told: str, path: pathlib.Path) -> None:
    """An option that cannot be used is an error that says how to write it, and nothing is sent."""
    result = run("send", path, *options, stdin=b"1\n")
    assert result.returncode == status and told in result.stderr.decode()
    assert pending(path) == []


def test_a_full_queue_refuses(path: pathlib.Path) -> None:
    """Without --wait, or after it, a full queue is an error at once that says how much was sent."""
    refuse(path, 2)
    put(path, b"1", b"2")
    before_s = time.monotonic()
    for options in ([], ["--wait", "0.5s"]):
        result = run("send", path, *options, stdin=b"3\n")
        assert (result.returncode, result.stdout) == (1, b"0 messages sent before the error\n")
        assert b"Error: The queue has 2 messages" in result.stderr and result.stderr.count(b"\n") == 1
    assert time.monotonic() - before_s >= 0.5
    assert pending(path) == [b"1", b"2"]


def test_waiting_for_room(path: pathlib.Path) -> None:
    """With --wait, a queue that is full gets each message as soon as there is room, however many are sent."""
    refuse(path, 3)
    messages = [b"%d" % number for number in range(20)]
    with started("send", path, "--wait", "none") as process, persipubsub.new_environment(path) as env:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"\n".join(messages))
        process.stdin.close()
        wait_until(lambda: pending(path) == messages[:2])  # 20 are halved until they fit
        received = []
        for message in env.new_subscriber("a").messages(timeout=TIMEOUT_S):
            received.append(message)
            if len(received) == len(messages):
                break
        assert process.wait(TIMEOUT_S) == 0
        assert process.stdout.read() == b"20 messages sent\n"
    assert received == messages
