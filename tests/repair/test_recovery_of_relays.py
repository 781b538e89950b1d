"""What a queue stores for relays outlives repairs and backups, so that each message still arrives once."""

import os
import pathlib
import shutil
from typing import Callable, Dict

import pytest

import persipubsub
from persipubsub import Environment, compaction, environment, errors, recovery
from persipubsub.engine.commands import PutRelayed
from persipubsub.engine.values import Batch, Relayed
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.page_file import PageFile
from persipubsub.lmdb_engine.repair import orphan_pages
from persipubsub.relay import Relay
from tests.damages import Raw
from tests.repair.pages import compacted, destroy, destroy_trees, sub_databases

MakeEnvironment = Callable[..., Environment]
#: Their records fill several pages.
RELAYS = 200
PREFIXES = (layouts.IDENTITY_KEY, layouts.ROUTE_PREFIX, layouts.RELAYED_PREFIX)


@pytest.fixture(name="path")
def path_fixture(new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a queue between two others, with a route, and into which many relays bring messages."""
    source, between = new_environment("relay", name="source"), new_environment("relay", name="between")
    new_environment("a", name="target")
    source.new_publisher().send(b"1")
    bring(tmp_path)
    engine = environment.engine_of(between)
    for number in range(1, RELAYS):
        engine.run(PutRelayed(Batch([b"x"], 1, 1), os.urandom(16), Relayed(), Relayed(number, 10**15 + number)))
    between.close()
    return between.path


def bring(directory: pathlib.Path) -> None:
    """Bring what is there from the source to the queue between, and from there to the target."""
    for source, target in (("source", "between"), ("between", "target")):
        with Relay(directory / source, directory / target) as relay:
            relay.run(timeout=0)


def records(path: pathlib.Path) -> Dict[bytes, bytes]:
    """Return what a queue stores for relays."""
    raw = Raw(path)
    found = {key: value for key, value in raw.all("queue_db") if key.startswith(PREFIXES)}
    raw.environment.close()
    return found


def assert_goes_on(directory: pathlib.Path) -> None:
    """The relays bring what is new, and only that."""
    for name in ("source", "between"):
        with persipubsub.new_environment(directory / name) as queue:
            queue.new_publisher().send(name.encode())
    bring(directory)
    with persipubsub.new_environment(directory / "target") as queue:
        found = list(queue.new_subscriber("a").messages(timeout=0))
    assert found == [b"1", *[b"x"] * (RELAYS - 1), b"between", b"source"]


def restore(path: pathlib.Path) -> None:
    """Replace a queue by its backup."""
    with persipubsub.new_environment(path) as queue:
        queue.new_control().backup(path.parent / "backup")
    shutil.rmtree(path)
    (path.parent / "backup").rename(path)


@pytest.mark.parametrize("work", [recovery.recover, compaction.compact, restore])
def test_a_sound_queue(work: Callable[[pathlib.Path], object], path: pathlib.Path) -> None:
    """Recovering, compacting or restoring a sound queue keeps all that it stores for relays."""
    before = records(path)
    work(path)
    assert records(path) == before and len(before) == RELAYS + 2
    assert_goes_on(path.parent)


def test_without_trees(path: pathlib.Path) -> None:
    """Without trees, the records are found by their shape."""
    before = records(path)
    compacted(path)
    destroy_trees(path)
    assert recovery.recover(path).messages_lost == 0
    assert records(path) == before
    assert_goes_on(path.parent)


def test_no_page_is_mistaken_for_another(path: pathlib.Path) -> None:
    """The pages of these records are recognised, also those that have nothing else."""
    pages = sub_databases(path)["queue_db"]
    with PageFile(path / files.DATA_FILE) as opened:
        opened.newest_meta()
        assert len(pages) > 2 and {orphan_pages.guess(opened, opened.page(number)) for number in pages} == {"queue_db"}


@pytest.mark.damages_queues
def test_a_queue_that_lost_its_identity_is_another_queue(path: pathlib.Path) -> None:
    """A relay does not begin if it cannot know any longer what it has brought."""
    compacted(path)
    destroy(path, sub_databases(path)["queue_db"])
    recovery.recover(path)
    with pytest.raises(errors.ReplacedError, match="made anew"):
        bring(path.parent)


@pytest.mark.damages_queues
def test_a_route_is_lost_with_its_subscriber(path: pathlib.Path) -> None:
    """A subscriber that is lost leaves no route to a later one of its name."""
    compacted(path)
    destroy(path, sub_databases(path)["subscriber_db"])
    recovery.recover(path)
    assert not [key for key in records(path) if key.startswith(layouts.ROUTE_PREFIX)]
    with persipubsub.new_environment(path) as queue:
        assert queue.new_control().check() == ()
