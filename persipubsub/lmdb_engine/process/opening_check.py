"""The check between a queue's files and LMDB: no broken or foreign file and no link is opened.

It is cheap for a queue that was closed properly, or that other processes have open: only a small one has all its pages
verified. A queue with an unclean marker of another boot is read completely first, by the process that gets the
exclusive ``use.lock``. The others wait.
"""

import contextlib
import logging
import pathlib
import struct
from typing import Iterator, Optional, Sequence, Tuple

from persipubsub import clock, errors, os_errors
from persipubsub.lmdb_engine.process import files, queue_file, unclean_marker
from persipubsub.lmdb_engine.process.files import UseLock
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.records.layouts import SubDatabases
from persipubsub.lmdb_engine.records.truncation import unreadable_values
from persipubsub.lmdb_engine.rules import invariants
from persipubsub.status import Violation

_LOGGER = logging.getLogger("persipubsub.admission")  # the name that programs filter by

#: Interval between checks whether the exclusive holder has released the queue, and whether an unclean marker is still
#: there.
LOOK_S = 0.01
#: After this time a warning says what the opening waits for. The wait can be interrupted.
WARN_S = 5.0
#: How long an opening waits until a queue with an unclean marker of another boot can be verified.
VERIFY_WAIT_S_MAX = 10.0
#: A data file of at most this size is verified at opening if nobody else has it open. This takes less than 20 ms.
VERIFIED_BYTES_MAX = 512 * 1024


def check_and_share(path: pathlib.Path, use_lock: UseLock) -> None:
    """Make sure that a queue is fit for use, and share ``use.lock``.

    :raise PathError: one of its files is a link
    :raise FormatError: it is not a queue of this version
    :raise DamagedError: it is damaged
    :raise InUseError: it must be verified, but another process keeps it open
    """
    files.require_no_links(path)
    _share(path, use_lock)
    files.remove_leftovers(path)
    deadline = clock.monotonic_s() + VERIFY_WAIT_S_MAX
    while unclean_marker.of_other_boot(path):
        if use_lock.try_exclusive():
            # Only a queue has an unclean marker, so a file that does not look like a queue is damaged.
            require_sound(path, known=True)
            # A queue that went back to an earlier state is sound as well: nothing in it shows this.
            _LOGGER.warning(
                "The machine stopped while commits of the queue at %s were not on the disk, which its durability "
                "PROCESS_CRASH allows. The queue is sound, but the last sends and acknowledgements may be missing.",
                path)
            unclean_marker.remove(path)
        elif clock.monotonic_s() >= deadline:
            raise errors.InUseError(
                f"The queue at {path} has an unclean marker of another boot of the machine, so a process must verify "
                f"it exclusively. But another process has had it open for {VERIFY_WAIT_S_MAX:g} s. That process may "
                "see another boot id (/proc/sys/kernel/random/boot_id), as a container may. Close the queue there, "
                "then open it again, or make all its processes see the same boot id.")
        else:
            clock.sleep(LOOK_S)  # another process is about to verify it
        # This waits while another process verifies it, which may take long. The deadline does not include that wait.
        deadline += _share(path, use_lock)
    whole = queue_file.require_queue(path / files.DATA_FILE, SubDatabases._fields)
    if not whole or (path / files.DATA_FILE).stat().st_size <= VERIFIED_BYTES_MAX:
        # A file may lack pages at its end. That is normal if they are free, which only reading everything shows. If
        # other processes have the queue open, one of them has done this.
        if use_lock.try_exclusive():
            require_sound_pages(path)
        _share(path, use_lock)


def _share(path: pathlib.Path, use_lock: UseLock) -> float:
    """Share ``use.lock``, and return how many seconds that took. Warn if it takes long."""
    start_s = clock.monotonic_s()
    warned = False
    while not use_lock.try_share():
        waited_s = clock.monotonic_s() - start_s
        if waited_s >= WARN_S and not warned:
            warned = True
            _LOGGER.warning(
                "Opening the queue at %s has been waiting for %.0f s: another process holds it exclusively. It "
                "compacts, recovers, migrates or verifies the queue, or was stopped meanwhile. Opening continues when "
                "it ends.", path, waited_s)
        clock.sleep(LOOK_S)
    return clock.monotonic_s() - start_s


def require_sound_pages(path: pathlib.Path) -> None:
    """Make sure that LMDB can read every page. The records are not checked.

    The caller must hold ``use.lock`` exclusively.

    :raise DamagedError: LMDB cannot
    """
    _require_none(path, _page_problems(path))


def require_sound(path: pathlib.Path, known: bool = False) -> None:
    """Read everything, and make sure that nothing is damaged. The caller must hold ``use.lock`` exclusively.

    :param known: it is known to be a queue, so if it does not look like one, it is damaged
    :raise FormatError: it is not a queue of this version
    :raise DamagedError: something is damaged
    """
    queue_file.require_queue(path / files.DATA_FILE, SubDatabases._fields, known=known)
    _require_none(path, violations(path))


def _require_none(path: pathlib.Path, found: Sequence[Violation]) -> None:
    if found:
        first, *others = found
        more = f" (and {len(others)} more)" if others else ""
        raise errors.damaged(path, f"{first}{more}")


def _page_problems(path: pathlib.Path) -> Tuple[Violation, ...]:
    problems = database.verify(path / files.DATA_FILE) or unreadable_values(path / files.DATA_FILE)
    return tuple(invariants.violation("I0", problem) for problem in problems)


def violations(path: pathlib.Path) -> Tuple[Violation, ...]:
    """Return what is damaged: in the pages or, if they are sound, in the records. LMDB opens only sound pages.

    The caller must hold ``use.lock`` exclusively.
    """
    problems = _page_problems(path)
    if problems:
        return problems
    for invariant, configured in (("I0", False), ("I7", True)):
        try:
            queue_file.require_queue(path / files.DATA_FILE, SubDatabases._fields, configured)
        except errors.DamagedError as error:
            return (invariants.violation(invariant, str(error.__cause__)), )
    # Created again: the existing file may be as damaged as the rest.
    try:
        (path / files.LOCK_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise os_errors.path_error(error, path / files.LOCK_FILE) from error
    files.allocate(path / files.LOCK_FILE, database.LOCK_FILE_BYTES, files.data_file_mode(path))
    try:
        return database.inspect(path, invariants.check)
    except (struct.error, errors.DamagedError) as error:
        return (invariants.violation("I0", str(error)), )


@contextlib.contextmanager
def exclusively(path: pathlib.Path, purpose: str) -> Iterator[None]:
    """Hold the queue exclusively: nobody else can open it within the block.

    :param purpose: what will be done, as in "compacted"
    :raise NotInitializedError: there is no queue
    :raise PathError: one of its files is a link
    :raise FormatError: it is a queue of persipubsub 1.0.0
    :raise InUseError: somebody has it open
    """
    use_lock = try_exclusive(path)
    if use_lock is None:
        raise errors.InUseError(f"The queue at {path} is open in this or another process, so it cannot be {purpose}. "
                                "Close it there (end all publishers and subscribers), then try again.")
    try:
        yield
    finally:
        use_lock.close()


def try_exclusive(path: pathlib.Path) -> Optional[UseLock]:
    """Return ``use.lock``, held exclusively, or None if somebody has the queue open.

    :raise NotInitializedError: there is no queue
    :raise PathError: one of its files is a link
    :raise FormatError: it is a queue of persipubsub 1.0.0
    """
    files.queue_key(path)
    files.require_no_links(path)
    queue_file.require_not_of_1_0(path / files.DATA_FILE)
    use_lock = UseLock(path, files.data_file_mode(path))
    if use_lock.try_exclusive():
        return use_lock
    use_lock.close()
    return None
