"""Test that a look changes nothing, and that output which cannot be written fails no message."""

import contextlib
import hashlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Dict, Iterator, List, Tuple

import pytest

import persipubsub

pytestmark = pytest.mark.slow  # starts many processes, or waits

PERSIPUBSUB = [sys.executable, "-m", "persipubsub"]
#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60
#: What a pipe holds.
PIPE_BYTES = 65536
#: Each kind of subscriber whose deliveries count, and one whose do not.
KINDS = ("plain", "limited", "shared", "once")


def run(*arguments: object) -> "subprocess.CompletedProcess[bytes]":
    """Run the command to its end."""
    return subprocess.run([*PERSIPUBSUB, *map(str, arguments)], capture_output=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture(name="env")
def fixture_env(tmp_path: pathlib.Path) -> Iterator[persipubsub.Environment]:
    """Set up a queue with a subscriber of each kind."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        control = env.new_control(["plain"])
        control.add_subscriber("limited", max_deliveries=1)
        control.add_subscriber("shared", shared=True, max_deliveries=5)
        control.add_subscriber("once", shared=True, max_deliveries=1)
        yield env


def left(env: persipubsub.Environment, identifier: str) -> List[bytes]:
    """Receive and acknowledge all that comes without waiting; what was given back comes first, by itself."""
    found: List[bytes] = []
    subscriber = env.new_subscriber(identifier)
    while True:
        with subscriber.receive_many(10_000, timeout=0) as messages:
            if not messages:
                return found
            found += messages


def dead(env: persipubsub.Environment) -> Dict[str, int]:
    """Count the dead letters of all subscribers."""
    return {name: one.dead_letters for name, one in env.new_control().status().subscribers.items()}


def digest(path: pathlib.Path) -> str:
    """Read the data of a queue, which no process may have open."""
    return hashlib.sha256((path / "data.mdb").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_peek_hands_nothing_out(kind: str, env: persipubsub.Environment) -> None:
    """However often a user peeks, the file stays as it is, and all messages are still to be handed out first."""
    messages = [b"%d" % number for number in range(5)]
    env.new_publisher().send_many(messages)
    path = env.path
    env.close()
    before = digest(path)
    for _ in range(3):
        assert run("receive", path, kind, "--peek", "--max", 3).stdout.split() == messages[:3]
    assert digest(path) == before
    with persipubsub.new_environment(path) as again:
        assert left(again, kind) == messages


def test_peek_shows_what_would_come_next(env: persipubsub.Environment) -> None:
    """What was given back or requeued comes before what was never handed out; what a worker holds does not come."""
    control, publisher = env.new_control(), env.new_publisher()
    control.add_subscriber("shared", retry_delay_s=0, max_deliveries=2)
    publisher.send_many([b"fails", b"held", b"dies", b"fresh"])
    worker = env.new_subscriber("shared")
    for _ in range(2):
        with contextlib.suppress(ValueError), worker.receive(timeout=0) as message:
            assert message == b"fails"
            raise ValueError
    with worker.receive(timeout=0) as held:
        assert held == b"held"
        with contextlib.suppress(ValueError), worker.receive(timeout=0):
            raise ValueError  # of its two deliveries one is left
        assert run("receive", env.path, "shared", "--peek", "--max", 9).stdout == b"dies\nfresh\n"
        assert control.requeue_dead_letters("shared") == 1
        assert sorted(run("receive", env.path, "shared", "--peek", "--max",
                          9).stdout.split()) == [b"dies", b"fails", b"fresh"]
    with contextlib.suppress(ValueError), env.new_subscriber("limited").receive(timeout=0):
        raise ValueError
    assert run("receive", env.path, "limited", "--peek", "--max", 9).stdout == b"held\ndies\nfresh\n"
    control.requeue_dead_letters("limited")
    assert run("receive", env.path, "limited", "--peek", "--max", 2).stdout == b"fails\nheld\n"


def test_peek_leaves_out_what_has_expired(env: persipubsub.Environment) -> None:
    """A message beyond the timeout is not shown, handed out before or not."""
    env.new_control(high_watermark=persipubsub.HighWaterMark(message_timeout=0.2)).add_subscriber("shared",
                                                                                                  retry_delay_s=0)
    env.new_publisher().send_many([b"given back", b"not handed out"])
    with contextlib.suppress(ValueError), env.new_subscriber("shared").receive(timeout=0):
        raise ValueError
    time.sleep(0.3)
    for kind in KINDS:
        assert run("receive", env.path, kind, "--peek", "--max", 9).stdout == b""


@pytest.mark.parametrize("kind", KINDS)
def test_peek_waits_for_the_first(kind: str, env: persipubsub.Environment) -> None:
    """With --timeout it waits for a message, and ends once it is shown."""
    with subprocess.Popen([*PERSIPUBSUB, "receive", env.path, kind, "--peek", "--timeout", "60"],
                          stdout=subprocess.PIPE) as process:
        time.sleep(0.5)  # whether it already waits or not must make no difference
        env.new_publisher().send(b"late")
        assert process.communicate(timeout=TIMEOUT_S)[0] == b"late\n"
    assert left(env, kind) == [b"late"]


def waits(*arguments: object) -> int:
    """Run the command, and return how often it waited."""
    with subprocess.Popen([*PERSIPUBSUB, *map(str, arguments)], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_nvcsw


def test_a_peek_that_waits_does_not_poll(env: persipubsub.Environment) -> None:
    """In two seconds without a message, it wakes up a few times."""
    arguments = ("receive", env.path, "plain", "--peek", "--timeout")
    assert waits(*arguments, "2s") < waits(*arguments, "0") + 15


@pytest.mark.parametrize("verb", [("status", ), ("status", "--json"), ("top", "--interval", "0.1"), ("check", ),
                                  ("describe", ), ("subscriber", "list")], ids=" ".join)  # yapf: disable
def test_looking_verbs_write_nothing(verb: Tuple[str, ...], env: persipubsub.Environment) -> None:
    """A verb that only shows leaves every byte of the data."""
    env.new_publisher().send_many([b"x"] * 3)
    with contextlib.suppress(ValueError), env.new_subscriber("once").receive(timeout=0):
        raise ValueError
    path = env.path
    env.close()
    before = digest(path)
    name, *options = verb
    arguments = [name, *options, str(path)] if name == "subscriber" else [name, str(path), *options]
    assert run(*arguments).returncode == 0
    for letters in (["list", path, "shared"], ["list", path, "once"]):
        assert run("dead-letters", *letters).returncode == 0
    assert digest(path) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["head", "full", "interrupt"])
def test_output_that_cannot_be_written_fails_no_message(end: str, kind: str, env: persipubsub.Environment) -> None:
    """What was written is acknowledged, and the rest comes again as if new."""
    messages = [b"%01000d" % number for number in range(2000)]
    env.new_publisher().send_many(messages)
    command = [*PERSIPUBSUB, "receive", str(env.path), kind]
    seen, status, stderr = ENDS[end](command)
    assert dead(env) == dict.fromkeys(KINDS, 0)
    rest = left(env, kind)
    assert rest and rest == messages[-len(rest):]
    taken = messages[:len(messages) - len(rest)]
    assert seen == b"".join(one + b"\n" for one in messages)[:len(seen)]
    if end == "full":
        assert len(taken) == seen.count(b"\n") > 0
    elif end == "head":
        assert len(taken) * len(messages[0] + b"\n") <= len(seen) + PIPE_BYTES  # a pipe takes what its reader leaves
    else:
        assert len(taken) <= seen.count(b"\n")
    told = {
        "head": (141, b""),
        "full": (1, b"Error: Cannot write to standard output: Resource temporarily unavailable.\n"),
        "interrupt": (130, b"Interrupted.\n")
    }
    assert (status, stderr) == told[end]


def _head(command: List[str]) -> Tuple[bytes, int, bytes]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        seen = os.read(process.stdout.fileno(), 5)
        process.stdout.close()
        return seen, process.wait(TIMEOUT_S), process.stderr.read()


def _full(command: List[str]) -> Tuple[bytes, int, bytes]:
    # A socket that is not to be waited for is a disk that is full after some time.
    reader, writer = socket.socketpair()
    with reader:
        with writer:
            writer.setblocking(False)
            result = subprocess.run(command,
                                    stdout=writer.fileno(),
                                    stderr=subprocess.PIPE,
                                    timeout=TIMEOUT_S,
                                    check=False)
        return b"".join(iter(lambda: reader.recv(65536), b"")), result.returncode, result.stderr


def _interrupt(command: List[str]) -> Tuple[bytes, int, bytes]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        seen = os.read(process.stdout.fileno(), 5)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
        return seen + process.stdout.read(), 130, process.stderr.read()


ENDS = {"head": _head, "full": _full, "interrupt": _interrupt}

INTERRUPTED_BEFORE_A_WRITE = """
import sys
from persipubsub import cli
from persipubsub.cli.message_output import Messages

write, calls = Messages.write, []

def interrupted(self, messages):
    calls.append(messages)
    if len(calls) == 2:
        raise KeyboardInterrupt
    write(self, messages)

Messages.write = interrupted
cli.main(["receive", *sys.argv[1:]])
"""


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_before_a_write_acknowledges_nothing(kind: str, env: persipubsub.Environment) -> None:
    """What the write before has written does not count for the messages that an interrupt keeps from being written."""
    env.new_publisher().send_many([b"0", b"1", b"2"])
    result = subprocess.run([sys.executable, "-c", INTERRUPTED_BEFORE_A_WRITE,
                             str(env.path), kind],
                            capture_output=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert (result.returncode, result.stdout) == (130, b"0\n")
    assert left(env, kind) == [b"1", b"2"] and dead(env) == dict.fromkeys(KINDS, 0)
