"""What stands between a queue's files and LMDB: nothing that is broken, foreign or a link is opened.

Cheap for a queue that was closed well, or that others have open: only the pages of a small one are verified. A queue
that bears the mark of another boot is read as a whole first, by whoever gets ``use.lock`` alone; the others wait.
"""

import contextlib
import logging
import pathlib
import struct
from typing import Iterator, Optional, Sequence, Tuple

from persipubsub import clock, database, errors, files, invariants, mark, page_walk
from persipubsub.cut_off import cut_off
from persipubsub.files import UseLock
from persipubsub.invariants import Violation
from persipubsub.transaction import SubDatabases

_LOGGER = logging.getLogger(__name__)

#: Interval between checks whether the exclusive holder has released the queue, and whether a mark is still there.
LOOK_S = 0.01
#: After this time a warning says what an opening waits for. It can be interrupted.
WARN_S = 5.0
#: How long an opening waits for somebody to verify a queue that bears the mark of another boot.
VERIFY_WAIT_S_MAX = 10.0
#: A data file of at most this size is verified at opening, which takes less than 20 ms, if nobody else has it open.
VERIFIED_BYTES_MAX = 512 * 1024


def admit(path: pathlib.Path, use_lock: UseLock) -> None:
    """Take ``use.lock`` with others once the queue is fit for use.

    :raise PathError: one of its files is a link
    :raise FormatError: it is no queue of this version
    :raise DamagedError: it is broken
    :raise InUseError: it has to be verified, and somebody has it open all the time
    """
    files.require_no_links(path)
    _share(path, use_lock)
    files.remove_leftovers(path)
    deadline = clock.monotonic_s() + VERIFY_WAIT_S_MAX
    while mark.of_other_boot(path):
        if use_lock.try_alone():
            # The mark is a queue's, so the file was one, whatever has become of it.
            require_sound(path, known=True)
            # Sound it is as well where it is as it was at an earlier moment, and nothing in it tells.
            _LOGGER.warning(
                "The machine stopped while commits of the queue at %s were not on the disk, which its durability "
                "PROCESS_CRASH allows. The queue is sound, but what was sent and taken last may be missing.", path)
            mark.remove(path)
        elif clock.monotonic_s() >= deadline:
            raise errors.InUseError(
                f"The queue at {path} bears the mark of another boot of the machine, so it has to be verified by a "
                f"process that has it alone; but another process has had it open for {VERIFY_WAIT_S_MAX:g} s. That "
                "process may see another boot id (/proc/sys/kernel/random/boot_id), as a container may. Close the "
                "queue there, then open it again; or have all its processes see the same boot id.")
        else:
            clock.sleep(LOOK_S)  # somebody else is about to verify it
        # This waits while somebody verifies it, which may take long. That wait does not count.
        deadline += _share(path, use_lock)
    whole = page_walk.require_queue(path / files.DATA_FILE, SubDatabases._fields)
    if not whole or (path / files.DATA_FILE).stat().st_size <= VERIFIED_BYTES_MAX:
        # A file may lack pages at its end. LMDB leaves it so where they are free, which only reading everything shows.
        # Where others have it open, one of them has done so.
        if use_lock.try_alone():
            require_sound_pages(path)
        _share(path, use_lock)


def _share(path: pathlib.Path, use_lock: UseLock) -> float:
    """Take ``use.lock`` with others, and return how many seconds that took. Warn where it takes long."""
    start_s = clock.monotonic_s()
    warned = False
    while not use_lock.try_share():
        waited_s = clock.monotonic_s() - start_s
        if waited_s >= WARN_S and not warned:
            warned = True
            _LOGGER.warning(
                "Opening the queue at %s has been waiting for %.0f s: another process has it alone. It compacts, "
                "recovers, migrates or verifies it, or was stopped meanwhile. Opening goes on when that process ends.",
                path, waited_s)
        clock.sleep(LOOK_S)
    return clock.monotonic_s() - start_s


def require_sound_pages(path: pathlib.Path) -> None:
    """Make sure that LMDB can read every page, whatever the records say. The caller must hold ``use.lock`` alone.

    :raise DamagedError: it cannot
    """
    _require_none(path, _page_problems(path))


def require_sound(path: pathlib.Path, known: bool = False) -> None:
    """Read everything, and make sure that nothing is broken. Who calls has ``use.lock`` alone.

    :param known: it is known to be a queue: then one that does not look so is broken
    :raise FormatError: it is no queue of this version
    :raise DamagedError: something is broken
    """
    page_walk.require_queue(path / files.DATA_FILE, SubDatabases._fields, known=known)
    _require_none(path, violations(path))


def _require_none(path: pathlib.Path, found: Sequence[Violation]) -> None:
    if found:
        first, *others = found
        more = f" (and {len(others)} more)" if others else ""
        raise page_walk.damaged(path, f"{first}{more}")


def _page_problems(path: pathlib.Path) -> Tuple[Violation, ...]:
    problems = database.verify(path / files.DATA_FILE) or cut_off(path / files.DATA_FILE)
    return tuple(Violation("I0", problem) for problem in problems)


def violations(path: pathlib.Path) -> Tuple[Violation, ...]:
    """Give what is broken: first in the pages, which are not given to LMDB unless they are sound, then in the records.

    Who calls has ``use.lock`` alone.
    """
    problems = _page_problems(path)
    if problems:
        return problems
    for invariant, configured in (("I0", False), ("I7", True)):
        try:
            page_walk.require_queue(path / files.DATA_FILE, SubDatabases._fields, configured)
        except errors.DamagedError as error:
            return (Violation(invariant, str(error.__cause__)), )
    # Made anew: what lies there may be as broken as the rest.
    try:
        (path / files.LOCK_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise files.path_error(error, path / files.LOCK_FILE) from error
    files.allocate(path / files.LOCK_FILE, database.LOCK_FILE_BYTES, files.data_file_mode(path))
    try:
        return database.inspect(path, invariants.check)
    except (struct.error, errors.DamagedError) as error:
        return (Violation("I0", str(error)), )


@contextlib.contextmanager
def alone(path: pathlib.Path, to_do: str) -> Iterator[None]:
    """Have the queue for oneself: nobody else may open it within the block.

    :param to_do: what it is needed for, as in "compacted"
    :raise NotInitializedError: there is no queue
    :raise PathError: one of its files is a link
    :raise FormatError: it is a queue of persipubsub 1.0.0
    :raise InUseError: somebody has it open
    """
    use_lock = try_alone(path)
    if use_lock is None:
        raise errors.InUseError(f"The queue at {path} is open in this or another process, so it cannot be {to_do}. "
                                "Close it there (end all publishers and subscribers), then try again.")
    try:
        yield
    finally:
        use_lock.close()


def try_alone(path: pathlib.Path) -> Optional[UseLock]:
    """Give ``use.lock``, taken alone, or None where somebody has the queue open.

    :raise NotInitializedError: there is no queue
    :raise PathError: one of its files is a link
    :raise FormatError: it is a queue of persipubsub 1.0.0, of which no verb for queues of this version makes anything
    """
    files.queue_key(path)
    files.require_no_links(path)
    page_walk.require_not_of_1_0(path / files.DATA_FILE)
    use_lock = UseLock(path, files.data_file_mode(path))
    if use_lock.try_alone():
        return use_lock
    use_lock.close()
    return None
