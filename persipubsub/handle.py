"""One process's access to one queue, shared by all its Environments."""

import contextlib
import os
import pathlib
import threading
import weakref
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple, TypeVar

from persipubsub import clock, deduplication, delayed, errors, failures, files, filesystem, leases, lock_watch, queue
from persipubsub.delayed import DelayedMessage, Due
from persipubsub.deliveries import Claims, Settled
from persipubsub.delivery_records import Failure
from persipubsub.engine import Watch
from persipubsub.gate import LOOK_S, Closer, Turn, Turns
from persipubsub.queue import Batch, Found, Sent, Subscription
from persipubsub.records import NEVER_US
from persipubsub.storage import Storage
from persipubsub.transaction import Transaction
from persipubsub.wakeup import Wakeup
from persipubsub.writer import Outcome, Write, Writer

T = TypeVar("T")
Key = Tuple[int, int]


class Share:
    """Somebody who uses a queue."""

    handle: "Optional[Handle]" = None

    def __init__(self, named: bool = True) -> None:
        self.named = named  # whether it is released by itself, and not as one of those of a handle


class Handle:  # pylint: disable=too-many-public-methods  # one per thing that an engine does
    """The LMDB engine of a queue: see :class:`persipubsub.engine.Engine`. Made by :func:`acquire`."""

    _wakeup: Wakeup
    _writer: Writer

    def __init__(self, path: pathlib.Path, key: Key) -> None:
        self.path = path
        self.key = key
        self.users: Dict[Share, None] = {}
        self._storage = Storage(path)
        self._is_open = False

    def open(self) -> None:
        """Open the database unless it is open. To call it again goes on where an interrupt ended it."""
        if not self._is_open:
            self._storage.open()
            self._wakeup = Wakeup(self.path, files.data_file_mode(self.path))
            self._writer = Writer(self._storage, self._wakeup)
            self._is_open = True

    def close(self) -> None:
        """Close the database. To call it again ends what was interrupted."""
        self._storage.close()

    def tell(self) -> None:
        """Warn of messages that went and of which no warning told yet."""
        if self._is_open:
            self._writer.tell(at_once=True)

    @property
    def is_open(self) -> bool:
        """Tell whether it was opened wholly."""
        return self._is_open

    @property
    def is_closing(self) -> bool:
        """Tell whether closing has begun."""
        return self._storage.is_closing

    @property
    def is_closed(self) -> bool:
        """Tell whether closing has ended."""
        return self._storage.is_closed

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation of :mod:`persipubsub.queue` in a read transaction.

        :raise ReplacedError: the files that were opened are not at the path any more
        """
        self._storage.require_files()
        return self._storage.read(operation)

    def change(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a write transaction and bring it to the disk under either durability."""
        return self._writer.run(operation, durable=True)

    def run_all(self, writes: Sequence[Write]) -> List[Outcome]:
        """Run what many tasks want to write in as few transactions as it fits in; each succeeds or fails alone."""
        return self._writer.run_all(writes)

    def reader_lag(self) -> int:
        """Count the commits since the read began that goes on longest, in whatever process."""
        return self._storage.reader_lag()

    def backup(self, path: pathlib.Path) -> None:
        """Write a compact, consistent copy into a directory, which becomes a queue."""
        files.backup(self.path, path, self._storage.copy)

    # What endpoints call

    def put(self, batch: Batch) -> Sent:
        """Append messages, all or none."""
        return self._writer.run(lambda txn: queue.put(txn, batch), False, len(batch.payloads), batch.size_bytes)

    def put_once(self, batch: Batch, deduplication_id: bytes) -> Sent:
        """Append a message, unless one was sent with the id."""
        return self._writer.run(lambda txn: deduplication.put(txn, batch, deduplication_id), False, len(batch.payloads),
                                batch.size_bytes)

    def put_later(self, payload: bytes, due: Due) -> DelayedMessage:
        """Store a message that is to be appended when it is due."""
        return self._writer.run(lambda txn: delayed.put(txn, payload, due), False, 1, len(payload))

    def cancel(self, message: DelayedMessage) -> bool:
        """Delete a delayed message; tell whether it was not appended yet."""
        return self._writer.run(lambda txn: delayed.cancel(txn, message))

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber."""
        return self._storage.read(lambda txn: queue.subscribe(txn, identifier))

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber without taking them."""
        return self._present(lambda txn: queue.look(txn, subscription, max_messages, max_bytes))

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber without taking it."""
        return self._present(lambda txn: queue.look_at_top(txn, subscription))

    def _present(self, look: Callable[[Transaction], Found]) -> Found:
        """Look once what has expired is gone, and what is due is there, or as much of it as a look needs."""
        appended = False
        while True:
            found = self._storage.read(look)
            if found.expired:
                # So that nobody has to walk over them again.
                self._writer.run(queue.expire)
            elif found.due_us == NEVER_US or found.due_us > clock.boottime_us() or (appended and found.ids):
                if not found.payloads:
                    self._storage.require_files()  # nothing would ever come
                return found
            else:
                self._writer.run(just_begin)
                appended = True

    def read_present(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation in a read transaction once what is due is there, or as much as goes into a transaction.

        :raise ReplacedError: the files that were opened are not at the path any more
        """
        self._storage.require_files()
        result, wants_write = self._storage.read(lambda txn: (operation(txn), delayed.wants_write(txn)))
        if not wants_write:
            return result
        self._writer.run(just_begin)
        return self._storage.read(operation)

    def take(self, subscription: Subscription, ids: Sequence[int], since: Optional[int] = None) -> None:
        """Take messages that a subscriber was handed out."""
        self._writer.run(lambda txn: queue.take(txn, subscription, ids, since))

    def counts_failures(self, subscription: Subscription) -> bool:
        """Tell whether a subscriber that is not shared has its failures counted."""
        return self._storage.read(lambda txn: failures.are_counted(txn, subscription))

    def fail(self, subscription: Subscription, ids: Sequence[int], failure: Failure) -> Settled:
        """Count that a block raised which was handed messages."""
        return self._writer.run(lambda txn: failures.fail(txn, subscription, ids, failure))

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Hand messages out to one worker."""
        dropped = 0
        while True:
            # In a read transaction: most of those who wait find nothing.
            due_us = self._storage.read(lambda txn: leases.due_us(txn, subscription))
            if due_us > clock.boottime_us():
                self._storage.require_files()  # nothing would ever come
                return queue.NOTHING._replace(due_us=due_us, dropped=dropped)
            found = self._writer.run(lambda txn: leases.claim(txn, subscription, max_messages, max_bytes))
            dropped += found.dropped
            if found.ids:
                return found._replace(dropped=dropped)

    def acknowledge(self, subscription: Subscription, ids: Sequence[int], token: bytes) -> Settled:
        """Take messages that a worker has claimed."""
        return self._writer.run(lambda txn: leases.acknowledge(txn, subscription, ids, token))

    def give_back(self, subscription: Subscription, ids: Sequence[int], token: bytes,
                  failure: Optional[Failure]) -> Settled:
        """Give messages back that a worker has claimed."""
        return self._writer.run(lambda txn: leases.give_back(txn, subscription, ids, token, failure))

    def extend(self, subscription: Subscription, claims: Claims) -> Settled:
        """Have the lease of all messages of some claims begin now."""
        return self._writer.run(lambda txn: leases.extend(txn, subscription, claims))

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait."""
        return self._wakeup.watch(longest_sleep_s)

    # Forks

    def before_fork(self, closer: Closer, timeout_s: float) -> None:
        """Keep transactions out, and wait a while until those that are going on have ended."""
        self._storage.before_fork(closer, timeout_s)

    def after_fork_in_parent(self, closer: Closer) -> None:
        """Go on as before."""
        self._storage.after_fork_in_parent(closer)

    def after_fork_in_child(self) -> None:
        """Let go of what belongs to the parent, and of what its other threads were doing. Twice is once."""
        self._storage.after_fork_in_child()
        if self._is_open:
            self._writer = Writer(self._storage, self._wakeup)


def just_begin(_txn: Transaction) -> None:
    """Do nothing: a write transaction begins with appending what is due."""


# The open queues of this process. One is here before anything of it is opened, until all of it is closed: so what an
# interrupt leaves half open or half closed is found and finished by whoever opens or closes the queue next.
_HANDLES: Dict[Key, Handle] = {}
# Threads open and close one queue one after the other, and different queues at the same time.
_TURNS: Turns[Key] = Turns()
# The queues that a thread of the parent was opening or closing when this process was forked.
_LOST: Set[Key] = set()


class Use:
    """One user's use of a queue: opened when need be, and closed with its last user. A context manager of its handle.

    It is made before anything is opened. So closing it is enough, wherever opening was interrupted; it may be closed
    again where closing was, and is closed when nobody refers to it any more.
    """

    def __init__(self, path: pathlib.Path, allow_remote: bool = False) -> None:
        """Prepare to use the queue at a path; no disk is touched.

        :param allow_remote: whether it may lie on a file system that other machines can use
        """
        self._path = path
        self._allow_remote = allow_remote
        self._share = Share()
        weakref.finalize(self, _release, self._share).atexit = False  # then Environments close themselves

    def open(self) -> Handle:
        """Open the queue, or share it with others who have it open in this process. Errors are those of acquire."""
        return acquire(self._path, self._allow_remote, self._share)

    def close(self) -> None:
        """Close the queue if nobody else uses it; more than once is fine."""
        _release(self._share)

    def __enter__(self) -> Handle:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        # Twice, for an interrupt may come in the first.
        try:
            self.close()
        finally:
            self.close()


def acquire(path: pathlib.Path, allow_remote: bool = False, share: Optional[Share] = None) -> Handle:
    """Open the queue at a path, or share it with those who have it open in this process; to be released.

    :param allow_remote: whether it may lie on a file system that other machines can use
    :param share: whose it is; to acquire it again for the same one changes nothing
    :raise NotInitializedError: there is no queue
    :raise PathError: the path is a file or on a remote file system, or its permissions forbid it
    :raise FormatError: the files are not a queue of this version
    :raise ForkError: this process was forked while another thread opened the queue
    :raise ReentryError: a signal handler or finalizer opens it while its own thread opens or closes it
    """
    share = share or Share(named=False)
    while True:
        # By device and inode: LMDB must not be opened twice, and one queue may have many paths.
        key = files.queue_key(path)
        if key in _LOST:
            raise errors.ForkError(
                f"This process was forked while another thread opened or closed the queue at {path}, "
                "so it cannot use the queue. Fork while no thread uses the queue, or start the "
                "process with multiprocessing's spawn or forkserver.")
        found = _acquire(path, key, allow_remote, share)
        if found is not None:
            return found


def _acquire(path: pathlib.Path, key: Key, allow_remote: bool, share: Share) -> Optional[Handle]:
    """Open the queue with a key, or share it; None where another queue is at the path meanwhile."""
    turn, succeeded = Turn(), False
    try:
        _TURNS.begin(key, turn)
        found = _HANDLES.get(key)
        if found is not None and found.is_closing:
            _close(found)
            found = None
        if found is None:
            if not allow_remote:
                filesystem.require_local(path)
            files.warn_of_stranger(path)
            found = _HANDLES[key] = Handle(path, key)
        share.handle = found
        found.users[share] = None
        if not found.is_open:
            found.open()
            if files.queue_key(path) != key:
                return None  # it was compacted or recovered while we waited for that
        succeeded = True
        return found
    finally:
        # Twice, for an interrupt may come in the first.
        try:
            _end_turn(key, turn, None if succeeded else share)
        finally:
            _end_turn(key, turn, None if succeeded else share)


def _end_turn(key: Key, turn: Turn, failed: Optional[Share]) -> None:
    if failed is not None and failed.handle is not None:
        failed.handle.users.pop(failed, None)
    _TURNS.end(key, turn)
    # Also where this has succeeded: a handler or finalizer that released the queue could not wait for this thread.
    found = _HANDLES.get(key)
    if found is not None:
        _close_if_unused(found)


def release(handle: Handle) -> None:
    """Give back what acquire gave without a share; the last one closes."""
    share = next((share for share in list(handle.users) if not share.named), None)
    if share is not None:
        handle.users.pop(share, None)
    _close_if_unused(handle)


def _release(share: Share) -> None:
    """Give back what acquire gave for somebody; the last one closes. More than once is fine."""
    handle = share.handle
    if handle is not None:
        handle.users.pop(share, None)
        _close_if_unused(handle)


def _close_if_unused(handle: Handle) -> None:
    """Close a queue unless somebody uses it, or has closed it."""
    if handle.users or _HANDLES.get(handle.key) is not handle:
        return
    handle.tell()  # before the turn: a handler of the log may use the queue
    turn = Turn()
    try:
        with contextlib.suppress(errors.ReentryError):  # then this thread looks again when it ends its turn
            _TURNS.begin(handle.key, turn)
        if _TURNS.has(handle.key, turn) and not handle.users and _HANDLES.get(handle.key) is handle:
            _close(handle)
    finally:
        # Twice, for an interrupt may come in the first.
        try:
            _TURNS.end(handle.key, turn)
        finally:
            _TURNS.end(handle.key, turn)


def _close(handle: Handle) -> None:
    """Close a queue. Whoever calls this has the turn at it."""
    try:
        handle.close()
    finally:
        if handle.is_closed:
            _HANDLES.pop(handle.key, None)


#: A fork is not held up for longer, all queues together.
FORK_WAIT_S_MAX = 0.1


class _Fork:
    """A fork of this process."""

    def __init__(self) -> None:
        self._closer = Closer(forks=True)
        self.ends = 0  # how often it was told to end

    def begin(self) -> None:
        """Keep transactions out of all open queues, as far as they end in time."""
        deadline = clock.monotonic_s() + FORK_WAIT_S_MAX
        while _TURNS.keys() and clock.monotonic_s() < deadline:
            clock.sleep(LOOK_S)
        for handle in list(_HANDLES.values()):
            handle.before_fork(self._closer, max(0, deadline - clock.monotonic_s()))
        # Once nobody can start it again: a process with one thread has one when it forks.
        lock_watch.end()

    def end_in_parent(self) -> None:
        """Let all go on as before."""
        for handle in list(_HANDLES.values()):
            handle.after_fork_in_parent(self._closer)


# By thread, each a stack, since a signal handler may fork in the midst of a fork.
_FORKS: Dict[int, List[_Fork]] = {}


def _before_fork() -> None:
    fork = _Fork()
    _FORKS.setdefault(threading.get_ident(), []).append(fork)
    fork.begin()


def _after_fork_in_parent() -> None:
    forks = _FORKS.get(threading.get_ident(), [])
    if forks:
        forks[-1].end_in_parent()
        forks[-1].ends += 1
        if forks[-1].ends == AFTER_FORK_HOOKS:
            forks.pop()


def _after_fork_in_child() -> None:
    """Have every queue opened again on first use, as far as the child may close what it inherits. Twice is once."""
    _FORKS.clear()
    lock_watch.end()  # of the parent
    _LOST.update(_TURNS.forget())
    for handle in list(_HANDLES.values()):
        handle.after_fork_in_child()


# After it twice, for an interrupt may strike in the first, and Python goes on after it with the next.
AFTER_FORK_HOOKS = 2
os.register_at_fork(before=_before_fork)
for _ in range(AFTER_FORK_HOOKS):
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
