"""Threads between event loops and the queue: no access to the queue runs on a loop.

- *Reading*: one thread reads the queue for all tasks that ask at the same time.
- *Writing*: another thread commits the writes of all tasks in one transaction. A loop hands over its writes once per
  iteration, so that tasks that resume together write together. A task that alone writes one by one does not wait for
  the end of the iteration.
- *Waiting*: a :class:`Watcher` sleeps until something is published, for all waiting tasks.

Each of these threads lives while it has work, and a moment longer.

No wake-up is missed. A waiting task registers with the watcher first and looks into the queue second. The watcher
announces that it will sleep (``Watch.arm``), then looks for all registered tasks, then sleeps unless something was
published since the announcement. So the queue is looked into for each task after the
announcement, whether the task registered before or later. Whatever is published after that look ends the sleep.
"""

import asyncio
import collections
import contextlib
import copy
import dataclasses
import os
import threading
from typing import Any, Callable, Deque, Dict, Generic, Iterable, List, Optional, TypeVar

from persipubsub import clock, errors
from persipubsub.endpoints.room import Deadline, SendingCommand
from persipubsub.endpoints.room_watcher import RoomWatcher
from persipubsub.endpoints.sending import Sender
from persipubsub.endpoints.threads import BatchThread, started
from persipubsub.engine import limits
from persipubsub.engine.commands import Command, Outcome
from persipubsub.engine.limits import DELAY_S_MAX
from persipubsub.engine.protocols import Engine, Watch
from persipubsub.engine.values import NEVER_US

T = TypeVar("T")


class Port:
    """Passes results from the threads to an event loop, in batches."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.outgoing: List["Job"] = []  # of this iteration of the loop
        self.last_task = 0  # the id of the task that wrote last
        self._arrived: Deque[Callable[[], object]] = collections.deque()
        self._called = False  # whether the loop will handle what has arrived

    def post(self, callback: Callable[[], object]) -> None:
        """Call a function on the loop. Any thread may call this; if the loop is closed, nothing happens."""
        self._arrived.append(callback)
        if not self._called:
            self._called = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._arrived.clear()  # the loop is closed, so no task waits

    def _deliver(self) -> None:
        self._called = False  # first, so that whatever arrives later calls again
        while self._arrived:
            self._arrived.popleft()()


class Job:
    """A write that a task waits for, and its outcome."""

    outcome: Optional[Outcome] = None

    def __init__(self, port: Port, command: Command) -> None:
        self.port = port
        self.command = command
        self.future: "asyncio.Future[None]" = port.loop.create_future()
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Claim the job for the first caller: the thread that runs it, or the task that withdraws it."""
        return self._claim.acquire(blocking=False)  # pylint: disable=consider-using-with  # never released

    def done(self) -> None:
        """Wake the task. Call this on the loop."""
        if not self.future.done():
            self.future.set_result(None)

    async def result(self, withdraws: bool) -> Any:
        """Wait for the outcome, even if the task is cancelled meanwhile.

        :param withdraws: whether a cancellation before the write has begun withdraws it
        """
        cancelled: Optional[asyncio.CancelledError] = None
        while self.outcome is None:
            try:
                await self.future
            except asyncio.CancelledError as error:
                if withdraws and self.claim():
                    raise
                cancelled = error
                self.future = self.port.loop.create_future()  # the other one was cancelled with the task
        if cancelled is not None:
            raise cancelled from self.outcome.error
        if self.outcome.error is not None:
            raise _own(self.outcome.error)
        return self.outcome.result


def _own(error: Exception) -> Exception:
    """Return a copy of an error that several tasks get, so that each has its own traceback."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)


@dataclasses.dataclass
class Seen(Generic[T]):
    """The result of a look into the queue."""

    value: T
    found: bool = True  # whether the task waits for this
    due_us: int = NEVER_US  # time since boot at which a message may be due without a send


class Look(Generic[T]):  # pylint: disable=too-many-instance-attributes  # a wait has many ends
    """A task that waits until a look into the queue finds something."""

    def __init__(self, port: Port, look: Callable[[], Seen[T]], give_back: Callable[[T], object],
                 look_again: "Callable[[Look[T]], object]") -> None:
        """Prepare to look.

        :param port: of the loop of the task
        :param look: reads the queue; called on any thread
        :param give_back: called on the loop with what was found if the task no longer wants it
        :param look_again: repeats the look, off the loop
        """
        self.port = port
        self.future: "asyncio.Future[T]" = port.loop.create_future()
        self._look = look
        self._give_back = give_back
        self._look_again = look_again
        self._due_us = NEVER_US
        # Held during a look: an older look must not overwrite the due time that a newer one has found.
        self._looking = threading.Lock()
        self._timer: Optional[asyncio.TimerHandle] = None

    def run(self, final: bool) -> bool:
        """Look, and return whether the task has its answer.

        :param final: whether the task gets the result even if nothing was found
        """
        with self._looking:
            return self._run(final)

    def _run(self, final: bool) -> bool:
        if self.future.done():
            return True
        try:
            seen = self._look()
        except Exception as error:  # pylint: disable=broad-exception-caught  # raised where the task waits
            self.fail(error)
            return True
        if final or seen.found:
            self._post(lambda: self.future.set_result(seen.value), lambda: self._give_back(seen.value))
            return True
        if seen.due_us != self._due_us:
            self._due_us = seen.due_us
            self._post(lambda: self._set_timer(seen.due_us), lambda: None)
        return False

    def _set_timer(self, due_us: int) -> None:
        self.end()
        if due_us != NEVER_US:
            delay_s = max(0, due_us - clock.boottime_us()) / 1e6
            self._timer = self.port.loop.call_later(min(delay_s, DELAY_S_MAX), self._is_due)

    def _is_due(self) -> None:
        self._due_us = NEVER_US  # so that a look that comes slightly too early sets the timer again
        self._look_again(self)

    def end(self) -> None:
        """Cancel the timer. Call this on the loop."""
        if self._timer is not None:
            self._timer.cancel()

    def fail(self, error: Exception) -> None:
        """Raise an error where the task waits."""
        self._post(lambda: self.future.set_exception(error), lambda: None)

    def _post(self, answer: Callable[[], object], give_back: Callable[[], object]) -> None:
        # The task may be cancelled meanwhile, or another look may be faster.
        self.port.post(lambda: give_back() if self.future.done() else answer())


class Watcher:
    """A thread that sleeps until something is published, for all waiting tasks; it ends when no task waits."""

    def __init__(self, watch: Callable[[float], Watch]) -> None:
        """Prepare the thread; it starts with the first waiting task.

        :param watch: prepares to wait, given the longest sleep between two looks
        """
        self._watch = watch
        self._lock = threading.Lock()
        self._waiting: Dict[Look[Any], None] = {}
        self._thread: Optional[threading.Thread] = None

    def add(self, look: Look[Any]) -> None:
        """Repeat a look after each publication, until the task has its answer. Call this before the first look."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = started(self._run, "persipubsub-watch")
            self._waiting[look] = None

    def discard(self, look: Look[Any]) -> None:
        """Stop repeating a look. Any thread may call this."""
        self._waiting.pop(look, None)

    def _run(self) -> None:
        # One bound for all tasks: it matters only if the wait has to poll.
        watch = self._watch(limits.SLEEP_S_MAX)
        while True:
            watch.arm()
            with self._lock:
                waiting = list(self._waiting)
                if not waiting:
                    self._thread = None
                    watch.close()
                    return
            for look in waiting:
                if look.run(final=False) or look.port.loop.is_closed():
                    self.discard(look)
            watch.wait(limits.SLEEP_S_MAX)


class _Threads:
    """The threads of one process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.reading: BatchThread[Callable[[], object]] = BatchThread("persipubsub-read", _call_all)
        self.writing: BatchThread[Job] = BatchThread("persipubsub-write", self._write)
        self.watcher = Watcher(engine.watch)
        self.room = RoomWatcher(engine)

    def begin(self, look: Look[Any], final: bool) -> None:
        """Look for a task, and let it wait if nothing was found."""
        try:
            if not look.run(final):
                self.watcher.add(look)
                # If it was cancelled before it was added, nothing else would discard it.
                if look.future.done() or look.run(final=False):
                    self.watcher.discard(look)
        except errors.StorageError as error:  # there is no thread to wait on
            look.fail(error)

    def look_again(self, look: Look[Any], final: bool = False) -> None:
        """Repeat the look of a task off the loop. Call this on its loop."""
        try:
            self.reading.submit([lambda: look.run(final)])
        except errors.StorageError as error:
            look.fail(error)

    def _write(self, jobs: List[Job]) -> None:
        jobs = [job for job in jobs if job.claim()]
        if jobs:
            for job, outcome in zip(jobs, self._engine.submit([job.command for job in jobs])):
                job.outcome = outcome
                job.port.post(job.done)


def _call_all(functions: List[Callable[[], object]]) -> None:
    for function in functions:
        function()


class _CurrentPort(threading.local):
    """The port of the event loop of a thread."""

    port: Optional[Port] = None


class Bridge:
    """What the asyncio endpoints of one Environment share. Any number of loops and threads may use it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._current = _CurrentPort()
        # By process: a forked child has none of its parent's threads, and makes its own.
        self._threads: Dict[int, _Threads] = {}

    async def write(self, command: Command, withdraws: bool) -> Any:
        """Commit a write together with those of other tasks. Once this has ended, the outcome is final.

        :param command: what to write
        :param withdraws: whether a cancellation before the write has begun withdraws it
        :return: the result of the command
        """
        port = self._port()
        job = Job(port, command)
        port.outgoing.append(job)
        last_task, port.last_task = port.last_task, id(asyncio.current_task())
        if len(port.outgoing) == 1:
            if port.last_task == last_task:
                self._flush(port)  # this task writes one by one, and probably no other does
            else:
                # After all tasks that can resume now, since they may also write.
                port.loop.call_soon(self._flush, port)
        return await job.result(withdraws)

    async def send(self, command: SendingCommand, sender: Sender, timeout: Optional[float]) -> Any:
        """Commit a command that sends, and wait for room if the queue refuses messages.

        :param timeout: seconds; None waits forever
        :return: the result of the command
        :raise QueueFullError: there was no room in time
        """
        if timeout == 0:
            return await self.write(command, withdraws=True)
        deadline, watcher = Deadline(sender, timeout), self._own_threads().room
        event: Optional[asyncio.Event] = None
        try:
            while True:
                try:
                    return await self.write(command, withdraws=True)
                except errors.QueueFullError as error:
                    sleep_s = deadline.sleep_s(error)
                if event is not None:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(event.wait(), sleep_s)
                    watcher.discard(event)
                event = watcher.register()
        finally:
            if event is not None:
                watcher.discard(event)

    def interrupt(self) -> None:
        """Let all waits of this process look again now."""
        self._engine.interrupt()

    def write_later(self, commands: Iterable[Command]) -> None:
        """Commit writes for which no task waits, if the machine has a thread for it."""
        with contextlib.suppress(errors.StorageError):
            self._own_threads().writing.submit([Job(self._port(), command) for command in commands])

    def _flush(self, port: Port) -> None:
        jobs, port.outgoing = port.outgoing, []
        try:
            self._own_threads().writing.submit(jobs)
        except errors.StorageError as error:
            for job in jobs:
                job.outcome = Outcome(None, error)
                job.done()

    async def read(self, look: Callable[[], T]) -> T:
        """Run a look off the loop."""
        return await self.wait_for(lambda: Seen(look()), 0)

    async def wait_for(self,
                       look: Callable[[], Seen[T]],
                       timeout: Optional[float],
                       give_back: Callable[[T], object] = lambda _: None) -> T:
        """Look into the queue until something is found or the timeout has passed.

        :param look: reads the queue; called on any thread
        :param timeout: seconds to wait; 0 looks once, None waits forever
        :param give_back: called on the loop with what was found if the task was cancelled meanwhile
        :return: the result of the last look
        """
        port, threads = self._port(), self._own_threads()
        waiting: Look[T] = Look(port, look, give_back, threads.look_again)
        threads.reading.submit([lambda: threads.begin(waiting, final=timeout == 0)])
        timer = None if not timeout else port.loop.call_later(timeout, threads.look_again, waiting, True)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if not waiting.future.cancelled() and waiting.future.exception() is None:
                give_back(waiting.future.result())  # the cancellation came between the answer and its arrival
            raise
        finally:
            if timer is not None:
                timer.cancel()
            waiting.end()
            threads.watcher.discard(waiting)

    def _own_threads(self) -> _Threads:
        """Return the threads of this process."""
        pid = os.getpid()
        return self._threads.get(pid) or self._threads.setdefault(pid, _Threads(self._engine))

    def _port(self) -> Port:
        """Return the port of the running loop."""
        loop, port = asyncio.get_running_loop(), self._current.port
        if port is None or port.loop is not loop:
            port = self._current.port = Port(loop)
        return port
