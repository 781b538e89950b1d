"""What stands between a queue's files and LMDB: nothing that is broken, foreign or a link is opened.

Cheap for a queue that was closed well, or that others have open: only the pages of a small one are verified. A queue
that bears the mark of another boot is read as a whole first, by whoever gets ``use.lock`` alone; the others wait.
"""

import contextlib
import logging
import pathlib
import struct
from typing import Iterator, Optional, Sequence, Tuple

from persipubsub import clock, errors, os_errors, queue
from persipubsub.engine.settings import require_retention_within_timeout
from persipubsub.lmdb_engine.process import files, opening_check, unclean_marker
from persipubsub.lmdb_engine.process.files import UseLock
from persipubsub.lmdb_engine.records import database, layouts
from persipubsub.lmdb_engine.records.page_file import NO_ROOT, SUB_DATABASE, Meta, PageError, PageFile, decode_root
from persipubsub.lmdb_engine.records.transaction import SubDatabases
from persipubsub.lmdb_engine.records.truncation import cut_off
from persipubsub.lmdb_engine.rules import invariants, settings
from persipubsub.status import Violation

#: A commit by others during the look changes pages under it; then they have the queue open, and have looked at it.
LOOKS_MAX = 10


def require_queue(file: pathlib.Path,
                  sub_databases: Tuple[str, ...],
                  configured: bool = True,
                  known: bool = False) -> bool:
    """Look at the beginning of a data file, at constant cost, before LMDB maps it.

    :param sub_databases: that every queue has
    :param configured: look at the configuration, too
    :param known: it is known to be a queue's: then one that does not look so is broken
    :return: False if the file lacks pages at its end, which only matters unless they are free
    :raise FormatError: it is no queue of this version
    :raise DamagedError: it was one, and is broken
    """
    with PageFile(file) as opened:
        for look in range(LOOKS_MAX):
            before = None
            try:
                before = opened.newest_meta()
                header = _header(opened, before, file, sub_databases)
                if configured:
                    require_configuration(header)
                return opened.pages() > before.last_page
            except (PageError, errors.PersipubsubError) as error:
                if look < LOOKS_MAX - 1 and (before is None or _moved_on(opened, before)):
                    continue
                if isinstance(error, errors.PersipubsubError):
                    raise
                raise (errors.damaged(file.parent, str(error)) if known else _broken(opened, file, error)) from error
    return True


class _NoQueueError(PageError):
    """Raised where nothing says that the file is a queue's."""


def _moved_on(opened: PageFile, before: Meta) -> bool:
    try:
        return opened.newest_meta() != before
    except PageError:
        return True


def _broken(opened: PageFile, file: pathlib.Path, error: PageError) -> errors.PersipubsubError:
    """Tell a queue that is broken from a file that never was one."""
    if is_of_1_0(opened):
        return _of_1_0(file)
    if isinstance(error, _NoQueueError):
        return _foreign(file, "none")
    if not opened.size_bytes():
        return errors.FormatError(f"The file {file} is empty, so it is no queue. Delete it, or use another directory.")
    for start in (0, 4096):
        try:
            opened.meta_at(start)
        except PageError:
            continue
        return errors.damaged(file.parent, str(error))
    return errors.FormatError(f"The file {file} is no LMDB file that this version can read ({error}). It was not "
                              "touched. If it was a queue, it is damaged: persipubsub recover saves what can still be "
                              "read. If not, use another directory.")


def is_of_1_0(opened: PageFile) -> bool:
    """Tell whether a file is a queue of persipubsub 1.0.0: each part of its configuration is a record of its own."""
    try:
        queue_db = opened.find(opened.newest_meta().main_root, b"queue_db")
        if queue_db is None or not queue_db[1].flags & SUB_DATABASE:
            return False
        root = decode_root(opened.value(*queue_db))
        return opened.find(root, b"strategy") is not None and opened.find(root, layouts.FORMAT_KEY) is None
    except PageError:
        return False


def require_not_of_1_0(file: pathlib.Path) -> None:
    """Refuse a queue of persipubsub 1.0.0.

    :raise FormatError: it is one
    :raise PathError: it cannot be read
    """
    with os_errors.errors_about(file), PageFile(file) as opened:
        if is_of_1_0(opened):
            raise _of_1_0(file)


def _of_1_0(file: pathlib.Path) -> errors.FormatError:
    return errors.FormatError(
        f"The queue at {file.parent} was made by persipubsub 1.0.0 and was not touched. Make a new "
        f"one of it with: persipubsub migrate {file.parent} NEW")


def _header(opened: PageFile, meta: Meta, file: pathlib.Path, sub_databases: Tuple[str, ...]) -> bytes:
    """Find the header of a queue, and make sure that it is a queue of this version."""
    if not meta.ours:
        raise PageError("the main database is of another kind than ours")
    roots = {}
    for name in sub_databases:
        found = opened.find(meta.main_root, name.encode())
        if found is None or not found[1].flags & SUB_DATABASE:
            raise _NoQueueError(f"the sub-database {name} is missing")
        roots[name] = decode_root(opened.value(*found))
        if roots[name] != NO_ROOT:
            opened.page(roots[name])
    found = opened.find(roots["queue_db"], layouts.FORMAT_KEY)
    if found is None:
        raise _NoQueueError("the format version is missing")
    version = opened.value(*found)
    if version != layouts.NUMBER.pack(layouts.FORMAT_VERSION):
        raise _foreign(file, str(int.from_bytes(version[:8], "big")))
    found = opened.find(roots["queue_db"], layouts.HEADER_KEY)
    if found is None:
        raise PageError("the configuration is missing")
    return opened.value(*found)


def require_configuration(value: bytes) -> layouts.Header:
    """Decode the header, and make sure that its configuration is one that can be set.

    :raise PageError: it is not
    """
    try:
        header = layouts.decode_header(value)
        settings.stored_high_watermark(header)
        require_retention_within_timeout(header.retention_us, header.message_timeout_us)
        queue.Strategy(header.strategy)
        queue.Durability(header.durability)
    except (struct.error, ValueError) as error:
        raise PageError(f"the configuration is broken ({error})") from error
    return header


def _foreign(file: pathlib.Path, found: str) -> errors.FormatError:
    return errors.FormatError(
        f"The queue at {file.parent} is not of format version {layouts.FORMAT_VERSION}, which this version reads and "
        f"writes (found: {found}). Use the version of persipubsub that made it, or another directory.")


_LOGGER = logging.getLogger("persipubsub.admission")  # the name that programs filter by

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
    while unclean_marker.of_other_boot(path):
        if use_lock.try_alone():
            # The mark is a queue's, so the file was one, whatever has become of it.
            require_sound(path, known=True)
            # Sound it is as well where it is as it was at an earlier moment, and nothing in it tells.
            _LOGGER.warning(
                "The machine stopped while commits of the queue at %s were not on the disk, which its durability "
                "PROCESS_CRASH allows. The queue is sound, but what was sent and taken last may be missing.", path)
            unclean_marker.remove(path)
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
    whole = opening_check.require_queue(path / files.DATA_FILE, SubDatabases._fields)
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
    opening_check.require_queue(path / files.DATA_FILE, SubDatabases._fields, known=known)
    _require_none(path, violations(path))


def _require_none(path: pathlib.Path, found: Sequence[Violation]) -> None:
    if found:
        first, *others = found
        more = f" (and {len(others)} more)" if others else ""
        raise errors.damaged(path, f"{first}{more}")


def _page_problems(path: pathlib.Path) -> Tuple[Violation, ...]:
    problems = database.verify(path / files.DATA_FILE) or cut_off(path / files.DATA_FILE)
    return tuple(invariants.violation("I0", problem) for problem in problems)


def violations(path: pathlib.Path) -> Tuple[Violation, ...]:
    """Give what is broken: first in the pages, which are not given to LMDB unless they are sound, then in the records.

    Who calls has ``use.lock`` alone.
    """
    problems = _page_problems(path)
    if problems:
        return problems
    for invariant, configured in (("I0", False), ("I7", True)):
        try:
            opening_check.require_queue(path / files.DATA_FILE, SubDatabases._fields, configured)
        except errors.DamagedError as error:
            return (invariants.violation(invariant, str(error.__cause__)), )
    # Made anew: what lies there may be as broken as the rest.
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
    opening_check.require_not_of_1_0(path / files.DATA_FILE)
    use_lock = UseLock(path, files.data_file_mode(path))
    if use_lock.try_alone():
        return use_lock
    use_lock.close()
    return None
