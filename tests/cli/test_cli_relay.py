"""Test the verb ``relay``, as a user runs it."""

import pathlib
import re
import signal
import subprocess
import urllib.request
from typing import Iterator, List, Tuple

import pytest

import persipubsub
from persipubsub import Environment, HighWaterMark, Strategy
from tests.cli.test_cli_operating import PERSIPUBSUB, run
from tests.concurrency import WAIT_S, hold_write_lock, process, told, wait_until

pytestmark = pytest.mark.slow  # starts many processes, or waits


@pytest.fixture(name="source")
def source_fixture(tmp_path: pathlib.Path) -> Iterator[Environment]:
    """Set up a source with two messages."""
    with persipubsub.new_environment(tmp_path / "source") as source:
        source.new_control(["relay", "other"])
        source.new_publisher().send_many([b"1", b"2"])
        yield source


@pytest.fixture(name="target")
def target_fixture(tmp_path: pathlib.Path) -> Iterator[Environment]:
    """Set up a target that is full with one message."""
    with persipubsub.new_environment(tmp_path / "target") as target:
        target.new_control(["a"], HighWaterMark(max_messages=1), Strategy.refuse)
        yield target


def received(target: Environment) -> List[bytes]:
    """Receive what is there."""
    return list(target.new_subscriber("a").messages(timeout=0))


def started(*arguments: object) -> "subprocess.Popen[str]":
    """Start a relay."""
    # pylint: disable-next=consider-using-with  # each test has it in a with statement
    return subprocess.Popen([*PERSIPUBSUB, "relay", *map(str, arguments)],
                            stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_relays_until_it_is_stopped(number: int, source: Environment, target: Environment) -> None:
    """It waits for room and for messages, reports both, and ends with status 0 at SIGTERM or Ctrl-C."""
    with started(source.path, target.path, "--report", "0.1") as relay:
        found: List[bytes] = []
        while len(found) < 2:
            found += received(target)
        source.new_publisher().send(b"3")
        wait_until(lambda: source.new_control().status().subscribers["relay"].pending == 0)
        relay.send_signal(number)
        out, err = relay.communicate(timeout=WAIT_S)
    assert (relay.returncode, found + received(target)) == (0, [b"1", b"2", b"3"]), err
    assert out.splitlines()[-1] == "3 relayed, 0 waiting, lag 0.0 s"


def test_what_is_there_is_brought_at_once(source: Environment, target: Environment) -> None:
    """With a timeout of 0, it brings what is there as the subscriber of the option, and ends."""
    target.new_control(high_watermark=HighWaterMark(max_messages=10))
    done = run("relay", source.path, target.path, "--subscriber", "other", "--timeout", "0", "--max-messages", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert received(target) == [b"1", b"2"]
    assert source.new_control().status().subscribers["relay"].pending == 2


def test_metrics_are_served(source: Environment, target: Environment) -> None:
    """Prometheus reads how far the relay has come, while it waits for room."""
    with started(source.path, target.path, "--listen", "127.0.0.1:0", "--report", "0.1") as relay:
        assert relay.stdout is not None
        url = relay.stdout.readline().split()[-1]
        while "waits: The queue has 1 messages" not in relay.stdout.readline():
            pass
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
        relay.terminate()
        assert relay.wait(WAIT_S) == 0
    values = dict(re.findall(r"^persipubsub_relay_(\w+)\{.*\} (\S+)$", text, re.MULTILINE))
    assert values.pop("lag_seconds") != "0.0"
    assert values == {"up": "0.0", "messages_total": "1.0", "backlog_messages": "1.0"}


def test_a_second_signal_ends_it_at_once(source: Environment, target: Environment) -> None:
    """A relay that cannot stop well has the exit status of a shell for a program that the signal ends."""
    with process(hold_write_lock, target.path) as holder:
        assert told(holder) == "held"
        relay = started(source.path, target.path, "--report", "0.1")
        assert relay.stdout is not None and relay.stdout.readline().startswith("0 relayed, 2 waiting, lag")
        relay.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            relay.wait(0.5)
        relay.send_signal(signal.SIGTERM)
        relay.communicate(timeout=WAIT_S)
        assert relay.returncode == 128 + signal.SIGTERM
        holder.send("let go")


def test_mistakes_are_errors_of_one_line(source: Environment, target: Environment, tmp_path: pathlib.Path) -> None:
    """What cannot be relayed ends the command with an error of one line, and what cannot be understood with a usage."""
    source.new_control().add_subscriber("shared", shared=True)
    cases: List[Tuple[List[object], int, str]] = [
        ([source.path, tmp_path / "nowhere"], 1, "There is no queue at"),
        ([source.path, source.path], 1, "which are the same queue"),
        ([source.path, target.path, "--subscriber", "nobody"], 1, "no subscriber 'nobody'"),
        ([source.path, target.path, "--subscriber", "shared"], 1, "is shared"),
        ([source.path, target.path, "--listen", "here"], 2, "not of the form ADDRESS:PORT"),
        ([source.path, target.path, "--report", "0"], 2, "less than 0.1"),
        ([source.path], 2, "Missing argument 'TO'"),
    ]
    for arguments, status, why in cases:
        done = run("relay", *arguments)
        line = done.stderr.splitlines()[-1]
        assert done.returncode == status and line.startswith("Error: ") and why in line, done
    assert source.new_control().status().subscribers["relay"].pending == 2
