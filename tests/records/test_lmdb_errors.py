"""LMDB's errors become ours: each says what happened, to which queue, and what to do."""

import errno
import os
import pathlib
import re
from typing import Callable, Optional, Type

import lmdb
import pytest

import persipubsub
from persipubsub import errors
from persipubsub.engine.values import Configuration
from persipubsub.lmdb_engine.records import database, layouts
from persipubsub.lmdb_engine.rules.settings import fresh

OURS = [
    (lmdb.ReadersFullError, 0, errors.ReadersFullError, "more than 1024 readers at one time. Use fewer processes"),
    (lmdb.DiskError, errno.ENOSPC, errors.DiskFullError, "no room left on its disk; nothing was changed. Make room"),
    (lmdb.DiskError, errno.EDQUOT, errors.DiskFullError, "no room left on its disk; nothing was changed. Make room"),
    (lmdb.DiskError, errno.EIO, errors.StorageError, "was refused by LMDB; nothing was changed"),
    (lmdb.Error, errno.EACCES, errors.PathError, "Correct the permissions"),
    (lmdb.Error, errno.EPERM, errors.PathError, "Correct the permissions"),
    (lmdb.ReadonlyError, errno.EROFS, errors.PathError, "Correct the permissions"),
    (lmdb.MemoryError, errno.ENOMEM, errors.StorageError,
     "at least 40 GiB of address space (not of memory). Raise the limit"),
    (lmdb.LockError, errno.EAGAIN, errors.StorageError, "another pid namespace"),
    (lmdb.InvalidError, 0, errors.FormatError, "is not an LMDB file that this version can read. It was not changed"),
    (lmdb.VersionMismatchError, 0, errors.FormatError, "is not an LMDB file that this version can read"),
    (lmdb.CorruptedError, 0, errors.DamagedError, "has a damaged file. Close it"),
    (lmdb.PageNotFoundError, 0, errors.DamagedError, "has a damaged file. Close it"),
    (lmdb.BadTxnError, 0, errors.StorageError, "was refused by LMDB; nothing was changed"),
    (lmdb.BadTxnError, None, errors.StorageError, "was refused by LMDB; nothing was changed"),
    (lmdb.Error, errno.EINVAL, errors.StorageError, "was refused by LMDB; nothing was changed"),
]


def translated(theirs: Type[lmdb.Error], code: Optional[int], path: pathlib.Path, unknown: bool = False) -> Exception:
    """Return what becomes of an error of LMDB."""
    error = theirs("what LMDB says")
    if code is not None:
        error.code = code  # type: ignore[misc]  # py-lmdb sets it where LMDB has one
    with pytest.raises(errors.PersipubsubError, match=re.escape(f"The queue at {path} ")) as raised:
        database.raise_translated(error, path, unknown)
    assert raised.value.__cause__ is error and "(LMDB: what LMDB says)" in str(raised.value)
    return raised.value


@pytest.mark.parametrize("theirs, code, ours, says", OURS)
def test_every_error_says_what_to_do(theirs: Type[lmdb.Error], code: Optional[int], ours: Type[Exception], says: str,
                                     tmp_path: pathlib.Path) -> None:
    """Each kind of LMDB's errors becomes the kind of ours that is meant for it, with its remedy."""
    error = translated(theirs, code, tmp_path)
    assert type(error) is ours and says in str(error)  # pylint: disable=unidiomatic-typecheck  # no kind of it


@pytest.mark.parametrize("theirs, code", [one[:2] for one in OURS])
def test_an_error_in_the_commit_leaves_the_outcome_open(theirs: Type[lmdb.Error], code: Optional[int],
                                                        tmp_path: pathlib.Path) -> None:
    """Whatever went wrong in the commit itself, no error says that nothing was changed."""
    error = translated(theirs, code, tmp_path, unknown=True)
    assert isinstance(error, errors.CommitUnknownError)
    assert "it is unknown whether the change is stored" in str(error) and "nothing was changed" not in str(error)


def test_an_io_error_on_a_full_disk_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fits only in part is an I/O error to LMDB; the library reports a full disk."""
    monkeypatch.setattr(database, "ROOM_BYTES_MIN", 2**62)
    assert isinstance(translated(lmdb.DiskError, errno.EIO, tmp_path), errors.DiskFullError)
    for code in (0, errno.ENOENT, errno.EINVAL):
        assert not isinstance(translated(lmdb.DiskError, code, tmp_path), errors.DiskFullError)


GARBAGE = b"no LMDB file" * 1000


def test_a_foreign_file_is_refused_by_all_that_open_one(tmp_path: pathlib.Path) -> None:
    """Whatever opens a data file alone says in our words that LMDB cannot read it."""
    file = tmp_path / "file"
    file.write_bytes(GARBAGE)
    with open(tmp_path / "copy", "wb") as copy, pytest.raises(errors.FormatError, match=re.escape(str(tmp_path))):
        database.compact(file, copy.fileno())
    with pytest.raises(errors.FormatError, match=re.escape(str(file))):
        database.fill(file, [], 0)
    with pytest.raises(errors.FormatError, match=re.escape(str(file))):
        database.create(file, *fresh(Configuration()))
    assert file.read_bytes() == GARBAGE


def test_an_error_while_a_queue_is_inspected(new_environment: Callable[..., persipubsub.Environment]) -> None:
    """What LMDB says to an operation that inspects a queue is said in our words, and the queue is closed."""
    with new_environment("a") as environment:
        path = environment.path
    for _ in range(2):
        with pytest.raises(errors.PathError, match=re.escape(str(path))):
            database.inspect(path, lambda txn: txn.count_cursor(1, 1))


def test_a_fresh_file_is_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    """Nobody else may read the file of a queue that is just being made."""
    umask = os.umask(0)
    try:
        database.create(tmp_path / "file", *fresh(Configuration()))
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.damages_queues
@pytest.mark.parametrize("version, found", [(2, "2"), (0, "0"), (None, "none")])
def test_an_opening_that_is_refused_leaves_nothing_open(
        version: Optional[int], found: str, new_environment: Callable[..., persipubsub.Environment]) -> None:
    """LMDB can be closed where a queue turns out to be of another version: it is refused for the same reason again."""
    with new_environment("a") as environment:
        path = environment.path
    with lmdb.Environment(str(path), max_dbs=32) as raw, raw.begin(write=True) as txn:
        queue_db = raw.open_db(b"queue_db", txn=txn)
        if version is None:
            txn.delete(layouts.FORMAT_KEY, db=queue_db)
        else:
            txn.put(layouts.FORMAT_KEY, layouts.NUMBER.pack(version), db=queue_db)
    refused = []
    for _ in range(2):
        opened = database.Database(path, True)
        with pytest.raises(errors.FormatError, match=rf"is not of format version 1, .*\(found: {found}\)") as raised:
            opened.open()
        opened.close()
        refused.append(raised)  # and with it all that the failed opening referred to
    assert len(refused) == 2


@pytest.mark.parametrize("content", [b"", b"x", GARBAGE])
def test_verifying_whatever_it_may_be(content: bytes, tmp_path: pathlib.Path) -> None:
    """Verifying a file that is not LMDB's reports what is wrong, and raises nothing."""
    (tmp_path / "file").write_bytes(content)
    found = database.verify(tmp_path / "file")
    assert found and all(found)
