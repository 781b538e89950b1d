"""From the location of a queue to the engine that stores it: a directory, or the URL of another engine."""

import os
import pathlib
from typing import Callable, Dict

from persipubsub import lazy_imports
from persipubsub.engine.protocols import Access

#: By URL scheme: a function that returns the access to the queue at a URL.
ACCESSES: Dict[str, Callable[[str], Access]] = {}


def access(location: str, allow_remote: bool) -> Access:
    """Return the access to the queue at a location; nothing is touched.

    :param location: a directory, for the LMDB engine, or the URL of another engine
    :param allow_remote: whether a directory may lie on a file system that other machines can use
    """
    scheme, separator, _ = location.partition("://")
    if separator and scheme in ACCESSES:
        return ACCESSES[scheme](location)
    with lazy_imports.NoFork():
        from persipubsub.lmdb_engine.open_queues import LmdbAccess  # here, so that only the engines in use load

    # Absolute, so that a later change of the working directory does not make it another queue.
    return LmdbAccess(pathlib.Path(os.path.abspath(location)), allow_remote)
