"""Map the location of a queue to the engine that stores it."""

import pathlib

from persipubsub.engine.protocols import Access


def access(path: pathlib.Path, allow_remote: bool) -> Access:
    """Return the access to the queue at a location; nothing is touched.

    :param path: a directory, of the LMDB engine
    :param allow_remote: whether the queue may lie on a file system that other machines can use
    """
    from persipubsub.lmdb_engine.open_queues import LmdbAccess  # here: a program loads only what it uses
    return LmdbAccess(path, allow_remote)
