"""Test the verbs that send and receive, as a user runs them."""

import base64
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Callable, Iterator, List, Optional

import hypothesis
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import strategies as st

import persipubsub
from persipubsub.cli import formats
from persipubsub.cli.verbs import receive
from persipubsub.cli.verbs import send as send_verb

pytestmark = pytest.mark.slow  # starts many processes, or waits

PERSIPUBSUB = [sys.executable, "-m", "persipubsub"]
#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60


def run(*arguments: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run the command to its end."""
    return subprocess.run([*PERSIPUBSUB, *map(str, arguments)],
                          input=stdin,
                          capture_output=True,
                          timeout=TIMEOUT_S,
                          check=False)


@contextlib.contextmanager
def started(*arguments: object, stdout: int = subprocess.PIPE) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the command, which does not outlive the block."""
    with subprocess.Popen([*PERSIPUBSUB, *map(str, arguments)],
                          stdin=subprocess.PIPE,
                          stdout=stdout,
                          stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue with two subscribers."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["a", "b"])
    return tmp_path / "queue"


def put(path: pathlib.Path, *messages: bytes) -> None:
    """Send messages."""
    with persipubsub.new_environment(path) as env:
        env.new_publisher().send_many(messages)


def pending(path: pathlib.Path, subscriber: str = "a") -> List[bytes]:
    """Return what a subscriber has not acknowledged."""
    found: List[bytes] = []
    with persipubsub.new_environment(path) as env, contextlib.suppress(InterruptedError):
        with env.new_subscriber(subscriber).receive_many(10**6, timeout=0) as messages:
            found = messages
            raise InterruptedError  # so that nothing is acknowledged
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def wait_for_last(path: pathlib.Path, message: bytes) -> None:
    """Wait for a message that another process sends."""
    wait_until(lambda: pending(path)[-1:] == [message])


def test_send_lines_of_a_file(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each line is a message, byte by byte and without its line feed; the last one needs none."""
    lines = [b"", b"one", b"\xff\0\r", b"x" * (3 * send_verb.READ_BYTES), b"", b"no end"]
    (tmp_path / "file").write_bytes(b"\n".join(lines))
    result = run("send", path, tmp_path / "file")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"6 messages sent\n", b"")
    assert pending(path) == lines


def test_send_more_empty_lines_than_a_batch_may_have(path: pathlib.Path) -> None:
    """A read of nothing but line feeds is not too many messages for one commit."""
    count = 2 * send_verb.READ_BYTES
    assert run("send", path, stdin=b"\n" * count).stdout == f"{count:,} messages sent\n".encode()


@pytest.mark.parametrize("content", [b"", b"a\nb\n", b"\0" * 1_500_000])
def test_send_the_whole_of_standard_input(path: pathlib.Path, content: bytes) -> None:
    """With --whole all that comes is one message, line feeds and all, even if it is empty."""
    assert run("send", path, "--whole", stdin=content).stdout == b"1 message sent\n"
    assert pending(path) == [content]


def test_send_nothing(path: pathlib.Path) -> None:
    """Empty input sends no messages."""
    assert run("send", path, "-").stdout == b"0 messages sent\n"


def test_send_sends_lines_as_they_come(path: pathlib.Path) -> None:
    """A line that came through a pipe is in the queue before the next one comes; one that has not ended is not."""
    with started("send", path) as process:
        assert process.stdin is not None
        process.stdin.write(b"first\nsec")
        process.stdin.flush()
        wait_for_last(path, b"first")
        stdout, stderr = process.communicate(b"ond", timeout=TIMEOUT_S)
    assert (process.returncode, stdout, stderr) == (0, b"2 messages sent\n", b"")
    assert pending(path) == [b"first", b"second"]


def test_an_interrupted_send_says_how_much_is_sent(path: pathlib.Path) -> None:
    """At Ctrl-C the whole lines before it are sent, the one that was begun is not."""
    with started("send", path) as process:
        assert process.stdin is not None
        for part, last in ((b"1\n2\n", b"2"), (b"3\nbegun", b"3")):
            process.stdin.write(part)
            process.stdin.flush()
            wait_for_last(path, last)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
        assert process.stdout is not None and process.stderr is not None
        # The last commit may not have returned when the signal came.
        assert process.stdout.read() in (b"at least 2 messages sent\n", b"at least 3 messages sent\n")
        assert process.stderr.read() == b"Interrupted.\n"
    assert pending(path) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("arguments", [["send"], ["receive", "a"]])
def test_ctrl_c_just_before_it_waits(path: pathlib.Path, tmp_path: pathlib.Path, arguments: List[str]) -> None:
    """Ctrl-C also ends a wait for a pipe where it comes once Python has looked for it, before the call that waits."""
    library = tmp_path / "signal_before_wait.so"
    source = pathlib.Path(__file__).with_name("signal_before_wait.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    messages = [b"%0100d" % number for number in range(2000)]  # more than a pipe holds
    put(path, *messages)
    verb, *others = arguments
    with subprocess.Popen([*PERSIPUBSUB, verb, str(path), *others],
                          env={
                              **os.environ, "LD_PRELOAD": str(library)
                          },
                          stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        try:
            assert process.wait(TIMEOUT_S) == 130  # though nobody writes, or reads
        finally:
            process.kill()
        assert process.stdout is not None
        written = process.stdout.read().splitlines()
    if verb == "send":
        assert written == [b"at least 0 messages sent"]
    else:
        taken = messages[:len(messages) - len(pending(path))]
        assert written[:len(taken)] == taken and len(written) < len(messages)


def test_a_refused_batch_is_an_error(path: pathlib.Path) -> None:
    """Of a batch with a message over the mark nothing is sent, and one line says why."""
    with persipubsub.new_environment(path) as env:
        env.new_control(high_watermark=persipubsub.HighWaterMark(hwm_db_size=5))
    result = run("send", path, stdin=b"small\nlarger\n")
    assert (result.returncode, result.stdout) == (1, b"0 messages sent before the error\n")
    assert result.stderr.startswith(b"Error: A message of 6 bytes is over") and result.stderr.count(b"\n") == 1
    assert not pending(path)


def test_send_says_that_messages_were_dropped(path: pathlib.Path) -> None:
    """What the library warns of is on standard error."""
    with persipubsub.new_environment(path) as env:
        env.new_control(high_watermark=persipubsub.HighWaterMark(max_messages=2))
    result = run("send", path, stdin=b"1\n2\n3\n")
    assert (result.returncode, result.stdout) == (0, b"3 messages sent\n")
    assert b"2 messages were dropped" in result.stderr


def test_send_refuses_a_file_that_cannot_be_read(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A missing file and a directory are mistakes of usage; a closed standard input is an error of one line."""
    for name in ("missing", "."):
        assert run("send", path, tmp_path / name).returncode == 2
    command = [*PERSIPUBSUB, "send", str(path)]
    closed = subprocess.run(["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, check=False)
    assert (closed.returncode, closed.stdout) == (1, b"0 messages sent before the error\n")
    assert closed.stderr == b"Error: Standard input is closed. Name a file to send.\n"
    with open(tmp_path / "written", "wb") as file:
        unreadable = subprocess.run(command, stdin=file, capture_output=True, check=False)
    assert (unreadable.returncode, unreadable.stdout) == (1, b"0 messages sent before the error\n")
    assert unreadable.stderr == b"Error: Could not open file 'standard input': Bad file descriptor\n"


@pytest.mark.parametrize("options", [["send"], ["receive", "--follow"]])
def test_a_mistyped_path_makes_no_queue(tmp_path: pathlib.Path, options: List[str]) -> None:
    """A path without a queue is an error of one line, before anything is read, and stays without a queue."""
    verb, *others = options
    result = run(verb, tmp_path / "none", *(["a"] if verb == "receive" else []), *others)
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.count(b"\n") == 1 and b"There is no queue" in result.stderr
    assert not (tmp_path / "none").exists()


def test_receive_ends_when_nothing_is_pending(path: pathlib.Path) -> None:
    """All that is pending is written and acknowledged, for this subscriber only."""
    put(path, b"1", b"", b"3")
    result = run("receive", path, "a")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"1\n\n3\n", b"")
    assert (pending(path), pending(path, "b")) == ([], [b"1", b"", b"3"])
    assert run("receive", path, "a").stdout == b""


def test_an_unknown_subscriber_is_named(path: pathlib.Path) -> None:
    """The error is one line with the names that there are."""
    result = run("receive", path, "c")
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1 and b"'a', 'b'" in result.stderr


def test_receive_max(path: pathlib.Path) -> None:
    """No more than --max messages are written and acknowledged, even if that is more than one batch."""
    count = 2 * receive.BATCH_MESSAGES_MAX
    put(path, *[b"%d" % number for number in range(count)])
    result = run("receive", path, "a", "--max", count - 1, "--follow")
    assert result.stdout.split() == [b"%d" % number for number in range(count - 1)]
    assert pending(path) == [b"%d" % (count - 1)]


def test_peek_acknowledges_nothing(path: pathlib.Path) -> None:
    """--peek shows the next message, or the next N, which stay; an empty queue shows nothing."""
    assert run("receive", path, "a", "--peek").stdout == b""
    put(path, b"1", b"2", b"3")
    assert run("receive", path, "a", "--peek").stdout == b"1\n"
    assert run("receive", path, "a", "--peek", "--max", 2).stdout == b"1\n2\n"
    assert pending(path) == [b"1", b"2", b"3"]
    assert run("receive", path, "a", "--peek", "--follow").returncode == 2


@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_receive_timeout(path: pathlib.Path, options: List[str]) -> None:
    """With --timeout it waits for messages, and ends once none came for that time."""
    before_s = time.monotonic()
    with started("receive", path, "a", "--timeout", "1", *options) as process:
        put(path, b"1")
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert process.wait(TIMEOUT_S) == 0
    assert time.monotonic() - before_s > 1


@hypothesis.given(st.binary())
@hypothesis.example(b"\xc3\xa4\n\xe2\x80\xa8")
def test_json_and_hex_are_lossless(payload: bytes) -> None:
    """A line in JSON or hex decodes to the message, and is one line for every reader of lines."""
    line = formats.FORMATS["json"](payload)
    assert len(line.decode().splitlines()) == 1 and line.endswith(b"\n")
    found = json.loads(line)
    text: Optional[str] = found.get("text")
    assert (base64.b64decode(found["base64"]) if text is None else text.encode()) == payload
    assert bytes.fromhex(formats.FORMATS["hex"](payload).decode()) == payload


def test_formats(path: pathlib.Path) -> None:
    """Each format is what the help says."""
    put(path, b"a\nb", b"\xff")
    written = {
        name: run("receive", path, "a", "--peek", "--max", 2, "--format", name).stdout
        for name in formats.FORMATS
    }
    assert written == {
        "lines": b"a\nb\n\xff\n",
        "raw": b"a\nb\xff",
        "json": b'{"text": "a\\nb"}\n{"base64": "/w=="}\n',
        "hex": b"610a62\nff\n",
    }


PROTOBUF_JSON = ["--format", "protobuf-json", "--import", "google.protobuf.wrappers_pb2"]


def test_protobuf_json(path: pathlib.Path) -> None:
    """Messages of the queue's type are lines of JSON; an invalid one ends the command and stays, with the rest."""
    with persipubsub.new_environment(path) as environment:
        environment.new_control(message_type=StringValue)
    texts = [StringValue(value=text).SerializeToString() for text in ("a", "\u00e4")]
    put(path, *texts, b"\xff", texts[0])
    result = run("receive", path, "a", *PROTOBUF_JSON)
    assert result.stdout.decode() == '"a"\n"\u00e4"\n'
    assert result.returncode == 1
    assert b"google.protobuf.StringValue" in result.stderr and b"not acknowledged" in result.stderr
    assert pending(path) == [b"\xff", texts[0]]


def test_protobuf_json_needs_a_type(path: pathlib.Path) -> None:
    """Without a message type, or without its module, an error says what to do; nothing is acknowledged."""
    put(path, b"x")
    assert b"--message-type" in run("receive", path, "a", *PROTOBUF_JSON).stderr
    with persipubsub.new_environment(path) as environment:
        environment.new_control().clear_messages()
        environment.new_control(message_type="shop.Nothing")
    put(path, b"x")
    result = run("receive", path, "a", "--format", "protobuf-json")
    assert result.returncode == 1 and b"shop.Nothing" in result.stderr and b"--import" in result.stderr
    assert pending(path) == [b"x"]


def test_a_terminal_gets_a_bar_and_single_messages(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """On a terminal send draws a bar, and receive acknowledges each message once it is shown."""
    (tmp_path / "file").write_bytes(b"line\n" * 100_000)
    terminal, side = os.openpty()
    with subprocess.Popen([*PERSIPUBSUB, "send", path, tmp_path / "file"], stderr=side) as sending:
        os.close(side)
        assert b"500.0/500.0 kB" in drawn(terminal)
    assert sending.returncode == 0
    terminal, side = os.openpty()
    with subprocess.Popen([*PERSIPUBSUB, "receive", path, "a", "--max", "2"], stdout=side) as receiving:
        os.close(side)
        assert drawn(terminal) == b"line\r\nline\r\n"
    assert receiving.returncode == 0


def drawn(terminal: int) -> bytes:
    """Read what is written to a terminal, until nobody has it open, and close it."""
    parts = []
    with contextlib.suppress(OSError):  # how a terminal says so
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts)
