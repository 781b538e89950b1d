"""Deploying a config makes the queues what it says, and a config that is wrong touches none."""

import contextlib
import json
import os
import pathlib
import re
import stat
import subprocess
import sys
import tempfile
from typing import Any, Dict, Iterator, List, Optional, Tuple

import hypothesis
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub import Durability, HighWaterMark, Strategy, clock, deployment, errors
from persipubsub.engine import checks
from persipubsub.status import QueueStatus
from tests.docs.test_repository import ROOT

QUEUE: Dict[str, Any] = {
    "path": "queues/orders",
    "subscribers": ["billing", {
        "identifier": "audit"
    }],
    "high_watermark": {
        "message_timeout": 3600,
        "max_messages": 100000,
        "hwm_db_size": 1073741824
    },
    "strategy": "prune_last",
    "durability": "process_crash",
    "message_type": "shop.Order",
    "retention_s": 60,
    "deduplication_window_s": 0.5,
    "deduplication_max": 1000,
    "mode": "0660"
}


def write(directory: pathlib.Path, *queues: object, **more: object) -> pathlib.Path:
    """Write a config of queues."""
    path = directory / "config.json"
    path.write_text(json.dumps({"queues": queues, **more}), encoding="utf-8")
    return path


def status(path: pathlib.Path) -> QueueStatus:
    """Look at a queue."""
    with persipubsub.new_environment(path) as environment:
        return environment.new_control().status()


def tree(directory: pathlib.Path) -> Dict[str, Tuple[int, Optional[bytes]]]:
    """Return the modes and contents of all files, without what LMDB notes of readers."""
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() and path.name != "lock.mdb" else None)
        for path in directory.rglob("*")
    }


def test_deploy_makes_what_the_config_says(tmp_path: pathlib.Path) -> None:
    """Everything in a config holds afterwards, and a second run has nothing to do."""
    config = write(tmp_path, QUEUE)
    changes = deployment.deploy(config)
    path = tmp_path / "queues" / "orders"
    assert {change.path for change in changes} == {path}
    assert [(change.what, change.before, change.after) for change in changes] == [
        ("queue", None, "orders"),
        ("high_watermark.message_timeout", "none", 3600),
        ("high_watermark.max_messages", "none", 100000),
        ("high_watermark.hwm_db_size", "none", 1073741824),
        ("strategy", "prune_first", "prune_last"),
        ("durability", "power_loss", "process_crash"),
        ("message_type", None, "shop.Order"),
        ("retention_s", 0, 60),
        ("deduplication_window_s", 120, 0.5),
        ("deduplication_max", 100_000, 1000),
        ("mode", "0600", "0660"),
        ("subscriber", None, "billing"),
        ("subscriber", None, "audit"),
    ]
    now = status(path)
    assert set(now.subscribers) == {"billing", "audit"}
    assert now.high_watermark == HighWaterMark(3600, 100000, 1073741824)
    assert (now.strategy, now.durability) == (Strategy.prune_last, Durability.PROCESS_CRASH)
    assert now.message_type == "shop.Order"
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o660}
    assert stat.S_IMODE(path.stat().st_mode) == 0o770
    assert deployment.deploy(config) == deployment.plan(config) == ()


def test_only_the_path_is_required(tmp_path: pathlib.Path) -> None:
    """A queue of which only the path is given has the defaults."""
    assert [change.what for change in deployment.deploy(write(tmp_path, {"path": "q"}))] == ["queue"]
    now = status(tmp_path / "q")
    assert (now.high_watermark, now.strategy, now.durability) == (HighWaterMark(None, None, None), Strategy.prune_first,
                                                                  Durability.POWER_LOSS)
    assert not now.subscribers
    assert stat.S_IMODE((tmp_path / "q" / "data.mdb").stat().st_mode) == 0o600


def test_what_is_left_out_stays(tmp_path: pathlib.Path) -> None:
    """A config that gives one part of the high-water mark changes that part, and keeps all else that is stored."""
    deployment.deploy(write(tmp_path, QUEUE))
    part = write(tmp_path, {"path": QUEUE["path"], "high_watermark": {"max_messages": 7}})
    path = tmp_path / "queues" / "orders"
    before = status(path)
    assert deployment.deploy(part) == (deployment.Change(path, "high_watermark.max_messages", 100000, 7), )
    now = status(path)
    assert now.high_watermark == HighWaterMark(3600, 7, 1073741824)
    assert (now.strategy, now.durability, now.subscribers) == (before.strategy, before.durability, before.subscribers)
    assert stat.S_IMODE((path / "data.mdb").stat().st_mode) == 0o660


def test_null_removes_a_limit(tmp_path: pathlib.Path) -> None:
    """A limit of null is removed, the others stay, and describe returns each limit, null where there is none."""
    deployment.deploy(write(tmp_path, QUEUE))
    path = tmp_path / "queues" / "orders"
    none = write(tmp_path, {"path": QUEUE["path"], "high_watermark": {"max_messages": None}, "strategy": "refuse"})
    assert [str(change) for change in deployment.deploy(none)] == [
        f"{path}: high_watermark.max_messages 100000 -> 'none'", f"{path}: strategy 'prune_last' -> 'refuse'"
    ]
    now = status(path)
    assert (now.high_watermark, now.strategy) == (HighWaterMark(3600, None, 1073741824), Strategy.refuse)
    assert not deployment.plan(none)
    described = json.loads(deployment.describe(path))["queues"][0]
    assert described["high_watermark"] == {"message_timeout": 3600, "max_messages": None, "hwm_db_size": 1073741824}
    assert described["strategy"] == "refuse"


def test_messages_stay(tmp_path: pathlib.Path) -> None:
    """A deployment keeps the messages, and its new subscriber gets what is sent from then on."""
    deployment.deploy(write(tmp_path, {"path": "q", "subscribers": ["a"]}))
    with persipubsub.new_environment(tmp_path / "q") as environment:
        environment.new_publisher().send(b"1")
        deployment.deploy(write(tmp_path, {"path": "q", "subscribers": ["b"], "strategy": "prune_last"}))
        environment.new_publisher().send(b"2")
        for name, expected in (("a", [b"1", b"2"]), ("b", [b"2"])):
            with environment.new_subscriber(name).receive_many(timeout=0) as messages:
                assert messages == expected


@pytest.mark.parametrize("config", [
    {
        "path": "q",
        "subscribers": ["b", "c"]
    },
    {
        "path": "q",
        "subscribers": []
    },
    {
        "path": "q"
    },
])
def test_subscribers_are_removed_only_on_request(config: Dict[str, Any], tmp_path: pathlib.Path) -> None:
    """A subscriber that is not in the list is removed on request, and otherwise stays."""
    deployment.deploy(write(tmp_path, {"path": "q", "subscribers": ["a", "b"]}))
    path = write(tmp_path, config)
    wanted = set(config.get("subscribers", ["a", "b"]))
    assert all(change.after is not None for change in deployment.deploy(path))
    assert set(status(tmp_path / "q").subscribers) == wanted | {"a", "b"}
    planned = deployment.plan(path, remove_subscribers=True)
    assert {change.before for change in planned} == {"a", "b"} - wanted
    assert deployment.deploy(path, remove_subscribers=True) == planned
    assert set(status(tmp_path / "q").subscribers) == wanted


@pytest.mark.parametrize("mode, files, directory", [("0600", 0o600, 0o700), ("660", 0o660, 0o770),
                                                    ("0640", 0o640, 0o750)])
def test_mode(mode: str, files: int, directory: int, tmp_path: pathlib.Path) -> None:
    """The mode is octal, with or without a leading zero, and holds for new and for existing queues."""
    deployment.deploy(write(tmp_path, {"path": "old", "mode": "0666"}))
    config = write(tmp_path, {"path": "old", "mode": mode}, {"path": "new", "mode": mode})
    deployment.deploy(config)
    for name in ("old", "new"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == directory
        assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / name).iterdir()} == {files}
    assert not deployment.plan(config)


def test_relative_paths_are_relative_to_the_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths in a config start at its directory, wherever the process runs."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "etc", {"path": "../queues/a"}, {"path": str(tmp_path / "b")})
    monkeypatch.chdir(tmp_path / "elsewhere")
    deployment.deploy(os.path.join("..", "etc", "config.json"))
    assert {path.parent for path in tmp_path.rglob("data.mdb")} == {tmp_path / "queues" / "a", tmp_path / "b"}


def test_a_plan_changes_nothing(tmp_path: pathlib.Path) -> None:
    """A plan shows what a deployment then does, makes no queue and leaves every byte of existing ones."""
    deployment.deploy(write(tmp_path, {"path": "old", "subscribers": ["a"]}))
    config = write(tmp_path, {**QUEUE, "path": "old"}, {**QUEUE, "path": "new/queue"})
    before = tree(tmp_path)
    planned = deployment.plan(config, remove_subscribers=True)
    assert tree(tmp_path) == before
    assert len(planned) > 10
    assert deployment.deploy(config, remove_subscribers=True) == planned
    assert not deployment.plan(config, remove_subscribers=True)


def test_a_retention_over_the_timeout_is_found_before_anything_is_changed(tmp_path: pathlib.Path) -> None:
    """The retention has to fit the timeout of the config, or that of the queue where the config has none."""
    deployment.deploy(write(tmp_path, {"path": "old", "retention_s": 60, "high_watermark": {"message_timeout": 500}}))
    before = tree(tmp_path / "old")
    with pytest.raises(errors.ConfigError, match="old: retention_s=501 is over the message timeout of 500 seconds"):
        deployment.deploy(write(tmp_path, {"path": "new"}, {"path": "old", "retention_s": 501}))
    with pytest.raises(errors.ConfigError, match="retention_s=60 is over the message timeout of 59 seconds"):
        deployment.deploy(write(tmp_path, {"path": "old", "high_watermark": {"message_timeout": 59}}))
    assert tree(tmp_path / "old") == before
    assert not (tmp_path / "new").exists()


def test_subscribers_begin_where_the_config_says(tmp_path: pathlib.Path) -> None:
    """A new subscriber may begin with all that is stored, or at a time; one that exists stays."""
    deployment.deploy(write(tmp_path, {"path": "q", "retention_s": 60}))
    with persipubsub.new_environment(tmp_path / "q") as env:
        env.new_publisher().send(b"stored")
    starts = {"all": "earliest", "since": "2020-01-01T00:00:00Z", "after": "2999-01-01T00:00:00+01:00", "new": "latest"}
    subscribers = [{"identifier": name, "start": start} for name, start in starts.items()]
    config = write(tmp_path, {"path": "q", "subscribers": [*subscribers, "plain"]})
    assert len(deployment.deploy(config)) == 5
    with persipubsub.new_environment(tmp_path / "q") as env:
        found = {name: env.new_subscriber(name).front() for name in [*starts, "plain"]}
        assert found == {"all": b"stored", "since": b"stored", "after": None, "new": None, "plain": None}
        env.new_subscriber("all").pop()
        assert not deployment.deploy(config)
        assert env.new_subscriber("all").front() is None


SHARED: Dict[str, Any] = {
    "identifier": "workers",
    "shared": True,
    "lease_s": 12.5,
    "max_deliveries": 3,
    "retry_delay_s": 0,
    "retry_delay_max_s": 7,
    "dead_letters_max": 50
}


def test_workers_share_a_subscriber_as_the_config_says(tmp_path: pathlib.Path) -> None:
    """What is set on a subscriber holds, new or not; what is left out stays, and a second run has nothing to do."""
    config = write(tmp_path, {"path": "q", "subscribers": ["plain", SHARED, {"identifier": "new", "shared": True}]})
    told = [str(change) for change in deployment.plan(config)]
    assert f"{tmp_path / 'q'}: subscriber 'workers' shared False -> True" in told
    assert f"{tmp_path / 'q'}: subscriber 'workers' lease_s None -> 12.5" in told
    assert [str(change) for change in deployment.deploy(config)] == told
    assert not deployment.deploy(config)
    described = json.loads(deployment.describe(tmp_path / "q"))["queues"][0]["subscribers"]
    defaults = {"lease_s": 30, "max_deliveries": 5, "retry_delay_s": 1, "retry_delay_max_s": 60}
    assert described == [{"identifier": "new", "shared": True, **defaults, "dead_letters_max": 10_000}, "plain", SHARED]
    part = write(tmp_path, {"path": "q", "subscribers": [{"identifier": "workers", "lease_s": 5}]})
    assert [str(change)
            for change in deployment.deploy(part)] == [f"{tmp_path / 'q'}: subscriber 'workers' lease_s 12.5 -> 5"]
    described = json.loads(deployment.describe(tmp_path / "q"))["queues"][0]["subscribers"]
    assert described[2] == {**SHARED, "lease_s": 5}
    limited = {"identifier": "plain", "shared": False, "max_deliveries": 2, "dead_letters_max": 10_000}
    assert len(deployment.deploy(write(tmp_path, {"path": "q", "subscribers": [limited]}))) == 2
    assert json.loads(deployment.describe(tmp_path / "q"))["queues"][0]["subscribers"][1] == limited


def test_a_subscriber_that_is_right_is_not_touched(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change made between look and deployment stays where the config asked for none."""
    deployment.deploy(write(tmp_path, {"path": "q", "subscribers": [SHARED]}))
    config = write(tmp_path, {"path": "q", "subscribers": [SHARED, "new"]})
    new_control = persipubsub.Environment.new_control

    def meanwhile(env: persipubsub.Environment, *args: Any, **kwargs: Any) -> Any:
        control = new_control(env, *args, **kwargs)
        if set(kwargs) - {"create"}:
            control.add_subscriber("workers", lease_s=77)
        return control

    with monkeypatch.context() as patch:
        patch.setattr(persipubsub.Environment, "new_control", meanwhile)
        change, = deployment.deploy(config)
    assert change.after == "new"
    policy = status(tmp_path / "q").subscribers["workers"].policy
    assert policy is not None and policy.lease_s == 77


@pytest.mark.parametrize("policy, tells", [
    ({"shared": False, "lease_s": 5}, "lease_s is for a shared subscriber"),
    ({"dead_letters_max": 5, "shared": False}, "dead_letters_max is for"),
    ({"retry_delay_s": 8}, "retry_delay_max_s must be at least retry_delay_s, 8.0, got 7.0"),
    ({"shared": False}, "has 1 messages in flight and 0 dead letters"),
])  # yapf: disable
def test_what_does_not_fit_to_a_subscriber_touches_nothing(policy: Dict[str, Any], tells: str,
                                                           tmp_path: pathlib.Path) -> None:
    """Settings that do not fit together, or not to what is stored, are found before any queue is touched."""
    deployment.deploy(write(tmp_path, {"path": "q", "subscribers": [SHARED]}))
    with persipubsub.new_environment(tmp_path / "q") as environment:
        environment.new_publisher().send(b"x")
        with environment.new_subscriber("workers").receive():
            wanted = {"path": "q", "subscribers": [{"identifier": "workers", **policy}]}
            config = write(tmp_path, {"path": "first"}, wanted)
            for call in (deployment.plan, deployment.deploy):
                with pytest.raises(errors.ConfigError, match=f"q: subscriber 'workers': .*{re.escape(tells)}"):
                    call(config)
    assert not (tmp_path / "first").exists()


def wrong(place: str, *tells: str, **queue: Any) -> Any:
    """Make a case: a queue that is wrong at one position."""
    return pytest.param({"path": "q", **queue}, place, tells, id=f"{place} {' '.join(tells)}")


MISTAKES = [
    pytest.param({}, "$.queues[1]", ["path"], id="no path"),
    pytest.param("q", "$.queues[1]", ["object"], id="no object"),
    wrong(".path", "str", "int", path=5),
    wrong(".path", "not empty", path=""),
    wrong(".path", "without NUL", path="a\0b"),
    wrong(".path", "as a file name", path="\ud800"),
    wrong("", "unknown field `strateggy`", strateggy="prune_first"),
    wrong(".subscribers", "array", "str", subscribers="ab"),
    wrong(".subscribers", "array", "null", subscribers=None),
    wrong(".subscribers[1]", "int", subscribers=["a", 5]),
    wrong(".subscribers[0]", "1 to 255 bytes", subscribers=[""]),
    wrong(".subscribers[0]", "1 to 255 bytes", subscribers=["\xe9" * 128]),
    wrong(".subscribers[1]", "NUL", subscribers=["a", {
        "identifier": "b\0"
    }]),
    wrong(".subscribers[0]", "unknown field `mode`", subscribers=[{
        "identifier": "a",
        "mode": "0600"
    }]),
    wrong(".subscribers[0]", "identifier", subscribers=[{}]),
    wrong(".subscribers[0].identifier", "int", subscribers=[{
        "identifier": 5
    }]),
    wrong(".subscribers[2]",
          "same subscriber as `$.queues[1].subscribers[0]`",
          "'a'",
          subscribers=["a", "b", {
              "identifier": "a"
          }]),
    wrong(".subscribers[0].shared", "bool", "int", subscribers=[{
        "identifier": "a",
        "shared": 1
    }]),
    *(wrong(f".subscribers[1].{name}", tells, subscribers=["b", {
        "identifier": "a",
        "shared": True,
        name: value
    }]) for name, value, tells in [("lease_s", 0, "from 0.01 to"), (
        "lease_s", 2e9, "10 ** 9"), ("max_deliveries", 0, "from 1 to"), ("retry_delay_s", -1, "from 0 to"),
                                   ("retry_delay_max_s", -1, "from 0 to"), ("dead_letters_max", 10**7, "to 1000000")]),
    wrong(".high_watermark", "unknown field `max`", high_watermark={"max": 1}),
    wrong(".high_watermark.max_messages", "int", "str", high_watermark={"max_messages": "5"}),
    wrong(".high_watermark.max_messages", "int", "bool", high_watermark={"max_messages": True}),
    wrong(".high_watermark.max_messages", "int", "float", high_watermark={"max_messages": 5.0}),
    wrong(".high_watermark.max_messages", "from 1 to", "got 0", high_watermark={"max_messages": 0}),
    wrong(".high_watermark.max_messages", "from 1 to", str(2**63), high_watermark={"max_messages": 2**63}),
    wrong(".high_watermark.hwm_db_size", "from 1 to", high_watermark={"hwm_db_size": 2**46 + 1}),
    wrong(".high_watermark.message_timeout", "0.000001", "got 0", high_watermark={"message_timeout": 0}),
    wrong(".high_watermark.message_timeout", "message_timeout", high_watermark={"message_timeout": 10**90}),
    wrong(".strategy", "prune_first, prune_last", "'PRUNE_FIRST'", strategy="PRUNE_FIRST"),
    wrong(".strategy", "str", "int", strategy=0),
    wrong(".durability", "power_loss, process_crash", "'none'", durability="none"),
    wrong(".message_type", "str", "null", message_type=None),
    wrong(".message_type", "full name", "'shop..Order'", message_type="shop..Order"),
    wrong(".retention_s", "from 0 to 1e+11 seconds", retention_s=-1),
    wrong(".retention_s", "float", "str", retention_s="1"),
    wrong(".deduplication_window_s", "from 1e-06 to", deduplication_window_s=0),
    wrong(".deduplication_max", "at least 1", deduplication_max=0),
    wrong(".deduplication_max", "at most 10000000", deduplication_max=10**8),
    wrong(".subscribers[0].start", "'latest'", "'now'", subscribers=[{
        "identifier": "a",
        "start": "now"
    }]),
    wrong(".subscribers[0].start", "timezone", subscribers=[{
        "identifier": "a",
        "start": "2026-01-31T12:00:00"
    }]),
    wrong(".mode", "str", "int", mode=600),
    *(wrong(".mode", "octal", repr(mode), mode=mode)
      for mode in ("0400", "0o600", "1600", "0690", "", "0600\n", "06000")),
    wrong(".path", "same queue as `$.queues[0].path`", path="./x/../first"),
    wrong(".path", "same queue as `$.queues[0].path`", path="link"),
]


@pytest.mark.parametrize("second, place, tells", MISTAKES)
def test_a_mistake_names_its_place_and_nothing_is_touched(second: Any, place: str, tells: List[str],
                                                          tmp_path: pathlib.Path) -> None:
    """An error in one of three queues names file and position, and changes no queue."""
    deployment.deploy(write(tmp_path, {"path": "third"}))
    (tmp_path / "link").symlink_to("first")
    config = write(tmp_path, {"path": "first"}, second, {"path": "third", "subscribers": ["a"]})
    before = tree(tmp_path)
    for call in (deployment.plan, deployment.deploy):
        with pytest.raises(errors.ConfigError) as raised:
            call(config)
        message = str(raised.value)
        assert message.startswith(f"{config}: ")
        assert re.search(f" at `{re.escape(place if place.startswith('$') else '$.queues[1]' + place)}`", message)
        assert all(tell.replace("`", "") in message.replace("`", "") for tell in tells), message
        assert isinstance(raised.value, ValueError)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("text, tells", [
    (b"", "line 1 column 1"),
    (b'{"queues": [\n{"path": "q"},\n]}', "line 3 column 1|line 2 column 14"),
    (b'{"queues": [{"path": "\xff"}]}', "UTF-8"),
    (b'{"queues": ' + b"[" * 200_000, "deep"),
    (b"[]", r"object.*at `\$`|Expected `object`"),
    (b"{}", "queues"),
    (b'{"queues": {}}', r"at `\$\.queues`"),
    (b'{"queues": [], "queue": []}', "unknown field `queue`"),
    (b'{"queues": [{"path": "q", "subscribers": ["a"], "subscribers": []}]}', "`subscribers` twice"),
    (b'{"queues": [{"path": "q", "retention_s": %s}]}' % (b"9" * 5000), "5000 digits"),
    (b'{"queues": [{"path": "q", "retention_s": -%s}]}' % (b"9" * 101), "102 digits"),
    (b'{"queues": [{"path": "q", "retention_s": %s}]}' % (b"9" * 100), "retention_s"),
    (b'{"queues": [{"path": "q", "retention_s": NaN}]}', "NaN is not a number"),
    (b'{"queues": [{"path": "q", "retention_s": -Infinity}]}', "-Infinity is not a number"),
    (b'{"queues": [{"path": "q", "retention_s": 1e999}]}', "retention_s"),
    (b'{"queues": [{"path": "\\ud800"}]}', "path"),
])
def test_files_that_are_no_config(text: bytes, tells: str, tmp_path: pathlib.Path) -> None:
    """A file that is not JSON, or not of the form, is refused, and so is a name that is given twice."""
    config = tmp_path / "config.json"
    config.write_bytes(text)
    with pytest.raises(errors.ConfigError, match=tells) as raised:
        deployment.deploy(config)
    assert str(raised.value).startswith(f"{config}: ")
    assert list(tmp_path.iterdir()) == [config]


def test_a_byte_order_mark_is_passed_over(tmp_path: pathlib.Path) -> None:
    """A config that an editor began with a byte order mark is the same config."""
    config = tmp_path / "config.json"
    config.write_bytes(b'\xef\xbb\xbf{"queues": [{"path": "q"}]}')
    assert len(deployment.plan(config)) == 1


@pytest.mark.parametrize("start", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_the_first_and_the_last_moment(start: str, tmp_path: pathlib.Path) -> None:
    """A new subscriber may begin at any time that Python can name."""
    config = write(tmp_path, {"path": "q", "subscribers": [{"identifier": "a", "start": start}]})
    assert deployment.deploy(config) and not deployment.plan(config)


def test_a_config_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    """A config that is missing, or a directory, is an error of the path."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(errors.PathError, match=re.escape(str(path))):
            deployment.deploy(path)


@pytest.mark.parametrize("content", ["file", "foreign"])
def test_a_path_that_cannot_be_a_queue_touches_nothing(content: str, tmp_path: pathlib.Path) -> None:
    """If the second path of three is a file, or of another program, the first queue is not made."""
    second = tmp_path / "second"
    if content == "foreign":
        second.mkdir()
        second = second / "data.mdb"
    second.write_bytes(b"something else" * 1000)
    config = write(tmp_path, {"path": "first"}, {"path": "second"}, {"path": "third"})
    before = tree(tmp_path)
    with pytest.raises((errors.PathError, errors.FormatError), match=re.escape(str(tmp_path / "second"))):
        deployment.deploy(config)
    assert tree(tmp_path) == before
    second.unlink()


def test_a_plan_after_a_boot_changes_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first commit to a queue since the boot is left to whoever has something to write."""
    config = write(tmp_path, {"path": "q"})
    deployment.deploy(config)
    monkeypatch.setattr(clock, "boot_id", lambda: b"another boot's  ")
    before = tree(tmp_path)
    assert not deployment.plan(config)
    assert not deployment.deploy(config)
    assert tree(tmp_path) == before


def test_describe_without_a_queue(tmp_path: pathlib.Path) -> None:
    """To describe a queue that nobody set up is an error, and leaves nothing there."""
    with pytest.raises(errors.NotInitializedError, match=re.escape(str(tmp_path / "q"))):
        deployment.describe(tmp_path / "q")
    assert not list(tmp_path.iterdir())


def test_describe_returns_all_that_a_config_can_say(tmp_path: pathlib.Path) -> None:
    """``describe`` returns the config that was deployed, with the path in full."""
    deployment.deploy(write(tmp_path, QUEUE))
    described = json.loads(deployment.describe(tmp_path / "queues" / "orders"))
    assert described == {
        "queues": [{
            **QUEUE, "path": str(tmp_path / "queues" / "orders"),
            "subscribers": ["audit", "billing"]
        }]
    }


def test_describe_a_path_that_is_not_utf_8(tmp_path: pathlib.Path) -> None:
    """A queue in a directory whose name is no text can be set up, backed up, described, and deployed from that."""
    path = tmp_path / os.fsdecode(b"\xff")
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"])
        environment.new_control().backup(tmp_path / os.fsdecode(b"\xfe"))
    (tmp_path / "config.json").write_text(deployment.describe(path), encoding="utf-8")
    assert not deployment.deploy(tmp_path / "config.json")


@pytest.mark.parametrize("timeout", [1e-6, 0.1, 1 / 3, 4294967.2959999, 9e9 + 1 / 3, 1e11 - 1 / 3, 1e11])
def test_odd_timeouts_settle(timeout: float, tmp_path: pathlib.Path) -> None:
    """A timeout that a queue cannot store to the last digit is deployed once, and so is what describe makes of it."""
    config = write(tmp_path, {"path": "q", "high_watermark": {"message_timeout": timeout}})
    assert len(deployment.deploy(config)) == 2
    assert not deployment.deploy(config)
    config.write_text(deployment.describe(tmp_path / "q"), encoding="utf-8")
    assert not deployment.plan(config)


identifiers = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
workers = st.fixed_dictionaries({"identifier": identifiers, "shared": st.just(True)}, optional={
    "lease_s": st.floats(0.01, 1e9),
    "max_deliveries": st.integers(1, 10**9),
    "retry_delay_s": st.floats(0, 60),
    "retry_delay_max_s": st.floats(60, 1e9),
    "dead_letters_max": st.integers(1, 10**6),
})  # yapf: disable
queues = st.fixed_dictionaries({}, optional={
    "subscribers": st.lists(st.one_of(identifiers, st.builds(lambda name: {"identifier": name}, identifiers), workers),
                            max_size=4,
                            unique_by=lambda one: one["identifier"] if isinstance(one, dict) else one),
    "high_watermark": st.fixed_dictionaries({}, optional={
        "message_timeout": st.one_of(st.none(), st.floats(1e-6, 1e11), st.integers(1, 10**11)),
        "max_messages": st.one_of(st.none(), st.integers(1, 2**63 - 1)),
        "hwm_db_size": st.one_of(st.none(), st.integers(1, 2**33)),
    }),
    "strategy": st.sampled_from(["prune_first", "prune_last", "refuse"]),
    "durability": st.sampled_from(["power_loss", "process_crash"]),
    "message_type": st.from_regex(checks.MESSAGE_TYPE, fullmatch=True),
    "mode": st.sampled_from(["0600", "0660", "640", "0777"]),
})  # yapf: disable


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.lists(queues, min_size=1, max_size=2))
def test_every_config_can_be_deployed_and_described(configs: List[Dict[str, Any]]) -> None:
    """Any config has no changes once deployed, and so has what describe returns of its queues."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        config = write(directory, *({**queue, "path": f"q{index}"} for index, queue in enumerate(configs)))
        planned = deployment.plan(config, remove_subscribers=True)
        assert deployment.deploy(config) == planned
        assert not deployment.plan(config, remove_subscribers=True)
        for index in range(len(configs)):
            config.write_text(deployment.describe(directory / f"q{index}"), encoding="utf-8")
            assert not deployment.plan(config, remove_subscribers=True)
            with persipubsub.new_environment(directory / f"q{index}") as environment:
                assert environment.new_control().check() == ()


def test_a_queue_with_messages_stays_bound(tmp_path: pathlib.Path) -> None:
    """A config that binds a queue with messages to another type is refused with its path, and touches no queue."""
    deployment.deploy(write(tmp_path, QUEUE))
    path = tmp_path / "queues" / "orders"
    again = write(tmp_path, {"path": "new"}, {"path": QUEUE["path"], "message_type": "shop.Invoice"})
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(b"")
        for change in (deployment.plan, deployment.deploy):
            with pytest.raises(errors.MessageTypeError, match=f"{path}: .*shop.Order and has 1 messages.*shop.Invoice"):
                change(again)
        assert not (tmp_path / "new").exists()
        environment.new_control().clear_messages()
    assert str(deployment.deploy(again)[1]) == f"{path}: message_type 'shop.Order' -> 'shop.Invoice'"
    assert status(path).message_type == "shop.Invoice"


def test_a_change_is_one_line(tmp_path: pathlib.Path) -> None:
    """A change is shown in one line, whatever the names are."""
    path = tmp_path / "a\nb"
    for before, after in ((None, "x\ny\u2028"), ("x\ny\u2028", None), ("prune_first", "prune_last")):
        assert len(str(deployment.Change(path, "subscriber", before, after)).splitlines()) == 1


def objects(node: Any) -> Iterator[Dict[str, Any]]:
    """Find the schemas of objects."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from objects(child)


def test_schema() -> None:
    """The schema has each field with its limits, requires what is required, and refuses all else."""
    schema = json.loads(deployment.schema())
    definitions = schema["$defs"]
    assert schema["$ref"] == "#/$defs/Config"
    assert all(node["additionalProperties"] is False for node in objects(schema))
    queue = definitions["QueueConfig"]
    assert queue["required"] == ["path"] and set(queue["properties"]) == set(QUEUE)
    assert queue["properties"]["strategy"]["enum"] == ["prune_first", "prune_last", "refuse"]
    assert queue["properties"]["durability"]["enum"] == ["power_loss", "process_crash"]
    assert re.fullmatch(queue["properties"]["mode"]["pattern"], "0660")
    mark = definitions["MarkConfig"]["properties"]
    assert mark["max_messages"]["anyOf"] == [{**mark["max_messages"]["anyOf"][0], "type": "integer"}, {"type": "null"}]
    assert (mark["max_messages"]["anyOf"][0]["minimum"], mark["max_messages"]["anyOf"][0]["maximum"]) == (1, 2**63 - 1)
    assert set(mark) == set(QUEUE["high_watermark"])


def test_a_config_may_name_its_schema(tmp_path: pathlib.Path) -> None:
    """``$schema``, by which editors find the schema, is no unknown field."""
    config = write(tmp_path, {"path": "q"}, **{"$schema": "persipubsub.schema.json"})
    assert len(deployment.deploy(config)) == 1


# The commands


@pytest.mark.slow
def test_deployments_at_the_same_time(tmp_path: pathlib.Path) -> None:
    """Processes that deploy one config at the same time all succeed, whichever of them does the work."""
    many = [f"s{index}" for index in range(300)]
    config = tmp_path / "config.json"
    for subscribers in (many, ["s0"]):
        write(tmp_path, {"path": "q", "subscribers": subscribers, "mode": "0660"}, {"path": "r", "subscribers": many})
        command = [sys.executable, "-m", "persipubsub", "deploy", str(config), "--remove-subscribers"]
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
                for _ in range(3)
            ]
            for process in processes:
                _, stderr = process.communicate(timeout=60)
                assert (process.returncode, stderr) == (0, b"")
        assert set(status(tmp_path / "q").subscribers) == set(subscribers)
        assert not deployment.plan(config, remove_subscribers=True)


@pytest.mark.parametrize("debug", [False, True])
def test_errors_of_the_command(debug: bool, tmp_path: pathlib.Path) -> None:
    """A wrong config is one line on standard error and status 1, and a traceback where that is asked for."""
    config = write(tmp_path, {"path": "q", "mode": "0000"})
    result = subprocess.run([sys.executable, "-m", "persipubsub", *["--debug"] * debug, "deploy",
                             str(config)],
                            cwd=ROOT,
                            capture_output=True,
                            text=True,
                            timeout=60,
                            check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert ("Traceback" in result.stderr) == debug
    assert "$.queues[0].mode" in result.stderr.splitlines()[-1]
    assert debug or result.stderr.count("\n") == 1
