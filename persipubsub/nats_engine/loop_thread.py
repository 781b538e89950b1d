"""The thread whose event loop does all work with clusters, for all threads of this process.

A forked child has none of its parent's threads, so it starts its own. It leaves the loop and the sockets of its parent
alone: they share state in the kernel, which the parent goes on using.
"""

import asyncio
import atexit
import os
import threading
from typing import Any, Callable, Coroutine, List, Optional, TypeVar

from persipubsub import errors

T = TypeVar("T")

#: How long the end of the process waits for the end of the thread.
JOIN_S = 1.0


class _LoopThread:
    """An event loop that runs in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="persipubsub-nats", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self.loop.close()
            raise errors.StorageError(
                f"The thread that works with the cluster cannot be started ({error}). Raise the "
                "limit of processes and threads, and use the queue before Python ends.") from error

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def stop(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(JOIN_S)


_current: Optional[_LoopThread] = None  # pylint: disable=invalid-name  # it is not a constant
_lock = threading.Lock()  # pylint: disable=invalid-name  # a forked child replaces it
#: Loops of the parents of this process. They are kept, since closing one would end the parent's waits.
_ABANDONED: List[Any] = []


def abandon(inherited: object) -> None:
    """Keep what a forked child inherited and must neither use nor close."""
    _ABANDONED.append(inherited)


def _after_fork_in_child() -> None:
    global _current, _lock  # pylint: disable=global-statement  # this process has its own
    abandon(_current)
    _current, _lock = None, threading.Lock()


def _stop() -> None:
    if _current is not None:
        _current.stop()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_stop)


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of this process, whose thread is started when it is first needed."""
    global _current  # pylint: disable=global-statement  # one for the process
    if _current is None:
        with _lock:
            if _current is None:
                _current = _LoopThread()
    return _current.loop


def call(function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Run a coroutine function on the loop, and wait for its result.

    An exception of a signal handler ends the wait, and cancels the coroutine.
    """
    future = asyncio.run_coroutine_threadsafe(function(*arguments), running_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def post(function: Callable[..., object], *arguments: Any) -> None:
    """Call a function on the loop soon. A signal handler may call this."""
    running_loop().call_soon_threadsafe(function, *arguments)
