"""Recovering keeps messages that were handed out and not acknowledged, dead letters and requeued ones."""

import collections
import pathlib
import random
from typing import Callable, Dict, NamedTuple, Tuple

import pytest

import persipubsub
from persipubsub import Durability, Environment, recovery
from persipubsub.lmdb_engine.process import files, opening_check
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.delivery_layouts import REQUEUED
from persipubsub.lmdb_engine.records.layouts import SubDatabases
from persipubsub.lmdb_engine.records.page_file import PageFile
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.repair import orphan_pages
from tests.repair.pages import compacted, destroy, destroy_trees, sub_databases

pytestmark = pytest.mark.slow  # starts many processes, or waits

MakeEnvironment = Callable[..., Environment]
#: Some have several parts, and pages of their own.
MESSAGES = [bytes([number]) * (150_000 if number % 20 == 7 else 900 + number) for number in range(120)]
LETTERS_FROM = 40


class Failed(Exception):
    """Raised in the blocks of receives."""


@pytest.fixture(name="path")
def path_fixture(new_environment: MakeEnvironment) -> pathlib.Path:
    """Make a queue whose shared and plain subscriber have 40 dead letters each, half requeued, and 20 in flight."""
    with new_environment("plain", durability=Durability.PROCESS_CRASH) as environment:
        control = environment.new_control()
        control.add_subscriber("shared", shared=True, max_deliveries=1, retry_delay_s=0)
        control.add_subscriber("limited", max_deliveries=1)
        control.add_subscriber("slow", shared=True, max_deliveries=5, retry_delay_s=50)
        environment.new_publisher().send_many(MESSAGES)
        for identifier, count in (("shared", LETTERS_FROM), ("limited", LETTERS_FROM), ("slow", 20)):
            for _ in range(count):
                with pytest.raises(Failed), environment.new_subscriber(identifier).receive():
                    raise Failed("too \N{SNOWMAN}" * 20)
        for identifier in ("shared", "limited"):
            ids = [letter.id for letter in control.dead_letters(identifier)]
            assert control.requeue_dead_letters(identifier, ids[::2]) == LETTERS_FROM // 2
        assert control.check() == ()
    return environment.path


class DeadLetters(NamedTuple):
    """What a queue has outside the log, and how often what is in flight was handed out; each by subscriber and id."""

    dead: Dict[Tuple[str, int], bytes]
    requeued: Dict[Tuple[str, int], bytes]
    counted: Dict[Tuple[str, int], int]


def sizes(found: DeadLetters) -> Tuple[int, int, int]:
    """Count them."""
    return len(found.dead), len(found.requeued), len(found.counted)


def letters(path: pathlib.Path) -> DeadLetters:
    """Read them."""

    def read(txn: Transaction) -> DeadLetters:
        found = DeadLetters({}, {}, {})
        for identifier, place in txn.subscribers():
            if place.policy is None:
                continue
            name, outside = identifier.decode(), txn.dead_letters(place.number)
            found.dead.update({(name, id_): outside.get(id_).payload for id_ in outside.dead_ids()})
            for message_id, entry in txn.in_flight(place).all():
                if message_id >= REQUEUED:
                    found.requeued[name, message_id - REQUEUED] = outside.get(message_id - REQUEUED).payload
                elif entry.deliveries and txn.has_message(message_id):
                    found.counted[name, message_id] = entry.deliveries
        return found

    return database.inspect(path, read)


def test_recover_a_sound_queue(path: pathlib.Path) -> None:
    """All dead letters, requeued messages and counts of deliveries are there."""
    before = letters(path)
    assert sizes(before) == (LETTERS_FROM, LETTERS_FROM, 20)
    with persipubsub.new_environment(path) as environment:
        deaths = list(environment.new_control().dead_letters("shared"))
        status = environment.new_control().status().subscribers
    report = recovery.recover(path)
    assert (report.dead_letters, report.requeued, report.in_flight) == sizes(before)
    assert (report.messages_lost, report.letters_lost, report.problems) == (0, 0, ())
    assert letters(path) == before
    with persipubsub.new_environment(path) as environment:
        assert environment.new_control().check() == ()
        assert list(environment.new_control().dead_letters("shared")) == deaths
        after = environment.new_control().status().subscribers
        assert {name: one.pending for name, one in after.items()} == {name: one.pending for name, one in status.items()}


def assert_report_is_true(path: pathlib.Path, report: recovery.Report, sent: DeadLetters) -> None:
    """What a report says was saved is there, byte for byte, and the queue is sound."""
    use_lock = opening_check.try_exclusive(path)
    assert use_lock is not None
    try:
        assert not opening_check.violations(path)
    finally:
        use_lock.close()
    after = letters(path)
    assert sizes(after) == (report.dead_letters, report.requeued, report.in_flight)
    for key, payload in [*after.dead.items(), *after.requeued.items()]:
        assert key in {**sent.dead, **sent.requeued}
        assert payload == MESSAGES[key[1] - 1], key
    assert all(count <= sent.counted.get(key, 1) for key, count in after.counted.items())
    with persipubsub.new_environment(path) as environment:
        history = {record.id: record.payload for record in environment.new_control().history()}
        assert len(history) == report.messages
        assert all(payload == MESSAGES[id_ - 1] for id_, payload in history.items())
        for identifier in environment.new_control().status().subscribers:
            counts = collections.Counter(environment.new_subscriber(identifier).messages(timeout=0))
            assert set(counts) <= set(MESSAGES) and max(counts.values(), default=0) <= 2


@pytest.mark.damages_queues
def test_dead_letters_are_found_without_trees(path: pathlib.Path) -> None:
    """Without trees, dead letters and counts are found by the shape of their keys."""
    before = letters(path)
    compacted(path)
    destroy_trees(path)
    report = recovery.recover(path)
    assert (report.dead_letters, report.requeued, report.in_flight) == sizes(before)
    assert report.letters_lost == 0
    assert letters(path) == before
    assert_report_is_true(path, report, before)


@pytest.mark.damages_queues
@pytest.mark.parametrize("name, dead, requeued, counted", [
    ("index_db", 80, 0, 0),
    ("dead_letter_db", 40, 40, 20),
    ("letter_db", 0, 0, 20),
    ("due_db", 40, 40, 20),
    ("pending_db", 40, 40, 20),
])
def test_recover_without_a_sub_database(name: str, dead: int, requeued: int, counted: int, path: pathlib.Path) -> None:
    """If a sub-database is lost, the others say what there is; what may be a dead letter is one."""
    before = letters(path)
    compacted(path)
    destroy(path, sub_databases(path)[name])
    report = recovery.recover(path)
    assert (report.dead_letters, report.requeued, report.in_flight) == (dead, requeued, counted)
    assert report.letters_lost == 80 - dead - requeued
    with persipubsub.new_environment(path) as environment:
        lost = [letter for letter in environment.new_control().dead_letters("shared") if "damaged" in letter.error_text]
        assert len(lost) == {"index_db": 20, "dead_letter_db": 20}.get(name, 0)
    assert_report_is_true(path, report, before)


@pytest.mark.damages_queues
def test_what_may_be_in_flight_comes_again_without_an_index(path: pathlib.Path) -> None:
    """Without its index, a shared subscriber gets again what it may not have acknowledged."""
    compacted(path)
    destroy(path, sub_databases(path)["index_db"])
    recovery.recover(path)
    with persipubsub.new_environment(path) as environment:
        assert list(environment.new_subscriber("slow").messages(timeout=0)) == MESSAGES


@pytest.mark.damages_queues
@pytest.mark.parametrize("seed", range(25))
def test_the_report_is_true(seed: int, path: pathlib.Path) -> None:
    """Whatever pages are destroyed, the queue is sound, and what the report says was saved is there."""
    before, rng = letters(path), random.Random(seed)
    if seed % 2:
        compacted(path)
    with PageFile(path / files.DATA_FILE) as opened:
        # Not the inner pages of large values: LMDB has no checksums, so that nobody can see that those are zeros.
        pages = [number for number in range(opened.pages()) if _is_page(opened, number)]
    destroy(path, set(rng.sample(pages, rng.choice((1, 2, 5, len(pages) // 3)))))
    assert_report_is_true(path, recovery.recover(path), before)


def _is_page(opened: PageFile, number: int) -> bool:
    """Return whether a page has a header, as all have but those inside of large values."""
    try:
        return number < 2 or bool(opened.page(number))
    except ValueError:
        return False


@pytest.mark.parametrize("compact", [False, True])
def test_no_page_is_mistaken_for_another(compact: bool, path: pathlib.Path) -> None:
    """No leaf page of a sub-database is mistaken for one of another."""
    with persipubsub.new_environment(path) as environment:
        publisher = environment.new_publisher()
        for number in range(300):
            publisher.send(b"once", deduplication_id=f"{number:012d}")
            publisher.send_later(b"%d" % number, delay_s=10**6 + number)
    if compact:
        compacted(path)
    of_kinds = sub_databases(path)
    assert set(of_kinds) == set(SubDatabases._fields)
    with PageFile(path / files.DATA_FILE) as opened:
        opened.newest_meta()
        for name, pages in of_kinds.items():
            assert pages, name
            for number in pages:
                # Nothing shows whose deduplication ids are; those are in once_order_db as well.
                expected = None if name == "once_db" else name
                assert orphan_pages.guess(opened, opened.page(number)) == expected, name
