"""The connections of this process, one for each cluster and user, however many queues it uses."""

import os
import threading
from typing import Dict, Tuple

from persipubsub.nats_engine import loop_thread
from persipubsub.nats_engine.connection import Connection
from persipubsub.nats_engine.url import Target

Key = Tuple[object, ...]

_open: Dict[Key, Connection] = {}  # pylint: disable=invalid-name  # a forked child replaces it
_lock = threading.Lock()  # pylint: disable=invalid-name  # a forked child replaces it


def _after_fork_in_child() -> None:
    global _open, _lock  # pylint: disable=global-statement  # this process has its own
    loop_thread.abandon(_open)
    _open, _lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _key(target: Target) -> Key:
    return (target.hosts, target.user, target.secret, target.credentials, repr(target.tls), target.secure,
            target.timeout_s)


def acquire(target: Target) -> Connection:
    """Return the connection to a cluster, which is shared until all its users have released it."""
    with _lock:
        connection = _open.get(_key(target))
        if connection is None:
            connection = _open[_key(target)] = Connection(target)
        connection.users += 1
        return connection


async def release(connection: Connection) -> None:
    """Close a connection unless others use it."""
    with _lock:
        connection.users -= 1
        if connection.users:
            return
        for key, one in list(_open.items()):
            if one is connection:
                del _open[key]
    await connection.close()
