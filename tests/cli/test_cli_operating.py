"""Test the verbs that operate a queue, as a user runs them."""

import dataclasses
import inspect
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Set

import pytest

import persipubsub
from persipubsub import status
from persipubsub.cli.verbs import VERBS

pytestmark = pytest.mark.slow  # starts many processes, or waits

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
    """Set up a queue with two subscribers, one of which has acknowledged the first of three messages."""
    path = tmp_path / "queue"
    with persipubsub.new_environment(path) as env:
        env.new_control(["billing", "audit"])
        env.new_publisher().send_many([b"1", b"2", b"3"])
        env.new_subscriber("billing").pop()
    return path


def test_status_shows_who_lags(path: pathlib.Path) -> None:
    """Text and JSON have the backlog of the queue and of each subscriber."""
    text = run("status", path)
    assert (text.returncode, text.stderr) == (0, "")
    lines = [line.split() for line in text.stdout.splitlines()]
    assert ["messages", "3"] in lines
    assert [line[:2] for line in lines[-2:]] == [["'audit'", "3"], ["'billing'", "2"]]
    queues = json.loads(run("status", "--json", path, path).stdout)
    assert [queue["path"] for queue in queues] == [str(path)] * 2
    pending = {name: subscriber["pending"] for name, subscriber in queues[0]["subscribers"].items()}
    assert pending == {"audit": 3, "billing": 2}


def test_status_shows_the_message_type(path: pathlib.Path) -> None:
    """Text and JSON name the message type of a queue; JSON also shows that there is none."""
    assert json.loads(run("status", "--json", path).stdout)[0]["message_type"] is None
    assert "type" not in run("status", path).stdout.split()
    with persipubsub.new_environment(path) as environment:
        environment.new_control(message_type="shop.Order")
    assert ["type", "shop.Order"] in [line.split() for line in run("status", path).stdout.splitlines()]
    assert json.loads(run("status", "--json", path).stdout)[0]["message_type"] == "shop.Order"


def test_status_shows_retained_and_delayed_messages(tmp_path: pathlib.Path) -> None:
    """Text and JSON count retained and delayed messages, also without a subscriber."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(retention_s=60)
        env.new_publisher().send_many([b"1", b"2"])
        env.new_publisher().send_later(b"3", delay_s=1000)
    text = run("status", tmp_path / "queue").stdout
    assert "  retained    2 of those messages, for 60 s\n  delayed     1\n" in text
    assert text.endswith("  no subscribers: what is sent is only retained\n")
    queue, = json.loads(run("status", "--json", tmp_path / "queue").stdout)
    assert (queue["retention_s"], queue["retained"], queue["delayed"]) == (60, 2, 1)


@pytest.mark.parametrize(
    "verb", [["status"], ["prune"], ["clear", "--yes"], ["subscriber", "list"], ["set", "--max-messages", "1"]])
def test_a_mistyped_path_makes_no_queue(tmp_path: pathlib.Path, verb: "list[str]") -> None:
    """A path without a queue is an error of one line, and stays without one."""
    result = run(*verb, tmp_path / "none")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and "There is no queue" in result.stderr
    assert not (tmp_path / "none").exists()


def test_clear_asks(path: pathlib.Path) -> None:
    """Without --yes nothing is deleted unless the user agrees; the subscribers stay."""
    assert run("clear", path, stdin="n\n").returncode == 1
    assert "messages    3\n" in run("status", path).stdout
    assert run("clear", path, stdin="y\n").stdout == "3 messages deleted\n"
    assert run("subscriber", "list", path).stdout == "audit    plain\nbilling  plain\n"


def test_status_shows_dropped_messages(path: pathlib.Path) -> None:
    """Messages that were dropped before all had acknowledged them are in the text, if there are any."""
    assert "pruned" not in run("status", path).stdout
    assert run("set", path, "--max-messages", "2").returncode == 0
    with persipubsub.new_environment(path) as env:
        env.new_publisher().send(b"x")
    assert "\n  pruned      0 by timeout, 2 by overflow, 0 awaited by nobody\n" in run("status", path).stdout


def test_subscribers_come_and_go(path: pathlib.Path) -> None:
    """The list shows what add and remove did. Removing a stranger is an error that names those there are."""
    assert run("subscriber", "add", path, "new").returncode == 0
    assert run("subscriber", "remove", path, "audit", "--yes").returncode == 0
    assert run("subscriber", "list", path).stdout == "billing  plain\nnew      plain\n"
    failed = run("subscriber", "remove", path, "audit")
    assert failed.returncode == 1 and "'billing', 'new'" in failed.stderr


def test_removing_asks_before_pending_messages_are_deleted(path: pathlib.Path) -> None:
    """Whoever removes a subscriber is told how many messages it has pending, and asked."""
    refused = run("subscriber", "remove", path, "audit", stdin="n\n")
    assert refused.returncode == 1 and "'audit', which has 3 messages pending?" in refused.stderr
    assert run("subscriber", "list", path).stdout == "audit    plain\nbilling  plain\n"
    assert run("subscriber", "remove", path, "audit", stdin="y\n").returncode == 0
    assert run("subscriber", "list", path).stdout == "billing  plain\n"


def test_prune_deletes_what_has_expired(path: pathlib.Path) -> None:
    """Messages older than the timeout are deleted, and counted."""
    with persipubsub.new_environment(path) as env:
        env.new_control(high_watermark=persipubsub.HighWaterMark(message_timeout=1e-6))
    assert run("prune", path).stdout == "3 messages deleted\n"


def test_set_changes_what_is_given(path: pathlib.Path) -> None:
    """Each change is shown and holds for open publishers; everything else stays as it was."""
    with persipubsub.new_environment(path) as env:
        control, publisher = env.new_control(), env.new_publisher()
        control.set_hwm(persipubsub.HighWaterMark(1234.5, 1000, 10**9))
        before = control.status()
        result = run("set", path, "--max-messages", 2, "--strategy", "prune_last", "--durability", "process_crash")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines() == [
            "max_messages 1000 -> 2", "strategy prune_first -> prune_last", "durability power_loss -> process_crash"
        ]
        after = control.status()
        assert after == dataclasses.replace(after,
                                            high_watermark=persipubsub.HighWaterMark(1234.5, 2, 10**9),
                                            strategy=persipubsub.Strategy.prune_last,
                                            durability=persipubsub.Durability.PROCESS_CRASH)
        assert (after.messages, after.next_id) == (before.messages, before.next_id)
        publisher.send(b"4")
        assert control.status().messages == 2
        assert run("set", path, "--message-timeout", 5, "--hwm-db-size",
                   6).stdout.splitlines() == ["message_timeout 1234.5 -> 5", "hwm_db_size 1000000000 -> 6"]
        assert control.status().high_watermark == persipubsub.HighWaterMark(5, 2, 6)
        assert run("set", path, "--max-messages", 2).stdout == "Nothing to change.\n"


@pytest.mark.parametrize("options,status,told", [([], 2, "Use at least one option"),
                                                 (["--max-messages", "0"], 1, "max_messages must be from 1"),
                                                 (["--message-timeout", "nan"], 2, "'nan' is not a time"),
                                                 (["--strategy", "prune"], 2, "'prune_first', 'prune_last'")])
def test_set_refuses_what_is_impossible(path: pathlib.Path, options: "list[str]", status: int, told: str) -> None:
    """An impossible setting is refused before anything is changed; the error says what is possible."""
    before = run("describe", path).stdout
    result = run("set", path, *options)
    assert (result.returncode, result.stdout) == (status, "") and told in result.stderr
    assert run("describe", path).stdout == before


#: What takes long to import, or what only other verbs need.
NOT_FOR_STATUS = {
    "asyncio", "base64", "concurrent.futures", "email", "google.protobuf", "http", "importlib.metadata", "json",
    "msgspec", "multiprocessing", "persipubsub.compaction", "persipubsub.deployment",
    "persipubsub.lmdb_engine.repair.salvage", "persipubsub.metrics", "persipubsub.recovery", "persipubsub.testing",
    "prometheus_client", "rich", "select", "socket", "ssl", "subprocess", "tempfile", "termios",
    *(f"persipubsub.cli.verbs.{verb}" for verb in VERBS if verb != "status")
}


def test_status_loads_only_what_it_needs(path: pathlib.Path) -> None:
    """Nothing is imported for status that it can do without: it must start at once."""
    # What icontract imports is not ours to choose: with CPython 3.10, subprocess.
    code = ("import sys, icontract\nbefore = set(sys.modules)\nfrom persipubsub.cli import main\n"
            f"main(['status', {str(path)!r}], standalone_mode=False)\n"
            "print(*set(sys.modules) - before)")
    # Without site, which imports what the packages of this environment ask for.
    program = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
    loaded = set(subprocess.check_output(program, text=True).splitlines()[-1].split())
    assert "persipubsub.cli.verbs.status" in loaded
    assert loaded & NOT_FOR_STATUS == set()


@pytest.mark.parametrize("verb", [["status"], ["top", "--interval", "0.1"], ["check"]], ids=" ".join)
def test_no_colours_without_a_terminal(path: pathlib.Path, verb: "list[str]") -> None:
    """What goes into a pipe is plain text, even where the environment claims a terminal with colours."""
    result = subprocess.run([*PERSIPUBSUB, *verb, str(path)],
                            env={
                                **os.environ, "TERM": "xterm-256color",
                                "COLORTERM": "truecolor"
                            },
                            capture_output=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"\x1b" not in result.stdout


@pytest.mark.parametrize("verb", [["status"], ["send"], ["receive"], ["top"]], ids=" ".join)
def test_debug_shows_the_trace(tmp_path: pathlib.Path, verb: "list[str]") -> None:
    """With --debug an error has its trace, without it one line; top shows that line instead of the queue."""
    arguments = [*verb, tmp_path / "none", *(["a"] if verb == ["receive"] else [])]
    plain, debug = run(*arguments), run("--debug", *arguments)
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr + plain.stdout
    assert ("Traceback" in debug.stderr) == (verb != ["top"])


@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_an_example(verb: str) -> None:
    """The first line that --help writes is an example of that verb."""
    assert run(verb, "--help").stdout.startswith(f"Example: persipubsub {verb}")


def test_status_shows_each_queue_that_it_can_read(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An unreadable queue has its error, also as JSON, and hides no other one."""
    arguments = [path, tmp_path / "none", path]
    text = run("status", *arguments)
    assert text.returncode == 1
    assert text.stdout.count(f"{path}\n") == 2 and text.stdout.count("\n\n") == 1
    assert text.stderr.startswith("Error: There is no queue at") and text.stderr.count("\n") == 1
    as_json = run("status", "--json", *arguments)
    first, none, last = json.loads(as_json.stdout)
    assert (as_json.returncode, first["path"], last["path"]) == (1, str(path), str(path))
    assert none["path"] == str(tmp_path / "none") and "There is no queue" in none["error"]


def test_json_has_all_that_python_has(path: pathlib.Path) -> None:
    """Every fact of the status, and every setting of new_control that it has, is in the JSON, by the same name."""

    def names(facts: Any) -> Set[str]:
        return {field.name for field in dataclasses.fields(facts)}

    with persipubsub.new_environment(path) as env:
        env.new_control().add_subscriber("shared", shared=True)
    told = json.loads(run("status", "--json", path).stdout)[0]
    assert set(told) == names(status.QueueStatus)
    assert set(told["pruned"]) == names(status.PrunedStatus)
    assert set(told["subscribers"]["shared"]) == names(status.SubscriberStatus)
    assert set(told["subscribers"]["shared"]["policy"]) == names(status.SubscriberPolicy)
    assert set(told["high_watermark"]) == {"message_timeout", "max_messages", "hwm_db_size"}
    settings = set(inspect.signature(persipubsub.Environment.new_control).parameters)
    # What is no setting of the queue, another spelling, the subscribers, and the mode of the files.
    assert settings - set(told) == {"self", "create", "high_water_mark", "subscriber_ids", "mode"}
