"""A process that has no file descriptors left."""

import functools
import os
import pathlib
import resource
import sys
from typing import Callable

import pytest

import persipubsub
from persipubsub import Environment, errors
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.process import wakeup
from tests.children import start_child, status_of

MakeEnvironment = Callable[..., Environment]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
#: More than a process needs to open a queue.
SPARE_MAX = 12


def open_with(spare: int, path: pathlib.Path) -> int:
    """Open a queue with a few spare descriptors: it works, or the error names the limit; later all is well."""
    wakeup.TRY_EVERY_S = 0  # an operator raises the limit, not a clock
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    while (free := os.open(os.devnull, os.O_RDONLY)) < highest:
        pass  # the limit is on the number of a descriptor, so the free numbers below the others count
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
    environment = persipubsub.new_environment(path)
    try:
        environment.new_control()
        environment.new_publisher().send(b"message")
        status = 0
    except errors.StorageError as error:
        assert "ulimit -n" in str(error) and not isinstance(error, errors.PathError), error
        status = 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    environment.new_publisher().send(b"later")
    with environment.new_subscriber("a").receive_many(timeout=0) as messages:
        assert messages[-1] == b"later"
    held = open_queues.acquire(path)
    assert isinstance(held.watch(1), wakeup.FutexWatch)
    assert isinstance(held.watch_room(1), wakeup.RoomWatch)
    open_queues.release(held)
    environment.close()
    return 10 + status


def test_a_lack_of_descriptors(new_environment: MakeEnvironment) -> None:
    """Whatever opening lacks, the error names the limit; once it is raised, the same process opens and wakes."""
    new_environment("a").close()
    path = new_environment("a").path
    found = [status_of(start_child(functools.partial(open_with, spare, path))) for spare in range(SPARE_MAX)]
    assert set(found) == {10, 11}, found
    assert found == sorted(found, reverse=True), found
