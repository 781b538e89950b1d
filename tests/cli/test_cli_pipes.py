"""Test what ``receive`` acknowledges when its output is a pipe or a file that ends early, as a user runs it."""

import fcntl
import os
import pathlib
import select
import signal
import struct
import subprocess
import termios
import time
from typing import IO, List, Optional

import pytest

import persipubsub
from tests.cli.test_cli_messages import PERSIPUBSUB, TIMEOUT_S, pending, put, started, wait_for_last, wait_until

pytestmark = pytest.mark.slow  # starts many processes, or waits


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue with plain and shared subscribers."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        control = env.new_control(["a", "b"])
        control.add_subscriber("shared", shared=True, lease_s=3)
        control.add_subscriber("limited", max_deliveries=1)
    return tmp_path / "queue"


def unread(pipe: Optional[IO[bytes]]) -> int:
    """Return how many bytes of a pipe nobody has read."""
    assert pipe is not None
    return int(struct.unpack("i", fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)))[0])


def is_full(pipe: Optional[IO[bytes]]) -> bool:
    """Return whether a write to a pipe would have to wait for its reader."""
    assert pipe is not None
    writer = os.open(f"/proc/self/fd/{pipe.fileno()}", os.O_WRONLY)
    try:
        return not select.select([], [writer], [], 0)[1]
    finally:
        os.close(writer)


def read_lines(pipe: Optional[IO[bytes]], count: int) -> List[bytes]:
    """Read lines from a pipe, and not one byte more."""
    assert pipe is not None
    lines = []
    for _ in range(count):
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(pipe.fileno(), 1)
        lines.append(line[:-1])
    return lines


def left(path: pathlib.Path, subscriber: str) -> List[bytes]:
    """Receive and acknowledge all that comes without waiting; what was given back comes first, by itself."""
    found: List[bytes] = []
    with persipubsub.new_environment(path) as env:
        opened = env.new_subscriber(subscriber)
        while True:
            with opened.receive_many(10_000, timeout=0) as messages:
                if not messages:
                    return found
                found += messages


def test_follow_writes_what_comes(path: pathlib.Path) -> None:
    """With --follow each message is written when it is sent; Ctrl-C acknowledges the written ones."""
    with started("receive", path, "a", "--follow") as process:
        assert process.stdout is not None and process.stderr is not None
        for number in range(3):
            put(path, b"%d" % number)
            assert process.stdout.readline() == b"%d\n" % number
        wait_until(lambda: pending(path) == [])
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
        assert process.stderr.read() == b"Interrupted.\n"
    assert pending(path) == []


def test_a_closed_pipe_leaves_what_is_in_hand(path: pathlib.Path) -> None:
    """When the pipe's reader ends, so does the receiver, silently; it acknowledges only what it wrote."""
    with started("receive", path, "a", "--follow") as process:
        assert process.stdout is not None and process.stderr is not None
        put(path, b"read")
        assert process.stdout.readline() == b"read\n"
        process.stdout.close()
        wait_until(lambda: pending(path) == [])
        put(path, b"in hand")
        assert process.wait(TIMEOUT_S) == 141
        assert process.stderr.read() == b""
    assert pending(path) == [b"in hand"]


def test_a_closed_pipe_ends_a_wait(path: pathlib.Path) -> None:
    """When the reader of the pipe has ended, the receiver ends though no further message comes."""
    put(path, b"read", b"also read")
    command = " ".join(PERSIPUBSUB)
    result = subprocess.run(["bash", "-c", f"{command} receive {path} a --follow | head -n 1; echo ${{PIPESTATUS[0]}}"],
                            capture_output=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert (result.stdout, result.stderr) == (b"read\n141\n", b"")


def test_what_the_disk_refuses_is_not_acknowledged(path: pathlib.Path) -> None:
    """Where the output is full or closed, one line says so, and the messages stay."""
    put(path, b"1", b"2")
    command = " ".join(PERSIPUBSUB)
    for redirection, told in ((">/dev/full", b"No space left on device"), (">&-", b"Standard output is closed.")):
        result = subprocess.run(["/bin/sh", "-c", f"{command} receive {path} a {redirection}"],
                                stderr=subprocess.PIPE,
                                timeout=TIMEOUT_S,
                                check=False)
        assert result.returncode == 1
        assert told in result.stderr and result.stderr.count(b"\n") == 1
        assert pending(path) == [b"1", b"2"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_pipe_accepts_in_part_is_not_acknowledged(path: pathlib.Path, unbuffered: str) -> None:
    """A partial write to a pipe that does not block is an error, and the messages stay."""
    put(path, b"x" * 200_000)  # more than a pipe holds
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    result = subprocess.run([*PERSIPUBSUB, "receive", str(path), "a"],
                            env={
                                **os.environ, "PYTHONUNBUFFERED": unbuffered
                            },
                            stdout=writer,
                            stderr=subprocess.PIPE,
                            timeout=TIMEOUT_S,
                            check=False)
    os.close(reader)
    os.close(writer)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert len(pending(path)) == 1


def test_no_file_of_the_queue_becomes_standard_output(path: pathlib.Path) -> None:
    """Where the caller closed the standard files, no file of the queue gets their numbers."""
    command = " ".join(PERSIPUBSUB)
    with subprocess.Popen(["/bin/sh", "-c",
                           f"exec {command} receive {path} a --peek --timeout 60 >&- <&- 2>&-"]) as refused:
        assert refused.wait(TIMEOUT_S) == 1
    os.mkfifo(path.parent / "lines")
    with subprocess.Popen(["/bin/sh", "-c", f"exec {command} send {path} {path.parent}/lines >&- <&- 2>&-"]) as sending:
        with open(os.open(path.parent / "lines", os.O_RDWR), "wb",
                  buffering=0) as lines:  # without waiting for the reader
            lines.write(b"1\n")
            wait_for_last(path, b"1")
            opened = [os.readlink(f"/proc/{sending.pid}/fd/{descriptor}") for descriptor in range(3)]
        assert sending.wait(TIMEOUT_S) == 0
    assert opened == [os.devnull] * 3


def test_follow_into_head(path: pathlib.Path) -> None:
    """A pipeline with head ends by itself, and its last message is not lost."""
    messages = [b"%d" % number for number in range(50_000)]  # more than a pipe holds
    put(path, *messages)
    command = " ".join(PERSIPUBSUB)
    result = subprocess.run(["/bin/sh", "-c", f"{command} receive {path} a --follow | head -n 3"],
                            capture_output=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"0\n1\n2\n", b"")
    left = pending(path)
    assert left and left == messages[-len(left):]


#: Three of them are more than a pipe holds.
LONG = [b"%050000d" % number for number in range(30)]


@pytest.mark.parametrize("subscriber", ["a", "shared", "limited"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_was_not_written_stays(count: int, subscriber: str, path: pathlib.Path) -> None:
    """When the reader of a full pipe ends, exactly the messages that were written to the pipe are acknowledged."""
    put(path, *LONG)
    with started("receive", path, subscriber, "--follow") as process:
        assert read_lines(process.stdout, count) == LONG[:count]
        wait_until(lambda: is_full(process.stdout))
        written = count + unread(process.stdout) // (len(LONG[0]) + 1)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(TIMEOUT_S), process.stderr.read()) == (141, b"")
    assert left(path, subscriber) == LONG[written:]


def test_a_program_may_wait_before_it_reads(path: pathlib.Path) -> None:
    """What a pipe holds is acknowledged, so the command ends although nobody has read from the pipe."""
    put(path, b"1", b"2")
    with started("receive", path, "a") as process:
        assert process.wait(TIMEOUT_S) == 0
        assert pending(path) == []
        assert read_lines(process.stdout, 2) == [b"1", b"2"]


def test_a_slow_reader_keeps_its_lease(path: pathlib.Path) -> None:
    """While a full pipe holds up a message for longer than its lease, no other worker gets the message."""
    message = b"x" * 200_000
    put(path, message)
    with started("receive", path, "shared") as process, persipubsub.new_environment(path) as env:
        wait_until(lambda: is_full(process.stdout))
        time.sleep(4)  # longer than the lease
        with env.new_subscriber("shared").receive(timeout=0) as found:
            assert found is None
        assert read_lines(process.stdout, 1) == [message]
        assert process.wait(TIMEOUT_S) == 0
    assert not left(path, "shared")


def test_a_slow_reader_leaves_the_rest_to_others(path: pathlib.Path) -> None:
    """A worker whose pipe is full holds few messages, and others get the rest."""
    messages = [b"%0200000d" % number for number in range(10)]
    put(path, *messages)
    with started("receive", path, "shared") as process:
        wait_until(lambda: is_full(process.stdout))
        assert left(path, "shared") == messages[1:]
        assert read_lines(process.stdout, 1) == messages[:1]
        assert process.wait(TIMEOUT_S) == 0


def test_ctrl_c_while_the_pipe_is_full(path: pathlib.Path) -> None:
    """Ctrl-C acknowledges nothing that was still being written: with the reader's part, no message is missing."""
    messages = [b"%0100000d" % number for number in range(3)]
    put(path, *messages)
    with started("receive", path, "a") as process:
        assert read_lines(process.stdout, 1) == messages[:1]
        wait_until(lambda: is_full(process.stdout))
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130  # though nobody reads
    assert pending(path) == messages[1:]
