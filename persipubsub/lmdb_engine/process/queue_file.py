"""Read the beginning of a queue's data file without LMDB: whether it is a queue of this version."""

import pathlib
import struct
from typing import Tuple

from persipubsub import errors, os_errors, queue
from persipubsub.engine.settings import require_retention_within_timeout
from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.page_file import NO_ROOT, SUB_DATABASE, Meta, PageError, PageFile, decode_root
from persipubsub.lmdb_engine.rules import settings

#: Number of attempts. A commit by another process changes pages meanwhile; then that process has checked the queue.
ATTEMPTS_MAX = 10


def require_queue(file: pathlib.Path,
                  sub_databases: Tuple[str, ...],
                  configured: bool = True,
                  known: bool = False) -> bool:
    """Check the beginning of a data file, at constant cost, before LMDB maps it.

    :param sub_databases: the sub-databases that every queue has
    :param configured: also check the configuration
    :param known: the file is known to be a queue's, so if it does not look like one, it is damaged
    :return: False if the file lacks pages at its end, which is harmless if they are free
    :raise FormatError: it is not a queue of this version
    :raise DamagedError: it is a damaged queue
    """
    with PageFile(file) as opened:
        for attempt in range(ATTEMPTS_MAX):
            before = None
            try:
                before = opened.newest_meta()
                header = _header(opened, before, file, sub_databases)
                if configured:
                    require_configuration(header)
                return opened.pages() > before.last_page
            except (PageError, errors.PersipubsubError) as error:
                if attempt < ATTEMPTS_MAX - 1 and (before is None or _has_changed(opened, before)):
                    continue
                if isinstance(error, errors.PersipubsubError):
                    raise
                raise (errors.damaged(file.parent, str(error)) if known else _broken(opened, file, error)) from error
    return True


class _NotAQueueError(PageError):
    """Raised if nothing shows that the file is a queue's."""


def _has_changed(opened: PageFile, before: Meta) -> bool:
    try:
        return opened.newest_meta() != before
    except PageError:
        return True


def _broken(opened: PageFile, file: pathlib.Path, error: PageError) -> errors.PersipubsubError:
    """Return an error that distinguishes a damaged queue from a file that never was one."""
    if is_of_1_0(opened):
        return _of_1_0(file)
    if isinstance(error, _NotAQueueError):
        return layouts.other_version(file.parent, "none")
    if not opened.size_bytes():
        return errors.FormatError(f"The file {file} is empty, so it is not a queue. Delete it, or use another "
                                  "directory.")
    for start in (0, 4096):
        try:
            opened.meta_at(start)
        except PageError:
            continue
        return errors.damaged(file.parent, str(error))
    return errors.FormatError(f"The file {file} is not an LMDB file that this version can read ({error}). It was "
                              "not changed. If it was a queue, it is damaged: persipubsub recover saves what can still "
                              "be read. If not, use another directory.")


def is_of_1_0(opened: PageFile) -> bool:
    """Return whether a file is a queue of persipubsub 1.0.0, where each configuration value is a separate record."""
    try:
        queue_db = opened.find(opened.newest_meta().main_root, b"queue_db")
        if queue_db is None or not queue_db[1].flags & SUB_DATABASE:
            return False
        root = decode_root(opened.value(*queue_db))
        return opened.find(root, b"strategy") is not None and opened.find(root, layouts.FORMAT_KEY) is None
    except PageError:
        return False


def require_not_of_1_0(file: pathlib.Path) -> None:
    """Make sure that a file is not a queue of persipubsub 1.0.0.

    :raise FormatError: it is one
    :raise PathError: it cannot be read
    """
    with os_errors.errors_about(file), PageFile(file) as opened:
        if is_of_1_0(opened):
            raise _of_1_0(file)


def _of_1_0(file: pathlib.Path) -> errors.FormatError:
    return errors.FormatError(
        f"The queue at {file.parent} was created by persipubsub 1.0.0 and was not changed. Convert "
        f"it into a new one with: persipubsub migrate {file.parent} NEW")


def _header(opened: PageFile, meta: Meta, file: pathlib.Path, sub_databases: Tuple[str, ...]) -> bytes:
    """Return the header of a queue, and make sure that it is a queue of this version."""
    if not meta.ours:
        raise PageError("the main database is not of the kind that a queue has")
    roots = {}
    for name in sub_databases:
        found = opened.find(meta.main_root, name.encode())
        if found is None or not found[1].flags & SUB_DATABASE:
            raise _NotAQueueError(f"the sub-database {name} is missing")
        roots[name] = decode_root(opened.value(*found))
        if roots[name] != NO_ROOT:
            opened.page(roots[name])
    found = opened.find(roots["queue_db"], layouts.FORMAT_KEY)
    if found is None:
        raise _NotAQueueError("the format version is missing")
    version = opened.value(*found)
    if version != layouts.NUMBER.pack(layouts.FORMAT_VERSION):
        raise layouts.other_version(file.parent, str(int.from_bytes(version[:8], "big")))
    found = opened.find(roots["queue_db"], layouts.HEADER_KEY)
    if found is None:
        raise PageError("the configuration is missing")
    return opened.value(*found)


def require_configuration(value: bytes) -> layouts.Header:
    """Decode the header, and make sure that its configuration is valid.

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
