"""Test the migration of queues of persipubsub 1.0.0, also of those that its defects have damaged."""

import base64
import dataclasses
import doctest
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Type

import hypothesis
import lmdb
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub import Environment, Strategy, clock, compaction, errors, migration, recovery
from persipubsub.migration import migrate
from tests.docs.test_repository import code_blocks

LEGACY = pathlib.Path(__file__).resolve().parents[1] / "legacy"
MANIFEST: Dict[str, Dict[str, Any]] = json.loads((LEGACY / "manifest.json").read_text(encoding="utf-8"))
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60
MARK: Mapping[str, int] = types.MappingProxyType({
    "message_timeout": 10**9,
    "max_messages": 65536,
    "hwm_db_size": 30 * 1024**3
})


def key(sent_s: str, uuid: str = UUID) -> bytes:
    """Return the key of a message."""
    return (sent_s + uuid).encode()


def make_old(path: pathlib.Path,
             payloads: Mapping[bytes, bytes],
             pending: Mapping[str, Iterable[bytes]],
             configuration: Mapping[str, int] = MARK) -> pathlib.Path:
    """Make a directory as 1.0.0 left it, without its internal records."""
    path.mkdir()
    with lmdb.Environment(str(path), map_size=2**30, max_dbs=32, lib_version=0) as env, env.begin(write=True) as txn:
        dbs = {
            name: env.open_db(name.encode(), txn=txn)
            for name in ("queue_db", "subscriber_db", "data_db", "meta_db", "pending_db", *pending)
        }
        for name, value in configuration.items():
            txn.put(name.encode(), value.to_bytes(8, "big"), db=dbs["queue_db"])
        txn.put(b"strategy", b"PRUNE_LAST", db=dbs["queue_db"])
        for message_key, payload in payloads.items():
            txn.put(message_key, payload, db=dbs["data_db"])
        for name, keys in pending.items():
            txn.put(name.encode(), b"", db=dbs["subscriber_db"])
            for message_key in keys:
                txn.put(message_key, b"", db=dbs[name])
    (path / "lock.mdb").unlink()
    return path


def state(path: pathlib.Path) -> Dict[str, Tuple[int, bytes]]:
    """Return time and bytes of a directory and of its files."""
    return {
        name.name: (os.stat(name).st_mtime_ns, name.read_bytes() if name.is_file() else b"")
        for name in (path, *path.iterdir())
    }


def drained(env: Environment, identifier: str) -> List[bytes]:
    """Receive and acknowledge all that is pending for a subscriber."""
    with env.new_subscriber(identifier).receive_many(max_messages=100_000, timeout=0) as messages:
        return messages


def contents(path: pathlib.Path) -> Dict[str, List[bytes]]:
    """Receive all messages of a queue, which has to be sound."""
    with persipubsub.new_environment(path) as env:
        control = env.new_control()
        assert control.check() == ()
        return {identifier: drained(env, identifier) for identifier in control.status().subscribers}


@pytest.mark.parametrize("name", MANIFEST)
def test_queues_of_1_0_0_are_migrated_whole(tmp_path: pathlib.Path, name: str) -> None:
    """Settings, subscribers and pending messages match the manifest; the old directory stays as it is."""
    expected, before = MANIFEST[name], state(LEGACY / name)
    pending = {
        identifier: [base64.b64decode(payload) for payload in payloads]
        for identifier, payloads in expected["pending_in_order_base64"].items()
    }
    report = migrate(LEGACY / name, tmp_path / "new")
    assert state(LEGACY / name) == before
    with persipubsub.new_environment(tmp_path / "new") as env:
        status = env.new_control().status()
    mark = status.high_watermark
    assert {field: getattr(mark, field) for field in MARK} == expected["high_watermark"]
    assert status.strategy == Strategy[expected["strategy"]]
    assert sorted(status.subscribers) == sorted(expected["subscribers"])
    assert contents(tmp_path / "new") == pending
    assert report.pending == {identifier: len(payloads) for identifier, payloads in pending.items()}
    assert (report.messages, report.again, report.missing) == (status.messages, {}, 0)
    assert report.messages + report.dangling == expected["messages_stored"] and report.in_order_of_sending


def test_the_queue_goes_on(tmp_path: pathlib.Path) -> None:
    """New messages come after the migrated ones, and subscribers can be added and removed."""
    migrate(LEGACY / "two-subscribers", tmp_path)
    with persipubsub.new_environment(tmp_path) as env:
        control = env.new_control(["new"])
        assert env.new_publisher().send(b"after") == 14
        assert drained(env, "audit")[-2:] == [b"message 19", b"after"] and drained(env, "new") == [b"after"]
        control.remove_subscriber("billing")
        assert (control.check(), control.status().messages) == ((), 0)


@pytest.mark.damages_queues
def test_the_order_is_that_of_sending(tmp_path: pathlib.Path) -> None:
    """Times order by their value, whatever the number of decimals, and messages of one time by their keys."""
    keys = [
        key("9.5"),
        key("10", "1" * 36),
        key("10.000001"),
        key("10.25", "a" * 36),
        key("10.250001", "0" * 36),
        key("10.3", "0" * 36),
        key("10.3", "f" * 36)
    ]
    payloads = {message_key: str(index).encode() for index, message_key in enumerate(keys)}
    report = migrate(make_old(tmp_path / "old", payloads, {"a": keys}), tmp_path / "new")
    assert contents(tmp_path / "new") == {"a": list(payloads.values())} and report.in_order_of_sending


@pytest.mark.damages_queues
def test_what_1_0_0_handed_out_in_another_order_is_not_doubled(tmp_path: pathlib.Path) -> None:
    """A later message that 1.0.0 delivered first, by its key, does not come again."""
    early, late, last = key("10.25", "f" * 36), key("10.256"), key("11")
    assert late < early
    old = make_old(tmp_path / "old", {
        early: b"early",
        late: b"late",
        last: b"last"
    }, {
        "a": [early, last],
        "b": [early, late, last]
    })
    report = migrate(old, tmp_path / "new")
    assert contents(tmp_path / "new") == {"a": [b"early", b"last"], "b": [b"late", b"early", b"last"]}
    assert not report.again and not report.in_order_of_sending


@pytest.mark.damages_queues
def test_what_lies_between_awaited_messages_comes_and_is_counted(tmp_path: pathlib.Path) -> None:
    """A subscriber also gets acknowledged messages between pending ones; a report counts them."""
    keys = [key(str(second)) for second in range(10, 16)]
    payloads = {message_key: message_key[:2] for message_key in keys}
    # The late one was not heard of by whoever sent the even ones.
    old = make_old(tmp_path / "old", payloads, {"all": keys, "late": keys[1::2], "none": []})
    report = migrate(old, tmp_path / "new")
    assert contents(tmp_path / "new") == {
        "all": [b"10", b"11", b"12", b"13", b"14", b"15"],
        "late": [b"11", b"12", b"13", b"14", b"15"],
        "none": []
    }
    assert (report.pending, report.again) == ({"all": 6, "late": 3, "none": 0}, {"late": 2})


@pytest.mark.damages_queues
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(messages=st.lists(st.tuples(st.integers(8, 11), st.sampled_from(["", ".1", ".12", ".125", ".2"]),
                                              st.sampled_from("0f")),
                                    max_size=12),
                  masks=st.dictionaries(st.sampled_from("abc"), st.integers(0, 2**12 - 1)))
def test_nothing_is_lost_whatever_is_pending(messages: List[Tuple[int, str, str]], masks: Dict[str, int]) -> None:
    """Each subscriber gets what it awaits, in one order for all, and as many others as the report says."""
    keys = [
        key(f"{second}{decimals}", uuid * 34 + f"{index:02}") for index, (second, decimals, uuid) in enumerate(messages)
    ]
    pending = {name: {one for index, one in enumerate(keys) if mask >> index & 1} for name, mask in masks.items()}
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        report = migrate(make_old(directory / "old", dict(zip(keys, keys)), pending), directory / "new")
        found = contents(directory / "new")
    awaited = sorted(set().union(*pending.values()))
    orders = [sorted(awaited, key=lambda one: (float(one[:-36]), one)), awaited]
    ends = [{
        name: order[min(map(order.index, wanted), default=len(order)):]
        for name, wanted in pending.items()
    } for order in orders]
    again = [{name: len(end[name]) - len(wanted) for name, wanted in pending.items()} for end in ends]
    assert found == ends[not report.in_order_of_sending]
    assert sum(report.again.values()) == min(sum(counts.values()) for counts in again)
    assert report.again == {
        name: len(got) - len(pending[name])
        for name, got in found.items() if len(got) > len(pending[name])
    }
    assert all(wanted <= set(found[name]) for name, wanted in pending.items())
    assert report.dangling == len(keys) - len(awaited)


@pytest.mark.damages_queues
def test_messages_beyond_the_timeout_come_and_are_counted(tmp_path: pathlib.Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that 1.0.0 calls expired are there, and their timeout begins at the migration."""
    monkeypatch.setattr(clock, "wall_us", lambda: 1_000 * 10**6)
    keys = [key("899.9"), key("900"), key("950.5")]
    old = make_old(tmp_path / "old", dict.fromkeys(keys, b"x"), {"a": keys}, {**MARK, "message_timeout": 100})
    assert migrate(old, tmp_path / "new").expired == 1
    with persipubsub.new_environment(tmp_path / "new") as env:
        boottime_us = clock.boottime_us
        control = env.new_control()
        assert control.status().subscribers["a"].pending == 3
        assert control.prune_dangling_messages() == 0  # the clock of the queue starts with the migration
        start_us = boottime_us()
        monkeypatch.setattr(clock, "boottime_us", lambda: start_us + 101 * 10**6)
        assert control.status().subscribers["a"].pending == 0
        monkeypatch.setattr(clock, "boottime_us", boottime_us)


@pytest.mark.damages_queues
def test_what_is_not_there_or_not_awaited_is_counted(tmp_path: pathlib.Path) -> None:
    """Messages without a payload, or awaited by nobody, are left out; the command counts both."""
    keys = [key("10"), key("11"), key("12"), key("13")]
    old = make_old(tmp_path / "old", {
        keys[1]: b"1",
        keys[2]: b"2",
        keys[3]: b"3"
    }, {"a": [keys[0], keys[1], keys[3]]}, {
        **MARK, "max_messages": 2,
        "message_timeout": 10**10
    })
    report = migrate(old, tmp_path / "new")
    assert (report.missing, report.dangling, report.messages, report.at_high_watermark) == (1, 1, 2, True)
    shutil.rmtree(tmp_path / "new")
    result = command(old, tmp_path / "new")
    assert result.stdout == f"{tmp_path}/new: 2 messages migrated; subscribers 'a' (2 pending)\n"
    notes = result.stderr.splitlines()
    assert len(notes) == 3
    assert notes[0].startswith("note: 1 messages were left out") and notes[1].startswith("note: 1 pending messages")
    assert notes[2].startswith("note: the queue is at its high-water mark")


def command(*paths: pathlib.Path) -> "subprocess.CompletedProcess[str]":
    """Run ``persipubsub migrate`` to its end."""
    return subprocess.run([sys.executable, "-m", "persipubsub", "migrate", *paths],
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=False)


@pytest.mark.damages_queues
def test_the_command_reports_what_comes_again(tmp_path: pathlib.Path) -> None:
    """Messages that a subscriber did not await, and those beyond the timeout, are reported."""
    keys = [key("10"), key("11"), key("12")]
    old = make_old(tmp_path / "old", dict.fromkeys(keys, b""), {
        "a": keys,
        "b": [keys[0], keys[2]]
    }, {
        **MARK, "message_timeout": 1
    })
    result = command(old, tmp_path / "new")
    assert result.returncode == 0 and len(result.stderr.splitlines()) == 2
    assert "the subscriber 'b' also gets 1 messages" in result.stderr
    assert "3 messages had exceeded the message timeout" in result.stderr


@pytest.mark.damages_queues
def test_large_messages_and_backlogs(tmp_path: pathlib.Path) -> None:
    """Payloads of many pages, and more messages than fit into a transaction, arrive; progress is shown."""
    keys = [key(f"{second}.5") for second in range(1000, 5000)]
    payloads = {message_key: message_key * (1 + index % 7) for index, message_key in enumerate(keys)}
    payloads[keys[7]] = os.urandom(3_000_000)
    told: List[Tuple[int, int]] = []
    old = make_old(tmp_path / "old", payloads, {"a": keys, "b": keys[3000:]})
    migrate(old, tmp_path / "new", lambda done, total: told.append((done, total)))
    assert contents(tmp_path / "new") == {"a": list(payloads.values()), "b": list(payloads.values())[3000:]}
    assert told[-1] == (4000, 4000) and told == sorted(told) and len(told) == 4


@pytest.mark.damages_queues
@pytest.mark.parametrize("name", MANIFEST)
def test_opening_a_queue_of_1_0_0_names_the_command(tmp_path: pathlib.Path, name: str) -> None:
    """Opening it raises FormatError with the migration command, and leaves its directory as it is."""
    path = tmp_path / name
    shutil.copytree(LEGACY / name, path)
    before = state(path)
    env = persipubsub.new_environment(path)
    ways: List[Callable[[], object]] = [
        env.new_control, env.new_publisher, lambda: env.new_subscriber("audit"), lambda: recovery.recover(path),
        lambda: compaction.compact(path)
    ]
    for way in ways:
        with pytest.raises(errors.FormatError, match=f"persipubsub migrate {re.escape(str(path))} NEW"):
            way()
    assert state(path) == before


def test_what_is_no_queue_of_1_0_0_is_refused(tmp_path: pathlib.Path) -> None:
    """A queue of this version, no queue, and a broken path are errors that say so, and nothing is made."""
    with persipubsub.new_environment(tmp_path / "present") as env:
        env.new_control()
    with pytest.raises(errors.FormatError, match="is of this version already"):
        migrate(tmp_path / "present", tmp_path / "new")
    with pytest.raises(errors.NotInitializedError):
        migrate(tmp_path / "none", tmp_path / "new")
    with pytest.raises(errors.ArgumentError):
        migrate("", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.damages_queues
def test_a_foreign_or_broken_file_is_refused(tmp_path: pathlib.Path) -> None:
    """What is no file of LMDB, and a queue of 1.0.0 that lacks pages, are refused before anything is made."""
    for name, data, error in (("foreign", b"x" * 8192, errors.FormatError),
                              ("short", (LEGACY / "odd-payloads" / "data.mdb").read_bytes()[:60_000],
                               errors.DamagedError)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.mdb").write_bytes(data)
        with pytest.raises(error):
            migrate(tmp_path / name, tmp_path / "new")
        assert not (tmp_path / "new" / "data.mdb").exists()


@pytest.mark.damages_queues
def test_a_broken_old_queue_is_never_half_migrated(tmp_path: pathlib.Path) -> None:
    """With any page overwritten, the migration fails and makes no queue, or misses nothing."""
    data = (LEGACY / "two-subscribers" / "data.mdb").read_bytes()
    whole = {
        name: [base64.b64decode(one) for one in some]
        for name, some in MANIFEST["two-subscribers"]["pending_in_order_base64"].items()
    }
    (tmp_path / "old").mkdir()
    failed = 0
    for start in range(0, len(data), 4096):
        (tmp_path / "old" / "data.mdb").write_bytes(data[:start] + os.urandom(4096) + data[start + 4096:])
        new = tmp_path / f"new-{start}"
        try:
            migrate(tmp_path / "old", new)
        except (errors.DamagedError, errors.FormatError):
            failed += 1
            assert not (new / "data.mdb").exists()
        else:
            assert contents(new) == whole
    assert failed >= 7


@pytest.mark.damages_queues
def test_what_no_queue_can_have_is_refused(tmp_path: pathlib.Path) -> None:
    """Names and limits that cannot be set are errors that name them, and nothing is made; no limit stays none."""
    wrong: Dict[str, Tuple[Dict[str, Iterable[bytes]], Mapping[str, int], Type[Exception], str]] = {
        "long": ({
            "x" * 256: []
        }, MARK, errors.FormatError, "1 to 255 bytes"),
        "own": ({
            "data_db": []
        }, MARK, errors.FormatError, "'data_db'"),
        "zero": ({}, {
            **MARK, "max_messages": 0
        }, errors.FormatError, "max_messages must be"),
        "lacking": ({}, {
            "max_messages": 5
        }, errors.DamagedError, "message_timeout"),
    }
    for name, (pending, configuration, error, match) in wrong.items():
        with pytest.raises(error, match=match):
            migrate(make_old(tmp_path / name, {}, pending, configuration), tmp_path / "new")
        assert not (tmp_path / "new").exists()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "data.mdb").symlink_to(LEGACY / "empty" / "data.mdb")
    with pytest.raises(errors.PathError):
        migrate(linked, tmp_path / "new")
    with pytest.raises(errors.DamagedError, match="is not the key of a message"):
        migrate(make_old(tmp_path / "keyless", {b"key": b""}, {}), tmp_path / "new")


@pytest.mark.damages_queues
@pytest.mark.parametrize("limits, expected, expired", [
    ((500, 65536, 30 * 1024**3), (500, 65536, 30 * 1024**3), 2),
    ((1, 2**64 - 1, 1), (1, None, 1), 2),
    ((10**11, 2**63 - 1, 2**46), (10**11, 2**63 - 1, 2**46), 0),
    ((10**11 + 1, 2**63, 2**46 + 1), (None, None, None), 0),
])
def test_the_limits_are_kept(limits: Tuple[int, ...], expected: Tuple[Optional[int], ...], expired: int,
                             tmp_path: pathlib.Path) -> None:
    """A migrated queue has the limits of the old one, though new queues have none; larger ones than possible are none.
    """
    keys = [key("10"), key("11")]
    old = make_old(tmp_path / "old", dict.fromkeys(keys, b""), {"a": keys}, dict(zip(MARK, limits)))
    assert migrate(old, tmp_path / "new").expired == expired
    with persipubsub.new_environment(tmp_path / "new") as env:
        mark = env.new_control().status().high_watermark
        assert (mark.message_timeout, mark.max_messages, mark.hwm_db_size) == expected


@pytest.mark.damages_queues
def test_a_limit_that_is_kept_holds(tmp_path: pathlib.Path) -> None:
    """A migrated queue drops messages at the limit of the old one, until the limit is lifted."""
    keys = [key("10"), key("11"), key("12")]
    old = make_old(tmp_path / "old", {one: one[:2] for one in keys}, {"a": keys}, {**MARK, "max_messages": 3})
    migrate(old, tmp_path / "new")
    with persipubsub.new_environment(tmp_path / "new") as env:
        control, publisher = env.new_control(), env.new_publisher()
        publisher.send(b"13")
        assert control.status().pruned.overflow == 2
        control.set_hwm(max_messages=None)
        publisher.send_many([b"14"] * 3)
        assert drained(env, "a") == [b"10", b"13", b"14", b"14", b"14"]


@pytest.mark.damages_queues
def test_the_new_directory_has_to_be_free(tmp_path: pathlib.Path) -> None:
    """A queue, or anything else, at the new path stays as it is, and so does the old directory."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["a"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    for name in ("queue", "full", "file"):
        before = state(tmp_path / name) if name != "file" else None
        with pytest.raises(errors.PathError):
            migrate(LEGACY / "two-subscribers", tmp_path / name)
        assert before is None or state(tmp_path / name) == before
    old = make_old(tmp_path / "old", {}, {})
    (tmp_path / "link").symlink_to(old)
    before = state(old)
    for inside in (old, old / "new", tmp_path / "link", tmp_path / "link" / "a" / "b"):
        with pytest.raises(errors.ArgumentError, match="lies in the old one"):
            migrate(old, inside)
    assert state(old) == before


def test_two_migrations_do_not_meet(tmp_path: pathlib.Path) -> None:
    """While somebody makes a queue at the new path, a second migration there is an error; the first goes on."""
    told = []

    def migrate_again(*_progress: int) -> None:
        with pytest.raises(errors.PathError, match="Another process is creating a queue there"):
            migrate(LEGACY / "empty", tmp_path / "new")
        told.append(True)

    migrate(LEGACY / "two-subscribers", tmp_path / "new", migrate_again)
    assert told and set(contents(tmp_path / "new")) == {"audit", "billing"}


@pytest.mark.damages_queues
def test_a_change_meanwhile_is_noticed(tmp_path: pathlib.Path) -> None:
    """Where somebody still uses the old queue, there is no new one, and it can be migrated later."""
    old = make_old(tmp_path / "old", {key("10"): b"x"}, {"a": [key("10")]})

    def take(*_progress: int) -> None:
        with lmdb.Environment(str(old), max_dbs=32) as env:
            db = env.open_db(b"a")
            with env.begin(write=True) as txn:
                txn.delete(key("10"), db=db)

    with pytest.raises(errors.InUseError):
        migrate(old, tmp_path / "new", take)
    with pytest.raises(errors.NotInitializedError):
        persipubsub.new_environment(tmp_path / "new").new_publisher()
    assert migrate(old, tmp_path / "new").pending == {"a": 0}


def test_a_kill_midway_leaves_no_queue(tmp_path: pathlib.Path) -> None:
    """After kill -9 midway there is no queue at the new path; the next migration makes it whole."""
    code = ("import os, sys\nfrom persipubsub.migration import migrate\n"
            "migrate(sys.argv[1], sys.argv[2], lambda done, total: os.kill(os.getpid(), 9))")
    killed = subprocess.run([sys.executable, "-c", code, LEGACY / "two-subscribers", tmp_path / "new"],
                            timeout=TIMEOUT_S,
                            check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "new" / "data.mdb.new").exists()
    with pytest.raises(errors.NotInitializedError):
        persipubsub.new_environment(tmp_path / "new").new_publisher()
    assert command(LEGACY / "two-subscribers", tmp_path / "new").returncode == 0
    assert {name: len(some) for name, some in contents(tmp_path / "new").items()} == {"audit": 8, "billing": 13}


def test_the_page_shows_what_happens(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command and session of the page about migration prints what the page shows."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(LEGACY / "two-subscribers", "old-queue")
    page = (LEGACY.parent.parent / "docs" / "migration.rst").read_text(encoding="utf-8")
    sessions = code_blocks(page, "console")
    assert len(sessions) >= 2
    for session in sessions:
        for call in session.split("$ ")[1:]:
            line, _, output = call.partition("\n")
            result = subprocess.run([sys.executable, "-m", *line.split()],
                                    capture_output=True,
                                    text=True,
                                    timeout=TIMEOUT_S,
                                    check=False)
            shown = (result.stderr + result.stdout).replace(str(tmp_path), "/srv/app")
            assert shown.split() == output.split(), line
    shutil.rmtree("queue")
    examples = [
        doctest.DocTestParser().get_doctest(block, {}, "migration.rst", None, None)
        for block in code_blocks(page, "pycon")
    ]
    runner = doctest.DocTestRunner()
    assert [runner.run(example) for example in examples] == [(0, 3)]
    shutil.rmtree("old-queue")  # it is none of this version, and need not be checked


def test_a_report_can_be_kept(tmp_path: pathlib.Path) -> None:
    """The report is a frozen dataclass that names the new directory."""
    report = migrate(LEGACY / "empty", tmp_path / "new")
    assert report == migration.Report(tmp_path / "new", 0, {}, {}, True, 0, 0, 0, False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.messages = 1  # type: ignore[misc]  # that is what is tested
