"""A thread that waits for tasks until a queue that refuses messages at its high-water mark has room again."""

import asyncio
import threading
from typing import Dict, Optional

from persipubsub.endpoints.threads import started
from persipubsub.engine.limits import SLEEP_S_MAX
from persipubsub.engine.protocols import Engine, Watch


class RoomWatcher:
    """A thread that waits for room, for all tasks that send; it ends when no task waits.

    No wake-up is missed: a task registers first and sends second, and the thread is armed whenever tasks are
    registered. It arms again before it wakes them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._watch: Watch = engine.watch_room(SLEEP_S_MAX)
        self._waiting: "Dict[asyncio.Event, asyncio.AbstractEventLoop]" = {}

    def register(self) -> asyncio.Event:
        """Return an event that is set when there may be room. Call this on the loop of the task."""
        event = asyncio.Event()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._watch = self._engine.watch_room(SLEEP_S_MAX)
                self._watch.arm()
                self._thread = started(self._run, "persipubsub-room")
            self._waiting[event] = asyncio.get_running_loop()
        return event

    def discard(self, event: asyncio.Event) -> None:
        """Forget an event."""
        with self._lock:
            self._waiting.pop(event, None)

    def _run(self) -> None:
        while True:
            self._watch.wait(SLEEP_S_MAX)
            self._watch.arm()
            with self._lock:
                waiting, self._waiting = self._waiting, {}
                if not waiting:
                    self._thread = None
                    self._watch.close()
                    return
            for event, loop in waiting.items():
                try:
                    loop.call_soon_threadsafe(event.set)
                except RuntimeError:
                    pass  # the loop is closed, so no task waits
