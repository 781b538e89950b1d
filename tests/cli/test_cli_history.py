"""Test the verbs ``history`` and ``rewind``, and the headers of messages, as a user runs them."""

import datetime
import json
import pathlib
import subprocess
from typing import Any, List

import pytest

import persipubsub
from persipubsub.message import Envelope
from tests.cli.test_cli_messages import PERSIPUBSUB, TIMEOUT_S, pending, put, run

pytestmark = pytest.mark.slow  # starts many processes, or waits

HEADERS = {"traceparent": "00-4bf9", "x": "\x1b[2J ä"}


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue that retains messages, with the messages 1 to 5, which all have acknowledged."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["a"], retention_s=3600).add_subscriber("shared", shared=True)
        env.new_publisher().send_many([b"%d" % number for number in range(1, 6)])
        for name in ("a", "shared"):
            with env.new_subscriber(name).receive_many(timeout=0):
                pass
    return tmp_path / "queue"


def since_epoch(text: str) -> float:
    """Return the time that a line of history has."""
    return datetime.datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize("options, expected", [
    ([], [1, 2, 3, 4, 5]), (["--from", "4"], [4, 5]), (["--to", "3"], [1, 2]), (["--from", "2", "--to", "4"], [2, 3]),
    (["--from", "2000-01-01T00:00:00Z"], [1, 2, 3, 4, 5]), (["--to", "2000-01-01T00:00:00+01:00"], []),
    (["--from", "9"], []),
])  # yapf: disable
def test_history(options: List[str], expected: List[int], path: pathlib.Path) -> None:
    """What is stored is written from an id or a time on, and before another; nothing is delivered."""
    result = run("history", path, *options)
    assert (result.returncode, result.stderr) == (0, b"")
    assert [int(line) for line in result.stdout.split()] == expected
    assert pending(path) == []


def test_history_as_json(path: pathlib.Path) -> None:
    """Each line has the message, its id and its time; a time that it shows is one that it takes."""
    lines = [json.loads(line) for line in run("history", path, "--format", "json").stdout.splitlines()]
    assert [(one["id"], one["text"]) for one in lines] == [(number, str(number)) for number in range(1, 6)]
    now_s = datetime.datetime.now().timestamp()
    assert all(now_s - 600 < since_epoch(one["sent_at"]) <= now_s for one in lines)
    again = run("history", path, "--from", lines[0]["sent_at"], "--format", "hex").stdout.split()
    assert again[:1] == [b"31"]


def test_history_into_head(path: pathlib.Path) -> None:
    """A reader that ends early ends it quietly."""
    put(path, *[b"x" * 1000] * 1000)
    command = f"{' '.join(PERSIPUBSUB)} history {path} | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, timeout=TIMEOUT_S, check=False)
    assert (result.stdout, result.stderr) == (b"1\n141\n", b"")


@pytest.mark.parametrize("to, expected", [("3", [3, 4, 5]), ("earliest", [1, 2, 3, 4, 5]),
                                          ("2000-01-01T00:00:00Z", [1, 2, 3, 4, 5]), ("9", [])])
@pytest.mark.parametrize("subscriber", ["a", "shared"])
def test_rewind(subscriber: str, to: str, expected: List[int], path: pathlib.Path) -> None:
    """A subscriber of any kind receives again what is stored from an id or a time on; it never moves forward."""
    result = run("rewind", path, subscriber, to)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == f"{len(expected)} messages pending for '{subscriber}'\n"
    assert run("rewind", path, subscriber, "5").stdout.startswith(b"%d message" % max(1, len(expected)))
    received = run("receive", path, subscriber).stdout.split()
    assert [int(message) for message in received] == (expected or [5])


@pytest.mark.parametrize("arguments, status, told", [
    (["a", "2026-01-31"], 2, "no timezone"), (["a", "latest"], 2, "none of these"), (["a", "0"], 1, "message id"),
    (["b", "earliest"], 1, "no subscriber 'b'"), (["a"], 2, "Missing argument 'TO'"),
])  # yapf: disable
def test_rewinding_by_mistake(arguments: List[str], status: int, told: str, path: pathlib.Path) -> None:
    """What is no position, or no subscriber, is an error, and nothing is moved."""
    result = run("rewind", path, *arguments)
    assert result.returncode == status and told in result.stderr.decode()
    assert pending(path) == []


@pytest.mark.parametrize("verb", [["history"], ["receive", "a"], ["receive", "shared"]], ids=" ".join)
def test_headers_are_written(verb: List[str], path: pathlib.Path) -> None:
    """With --headers, they are in the object, or before a tab; messages without any have an empty object."""
    name, *subscriber = verb

    def lines(*options: str) -> List[bytes]:
        with persipubsub.new_environment(path) as env:
            env.new_control().clear_messages()
            env.new_publisher().send_many([Envelope(b"with", headers=HEADERS), b"with\tout"])
        return run(name, path, *subscriber, *options).stdout.splitlines()

    found: List[Any] = [json.loads(line) for line in lines("--headers", "--format", "json")]
    assert [(one["text"], one["headers"]) for one in found] == [("with", HEADERS), ("with\tout", {})]
    for form, payloads in (("lines", [b"with", b"with\tout"]), ("hex", [b"77697468", b"77697468096f7574"])):
        columns = [line.split(b"\t", 1) for line in lines("--headers", "--format", form)]
        assert [(json.loads(headers), payload) for headers, payload in columns] == list(zip([HEADERS, {}], payloads))
        assert all(headers.isascii() and headers.decode().isprintable() for headers, _ in columns)
    assert lines() == [b"with", b"with\tout"]
    assert "headers" not in json.loads(lines("--format", "json")[0])


def test_where_headers_cannot_be_written(path: pathlib.Path) -> None:
    """The raw format and a peek have no headers: asking for them is wrong usage, and nothing is acknowledged."""
    put(path, b"1")
    for verb in (["receive", path, "a", "--format", "raw"], ["receive", path, "a",
                                                             "--peek"], ["history", path, "--format", "raw"]):
        result = run(*verb, "--headers")
        assert (result.returncode, result.stdout) == (2, b"")
    assert pending(path) == [b"1"]


def test_a_dead_letter_shows_its_headers(path: pathlib.Path) -> None:
    """The headers of a dead letter are shown, in the list as JSON, too."""
    with persipubsub.new_environment(path) as env:
        env.new_publisher().send(b"bad", headers=HEADERS)
        with env.new_subscriber("shared").receive(timeout=0):
            raise persipubsub.Reject("no")
    shown = run("dead-letters", "show", path, "shared", 6).stdout.decode()
    headers, = (line for line in shown.splitlines() if line.startswith("headers"))
    assert json.loads(headers.split(None, 1)[1]) == HEADERS
    assert json.loads(run("dead-letters", "list", path, "shared", "--json").stdout)["headers"] == HEADERS
