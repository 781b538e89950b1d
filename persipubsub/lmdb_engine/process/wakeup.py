"""Waiting for a commit, and telling those who wait, in all processes; and giving way to those who take.

Three 32-bit words stand in the file ``wakeup``, which every process maps:

- *published*: the low bits of the id of the last transaction that published something. It has its own value after
  each publication. (A counter would lose wake-ups: Python cannot add to shared memory in one step.)
- *waiting*: 1 if somebody may sleep, so that a publisher need not ask the kernel each time.
- *claimed*: the low bits of the due time of the delayed message that one of those who wait is about to append to the
  log, so that not all of them do. It may be that two of them do, or that the one dies: the others look again soon.

Who waits reads *published*, then sets *waiting*, then looks into the queue, then sleeps if *published* is as it was.
Who publishes commits, then reads *waiting* and resets it, then sets *published*, then wakes if it was set. So whenever
*waiting* is reset under somebody, *published* changes afterwards, and it does not sleep or is woken. Nobody sleeps
longer than a second all the same: a publisher may be killed between commit and wake-up.

LMDB's write lock is not fair: a process that sends without a pause has it again before another one, which waits for it,
is awake. It would get one message in two milliseconds. So who takes says so in a byte of the same file while it waits
for the lock, and who is about to send lets it go first. Senders do not give way to each other, since that would cost
them most of their speed.
"""

import logging
import mmap
import os
import pathlib
from typing import Optional, Union

from persipubsub import clock, errors
from persipubsub.lmdb_engine.process import files

#: A page, allocated before it is mapped: a full disk would turn the first write into SIGBUS.
FILE_BYTES = mmap.PAGESIZE
POLLING_DELAY_S_MIN = 0.0002
POLLING_DELAY_S_MAX = 0.02
#: Where the file cannot be mapped, the time between two tries.
TRY_EVERY_S = 1.0

#: So long does a sender wait until a process that takes had its turn. A sleep would be longer.
GIVE_WAY_S_MAX = 0.0002

_PUBLISHED = 0
_WAITING = 1
_CLAIMED = 2
# One byte for each process that takes, by its number. Two that share one may be passed over now and then.
_TAKING = slice(64, 128)
_NOBODY = bytes(_TAKING.stop - _TAKING.start)
_LOGGER = logging.getLogger("persipubsub.wakeup")  # the name that programs filter by


class Wakeup:
    """How the waiting subscribers of all processes learn that something was published."""

    def __init__(self, path: pathlib.Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._words: Optional[_Words] = None
        self._next_try_s: Optional[float] = None
        self._map()

    def _map(self) -> "Optional[_Words]":
        """Map the file unless that has just failed: what a process lacks when it opens the queue, it may have later."""
        now_s = clock.monotonic_s()
        if self._next_try_s is None or now_s >= self._next_try_s:
            try:
                self._words = _Words(self._path / files.WAKEUP_FILE, self._mode)
            except (OSError, ImportError, errors.StorageError) as error:
                if self._next_try_s is None:
                    _LOGGER.warning(
                        "Waiting on the queue at %s polls every %g s, and others wait as long for what this process "
                        "sends: there is no wake-up (%s). It is tried again.", self._path, POLLING_DELAY_S_MAX, error)
                self._next_try_s = now_s + TRY_EVERY_S
        return self._words

    def notify(self, transaction_id: int) -> None:
        """Tell those who wait that this transaction published something."""
        words = self._words or self._map()
        if words is not None:
            words.publish(transaction_id)

    def give_way(self) -> None:
        """Let processes that wait for LMDB's lock to take messages go first. To be called before a send."""
        if self._words is not None:
            self._words.give_way()

    def begin_taking(self) -> None:
        """Say that this process takes messages, so that senders of other processes give way."""
        if self._words is not None:
            self._words.say_taking(True)

    def end_taking(self) -> None:
        """Say that it has taken them."""
        if self._words is not None:
            self._words.say_taking(False)

    def watch(self, longest_sleep_s: float) -> "Union[FutexWatch, PollingWatch]":
        """Prepare to wait.

        :param longest_sleep_s: a bound for the time between two looks where there is no wake-up
        """
        words = self._words or self._map()
        if words is None or clock.cooperative_sleep() is not None:
            return PollingWatch(longest_sleep_s)
        return FutexWatch(words)


class _Words:
    """The two words of the mapped file."""

    def __init__(self, file: pathlib.Path, mode: int) -> None:
        # Imported here: whoever only sets up a queue needs no ctypes.
        import ctypes

        from persipubsub.lmdb_engine.process import futex
        if not futex.AVAILABLE:
            raise OSError("this platform has no futex that is known here")
        files.allocate(file, FILE_BYTES, mode)
        fd = files.open_or_create(file, mode)
        try:
            mapped = mmap.mmap(fd, FILE_BYTES)
        finally:
            os.close(fd)
        self._futex = futex
        self._mapped = mapped
        # Of processes that did not get their turn when they were given way: they may be dead.
        self._passed_over = _NOBODY
        self._words = memoryview(mapped).cast("I")
        self._address = ctypes.addressof(ctypes.c_uint32.from_buffer(mapped))

    def publish(self, transaction_id: int) -> None:
        """Store what was published, and wake who sleeps. The order matters: see the module's docstring."""
        words = self._words
        somebody_waits = words[_WAITING]
        if somebody_waits:
            words[_WAITING] = 0
        words[_PUBLISHED] = transaction_id & 0xFFFFFFFF
        if somebody_waits:
            self._futex.wake(self._address)

    def arm(self) -> int:
        """Announce somebody who is about to look and then to sleep; give what was published last."""
        published = self._words[_PUBLISHED]
        self._words[_WAITING] = 1
        return published

    def reserve(self, due_us: int) -> bool:
        """Take it upon oneself to append what is due; tell whether nobody else did."""
        claimed = due_us & 0xFFFFFFFF
        is_free = self._words[_CLAIMED] != claimed
        self._words[_CLAIMED] = claimed
        return is_free

    def give_way(self) -> None:
        """Wait until one of those who take had its turn, but not for long."""
        taking = self._mapped[_TAKING]
        if taking == _NOBODY:
            self._passed_over = _NOBODY
        if taking == self._passed_over:
            return
        deadline = clock.monotonic_s() + GIVE_WAY_S_MAX
        while clock.monotonic_s() < deadline:
            clock.sleep(0)  # other threads may run
            if self._mapped[_TAKING] != taking:
                return
        self._passed_over = taking

    def say_taking(self, taking: bool) -> None:
        """Say whether this process takes messages."""
        self._mapped[_TAKING.start + os.getpid() % len(_NOBODY)] = taking

    def sleep(self, published: int, timeout_s: float) -> None:
        """Sleep until something else was published."""
        self._futex.wait(self._address, published, timeout_s)


class FutexWatch:
    """Waits for a change of the word *published*."""

    def __init__(self, words: _Words) -> None:
        self._words = words
        self._published = 0

    def arm(self) -> None:
        """Note what was published last."""
        self._published = self._words.arm()

    def wait(self, timeout_s: float) -> None:
        """Sleep until something else was published."""
        self._words.sleep(self._published, timeout_s)

    def reserve(self, due_us: int) -> bool:
        """Tell whether nobody else who waits appends what is due then."""
        return self._words.reserve(due_us)

    def close(self) -> None:
        """Do nothing: the words belong to the process."""


class PollingWatch:
    """Waits by sleeping, a little longer each time."""

    def __init__(self, longest_sleep_s: float) -> None:
        self._longest_sleep_s = min(longest_sleep_s, POLLING_DELAY_S_MAX)
        self._delay_s = POLLING_DELAY_S_MIN

    def arm(self) -> None:
        """Do nothing: the next look is never far."""

    def wait(self, timeout_s: float) -> None:
        """Sleep."""
        clock.sleep(min(self._delay_s, self._longest_sleep_s, timeout_s))
        self._delay_s = min(self._delay_s * 2, POLLING_DELAY_S_MAX)

    def reserve(self, _due_us: int) -> bool:
        """Tell that nobody else is known to append what is due."""
        return True

    def close(self) -> None:
        """Do nothing: it holds nothing."""
