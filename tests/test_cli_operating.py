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


@pytest.fixture(name="path_of_failures")
def fixture_path_of_failures(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue of which three messages are dead letters of the subscriber "workers"."""
    path = tmp_path / "failures"
    with persipubsub.new_environment(path) as env:
        env.new_control().add_subscriber("workers", shared=True, max_deliveries=1)
        env.new_publisher().send_many([b"1", bytes([0, 10]) * 100, b"3"])
        worker = env.new_subscriber("workers")
        for text in ("no stock", "two\nlines", ""):
            with pytest.raises(ValueError), worker.receive(timeout=0):
                raise ValueError(text)
    return path


def test_dead_letters_are_listed(path_of_failures: pathlib.Path) -> None:
    """Each dead letter is a line, also as JSON, whatever is in it; ``show`` tells all of one, or gives its bytes."""
    lines = run("dead-letters", "list", path_of_failures, "workers").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert "raised  ValueError: no stock  b'1'" in lines[0] and "ValueError: 'two\\nlines'" in lines[1]
    listed = run("dead-letters", "list", "--json", path_of_failures, "workers").stdout.splitlines()
    assert [bytes.fromhex(json.loads(line)["payload"])[:2] for line in listed] == [b"1", b"\0\n", b"3"]
    shown = run("dead-letters", "show", path_of_failures, "workers", 1).stdout
    assert "deliveries  1\nreason      raised\nerror       ValueError: no stock\n" in shown
    assert run("dead-letters", "show", "--payload", path_of_failures, "workers", 3).stdout == "3"
    missing = run("dead-letters", "show", path_of_failures, "workers", 9)
    assert missing.returncode == 1 and "no dead letter 9" in missing.stderr
    assert run("status", path_of_failures).stdout.splitlines()[-1].split() == ["'workers'", "0", "-", "0", "3"]


def test_dead_letters_are_settled(path_of_failures: pathlib.Path) -> None:
    """Dead letters are requeued or discarded by id, or all; which must be said."""
    requeued = run("dead-letters", "requeue", path_of_failures, "workers", 2, 9)
    assert requeued.stdout == "1 dead letters requeued\n"
    assert "--all" in run("dead-letters", "discard", path_of_failures, "workers").stderr
    assert "--all" in run("dead-letters", "discard", path_of_failures, "workers", "--all", 1).stderr
    assert run("dead-letters", "discard", path_of_failures, "workers", "--all").stdout == "2 dead letters deleted\n"
    with persipubsub.new_environment(path_of_failures) as env, env.new_subscriber("workers").receive(timeout=0) as msg:
        assert msg == bytes([0, 10]) * 100
    assert run("dead-letters", "list", path_of_failures, "workers").stdout == ""
