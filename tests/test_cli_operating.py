"""Test the verbs that look after a queue, as a user runs them."""

import json
import pathlib
import subprocess
import sys

import pytest

import persipubsub
from persipubsub import cli

PERSIPUBSUB = [sys.executable, "-m", "persipubsub"]
#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60


def run(*arguments: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run([*PERSIPUBSUB, *map(str, arguments)],
                          input=stdin,
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=False)


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue with two subscribers, of which one has taken the first of three messages."""
    path = tmp_path / "queue"
    with persipubsub.new_environment(path) as env:
        env.new_control(["billing", "audit"])
        env.new_publisher().send_many([b"1", b"2", b"3"])
        env.new_subscriber("billing").pop()
    return path


def test_status_tells_who_lags(path: pathlib.Path) -> None:
    """Text and JSON give the backlog of the queue and of each subscriber."""
    text = run("status", path)
    assert (text.returncode, text.stderr) == (0, "")
    lines = [line.split() for line in text.stdout.splitlines()]
    assert ["messages", "3", "of", "65,536"] in lines
    assert [line[:2] for line in lines[-2:]] == [["'audit'", "3"], ["'billing'", "2"]]
    queues = json.loads(run("status", "--json", path, path).stdout)
    assert [queue["path"] for queue in queues] == [str(path)] * 2
    pending = {name: subscriber["pending"] for name, subscriber in queues[0]["subscribers"].items()}
    assert pending == {"audit": 3, "billing": 2}


def test_status_tells_what_is_kept_and_what_is_to_come(tmp_path: pathlib.Path) -> None:
    """Text and JSON give the retained and the delayed messages, also where there is no subscriber."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(retention_s=60)
        env.new_publisher().send_many([b"1", b"2"])
        env.new_publisher().send_later(b"3", delay_s=1000)
    text = run("status", tmp_path / "queue").stdout
    assert "  retained    2 of those messages, for 60 s\n  delayed     1\n" in text
    assert text.endswith("  no subscribers: what is sent is only retained\n")
    queue, = json.loads(run("status", "--json", tmp_path / "queue").stdout)
    assert (queue["retention_s"], queue["retained"], queue["delayed"]) == (60, 2, 1)


@pytest.mark.parametrize("verb", [["status"], ["prune"], ["clear", "--yes"], ["subscriber", "list"]])
def test_a_mistyped_path_makes_no_queue(tmp_path: pathlib.Path, verb: "list[str]") -> None:
    """A path without a queue is an error of one line, and stays without one."""
    result = run(*verb, tmp_path / "none")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and "There is no queue" in result.stderr
    assert not (tmp_path / "none").exists()


def test_clear_asks(path: pathlib.Path) -> None:
    """Without --yes nothing goes unless the user agrees; the subscribers stay."""
    assert run("clear", path, stdin="n\n").returncode == 1
    assert "messages    3 of" in run("status", path).stdout
    assert run("clear", path, stdin="y\n").stdout == "3 messages deleted\n"
    assert run("subscriber", "list", path).stdout == "audit\nbilling\n"


def test_subscribers_come_and_go(path: pathlib.Path) -> None:
    """The list shows what add and remove did; removing a stranger is an error that names those there are."""
    assert run("subscriber", "add", path, "new").returncode == 0
    assert run("subscriber", "remove", path, "audit").returncode == 0
    assert run("subscriber", "list", path).stdout == "billing\nnew\n"
    failed = run("subscriber", "remove", path, "audit")
    assert failed.returncode == 1 and "'billing', 'new'" in failed.stderr


def test_prune_deletes_what_has_expired(path: pathlib.Path) -> None:
    """What is older than the timeout goes, and is counted."""
    with persipubsub.new_environment(path) as env:
        env.new_control(high_watermark=persipubsub.HighWaterMark(message_timeout=1e-6))
    assert run("prune", path).stdout == "3 messages deleted\n"


def test_status_loads_only_what_it_needs(path: pathlib.Path) -> None:
    """Neither rich nor msgspec, which take longer to import than all else, are imported for status."""
    code = ("import sys\nfrom persipubsub.cli import main\n"
            f"main(['status', {str(path)!r}], standalone_mode=False)\n"
            "print(sorted({'rich', 'msgspec', 'google.protobuf'} & set(sys.modules)))")
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_begins_with_an_example(verb: str) -> None:
    """The first line that --help writes is an example of that verb."""
    assert run(verb, "--help").stdout.startswith(f"Example: persipubsub {verb}")
