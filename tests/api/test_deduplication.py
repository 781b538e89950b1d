"""A message that is sent with a deduplication id is appended once, however often it is sent."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Callable, Dict, List, Set, Tuple

import hypothesis
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, clock, errors
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.rules import deduplication
from tests.children import unmeasured
from tests.concurrency import Opened, Task

MakeEnvironment = Callable[..., Environment]
RELAXED = Durability.PROCESS_CRASH


def pending(environment: Environment) -> List[bytes]:
    """Receive and acknowledge all that is pending for "a"."""
    with environment.new_subscriber("a").receive_many(timeout=0) as messages:
        return messages


def remembered(environment: Environment) -> int:
    """Count the deduplication ids that are stored."""
    opened = open_queues.acquire(environment.path)
    try:
        return opened.read(lambda txn: txn.deduplication_count())
    finally:
        open_queues.release(opened)


def test_a_second_send_does_nothing(new_environment: MakeEnvironment) -> None:
    """Whoever sends with an id that was used gets the id of the first message, and nothing is appended."""
    environment = new_environment("a", durability=RELAXED)
    publisher = environment.new_publisher()
    assert publisher.send(b"1", deduplication_id="order-17") == 1
    assert publisher.send(b"2") == 2
    with persipubsub.new_environment(environment.path) as other:
        assert other.new_publisher().send(b"other", deduplication_id="order-17") == 1
    assert publisher.send(b"3", deduplication_id="Order-17") == 3
    assert pending(environment) == [b"1", b"2", b"3"]
    assert publisher.send(b"1", deduplication_id="order-17") == 1, "also when it was taken"
    environment.new_control().clear_messages()
    assert publisher.send(b"1", deduplication_id="order-17") == 1, "also when it was cleared"
    assert pending(environment) == []


def test_a_second_send_is_a_commit(opened: Opened) -> None:
    """A send that finds its message brings it to the disk: the first sender may have met an error there."""

    def commits() -> int:
        return opened.handle.read(lambda txn: txn._txn.id())  # pylint: disable=protected-access  # nobody else needs it

    assert opened.publisher.send(b"1", deduplication_id="x") == 1
    before = commits()
    assert opened.publisher.send(b"1", deduplication_id="x") == 1
    assert commits() == before + 1


def test_the_window_ends(new_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is remembered for as long as the window, from the first send on; then it can be used again."""
    now_us = [clock.boottime_us()]
    monkeypatch.setattr(clock, "boottime_us", lambda: now_us[0])
    environment = new_environment("a", durability=RELAXED, deduplication_window_s=10)
    publisher = environment.new_publisher()
    assert publisher.send(b"1", deduplication_id="x") == 1
    now_us[0] += 5_000_000
    assert publisher.send(b"2", deduplication_id="x") == 1
    now_us[0] += 5_000_000
    assert publisher.send(b"3", deduplication_id="x") == 1
    now_us[0] += 1
    assert publisher.send(b"4", deduplication_id="x") == 2
    assert publisher.send(b"5", deduplication_id="x") == 2
    assert (pending(environment), remembered(environment)) == ([b"1", b"4"], 1)


def test_the_number_of_ids_is_bounded(new_environment: MakeEnvironment) -> None:
    """The latest ids are remembered; if the limit is lowered, each send deletes a few of the others."""
    environment = new_environment("a", durability=RELAXED, deduplication_max=100)
    publisher = environment.new_publisher()
    for number in range(101):
        publisher.send(b"%d" % number, deduplication_id=f"id-{number}")
    assert remembered(environment) == 100
    assert publisher.send(b"", deduplication_id="id-1") == 2
    assert publisher.send(b"", deduplication_id="id-0") == 102, "it was forgotten"
    control = environment.new_control(deduplication_max=10)
    assert control.status().deduplication_max == 10
    counts = []
    for number in range(15):
        publisher.send(b"", deduplication_id=f"new-{number}")
        counts.append(remembered(environment))
    assert counts == [max(10, 100 - number * (deduplication.FORGOTTEN_MAX - 1)) for number in range(1, 16)]
    assert control.check() == ()


@hypothesis.given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 3, 7])), max_size=40), st.integers(1, 5),
                  st.integers(1, 8))
@hypothesis.settings(max_examples=30, deadline=None)
def test_sends_with_ids_are_a_set(tmp_path_factory: pytest.TempPathFactory, sends: List[Tuple[int, int]], window_s: int,
                                  ids_max: int) -> None:
    """A send is appended exactly if its id is not among the latest ones used within the window."""
    now_us = [clock.boottime_us()]
    known: Dict[int, Tuple[int, int]] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(clock, "boottime_us", lambda: now_us[0])
        with persipubsub.new_environment(tmp_path_factory.mktemp("once") / "queue") as environment:
            control = environment.new_control(["a"],
                                              durability=RELAXED,
                                              deduplication_window_s=window_s,
                                              deduplication_max=ids_max)
            publisher, next_id = environment.new_publisher(), 1
            for identifier, step_s in sends:
                now_us[0] += step_s * 1_000_000
                known = {one: sent for one, sent in known.items() if sent[1] >= now_us[0] - window_s * 1_000_000}
                expected = known.get(identifier, (next_id, now_us[0]))
                assert publisher.send(b"", deduplication_id=str(identifier)) == expected[0]
                next_id += expected[0] == next_id
                known[identifier] = expected
                if len(known) > ids_max:
                    del known[min(known, key=lambda one: known[one])]
                assert control.check() == ()


def test_threads_that_send_the_same(opened: Opened) -> None:
    """Of sends with one id in a group commit one is appended, and all return its message id."""
    with opened.writing():
        tasks = [Task(lambda: opened.publisher.send(b"once", deduplication_id="x")) for _ in range(8)]
    assert {task.result() for task in tasks} == {1}
    assert opened.sent() == [b"once"]


def test_a_message_that_is_refused_is_not_remembered(new_environment: MakeEnvironment) -> None:
    """A message that could not be sent can be sent again with the same id."""
    environment = new_environment("a", durability=RELAXED, high_watermark=HighWaterMark(hwm_db_size=100_000))
    publisher = environment.new_publisher()
    with pytest.raises(errors.MessageTooLargeError):
        publisher.send(bytes(100_001), deduplication_id="x")
    assert publisher.send(b"1", deduplication_id="x") == 1


def test_without_subscribers_ids_are_remembered(new_environment: MakeEnvironment,
                                                caplog: pytest.LogCaptureFixture) -> None:
    """The id of a message that nobody awaits is remembered, though the message is not stored."""
    environment = new_environment(durability=RELAXED)
    publisher = environment.new_publisher()
    assert publisher.send(b"1", deduplication_id="x") == 1
    assert "has no subscribers" in caplog.text
    environment.new_control(["a"])
    assert publisher.send(b"1", deduplication_id="x") == 1
    assert pending(environment) == []


@pytest.mark.parametrize("identifier, error, text", [
    ("", errors.ArgumentError, "deduplication_id must have 1 to 255 bytes of UTF-8, got 0"),
    ("é" * 128, errors.ArgumentError, "deduplication_id must have 1 to 255 bytes of UTF-8, got 256"),
    ("a\0b", errors.ArgumentError, "deduplication_id must not contain a NUL"),
    ("\ud800", errors.ArgumentError, "deduplication_id must be encodable as UTF-8"),
    (b"x", errors.ArgumentTypeError, "deduplication_id must be a str, got bytes"),
    (17, errors.ArgumentTypeError, "deduplication_id must be a str, got int"),
])
def test_invalid_ids(identifier: object, error: type, text: str, new_environment: MakeEnvironment) -> None:
    """Each wrong id has an error that names it and what is allowed; nothing is sent."""
    environment = new_environment("a", durability=RELAXED)
    publisher = environment.new_publisher()
    with pytest.raises(error, match=text):
        publisher.send(b"", deduplication_id=identifier)  # type: ignore[arg-type]  # on purpose
    assert publisher.send(b"", deduplication_id="é" * 127 + "x") == 1
    publisher.close()
    with pytest.raises(errors.ClosedError):
        publisher.send(b"", deduplication_id="x")


@pytest.mark.parametrize("setting, error, text", [
    ({
        "deduplication_window_s": 0
    }, errors.ArgumentError, "deduplication_window_s must be from 1e-06 to 1e.11 seconds"),
    ({
        "deduplication_window_s": "1"
    }, errors.ArgumentTypeError, "deduplication_window_s must be a number"),
    ({
        "deduplication_max": 0
    }, errors.ArgumentError, "deduplication_max must be at least 1, got 0"),
    ({
        "deduplication_max": 10**7 + 1
    }, errors.ArgumentError, "deduplication_max must be at most 10000000"),
    ({
        "deduplication_max": 1.0
    }, errors.ArgumentTypeError, "deduplication_max must be an int, got float"),
])
def test_invalid_settings(setting: "dict[str, object]", error: type, text: str,
                          new_environment: MakeEnvironment) -> None:
    """Each wrong setting has an error that names it and what is allowed."""
    with pytest.raises(error, match=text):
        new_environment("a", **setting)


# Crashes

#: Sends until it has an answer, as one does that must not lose a message and must not send it twice.
SEND_UNTIL_KNOWN = """
import os, signal, sys
import persipubsub
from persipubsub.lmdb_engine.process import wakeup
if sys.argv[2] == "die after the commit":
    wakeup.Words.publish = lambda self, number: os.kill(os.getpid(), signal.SIGKILL)
publisher = persipubsub.new_environment(sys.argv[1]).new_publisher()
for _ in range(5):
    try:
        print(publisher.send(b"once", deduplication_id="order-17"))
        break
    except persipubsub.errors.StorageError as error:
        print(type(error).__name__)
"""


def send_until_known(path: pathlib.Path, injection: str = "", what: str = "") -> "subprocess.CompletedProcess[str]":
    """Send in a process of its own, into whose system calls something is injected."""
    strace = ["strace", "-qq", "-f", "-o", "/dev/null", "-P", os.fspath(path / "data.mdb"), "-e", f"inject={injection}"]
    command = [sys.executable, "-c", SEND_UNTIL_KNOWN, os.fspath(path), what]
    return subprocess.run([*(strace if injection else []), *command],
                          env=unmeasured(),
                          stdout=subprocess.PIPE,
                          text=True,
                          check=False,
                          timeout=60)


@pytest.mark.parametrize("durability", Durability)
def test_killed_between_commit_and_return(durability: Durability, new_environment: MakeEnvironment) -> None:
    """A sender that was killed before it knew its message id sends again, in another process, and gets that id."""
    environment = new_environment("a", durability=durability)
    environment.new_publisher().send(b"before")
    assert send_until_known(environment.path, what="die after the commit").returncode == -signal.SIGKILL
    assert send_until_known(environment.path).stdout == "2\n"
    assert pending(environment) == [b"before", b"once"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("call", ["pwrite64", "pwritev", "fdatasync"])
def test_killed_at_any_call(call: str, durability: Durability, new_environment: MakeEnvironment) -> None:
    """Wherever the sender was killed, the message is there once when it was sent again."""
    killed = 0
    for number in range(1, 5):
        with new_environment("a", name=str(number), durability=durability) as environment:
            environment.new_publisher().send(b"before")
        killed += send_until_known(environment.path, f"{call}:signal=KILL:when={number}").returncode != 0
        assert send_until_known(environment.path).stdout == "2\n"
        with new_environment("a", name=str(number)) as environment:
            assert pending(environment) == [b"before", b"once"]
    assert killed or call != "pwrite64"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["pwrite64", "pwritev", "fdatasync"])
def test_retrying_after_an_unknown_commit(call: str, new_environment: MakeEnvironment) -> None:
    """After an I/O error at any call a sender tries again with the same id: the message is there once."""
    seen: Set[str] = set()
    for number in range(1, 7):
        with new_environment("a", name=str(number)) as environment:
            environment.new_publisher().send(b"before")
        *failed, sent = send_until_known(environment.path, f"{call}:error=EIO:when={number}").stdout.split()
        assert sent == "2"
        seen.update(failed)
        with new_environment("a", name=str(number)) as environment:
            assert pending(environment) == [b"before", b"once"]
    if call == "pwrite64":  # of the page that makes the commit
        assert "CommitUnknownError" in seen
