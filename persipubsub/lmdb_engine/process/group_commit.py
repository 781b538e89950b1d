"""One write transaction for all threads that want to write at this moment (group commit).

Whoever comes while nobody leads becomes the leader: it runs its own operation and all that are queued in one
transaction, and hands the leadership over when that is committed. The others wait for their results.

Invariants, which hold also where a ``KeyboardInterrupt`` strikes between any two lines:

- Who leads is one entry of a dict, set by ``setdefault`` and removed by ``pop``, each one uninterruptible step.
- A request's result is stored before its group commits, and whether the group has committed is told by its
  transaction: a follower whose leader was interrupted finds out by itself, and its operation runs exactly once.
- A wake-up is a hint. Who waits looks again every second.
- :meth:`Writer.run_all` is for threads of the library's own, which nobody interrupts.
- No lock is held while waiting, so a signal handler that sends waits for nothing that only its own thread could give.
"""

import collections
import logging
import pathlib
import threading
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Sequence, TypeVar

from persipubsub import clock, errors
from persipubsub.engine.commands import Outcome
from persipubsub.engine.values import NEVER_US
from persipubsub.lmdb_engine.process.session import Session
from persipubsub.lmdb_engine.process.wakeup import Wakeup
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import delays, message_log

T = TypeVar("T")

GROUP_MESSAGES_MAX = 10_000
GROUP_BYTES_MAX = 64 * 1024**2
#: Who waits for its result looks again after this time, whatever happens.
WAIT_S_MAX = 1.0

#: So long does a leader wait for those who were in the commit before: about as long as a fast disk takes.
GATHER_S_MAX = 0.0003
GATHER_LOOK_S = 0.00001
#: Messages that went are a warning once in that time, for each reason.
TELL_EVERY_US = 60_000_000

_LEADER = 0
_LOGGER = logging.getLogger("persipubsub.writer")  # the name that programs filter by
#: What the calling thread is just warning of. A handler of the log that lets messages go makes no further warnings.
_TELLING = threading.local()


class Write(NamedTuple):
    """An operation to be run, how many messages it puts, and how many bytes."""

    operation: Callable[[Transaction], Any]
    messages: int = 0
    size_bytes: int = 0


class _Request:  # pylint: disable=too-many-instance-attributes  # what became of it is more than one fact
    """An operation of one thread, and what became of it."""

    # Defaults in the class: a request is made for every send.
    group: "Optional[_Group]" = None  # whose transaction runs it
    led: "Optional[_Group]" = None  # the group that its thread leads
    result: Any = None
    error: Optional[Exception] = None
    done = False
    woken: Optional[threading.Lock] = None  # held while its thread has nothing to do but wait

    def __init__(self, operation: Callable[[Transaction], Any], durable: bool, messages: int, size_bytes: int) -> None:
        self.operation = operation
        self.durable = durable
        self.messages = messages
        self.size_bytes = size_bytes
        self.thread = threading.get_ident()

    def is_pending(self) -> bool:
        """Tell whether its group has ended without it, for who knows that the group has ended."""
        return not self.done and self.group is not None and not self.group.committed()

    def prepare_to_wait(self) -> None:
        """Let its thread, which calls this, be woken."""
        self.thread = threading.get_ident()
        self.woken = threading.Lock()
        self.woken.acquire()  # pylint: disable=consider-using-with  # released by who wakes this thread

    def wake(self) -> None:
        """Have its thread look what became of it."""
        if self.woken is not None:
            try:
                self.woken.release()
            except RuntimeError:
                pass  # it was woken already


class _Group:
    """The requests of one transaction."""

    txn: Optional[Transaction] = None
    culprit: Optional[_Request] = None  # whose operation failed

    def __init__(self, requests: List[_Request], queued: Deque[_Request]) -> None:
        for request in requests:
            request.group = self
        self.requests = requests
        self._queued = queued  # who may join

    def run(self, txn: Transaction) -> None:
        """Run the operations of all requests, and of those who came while this waited for LMDB's lock."""
        message_log.begin(txn)
        if txn.header.next_due_us != NEVER_US:
            delays.append_due(txn)
        if self._queued:
            self._join()
        self.txn, self.culprit = txn, None
        for request in self.requests:
            request.error = None  # this may be a second try
            try:
                request.result = request.operation(txn)
            except Exception:
                self.culprit = request
                raise
            if request.durable:
                txn.durable = True

    def _join(self) -> None:
        """Take in who is queued, as far as the transaction stays within its bounds."""
        messages = sum(request.messages for request in self.requests)
        size_bytes = sum(request.size_bytes for request in self.requests)
        while self._queued:
            try:
                request = self._queued.popleft()
            except IndexError:
                return  # an interrupted thread took itself out
            messages += request.messages
            size_bytes += request.size_bytes
            if messages > GROUP_MESSAGES_MAX or size_bytes > GROUP_BYTES_MAX:
                self._queued.appendleft(request)
                return
            request.group = self
            self.requests.append(request)

    def apart(self, error: Exception) -> "List[_Group]":
        """Give an error to all if it is no one's fault, or to one who is alone. Else make groups that may do better.

        They are to be run from the last one on: those before the culprit, which were fine, the culprit alone, and those
        behind it. So each operation runs a few times at most, however many fail.
        """
        if self.culprit is None or len(self.requests) == 1:
            for request in self.requests:
                request.error, request.done = error, True
            return []
        index = self.requests.index(self.culprit)
        parts = self.requests[index + 1:], [self.culprit], self.requests[:index]
        return [_Group(part, collections.deque()) for part in parts if part]

    def committed(self) -> bool:
        """Tell whether the results of the requests hold."""
        return self.txn is not None and self.txn.committed


class _Gone:
    """The messages that went for a reason, of which a warning tells: nobody should find out by missing them."""

    def __init__(self, text: str) -> None:
        self._text = text  # with the path, and then the number
        self._told_us = -TELL_EVERY_US
        self.count = 0  # of which nobody was told yet

    def report(self, path: pathlib.Path, at_once: bool = False) -> None:
        """Warn of them, unless a warning came not long ago."""
        now_us = clock.boottime_us()
        if self.count and (at_once or now_us - self._told_us >= TELL_EVERY_US) and not hasattr(_TELLING, "gone"):
            # Before the warning: a handler of the log may use this queue or another one, and let more go.
            self._told_us, count, self.count = now_us, self.count, 0
            _TELLING.gone = self
            try:
                _LOGGER.warning(f"{self._text} Those that go in the next %d seconds are reported together.", path,
                                count, TELL_EVERY_US // 1_000_000)
            finally:
                del _TELLING.gone


class Writer:
    """Runs the write operations of all threads of a process, and wakes those who wait for what they published."""

    def __init__(self, storage: Session, wakeup: Wakeup) -> None:
        self._storage = storage
        self._wakeup = wakeup
        self._company = 1  # how many threads were writing at the end of the last commit
        self._leaders: Dict[int, _Request] = {}
        self._queued: Deque[_Request] = collections.deque()
        self._expired = _Gone(
            "Messages of the queue at %s expired, since they were older than its message timeout: %d.")
        self._overflowed = _Gone("The queue at %s reached its high-water mark: %d messages were dropped.")

    def run(self,
            operation: Callable[[Transaction], T],
            durable: bool = False,
            messages: int = 0,
            size_bytes: int = 0) -> T:
        """Run an operation in a write transaction of its own or of a group, all of it or nothing.

        If a ``KeyboardInterrupt`` comes out of this, the outcome is unknown.

        :param operation: what to do; it may be run more than once
        :param durable: bring it to the disk, whatever the durability of the queue
        :param messages: how many messages it puts
        :param size_bytes: how many bytes it puts
        :raise ReentryError: this thread is just writing: called from a signal handler or finalizer
        """
        request = _Request(operation, durable, messages, size_bytes)
        try:
            leader = self._leaders.setdefault(_LEADER, request)
            if leader is request:
                self._lead(request)
            elif leader.thread == request.thread:
                raise errors.ReentryError(
                    "A signal handler or a finalizer writes to the queue while it has interrupted a write of its own "
                    "thread. Have it set a flag, and write from the thread's normal course.")
            else:
                self._follow(request)
        finally:
            # Twice, for an interrupt may strike in the first.
            try:
                self._leave(request)
            finally:
                if self._leaders.get(_LEADER) is request:
                    self._leave(request)
                request.group = request.led = None  # they are cycles of references
        if self._expired.count or self._overflowed.count:
            self.report()
        if request.error is not None:
            raise request.error
        result: T = request.result
        return result

    def run_all(self, writes: Sequence[Write]) -> List[Outcome]:
        """Run operations in order, in as few transactions as they fit in; each succeeds or fails as if it were alone.

        :param writes: what to do; it may be run more than once
        """
        requests = [_Request(write.operation, False, write.messages, write.size_bytes) for write in writes]
        for request in requests:
            request.prepare_to_wait()
        # Whoever leads takes them in, be it another thread or this one with the first of them.
        self._queued.extend(requests)
        for request in requests:
            try:
                self._see_through(request)
            finally:
                self._leave(request)
                request.group = request.led = None  # they are cycles of references
        self._company = 1  # this is one thread
        if self._expired.count or self._overflowed.count:
            self.report()
        return [Outcome(request.result, request.error) for request in requests]

    def report(self, at_once: bool = False) -> None:
        """Warn of messages that went, each reason once a minute.

        To be called where this thread leads no more: a handler of the log may use the queue.

        :param at_once: also where there was a warning not long ago, since there may be no time later
        """
        for gone in (self._expired, self._overflowed):
            gone.report(self._storage.path, at_once)

    def _lead(self, request: _Request) -> None:
        """Run the request, and all that others have queued meanwhile."""
        group = request.led = _Group([request], self._queued)
        if self._company > len(self._queued) + 1:
            self._gather()
        try:
            self._commit(group)
        except errors.ReentryError as error:
            # It concerns this thread alone. The others' operations are handed back.
            request.error, request.done = error, True
        except Exception as error:  # pylint: disable=broad-exception-caught  # it belongs to the one who caused it
            self._go_on(group, error)
        finally:
            if len(group.requests) > 1:
                for member in group.requests:
                    member.wake()

    def _go_on(self, group: _Group, error: Exception) -> None:
        """Commit what can be committed of a group that met an error, of which nothing is done yet."""
        left = group.apart(error)
        while left:
            part = left.pop()
            try:
                self._commit(part)
            except Exception as another:  # pylint: disable=broad-exception-caught  # it belongs to who caused it
                left += part.apart(another)

    def _commit(self, group: _Group) -> None:
        if group.requests[0].messages:
            self._wakeup.give_way()
            txn = self._storage.write(group.run)
        else:
            txn = self._take(group)
        for request in group.requests:
            request.done = True
        self._company = len(group.requests) + len(self._queued)
        if txn.expired or txn.overflowed:
            self._expired.count += txn.expired
            self._overflowed.count += txn.overflowed
        if txn.published:
            self._wakeup.notify(txn.number)

    def _gather(self) -> None:
        """Wait a moment for those who were there a moment ago: the disk takes as long for all of them as for one."""
        if self._storage.syncs:
            deadline = clock.monotonic_s() + GATHER_S_MAX
            while self._company > len(self._queued) + 1 and clock.monotonic_s() < deadline:
                clock.sleep(GATHER_LOOK_S)

    def _take(self, group: _Group) -> Transaction:
        """Run a group that does not send: senders of other processes give way until this one has LMDB's lock."""

        def run(txn: Transaction) -> None:
            self._wakeup.end_taking()
            group.run(txn)

        try:
            self._wakeup.begin_taking()
            return self._storage.write(run)
        finally:
            self._wakeup.end_taking()

    def _follow(self, request: _Request) -> None:
        """Wait until a leader has run the request, or there is none."""
        self._storage.require_no_reentry()
        request.prepare_to_wait()
        self._queued.append(request)
        self._see_through(request)

    def _see_through(self, request: _Request) -> None:
        """Wait until a queued request was run, or run it."""
        assert request.woken is not None
        while not request.done:
            if self._leaders.setdefault(_LEADER, request) is request:
                # The leader has gone; it may have been interrupted after it had committed.
                if not request.done and (request.group is None or request.is_pending()):
                    self._unqueue(request)
                    self._lead(request)
                return
            request.woken.acquire(timeout=WAIT_S_MAX)

    def _leave(self, request: _Request) -> None:
        """Hand the leadership over, and back what was not done."""
        if self._leaders.get(_LEADER) is request:
            if request.led is not None:
                for member in reversed(request.led.requests):
                    if member is not request and member.is_pending():
                        member.group = None
                        self._queued.appendleft(member)
            self._leaders.pop(_LEADER)
        if not request.done:
            self._unqueue(request)
        if self._queued:
            try:
                self._queued[0].wake()
            except IndexError:
                pass  # somebody else has taken it up

    def _unqueue(self, request: _Request) -> None:
        try:
            self._queued.remove(request)
        except ValueError:
            pass  # a leader has taken it
