"""Test that the verbs set every setting of a queue and of its subscribers, as a user runs them."""

import dataclasses
import datetime
import pathlib
import stat
from typing import List

import pytest

import persipubsub
from persipubsub import Durability, HighWaterMark, Strategy
from persipubsub.status import QueueStatus
from tests.cli.test_cli_operating import run

pytestmark = pytest.mark.slow  # starts many processes, or waits

#: A value for each setting.
EVERY_SETTING = [
    "--message-timeout", "7d", "--max-messages", "1000", "--hwm-db-size", "2GiB", "--strategy", "refuse",
    "--durability", "process_crash", "--retention", "12h", "--deduplication-window", "15m", "--deduplication-max",
    "500", "--message-type", "shop.Order", "--mode", "0660"
]  # yapf: disable


def status(path: pathlib.Path) -> QueueStatus:
    """Look at a queue."""
    with persipubsub.new_environment(path) as env:
        return env.new_control(create=False).status()


def mode(path: pathlib.Path) -> int:
    """Return the mode of the files of a queue."""
    return stat.S_IMODE((path / "data.mdb").stat().st_mode)


def assert_every_setting(path: pathlib.Path) -> None:
    """Assert that each setting has its value from above."""
    found = status(path)
    assert found.high_watermark == HighWaterMark(604_800, 1000, 2 * 2**30)
    assert (found.strategy, found.durability, found.retention_s) == (Strategy.refuse, Durability.PROCESS_CRASH, 43_200)
    assert (found.deduplication_window_s, found.deduplication_max) == (900, 500)
    assert (found.message_type, mode(path)) == ("shop.Order", 0o660)


def test_create_takes_every_setting(tmp_path: pathlib.Path) -> None:
    """A new queue gets what is given; one that exists gets it, too, and keeps what is not given."""
    path = tmp_path / "queue"
    result = run("create", path, "--subscriber", "a", "--shared-subscriber", "w", *EVERY_SETTING)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (f"{path}: 2 subscribers ('a', 'w'), 0 messages, limits: message_timeout 604,800, "
                             "max_messages 1,000, hwm_db_size 2,147,483,648, when full: refuse\n")
    assert_every_setting(path)
    policy = status(path).subscribers["w"].policy
    assert policy is not None and policy.shared and status(path).subscribers["a"].policy is None
    assert run("create", path, "--max-messages", "none", "--mode", "600").returncode == 0
    assert (status(path).high_watermark, mode(path)) == (HighWaterMark(604_800, None, 2 * 2**30), 0o600)
    assert run("create", path, *EVERY_SETTING).returncode == 0
    assert_every_setting(path)


def test_set_takes_every_setting(tmp_path: pathlib.Path) -> None:
    """Each change is a line with the value before and after, as a user writes them."""
    run("create", tmp_path, "--message-timeout", "30s")
    assert run("set", tmp_path, *EVERY_SETTING).stdout.splitlines() == [
        "message_timeout 30 -> 604800", "max_messages none -> 1000", "hwm_db_size none -> 2147483648",
        "strategy prune_first -> refuse", "durability power_loss -> process_crash", "retention_s 0 -> 43200",
        "deduplication_window_s 120 -> 900", "deduplication_max 100000 -> 500", "message_type none -> shop.Order",
        "mode 0600 -> 0660"
    ]  # yapf: disable
    assert_every_setting(tmp_path)
    assert run("set", tmp_path, *EVERY_SETTING).stdout == "Nothing to change.\n"
    removed = run("set", tmp_path, "--hwm-db-size", "none", "--max-messages", "NONE", "--retention", "0")
    assert removed.stdout.splitlines() == [
        "max_messages 1000 -> none", "hwm_db_size 2147483648 -> none", "retention_s 43200 -> 0"
    ]


def test_set_is_all_or_nothing(tmp_path: pathlib.Path) -> None:
    """If one setting is refused, none is changed; settings that are only possible together are set together."""
    run("create", tmp_path, "--message-timeout", "1h")
    before = status(tmp_path)
    refused = run("set", tmp_path, "--max-messages", "5", "--retention", "2h", "--mode", "0666")
    assert refused.returncode == 1 and "over the message timeout" in refused.stderr
    assert status(tmp_path) == dataclasses.replace(before) and mode(tmp_path) == 0o600
    assert run("set", tmp_path, "--message-timeout", "1d", "--retention", "1d").returncode == 0
    assert run("set", tmp_path, "--message-timeout", "1m", "--retention", "1m").returncode == 0


@pytest.mark.parametrize("options, told", [
    (["--message-timeout", "5min"], "'5min' is not a time"), (["--hwm-db-size", "2G"], "'2G' is not a size"),
    (["--max-messages", "10k"], "'10k' is not a whole number"), (["--mode", "0900"], "'0900' is not a mode"),
    (["--retention", "none"], "'none' is not a time"), (["--strategy", "drop"], "'refuse'"),
])  # yapf: disable
@pytest.mark.parametrize("verb", ["create", "set"])
def test_a_wrong_unit_is_wrong_usage(verb: str, options: List[str], told: str, tmp_path: pathlib.Path) -> None:
    """A value that cannot be read is refused with what is possible, and no queue is touched."""
    result = run(verb, tmp_path / "queue", *options)
    assert (result.returncode, result.stdout) == (2, "") and told in result.stderr
    assert not (tmp_path / "queue").exists()


def test_limits_are_shown_where_there_are_some(tmp_path: pathlib.Path) -> None:
    """Without limits, no verb shows any, nor what happens when the queue is full; with one limit, only that one."""
    assert "limits:" not in run("create", tmp_path).stdout
    for verb in (["status"], ["top", "--interval", "0.1s"]):
        text = run(*verb, tmp_path).stdout
        assert " of " not in text and "%" not in text and "when full" not in text
    run("set", tmp_path, "--message-timeout", "60s")
    text = run("status", tmp_path).stdout
    assert "oldest      - of 60 s\n" in text and "when full" not in text and text.count(" of ") == 1
    run("set", tmp_path, "--max-messages", "10")
    text = run("status", tmp_path).stdout
    assert "messages    0 of 10\n" in text and "when full   prune_first\n" in text


def test_where_a_subscriber_starts(tmp_path: pathlib.Path) -> None:
    """A new subscriber begins at the end, at the earliest message, or at a time; one that exists stays, with a note."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(retention_s=3600)
        env.new_publisher().send_many([b"1", b"2"])
        now = datetime.datetime.now(datetime.timezone.utc)
        for name, start, pending in (("latest", "latest", 0), ("earliest", "earliest", 2),
                                     ("before", (now - datetime.timedelta(hours=1)).isoformat(),
                                      2), ("after", f"{(now + datetime.timedelta(hours=1)).isoformat()[:19]}Z", 0)):
            result = run("subscriber", "add", tmp_path, name, "--start", start)
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
            assert status(tmp_path).subscribers[name].pending == pending
    again = run("subscriber", "add", tmp_path, "latest", "--start", "earliest")
    assert again.returncode == 0 and "'latest' exists already" in again.stderr and "rewind" in again.stderr
    assert status(tmp_path).subscribers["latest"].pending == 0
    for wrong in ("2026-01-31", "17"):
        assert run("subscriber", "add", tmp_path, "new", "--start", wrong).returncode == 2


def test_a_subscriber_is_of_one_kind(tmp_path: pathlib.Path) -> None:
    """A name that is both a plain and a shared subscriber is wrong usage."""
    result = run("create", tmp_path / "queue", "--subscriber", "a", "--shared-subscriber", "a")
    assert result.returncode == 2 and "'a' is either" in result.stderr and not (tmp_path / "queue").exists()


def test_deploy_reads_standard_input(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With -, the config comes from standard input, paths are relative to the current directory, and errors say so."""
    monkeypatch.chdir(tmp_path)
    config = '{"queues": [{"path": "orders", "subscribers": ["billing"], "strategy": "refuse"}]}'
    assert run("deploy", "-", "--plan", stdin=config).stdout.startswith(f"{tmp_path}/orders: queue 'orders' added\n")
    assert not (tmp_path / "orders").exists()
    assert run("deploy", "-", stdin=config).returncode == 0
    assert status(tmp_path / "orders").strategy == Strategy.refuse
    assert run("deploy", "-", stdin=config).stdout == "Nothing to change.\n"
    wrong = run("deploy", "-", stdin='{"queues": [')
    assert (wrong.returncode, wrong.stdout) == (1, "") and wrong.stderr.startswith("Error: standard input: Not JSON")
