"""LMDB's table of readers, in ``lock.mdb``, looked at without taking a slot of it."""

import contextlib
import errno
import fcntl
import importlib.util
import mmap
import os
import pathlib
import struct
import sys
from typing import Any, Iterator, List

#: Of lmdb.h: read only, and no slot for a thread.
_FLAGS = 0x20000 | 0x200000
#: What the names of LMDB's functions begin with in py-lmdb's own builds, which hold two versions of LMDB (queues are of
#: the format of 0.9), and in one against the LMDB of the system.
PREFIXES = ("mdb09_", "mdb_")

#: Where LMDB 0.9 has its readers in ``lock.mdb``, with the mutex of glibc and musl on this processor.
_LAYOUT_KNOWN = sys.platform == "linux" and os.uname().machine == "x86_64"
_MAGIC = 0xBEEFC0DE
_HEADER = struct.Struct("=II40xQI")  # the magic number, the format, the last transaction, how many slots were used
_MUTEX_OFFSET = 8
_SLOTS_OFFSET = 128
_SLOT_BYTES = 64
_PID_OFFSET = 8  # in a slot
_PID = struct.Struct("=i")
_FILE_LOCK = struct.Struct("hhqqi4x")  # struct flock


def free_stale_slots(path: pathlib.Path) -> None:
    """Free the slots of processes that died, if it can be done; this process must not have the queue open.

    py-lmdb reads when it opens an environment, and to read takes a slot. So it cannot free any where the slots are all
    taken, though by the dead. LMDB itself can: its functions are in py-lmdb's extension module.
    """
    try:
        import ctypes  # here, since it is seldom needed, and some Pythons lack it
    except ImportError:
        return
    extension = importlib.util.find_spec("lmdb.cpython")
    library = ctypes.CDLL(extension.origin if extension else None)
    prefix = next((prefix for prefix in PREFIXES if hasattr(library, f"{prefix}reader_check")), None)
    if prefix is None:
        return

    def call(name: str, *arguments: Any) -> int:
        return int(library[f"{prefix}{name}"](*arguments))

    environment, dead = ctypes.c_void_p(), ctypes.c_int()
    if call("env_create", ctypes.byref(environment)) == 0:
        try:
            if call("env_open", environment, os.fsencode(path), ctypes.c_uint(_FLAGS), ctypes.c_uint(0o600)) == 0:
                call("reader_check", environment, ctypes.byref(dead))
        finally:
            call("env_close", environment)


def free_own_slots(file: pathlib.Path) -> None:
    """Free the slots of a process that died and had this one's number; this process must not have the queue open.

    LMDB takes them for this process's own, and keeps all pages that were freed since for them. A container that is
    restarted has the number that it had before.

    :param file: ``lock.mdb``
    """
    if not _LAYOUT_KNOWN:
        return
    try:
        fd = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # LMDB says what is wrong
    try:
        table = os.pread(fd, os.fstat(fd).st_size, 0)
        # Where nobody has it open, LMDB begins the table anew, and the mutex may be that of another boot.
        if _own_slots(table) and _is_locked(fd, 0):
            with mmap.mmap(fd, len(table)) as mapped, _locked(mapped):
                # One that lives in another pid namespace holds a lock on the byte of its number.
                if not _is_locked(fd, os.getpid()):
                    for offset in _own_slots(mapped[:]):
                        _PID.pack_into(mapped, offset, 0)
    finally:
        os.close(fd)


def _own_slots(table: bytes) -> List[int]:
    """Return where the number of this process stands."""
    if len(table) < _SLOTS_OFFSET:
        return []
    magic, _, _, used = _HEADER.unpack_from(table)
    end = min(_SLOTS_OFFSET + used * _SLOT_BYTES, len(table) - _SLOT_BYTES + 1)
    offsets = range(_SLOTS_OFFSET + _PID_OFFSET, end, _SLOT_BYTES) if magic == _MAGIC else ()
    return [offset for offset in offsets if _PID.unpack_from(table, offset)[0] == os.getpid()]


def _is_locked(fd: int, start: int) -> bool:
    """Tell whether another process has a lock on a byte. To take it would have others believe that we use the queue."""
    found = fcntl.fcntl(fd, fcntl.F_GETLK, _FILE_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
    return bool(_FILE_LOCK.unpack(found)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def _locked(mapped: mmap.mmap) -> Iterator[None]:
    """Hold LMDB's mutex of readers, without which nobody takes or frees a slot."""
    import ctypes  # here, since it is seldom needed
    library = ctypes.CDLL(None)
    word = ctypes.c_char.from_buffer(mapped, _MUTEX_OFFSET)
    mutex = ctypes.c_void_p(ctypes.addressof(word))
    code = library.pthread_mutex_lock(mutex)
    try:
        if code == errno.EOWNERDEAD:
            library.pthread_mutex_consistent(mutex)
        elif code:
            raise OSError(code, os.strerror(code))
        yield
    finally:
        if code in (0, errno.EOWNERDEAD):
            library.pthread_mutex_unlock(mutex)
        del word  # a mapping that is referred to cannot be closed
