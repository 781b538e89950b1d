"""The open queues of this process, each opened once for all its Environments, also in forked children."""

import contextlib
import os
import threading
import weakref
from typing import Dict, Optional, Tuple

from persipubsub.engine.clusters import without_files
from persipubsub.engine.limits import MODE_DEFAULT
from persipubsub.engine.values import Configuration
from persipubsub.nats_engine import url
from persipubsub.nats_engine.administration import PERMISSIONS
from persipubsub.nats_engine.engine import NatsEngine, create

Key = Tuple[str, Optional[str], Optional[str], str]


class _Open:
    """A queue that this process has open, and how many Environments use it."""

    def __init__(self, engine: NatsEngine) -> None:
        self.engine = engine
        self.users = 0


_open: Dict[Key, _Open] = {}
# Held for moments only: never while the loop works.
_lock = threading.Lock()  # pylint: disable=invalid-name  # a forked child replaces it


def _after_fork_in_child() -> None:
    global _lock  # pylint: disable=global-statement  # a thread of the parent may hold it
    _lock = threading.Lock()
    for found in _open.values():
        found.engine.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


class NatsAccess:
    """The access of one Environment to a queue: see :class:`persipubsub.engine.protocols.Access`."""

    def __init__(self, location: str, credentials: Optional[str] = None, tls: Optional[url.Tls] = None) -> None:
        """Prepare to use the queue at a URL, without connecting.

        :param credentials: the path of a .creds file
        :param tls: certificates
        :raise ArgumentError: it is not the URL of a queue
        """
        self._target = url.parsed(location, credentials, tls)
        self.location = self._target.shown
        self._user = _User((self.location, self._target.secret, self._target.credentials, repr(self._target.tls)))
        weakref.finalize(self, _release_elsewhere, self._user).atexit = False  # at exit Environments close themselves

    def create(self, configuration: Configuration, mode: int) -> None:
        """Set the queue up, unless it exists.

        :raise UnavailableError: no server answers
        :raise UnsupportedError: the configuration asks for what a cluster cannot do
        """
        if mode != MODE_DEFAULT:
            raise without_files("set the mode of files", PERMISSIONS)
        with _lock:
            found = _open.get(self._user.key)
        if found is None:
            create(self._target, configuration)

    def open(self) -> NatsEngine:
        """Open the queue, or share it with the other Environments of this process.

        :raise NotInitializedError: there is no queue
        :raise UnavailableError: no server answers
        """
        with _lock:
            found = _open.get(self._user.key)
            if found is None:
                found = _open[self._user.key] = _Open(NatsEngine(self._target))
            if not self._user.uses:
                self._user.uses = True
                found.users += 1
        try:
            found.engine.open()
        except BaseException:
            self.close()
            raise
        return found.engine

    def close(self) -> None:
        """Close the queue unless other Environments use it; more than once is fine."""
        _release(self._user)


class _User:
    """Whether an Environment uses its queue."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.uses = False


def _release(user: _User) -> None:
    with _lock:
        found = _open.get(user.key)
        if not user.uses or found is None:
            return
        user.uses = False
        found.users -= 1
        if found.users:
            return
        del _open[user.key]
    found.engine.close()


def _release_elsewhere(user: _User) -> None:
    """Release a queue from another thread: the garbage collector may call this on the loop, which must not wait."""
    if user.uses:
        with contextlib.suppress(RuntimeError):  # Python is ending
            threading.Thread(target=_release, args=(user, ), name="persipubsub-close", daemon=True).start()
