"""The pytest plugin of persipubsub: its fixtures.

It lies outside the package, and imports it only in the fixtures: pytest loads this module in every project where
persipubsub is installed. A project that does not use the fixtures should not pay for importing LMDB.
"""

from typing import TYPE_CHECKING, Iterator

import pytest

if TYPE_CHECKING:
    from persipubsub.testing import Clock, QueueFactory


@pytest.fixture
def persipubsub_queue(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[QueueFactory]":
    """Set up queues, each in a fresh directory; close them after the test and verify their invariants."""
    from persipubsub import testing
    with testing.checked_queues(lambda: tmp_path_factory.mktemp("persipubsub")) as factory:
        yield factory


@pytest.fixture
def persipubsub_clock() -> "Iterator[Clock]":
    """Move the time of all queues of this process forward: ``persipubsub_clock.forward(seconds=3600)``.

    Messages expire, delays and leases end, and so do retention and the deduplication window.
    """
    from persipubsub import clock, testing
    moved = testing.Clock()
    # Not the fixture monkeypatch, whose undo() the test may call.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "boottime_us", moved.boottime_us)
        patch.setattr(clock, "wall_us", moved.wall_us)
        yield moved
