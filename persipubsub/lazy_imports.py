"""Import modules when they are first used, in a way that forks of other threads wait for.

Python locks a module while a thread imports it. A child that is forked meanwhile inherits the lock, but not the thread
that would release it, so its own import of the module would never end.

A thread first announces that it imports or forks, and then looks for others: of two threads, at least one sees the
other. The importing one gives way. No lock is held, and announcements grow old, so an interrupt leaves nothing behind.
"""

import os
import threading
from typing import Dict

from persipubsub import clock

#: The longest wait of a fork for an import, which takes milliseconds, and on a busy machine perhaps a second.
FORK_WAIT_S_MAX = 10.0
#: The longest wait of an import for a fork, which takes milliseconds.
IMPORT_WAIT_S_MAX = 1.0
LOOK_S = 0.001

# When threads began to import and to fork, by their identifiers.
_importing_s: Dict[int, float] = {}
_forking_s: Dict[int, float] = {}


class NoFork:
    """A context in which a module is imported, and no other thread forks."""

    def __enter__(self) -> None:
        thread = threading.get_ident()
        _importing_s[thread] = clock.monotonic_s()
        while _others(_forking_s, IMPORT_WAIT_S_MAX):
            _importing_s.pop(thread, None)
            clock.sleep(LOOK_S)
            _importing_s[thread] = clock.monotonic_s()

    def __exit__(self, *exc_info: object) -> None:
        _importing_s.pop(threading.get_ident(), None)


def _others(began_s: Dict[int, float], longest_s: float) -> bool:
    """Return whether another thread has announced itself. One's own may be interrupted by this signal handler."""
    thread, since_s = threading.get_ident(), clock.monotonic_s() - longest_s
    return any(other != thread and at_s > since_s for other, at_s in list(began_s.items()))


def _before_fork() -> None:
    _forking_s[threading.get_ident()] = clock.monotonic_s()
    while _others(_importing_s, FORK_WAIT_S_MAX):
        clock.sleep(LOOK_S)
        _forking_s[threading.get_ident()] = clock.monotonic_s()


def _after_fork_in_parent() -> None:
    _forking_s.pop(threading.get_ident(), None)


def _after_fork_in_child() -> None:
    _importing_s.clear()
    _forking_s.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
