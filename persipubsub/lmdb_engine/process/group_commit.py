"""Group commit: one write transaction for all threads that want to write at the same moment.

A thread that finds no leader becomes the leader. It runs its own operation and all that are queued in one transaction,
and hands the leadership over when the transaction is committed. The other threads wait for their results.

Invariants, which hold even where a ``KeyboardInterrupt`` comes between any two lines:

- The leader is one entry of a dict, set by ``setdefault`` and removed by ``pop``. Each is one uninterruptible step.
- A request's result is stored before its group commits, and the group's transaction shows whether it has committed. So
  a follower whose leader was interrupted knows the outcome, and its operation runs exactly once.
- A wake-up is a hint. A waiting thread looks again every second.
- :meth:`Writer.run_all` is for the library's own threads, which nobody interrupts.
- No lock is held while waiting, so a signal handler that sends never waits for its own thread.
"""

import collections
import logging
import pathlib
import threading
from threading import get_ident
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

from persipubsub import clock, errors
from persipubsub.engine.commands import SENDING, Command, Outcome, load
from persipubsub.engine.values import NEVER_US
from persipubsub.lmdb_engine.process.session import Session
from persipubsub.lmdb_engine.process.wakeup import Wakeup
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import delays, message_log

T = TypeVar("T")

GROUP_MESSAGES_MAX = 10_000
GROUP_BYTES_MAX = 64 * 1024**2
#: A thread that waits for its result looks again after this time.
WAIT_S_MAX = 1.0

#: The longest time that a leader waits for the threads of the commit before: about as long as a fast disk takes.
GATHER_S_MAX = 0.0003
GATHER_LOOK_S = 0.00001
#: Messages that expired, were dropped or were not stored are reported at most once in this time, for each reason.
WARN_EVERY_US = 60_000_000

_LEADER = 0
_LOGGER = logging.getLogger("persipubsub.writer")  # the name that programs filter by
#: Set while the calling thread logs a warning. If a log handler causes messages to be dropped, it causes no new
#: warning.
_WARNING = threading.local()


class _Request:  # pylint: disable=too-many-instance-attributes  # its outcome is more than one fact
    """An operation of one thread, and its outcome."""

    # Defaults in the class: a request is made for every send.
    group: "Optional[_Group]" = None  # the group whose transaction runs it
    led: "Optional[_Group]" = None  # the group that its thread leads
    result: Any = None
    error: Optional[Exception] = None
    done = False
    woken: Optional[threading.Lock] = None  # held while its thread has only to wait

    def __init__(self, rule: Callable[..., Any], command: Union[Command, Tuple[()]], durable: bool) -> None:
        self.rule = rule
        self.command = command  # the further arguments of the rule
        self.durable = durable
        self.thread = get_ident()

    def is_pending(self) -> bool:
        """Return whether its group has ended without committing it. The caller must know that the group has ended."""
        return not self.done and self.group is not None and not self.group.committed()

    def prepare_to_wait(self) -> None:
        """Prepare to be woken. The thread of the request must call this."""
        self.thread = threading.get_ident()
        self.woken = threading.Lock()
        self.woken.acquire()  # pylint: disable=consider-using-with  # released by the thread that wakes this one

    def wake(self) -> None:
        """Wake its thread, which then checks the outcome."""
        if self.woken is not None:
            try:
                self.woken.release()
            except RuntimeError:
                pass  # it was woken already


class _Group:
    """The requests of one transaction."""

    txn: Optional[Transaction] = None
    culprit: Optional[_Request] = None  # the request whose operation failed

    def __init__(self, requests: List[_Request], queued: Deque[_Request]) -> None:
        for request in requests:
            request.group = self
        self.requests = requests
        self._queued = queued  # the requests that may join

    def run(self, txn: Transaction) -> None:
        """Run the operations of all requests, also of those that were queued while this waited for LMDB's lock."""
        if not txn.known["at_rest"] or txn.header.boot_id != clock.boot_id():
            _begin(txn)
        if self._queued:
            self._join()
        self.txn, self.culprit = txn, None
        for request in self.requests:
            request.error = None  # this may be a second attempt
            try:
                request.result = request.rule(txn, *request.command)
            except Exception:
                self.culprit = request
                raise
            if request.durable:
                txn.durable = True

    def _join(self) -> None:
        """Add the queued requests, as far as the transaction stays within its limits."""
        loads = [load(request.command) for request in self.requests]
        messages, size_bytes = map(sum, zip(*loads))
        while self._queued:
            try:
                request = self._queued.popleft()
            except IndexError:
                return  # an interrupted thread removed its request
            more_messages, more_bytes = load(request.command)
            messages += more_messages
            size_bytes += more_bytes
            if messages > GROUP_MESSAGES_MAX or size_bytes > GROUP_BYTES_MAX:
                self._queued.appendleft(request)
                return
            request.group = self
            self.requests.append(request)

    def split(self, error: Exception) -> "List[_Group]":
        """Split the group around the request that failed. Without one, or with a single request, all get the error.

        The caller must run the groups from the last one on: the requests before the culprit, which were fine, then the
        culprit by itself, then those behind it. So each operation runs only a few times, however many fail.
        """
        if self.culprit is None or len(self.requests) == 1:
            for request in self.requests:
                request.error, request.done = error, True
            return []
        index = self.requests.index(self.culprit)
        parts = self.requests[index + 1:], [self.culprit], self.requests[:index]
        return [_Group(part, collections.deque()) for part in parts if part]

    def committed(self) -> bool:
        """Return whether the results of the requests are committed."""
        return self.txn is not None and self.txn.committed


def _begin(txn: Transaction) -> None:
    """Do what is due at the beginning of a write transaction, and remember whether the next one has anything to do."""
    message_log.begin(txn)
    if txn.header.next_due_us != NEVER_US:
        delays.append_due(txn)
    header = txn.header
    txn.own_known()["at_rest"] = not header.waiting and not header.retention_us and header.next_due_us == NEVER_US


class _Losses:
    """Counts the messages that were lost for one reason, and warns of them, so that no loss goes unnoticed."""

    def __init__(self, text: str) -> None:
        self._text = text  # a format for the path and the number
        self._warned_us = -WARN_EVERY_US
        self.count = 0  # not reported yet

    def report(self, path: pathlib.Path, at_once: bool = False) -> None:
        """Warn of them, unless there was a warning recently."""
        now_us = clock.boottime_us()
        if self.count and (at_once or now_us - self._warned_us >= WARN_EVERY_US) and not hasattr(_WARNING, "active"):
            # Before the warning: a log handler may use this queue or another one, and cause more losses.
            self._warned_us, count, self.count = now_us, self.count, 0
            _WARNING.active = True
            try:
                _LOGGER.warning(f"{self._text} More in the next %d seconds are reported together.", path, count,
                                WARN_EVERY_US // 1_000_000)
            finally:
                del _WARNING.active


class Writer:  # pylint: disable=too-many-instance-attributes  # who leads, who waits, and what is to be reported
    """Runs the write operations of all threads of a process, and wakes subscribers that wait for messages."""

    def __init__(self, session: Session, wakeup: Wakeup) -> None:
        self._session = session
        self._wakeup = wakeup
        self._writing = 1  # how many threads were writing at the end of the last commit
        self._leaders: Dict[int, _Request] = {}
        self._queued: Deque[_Request] = collections.deque()
        self._expired = _Losses(
            "Messages of the queue at %s expired, since they were older than its message timeout: %d.")
        self._overflowed = _Losses("The queue at %s reached its high-water mark: %d messages were dropped.")
        self._unawaited = _Losses("The queue at %s has no subscribers, so it did not store what was sent: %d messages.")
        self._lost = False  # whether any of them has something to report

    def run(self, rule: Callable[..., T], command: Union[Command, Tuple[()]] = (), durable: bool = False) -> T:
        """Run a rule in a write transaction of its own or of a group, all of it or nothing.

        If this raises ``KeyboardInterrupt``, the outcome is unknown.

        :param rule: what to do; it may be run more than once
        :param command: its arguments after the transaction
        :param durable: sync it to the disk, whatever the durability of the queue
        :raise ReentryError: this thread is already writing: a signal handler or finalizer called this
        """
        request, leaders = _Request(rule, command, durable), self._leaders
        try:
            leader = leaders.setdefault(_LEADER, request)
            if leader is request:
                self._lead(request)
                leaders.pop(_LEADER)
                if self._queued:
                    self._wake_first()
            elif leader.thread == request.thread:
                raise errors.ReentryError(
                    "A signal handler or a finalizer writes to the queue while it has interrupted a write of its own "
                    "thread. Set a flag in the handler, and write from the thread's normal code.")
            else:
                self._follow(request)
        finally:
            # Twice: an interrupt may end the first call early. After the normal end nothing is called.
            try:
                if not request.done or leaders.get(_LEADER) is request:
                    self._leave(request)
            finally:
                if leaders.get(_LEADER) is request:
                    self._leave(request)
                request.group = request.led = None  # they are reference cycles
        if self._lost:
            self.report()
        if request.error is not None:
            try:
                raise request.error  # pylint: disable=raising-bad-type  # it is an error: see above
            finally:
                request.error = None  # the frames of its traceback refer to the request, and to what was sent
        result: T = request.result
        return result

    def run_all(self, writes: Sequence[Tuple[Callable[..., Any], Union[Command, Tuple[()]]]]) -> List[Outcome]:
        """Run rules in order, in as few transactions as possible. Each succeeds or fails independently.

        :param writes: each rule, and the command with its arguments after the transaction; it may be run more than once
        """
        requests = [_Request(rule, command, False) for rule, command in writes]
        for request in requests:
            request.prepare_to_wait()
        # The leader adds them to its group, whether it is another thread or this one with the first of them.
        self._queued.extend(requests)
        for request in requests:
            try:
                self._wait_until_done(request)
            finally:
                self._leave(request)
                request.group = request.led = None  # they are reference cycles
        self._writing = 1  # this is one thread
        if self._lost:
            self.report()
        return [Outcome(request.result, request.error) for request in requests]

    def report(self, at_once: bool = False) -> None:
        """Warn of messages that were lost, of each reason at most once a minute.

        Call this only when this thread is not the leader: a log handler may use the queue.

        :param at_once: warn even if there was a warning recently, since there may be no later chance
        """
        self._lost, all_losses = False, (self._expired, self._overflowed, self._unawaited)
        for losses in all_losses:
            losses.report(self._session.path, at_once)
        self._lost = any(losses.count for losses in all_losses) or self._lost

    def _lead(self, request: _Request) -> None:
        """Run the request, and all that other threads have queued meanwhile."""
        group = request.led = _Group([request], self._queued)
        if self._writing > len(self._queued) + 1:
            self._gather()
        try:
            self._commit(group)
        except errors.ReentryError as error:
            # It concerns only this thread. The operations of the others are queued again.
            request.error, request.done = error, True
        except Exception as error:  # pylint: disable=broad-exception-caught  # raised where it was caused
            self._commit_parts(group, error)
        finally:
            if len(group.requests) > 1:
                for member in group.requests:
                    member.wake()

    def _commit_parts(self, group: _Group, error: Exception) -> None:
        """Commit what can be committed of a group that failed. Nothing of it is committed yet."""
        left = group.split(error)
        while left:
            part = left.pop()
            try:
                self._commit(part)
            except Exception as another:  # pylint: disable=broad-exception-caught  # as above
                left += part.split(another)

    def _commit(self, group: _Group) -> None:
        words = self._wakeup.words
        if words is None:
            txn = self._session.write(group.run)
        elif type(group.requests[0].command) in SENDING:
            try:
                words.way.begin_sending()
                txn = self._session.write(group.run)
            finally:
                words.way.end_sending()
        else:
            try:
                words.way.begin_receiving()
                txn = self._session.write(group.run)
            finally:
                words.way.end_receiving()
        for request in group.requests:
            request.done = True
        self._writing = len(group.requests) + len(self._queued)
        if txn.expired or txn.overflowed or txn.unawaited:
            self._expired.count += txn.expired
            self._overflowed.count += txn.overflowed
            self._unawaited.count += txn.unawaited
            self._lost = True
        if words is not None and words.wanted[0]:
            words.free()
        if txn.published:
            if words is None:
                self._wakeup.notify(txn.number)
            else:
                words.publish(txn.number)

    def _gather(self) -> None:
        """Wait a moment for the threads of the last commit: the disk takes as long for all of them as for one."""
        if self._session.syncs:
            deadline = clock.monotonic_s() + GATHER_S_MAX
            while self._writing > len(self._queued) + 1 and clock.monotonic_s() < deadline:
                clock.sleep(GATHER_LOOK_S)

    def _follow(self, request: _Request) -> None:
        """Queue the request, and wait until a leader has run it, or become the leader and run it."""
        self._session.require_no_reentry()
        request.prepare_to_wait()
        self._queued.append(request)
        self._wait_until_done(request)

    def _wait_until_done(self, request: _Request) -> None:
        """Wait until a queued request is done, or become the leader and run it."""
        assert request.woken is not None
        while not request.done:
            if self._leaders.setdefault(_LEADER, request) is request:
                # There is no leader. The last one may have been interrupted after it had committed.
                if not request.done and (request.group is None or request.is_pending()):
                    self._unqueue(request)
                    self._lead(request)
                return
            request.woken.acquire(timeout=WAIT_S_MAX)

    def _leave(self, request: _Request) -> None:
        """Hand over the leadership, and queue again what was not done."""
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
            self._wake_first()

    def _wake_first(self) -> None:
        """Wake the first queued request, which then leads."""
        try:
            self._queued[0].wake()
        except IndexError:
            pass  # another thread has taken it

    def _unqueue(self, request: _Request) -> None:
        try:
            self._queued.remove(request)
        except ValueError:
            pass  # a leader has taken it
