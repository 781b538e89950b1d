"""Queues that were written when their format version was frozen are read, and written, as ever."""

import json
import pathlib
import shutil
from typing import Any, Dict

import pytest

import persipubsub
from persipubsub import Strategy
from persipubsub.engine import values
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records import delivery_layouts, layouts
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import SubDatabases
from persipubsub.lmdb_engine.rules import dead_letters
from tests.golden import make


@pytest.fixture(name="name", params=sorted(make.MAKERS))
def name_fixture(request: pytest.FixtureRequest) -> str:
    """Return the name of a golden queue."""
    return str(request.param)


@pytest.fixture(name="path")
def path_fixture(name: str, tmp_path: pathlib.Path) -> pathlib.Path:
    """Copy a golden queue, which nobody has opened on this machine."""
    path = tmp_path / "queue"
    path.mkdir()
    shutil.copyfile(make.DIRECTORY / name / files.DATA_FILE, path / files.DATA_FILE)
    return path


def expected_of(name: str) -> Dict[str, Any]:
    """Read what was written down of a golden queue."""
    expected: Dict[str, Any] = json.loads((make.DIRECTORY / name / make.EXPECTED_FILE).read_text("utf-8"))
    return expected


def agrees(found: object, expected: object) -> bool:
    """Compare with what was written down; later versions may tell more of a queue or a letter."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(key in found and agrees(found[key], value) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(agrees, found, expected))
    return found == expected


def test_a_golden_queue_has_what_it_had(name: str, path: pathlib.Path) -> None:
    """After another boot it opens, is sound, and status, history, dead letters and messages are as written down."""
    with make.standing_still(make.OTHER_BOOT_ID, make.LATER_US):
        found = make.found(path)
    expected = expected_of(name)
    for part, value in expected.items():
        assert agrees(found[part], value), (part, found[part], value)
    assert not found["check"]


def test_a_golden_queue_opens_on_this_machine(name: str, path: pathlib.Path) -> None:
    """By the true clock it has the same history and the same dead letters, and it can be used."""
    expected = expected_of(name)
    found = make.found(path)
    assert agrees([[one[0], one[2]] for one in found["history"]], [[one[0], one[2]] for one in expected["history"]])
    assert agrees(found["dead_letters"], expected["dead_letters"])
    assert not found["check"]
    with persipubsub.new_environment(path) as environment, environment.new_control() as control:
        message_id = environment.new_publisher().send(b"new")
        assert message_id == expected["status"]["next_id"]
        for identifier in expected["status"]["subscribers"]:
            control.requeue_dead_letters(identifier)
            assert b"new" in list(environment.new_subscriber(identifier).messages(timeout=0))
        assert control.check() == ()


def test_the_same_records_are_written_today(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations still make the same records. The pages of the files may differ: LMDB arranges them."""
    # It names the folder of the checkout. Queues from before have none.
    monkeypatch.setattr(values, "_traceback_of", lambda error: "")
    make.make(name, tmp_path / "again")
    today, golden = make.records(tmp_path / "again"), make.records(make.DIRECTORY / name)
    assert set(today) == set(golden) == set(SubDatabases._fields)
    for sub_database, expected in golden.items():
        assert today[sub_database] == expected, sub_database


def test_golden_queues_have_records_of_every_kind() -> None:
    """No part of the format is without a record that was frozen."""
    found = {name: make.records(make.DIRECTORY / name) for name in make.MAKERS}
    for name in SubDatabases._fields:
        assert any(one[name] for one in found.values()), name
    header = layouts.decode_header(found["log"]["queue_db"][layouts.HEADER_KEY])
    assert header.waiting and header.pruned_timeout and header.pruned_overflow and header.pruned_dangling
    lasting = layouts.decode_header(found["lasting"]["queue_db"][layouts.HEADER_KEY])
    assert lasting.retention_us and lasting.delayed == 3 and layouts.MESSAGE_TYPE_KEY in found["lasting"]["queue_db"]
    assert len(found["log"]["meta_db"]) > 1
    assert any(layouts.DELAYED_KEY.unpack(key)[2] for key in found["lasting"]["delayed_db"])
    without_limits = layouts.decode_header(found["headers"]["queue_db"][layouts.HEADER_KEY])
    assert without_limits[:4] == (*[layouts.NO_LIMIT] * 3, Strategy.refuse.value)
    for name in ("chunk_db", "delayed_db", "letter_db"):
        keys = found["headers"][name]
        assert any(map(layouts.is_headers, keys)) and not all(map(layouts.is_headers, keys))
    assert any(layouts.decode_deduplicated(value).due_us for value in found["headers"]["once_db"].values())
    deliveries = found["deliveries"]
    assert any(delivery_layouts.DEAD_LETTER_KEY.unpack(key)[2] for key in deliveries["letter_db"])
    ids = [delivery_layouts.ENTRY_KEY.unpack(key)[1] for key in deliveries["index_db"]]
    assert any(one >= REQUEUED for one in ids) and any(one < REQUEUED for one in ids)
    entries = list(map(delivery_layouts.decode_delivery, deliveries["index_db"].values()))
    assert any(one.token != delivery_layouts.NO_TOKEN for one in entries) and any(one.failure.type for one in entries)
    values = [*deliveries["dead_letter_db"].values(), *found["headers"]["dead_letter_db"].values()]
    deaths = list(map(delivery_layouts.decode_death, values))
    assert {death.reason for death in deaths} == set(dead_letters.REASONS)
    policies = [layouts.decode_subscriber(value).policy for value in deliveries["subscriber_db"].values()]
    assert {policy and policy.shared for policy in policies} == {None, False, True}
