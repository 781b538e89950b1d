"""LMDB's errors become ours: each says what happened, to which queue, and what to do."""

import errno
import pathlib
import re
from typing import Type

import lmdb
import pytest

from persipubsub import database, errors

OURS = [
    (lmdb.ReadersFullError, 0, errors.ReadersFullError, "more than 1024 readers at one time. Use fewer processes"),
    (lmdb.DiskError, errno.ENOSPC, errors.DiskFullError, "no room left on its disk; nothing was changed. Make room"),
    (lmdb.DiskError, errno.EDQUOT, errors.DiskFullError, "no room left on its disk; nothing was changed. Make room"),
    (lmdb.DiskError, errno.EIO, errors.StorageError, "was refused by LMDB; nothing was changed"),
    (lmdb.Error, errno.EACCES, errors.PathError, "Correct the permissions"),
    (lmdb.Error, errno.EPERM, errors.PathError, "Correct the permissions"),
    (lmdb.ReadonlyError, errno.EROFS, errors.PathError, "Correct the permissions"),
    (lmdb.MemoryError, errno.ENOMEM, errors.StorageError,
     "takes 40 GiB of it or more (not of memory). Raise the limit"),
    (lmdb.LockError, errno.EAGAIN, errors.StorageError, "another pid namespace"),
    (lmdb.InvalidError, 0, errors.FormatError, "is no LMDB file that this version can read. It was not touched"),
    (lmdb.VersionMismatchError, 0, errors.FormatError, "is no LMDB file that this version can read"),
    (lmdb.CorruptedError, 0, errors.DamagedError, "has a damaged file. Restore it from a backup"),
    (lmdb.PageNotFoundError, 0, errors.DamagedError, "has a damaged file. Restore it from a backup"),
    (lmdb.BadTxnError, 0, errors.StorageError, "was refused by LMDB; nothing was changed"),
]


def translated(theirs: Type[lmdb.Error], code: int, path: pathlib.Path, unknown: bool = False) -> Exception:
    """Give what becomes of an error of LMDB."""
    error = theirs("what LMDB says")
    error.code = code  # type: ignore[misc]  # py-lmdb sets it where LMDB gives one
    with pytest.raises(errors.PersipubsubError, match=re.escape(f"The queue at {path} ")) as raised:
        database.raise_translated(error, path, unknown)
    assert raised.value.__cause__ is error and "(LMDB: what LMDB says)" in str(raised.value)
    return raised.value


@pytest.mark.parametrize("theirs, code, ours, says", OURS)
def test_every_error_says_what_to_do(theirs: Type[lmdb.Error], code: int, ours: Type[Exception], says: str,
                                     tmp_path: pathlib.Path) -> None:
    """Each kind of LMDB's errors becomes the kind of ours that is meant for it, with its remedy."""
    error = translated(theirs, code, tmp_path)
    assert type(error) is ours and says in str(error)  # pylint: disable=unidiomatic-typecheck  # no kind of it


@pytest.mark.parametrize("theirs, code", [one[:2] for one in OURS])
def test_an_error_in_the_commit_leaves_the_outcome_open(theirs: Type[lmdb.Error], code: int,
                                                        tmp_path: pathlib.Path) -> None:
    """Whatever went wrong in the commit itself, nobody is told that nothing was changed."""
    error = translated(theirs, code, tmp_path, unknown=True)
    assert isinstance(error, errors.CommitUnknownError)
    assert "nobody knows whether the change is stored" in str(error) and "nothing was changed" not in str(error)


def test_an_io_error_on_a_full_disk_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB speaks of an I/O error where a write fits only in part: with less room than that it is a full disk."""
    monkeypatch.setattr(database, "ROOM_BYTES_MIN", 2**62)
    assert isinstance(translated(lmdb.DiskError, errno.EIO, tmp_path), errors.DiskFullError)
    assert not isinstance(translated(lmdb.DiskError, errno.EINVAL, tmp_path), errors.DiskFullError)
