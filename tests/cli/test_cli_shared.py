"""Test the verbs about shared subscribers and dead letters, as a user runs them."""

import json
import pathlib
import shutil
import subprocess
from typing import List

import pytest

import persipubsub
from persipubsub.status import SubscriberPolicy, SubscriberStatus
from tests.cli.test_cli_operating import PERSIPUBSUB, TIMEOUT_S, run

pytestmark = pytest.mark.slow  # starts many processes, or waits

#: Bytes that are no text.
BYTES = bytes([0, 10, 255])


@pytest.fixture(name="path_of_failures")
def fixture_path_of_failures(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue of which three messages are dead letters of the subscriber "workers"."""
    path = tmp_path / "failures"
    with persipubsub.new_environment(path) as env:
        env.new_control().add_subscriber("workers", shared=True, max_deliveries=1)
        env.new_publisher().send_many([b"1", BYTES, b"3"])
        worker = env.new_subscriber("workers")
        for text in ("no stock", "two\nlines", ""):
            with pytest.raises(ValueError), worker.receive(timeout=0):
                raise ValueError(text)
    return path


def test_kinds_of_subscribers_are_shown(path_of_failures: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Kind, in flight and dead letters are shown for subscribers with a policy, and otherwise left out."""
    with persipubsub.new_environment(path_of_failures) as env:
        env.new_control(["plain"]).add_subscriber("limited", max_deliveries=7)
        env.new_publisher().send(b"4")
        env.new_control().requeue_dead_letters("workers", [2])
        with env.new_subscriber("workers").receive(timeout=0):
            lines = [line.split() for line in run("status", path_of_failures).stdout.splitlines()[-4:]]
            assert lines == [["subscriber", "pending", "oldest", "kind", "in", "flight", "dead", "letters"],
                             ["'limited'", "1", *lines[1][2:4], "limited", "0", "0"],
                             ["'plain'", "1", *lines[2][2:4], "plain", "0", "0"],
                             ["'workers'", "2", *lines[3][2:4], "shared", "1", "2"]]
            assert run("subscriber", "list", path_of_failures).stdout.splitlines() == [
                "limited  limited  max_deliveries 7, dead_letters_max 10000", "plain    plain",
                "workers  shared   lease_s 30, max_deliveries 1, retry_delay_s 1, retry_delay_max_s 60, "
                "dead_letters_max 10000"
            ]
            listed = json.loads(run("subscriber", "list", "--json", path_of_failures).stdout)
            told = json.loads(run("status", "--json", path_of_failures).stdout)[0]["subscribers"]
    assert [(one["identifier"], one["kind"]) for one in listed] == [("limited", "limited"), ("plain", "plain"),
                                                                    ("workers", "shared")]
    assert {one["identifier"]: one["policy"] for one in listed} == {name: one["policy"] for name, one in told.items()}
    assert told["plain"]["policy"] is None
    assert told["limited"]["policy"] == {"shared": False, "max_deliveries": 7, "dead_letters_max": 10_000}
    assert told["workers"]["policy"] == {
        "shared": True,
        "max_deliveries": 1,
        "dead_letters_max": 10_000,
        "lease_s": 30,
        "retry_delay_s": 1,
        "retry_delay_max_s": 60
    }
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["audit", "billing"])
    assert run("status", tmp_path / "queue").stdout.splitlines()[-3].split() == ["subscriber", "pending", "oldest"]
    assert run("subscriber", "list", tmp_path / "queue").stdout == "audit    plain\nbilling  plain\n"


def subscriber(path: pathlib.Path, name: str = "workers") -> SubscriberStatus:
    """Look at a subscriber."""
    with persipubsub.new_environment(path) as env:
        return env.new_control().status().subscribers[name]


def test_all_settings_are_options_of_add(tmp_path: pathlib.Path) -> None:
    """A new subscriber gets what is given, and one that exists keeps what is not given."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control()
    options = [
        "--shared", "--lease", "2.5m", "--max-deliveries", 3, "--retry-delay", "4s", "--retry-delay-max", "1h",
        "--dead-letters-max", 6
    ]
    result = run("subscriber", "add", tmp_path, "workers", *options)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert subscriber(tmp_path).policy == SubscriberPolicy(True, 150, 3, 4, 3600, 6)
    options = ["--lease-s", 2.5, "--retry-delay-s", 4, "--retry-delay-max-s", 5]
    assert run("subscriber", "add", tmp_path, "workers", *options).returncode == 0
    assert subscriber(tmp_path).policy == SubscriberPolicy(True, 2.5, 3, 4, 5, 6)
    assert run("subscriber", "add", tmp_path, "workers", "--max-deliveries", 9).returncode == 0
    assert subscriber(tmp_path).policy == SubscriberPolicy(True, 2.5, 9, 4, 5, 6)
    assert run("subscriber", "add", tmp_path, "workers", "--not-shared").returncode == 0
    assert subscriber(tmp_path).policy is None


@pytest.mark.parametrize("options, status, told", [
    (["--lease-s", "1"], 1, "lease_s is for a shared subscriber"),
    (["--shared", "--lease-s", "0"], 1, "lease_s must be from 0.01 to"),
    (["--max-deliveries", "0"], 1, "max_deliveries must be from 1 to"),
    (["--shared", "--retry-delay-s", "70"], 1, "retry_delay_max_s must be at least retry_delay_s"),
    (["--shared", "--dead-letters-max", "many"], 2, "'many' is not a whole number"),
])  # yapf: disable
def test_invalid_settings(options: List[str], status: int, told: str, tmp_path: pathlib.Path) -> None:
    """An invalid setting is an error, and no subscriber is added."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control()
    result = run("subscriber", "add", tmp_path, "workers", *options)
    assert (result.returncode, result.stdout) == (status, "") and told in result.stderr
    assert run("subscriber", "list", tmp_path).stdout == ""


def test_the_kind_stays_while_there_are_dead_letters(path_of_failures: pathlib.Path) -> None:
    """To make a shared subscriber a plain one is an error of one line while it has dead letters."""
    result = run("subscriber", "add", path_of_failures, "workers", "--not-shared")
    assert result.returncode == 1 and "3 dead letters, so shared cannot be changed" in result.stderr
    policy = subscriber(path_of_failures).policy
    assert policy is not None and policy.shared


def test_removing_asks_before_dead_letters_are_deleted(path_of_failures: pathlib.Path) -> None:
    """The user is asked and told their number; without dead letters nobody is asked."""
    refused = run("subscriber", "remove", path_of_failures, "workers", stdin="n\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Remove the subscriber 'workers', which has 3 dead letters?" in refused.stderr
    assert subscriber(path_of_failures).dead_letters == 3
    removed = run("subscriber", "remove", path_of_failures, "workers", "--yes")
    assert (removed.returncode, removed.stdout) == (0, "")
    assert removed.stderr.startswith("Warning: The subscriber 'workers' of the queue at ")
    assert removed.stderr.endswith("was removed with its dead letters: 3.\n")
    assert run("subscriber", "add", path_of_failures, "workers", "--shared").returncode == 0
    assert run("subscriber", "remove", path_of_failures, "workers").stderr == ""
    unknown = run("subscriber", "remove", path_of_failures, "workers")
    assert unknown.returncode == 1 and len(unknown.stderr.splitlines()) == 1


def test_removing_by_agreement(path_of_failures: pathlib.Path) -> None:
    """When the user agrees, the subscriber is removed."""
    assert run("subscriber", "remove", path_of_failures, "workers", stdin="y\n").returncode == 0
    assert run("subscriber", "list", path_of_failures).stdout == ""


def test_dead_letters_are_listed(path_of_failures: pathlib.Path) -> None:
    """Each dead letter is a line, also as JSON, whatever is in it."""
    lines = run("dead-letters", "list", path_of_failures, "workers").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert "raised  ValueError: no stock  b'1'" in lines[0] and "ValueError: two\\nlines" in lines[1]
    listed = run("dead-letters", "list", "--json", path_of_failures, "workers").stdout.splitlines()
    assert [bytes.fromhex(json.loads(line)["payload"]) for line in listed] == [b"1", BYTES, b"3"]


def test_a_long_dead_letter_is_cut_in_the_list(tmp_path: pathlib.Path) -> None:
    """A line of the list stays short, whatever is in the payload and the error."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control().add_subscriber("workers", max_deliveries=1)
        env.new_publisher().send(b"p" * 10_000)
        with pytest.raises(ValueError), env.new_subscriber("workers").receive(timeout=0):
            raise ValueError("e" * 10_000)
    line, = run("dead-letters", "list", tmp_path, "workers").stdout.splitlines()
    assert len(line) < 250 and "ValueError: eee" in line and "…" in line


@pytest.mark.parametrize("options, shown", [([], b"b'\\x00\\n\\xff'\n"), (["--format", "hex"], b"000aff\n"),
                                            (["--format", "json"], b'{"base64": "AAr/"}\n'),
                                            (["--format", "lines"], BYTES + b"\n"),
                                            (["--format", "raw"], BYTES + b"\n")])
def test_a_dead_letter_is_shown(options: List[str], shown: bytes, path_of_failures: pathlib.Path) -> None:
    """All that is known is shown, a fact a line, and last the message in the chosen format."""
    output = subprocess.run([*PERSIPUBSUB, "dead-letters", "show", path_of_failures, "workers", "2", *options],
                            stdout=subprocess.PIPE,
                            timeout=TIMEOUT_S,
                            check=True).stdout
    facts, payload = output.split(b"payload     ")
    assert payload == shown
    assert b"deliveries  1\nreason      raised\nerror       ValueError: two\\nlines\nbytes       3\n" in facts


@pytest.mark.parametrize("options, shown", [([], BYTES), (["--format", "raw"], BYTES),
                                            (["--format", "hex"], b"000aff\n"),
                                            (["--format", "json"], b'{"base64": "AAr/"}\n')])
def test_nothing_but_the_payload_is_shown(options: List[str], shown: bytes, path_of_failures: pathlib.Path) -> None:
    """With --payload only the message is shown, as its bytes or in a format."""
    command = [*PERSIPUBSUB, "dead-letters", "show", str(path_of_failures), "workers", "2", "--payload", *options]
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True).stdout == shown


def test_a_missing_dead_letter(path_of_failures: pathlib.Path) -> None:
    """Showing it is an error that names it; settling it does nothing and says so."""
    missing = run("dead-letters", "show", path_of_failures, "workers", 9)
    assert (missing.returncode, missing.stdout) == (1, "") and "no dead letter 9" in missing.stderr
    for verb, done in (("requeue", "requeued"), ("discard", "deleted")):
        assert run("dead-letters", verb, path_of_failures, "workers", 9).stdout == f"0 dead letters {done}\n"
    assert subscriber(path_of_failures).dead_letters == 3


def test_a_subscriber_without_dead_letters(tmp_path: pathlib.Path) -> None:
    """There is nothing to list and nothing to settle, so nobody is asked."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(["plain"])
    assert run("dead-letters", "list", tmp_path, "plain").stdout == ""
    assert run("dead-letters", "requeue", tmp_path, "plain", "--all").stdout == "0 dead letters requeued\n"
    assert run("dead-letters", "discard", tmp_path, "plain", "--all").stdout == "0 dead letters deleted\n"


@pytest.mark.parametrize("verb", [["list"], ["show", "1"], ["requeue", "--all"], ["discard", "--all"]], ids=" ".join)
def test_a_stranger_has_no_dead_letters(verb: List[str], path_of_failures: pathlib.Path) -> None:
    """A name of no subscriber is an error of one line that lists the names that there are."""
    command, *more = verb
    result = run("dead-letters", command, path_of_failures, "stranger", *more)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1 and "'workers'" in result.stderr


@pytest.mark.parametrize("verb", ["requeue", "discard"])
@pytest.mark.parametrize("chosen", [[], ["--all", "1"]], ids=["none", "both"])
def test_ids_or_all_must_be_said(verb: str, chosen: List[str], path_of_failures: pathlib.Path) -> None:
    """Neither of them, or both, is a mistake of usage, and nothing is settled."""
    result = run("dead-letters", verb, path_of_failures, "workers", *chosen)
    assert result.returncode == 2 and "Give either message ids or --all" in result.stderr
    assert subscriber(path_of_failures).dead_letters == 3


def test_dead_letters_are_settled(path_of_failures: pathlib.Path) -> None:
    """Dead letters are requeued or discarded by id, or all; to delete all is asked for."""
    assert run("dead-letters", "requeue", path_of_failures, "workers", 2, 9).stdout == "1 dead letter requeued\n"
    with persipubsub.new_environment(path_of_failures) as env, env.new_subscriber("workers").receive(timeout=0) as msg:
        assert msg == BYTES
    refused = run("dead-letters", "discard", path_of_failures, "workers", "--all", stdin="n\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Delete 2 dead letters of the subscriber 'workers'?" in refused.stderr
    assert run("dead-letters", "discard", path_of_failures, "workers", 1).stdout == "1 dead letter deleted\n"
    agreed = run("dead-letters", "discard", path_of_failures, "workers", "--all", stdin="y\n")
    assert agreed.stdout == "1 dead letter deleted\n"
    assert run("dead-letters", "list", path_of_failures, "workers").stdout == ""


def test_all_dead_letters_at_once(path_of_failures: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """All are requeued without a question, for none is lost, and all are deleted without one where --yes is given."""
    shutil.copytree(path_of_failures, tmp_path / "copy")
    assert run("dead-letters", "requeue", tmp_path / "copy", "workers", "--all").stdout == "3 dead letters requeued\n"
    assert subscriber(tmp_path / "copy").in_flight == 3
    discarded = run("dead-letters", "discard", path_of_failures, "workers", "--all", "--yes")
    assert (discarded.stdout, discarded.stderr) == ("3 dead letters deleted\n", "")


@pytest.mark.parametrize("verb, done", [("requeue", "requeued"), ("discard", "deleted")])
def test_ids_that_are_no_dead_letters_are_an_error(verb: str, done: str, path_of_failures: pathlib.Path) -> None:
    """The others are settled, each id that is none is named, and the exit status is 1."""
    result = run("dead-letters", verb, path_of_failures, "workers", "77", "2", "2", str(2**63), str(2**70))
    assert (result.returncode, result.stdout) == (1, f"1 dead letter {done}\n")
    assert result.stderr == (f"Error: The subscriber 'workers' has no dead letter 77, {2**63}, {2**70}. "
                             "See persipubsub dead-letters list.\n")
    assert run("dead-letters", verb, path_of_failures, "workers", "1", "3").returncode == 0
