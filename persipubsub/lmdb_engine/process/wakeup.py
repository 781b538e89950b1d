"""Wait for a commit, and wake waiting subscribers, in all processes.

Every process maps the file ``wakeup``. It begins with five 32-bit words, before the bytes of :mod:`.right_of_way`:

- *published*: the low bits of the id of the last transaction that published something, so it changes with each
  publication. (A counter would lose wake-ups: Python cannot add to shared memory in one step.)
- *waiting*: 1 if a subscriber may sleep, so that a publisher need not ask the kernel each time.
- *claimed*: the low bits of the due time of a delayed message that one waiting subscriber is about to append to the
  log, so that not all of them do. Two may do so, or the one may die: the others check again soon.
- *wanted*: 1 if a sender may sleep until a queue that refuses messages has room again.
- *freed*: a random number, drawn for each commit after which there may be room, while *wanted* is set. (A counter
  would lose wake-ups, as above. The id of the transaction would not do, since not every commit has its own.)

A subscriber reads *published*, sets *waiting*, looks into the queue, and sleeps if *published* is unchanged. A
publisher commits, reads and resets *waiting*, sets *published*, and wakes the sleepers if *waiting* was set. So
whenever *waiting* is reset under a subscriber, *published* changes afterwards, and the subscriber does not sleep or is
woken. Nobody sleeps longer than a second, since a publisher may be killed between the commit and the wake-up.
"""

import logging
import mmap
import os
import pathlib
from typing import Optional, Union

from persipubsub import clock, errors, lazy_imports
from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.process.right_of_way import RightOfWay

#: A page, allocated before it is mapped: a full disk would turn the first write into SIGBUS.
FILE_BYTES = mmap.PAGESIZE
POLLING_DELAY_S_MIN = 0.0002
POLLING_DELAY_S_MAX = 0.02
#: Where the file cannot be mapped, the time between two attempts.
TRY_EVERY_S = 1.0

_PUBLISHED = 0
_WAITING = 1
_CLAIMED = 2
_WANTED = 3
_FREED = 4
_LOGGER = logging.getLogger("persipubsub.wakeup")  # the name that programs filter by


class Wakeup:
    """Wakes the waiting subscribers of all processes when something is published."""

    def __init__(self, path: pathlib.Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self.words: Optional[Words] = None
        self._next_try_s: Optional[float] = None
        self._map()

    def _map(self) -> "Optional[Words]":
        """Map the file unless that has just failed. It may work later, for example once descriptors are free."""
        now_s = clock.monotonic_s()
        if self._next_try_s is None or now_s >= self._next_try_s:
            try:
                self.words = Words(self._path / files.WAKEUP_FILE, self._mode)
            except (OSError, ImportError, errors.StorageError) as error:
                if self._next_try_s is None:
                    _LOGGER.warning(
                        "There is no wake-up for the queue at %s (%s). Subscribers of this process poll every %g s, "
                        "and others may wait up to a second for what this process sends. It will be tried again.",
                        self._path, error, POLLING_DELAY_S_MAX)
                self._next_try_s = now_s + TRY_EVERY_S
        return self.words

    def after_fork_in_child(self) -> None:
        """Use the bytes of this process, no longer those of its parent."""
        if self.words is not None:
            self.words.way = RightOfWay(self.words.mapped)

    def notify(self, transaction_id: int) -> None:
        """Wake the waiting subscribers: this transaction published something."""
        words = self.words or self._map()
        if words is not None:
            words.publish(transaction_id)

    def watch_room(self, longest_sleep_s: float) -> "Union[FutexWatch, PollingWatch]":
        """Prepare to wait until messages are deleted."""
        words = self.words or self._map()
        if words is None or clock.cooperative_sleep() is not None:
            return PollingWatch(longest_sleep_s)
        return RoomWatch(words)

    def interrupt(self) -> None:
        """Let all waits return now. Those without a wake-up look soon by themselves."""
        if self.words is not None:
            self.words.interrupt()

    def watch(self, longest_sleep_s: float) -> "Union[FutexWatch, PollingWatch]":
        """Prepare to wait.

        :param longest_sleep_s: the longest time between two looks where there is no wake-up
        """
        words = self.words or self._map()
        if words is None or clock.cooperative_sleep() is not None:
            return PollingWatch(longest_sleep_s)
        return FutexWatch(words)


class Words:
    """The words and bytes of the mapped file."""

    def __init__(self, file: pathlib.Path, mode: int) -> None:
        # Imported here: whoever only sets up a queue needs no ctypes.
        with lazy_imports.NoFork():
            import ctypes

            from persipubsub.lmdb_engine.process import futex
        if not futex.AVAILABLE:
            raise OSError("there is no futex for this platform")
        files.allocate(file, FILE_BYTES, mode)
        fd = files.open_or_create(file, mode)
        try:
            mapped = mmap.mmap(fd, FILE_BYTES)
        finally:
            os.close(fd)
        self._futex = futex
        self._words = memoryview(mapped).cast("I")
        self.mapped = mapped
        #: Who writes first.
        self.way = RightOfWay(mapped)
        #: Not zero if a sender may wait for room.
        self.wanted = self._words[_WANTED:_WANTED + 1]
        self._address = ctypes.addressof(ctypes.c_uint32.from_buffer(mapped))

    def publish(self, transaction_id: int) -> None:
        """Store what was published, and wake the sleepers. The order matters: see the module's docstring."""
        words = self._words
        someone_waits = words[_WAITING]
        if someone_waits:
            words[_WAITING] = 0
        words[_PUBLISHED] = transaction_id & 0xFFFFFFFF
        if someone_waits:
            self._futex.wake(self._address)

    def arm(self) -> int:
        """Announce a subscriber that is about to look and then to sleep. Return what was published last."""
        published = self._words[_PUBLISHED]
        self._words[_WAITING] = 1
        return published

    def reserve(self, due_us: int) -> bool:
        """Claim the appending of what is due. Return whether no other process had claimed it."""
        claimed = due_us & 0xFFFFFFFF
        is_free = self._words[_CLAIMED] != claimed
        self._words[_CLAIMED] = claimed
        return is_free

    def sleep(self, published: int, timeout_s: float) -> None:
        """Sleep until something else is published."""
        self._futex.wait(self._address, published, timeout_s)

    def interrupt(self) -> None:
        """Wake all sleepers as if something had been published. They look, and sleep again unless they have to stop.

        The word is drawn, since two interrupts in a row must not lead back to what a sleeper has read before them.
        """
        self._words[_PUBLISHED] = int.from_bytes(os.urandom(4), "big")
        self._futex.wake(self._address)
        self.free()

    def arm_for_room(self) -> int:
        """Announce a sender that is about to try again and then to sleep. Return the value of *freed*."""
        freed = self._words[_FREED]
        self._words[_WANTED] = 1
        return freed

    def free(self) -> None:
        """Wake the senders that wait for room, since messages may have been deleted."""
        self._words[_WANTED] = 0
        self._words[_FREED] = int.from_bytes(os.urandom(4), "big")
        self._futex.wake(self._address + _FREED * self._words.itemsize)

    def sleep_for_room(self, freed: int, timeout_s: float) -> None:
        """Sleep until messages may have been deleted."""
        self._futex.wait(self._address + _FREED * self._words.itemsize, freed, timeout_s)


class FutexWatch:
    """Waits for a change of the word *published*."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._before = 0

    def arm(self) -> None:
        """Note what was published last."""
        self._before = self._words.arm()

    def wait(self, timeout_s: float) -> None:
        """Sleep until something else is published."""
        self._words.sleep(self._before, timeout_s)

    def reserve(self, due_us: int) -> bool:
        """Return whether no other waiting subscriber appends what is due then."""
        return self._words.reserve(due_us)

    def close(self) -> None:
        """Do nothing: the words belong to the process."""


class RoomWatch(FutexWatch):
    """Waits for a change of the word *freed*."""

    def arm(self) -> None:
        """Note the word."""
        self._before = self._words.arm_for_room()

    def wait(self, timeout_s: float) -> None:
        """Sleep until messages may have been deleted."""
        self._words.sleep_for_room(self._before, timeout_s)


class PollingWatch:
    """Waits by sleeping, each time a little longer."""

    def __init__(self, longest_sleep_s: float) -> None:
        self._longest_sleep_s = min(longest_sleep_s, POLLING_DELAY_S_MAX)
        self._delay_s = POLLING_DELAY_S_MIN

    def arm(self) -> None:
        """Do nothing: the next look comes soon."""

    def wait(self, timeout_s: float) -> None:
        """Sleep, each time a little longer."""
        clock.sleep(min(self._delay_s, self._longest_sleep_s, timeout_s))
        self._delay_s = min(self._delay_s * 2, POLLING_DELAY_S_MAX)

    def reserve(self, _due_us: int) -> bool:
        """Return True: nobody else is known to append what is due."""
        return True

    def close(self) -> None:
        """Do nothing: it holds nothing."""
