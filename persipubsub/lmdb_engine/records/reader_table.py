"""Free slots in LMDB's table of readers, in ``lock.mdb``, without occupying one."""

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

from persipubsub import lazy_imports

#: MDB_RDONLY and MDB_NOTLS of lmdb.h: read only, and no slots that are bound to threads.
_FLAGS = 0x20000 | 0x200000
#: Prefixes of LMDB's functions: in py-lmdb's own builds, which contain two versions of LMDB (queues have the format of
#: 0.9), and in a build against the system's LMDB.
PREFIXES = ("mdb09_", "mdb_")

#: Whether the layout of ``lock.mdb`` is known: LMDB 0.9, with the mutex of glibc or musl on this processor.
_LAYOUT_KNOWN = sys.platform == "linux" and os.uname().machine == "x86_64"
_MAGIC = 0xBEEFC0DE
_HEADER = struct.Struct(
    "=II40xQI")  # the magic number, the format, the last transaction, the number of slots that were ever used
_MUTEX_OFFSET = 8
_SLOTS_OFFSET = 128
_SLOT_BYTES = 64
_PID_OFFSET = 8  # in a slot
_PID = struct.Struct("=i")
_FILE_LOCK = struct.Struct("hhqqi4x")  # struct flock


def free_stale_slots(path: pathlib.Path) -> None:
    """Free the slots of processes that died, if possible. This process must not have the queue open.

    py-lmdb reads when it opens an environment, and a read needs a slot. So it cannot free any slot if dead processes
    occupy all of them. LMDB itself can: its functions are in py-lmdb's extension module.
    """
    try:
        with lazy_imports.NoFork():
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
    """Free the slots of a process that died and had this process's pid. This process must not have the queue open.

    LMDB treats them as this process's own, and does not reuse the pages that were freed since. The process of a
    restarted container has the same pid as before.

    :param file: ``lock.mdb``
    """
    if not _LAYOUT_KNOWN:
        return
    try:
        fd = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # LMDB reports what is wrong
    try:
        table = os.pread(fd, os.fstat(fd).st_size, 0)
        # If no process has it open, LMDB will reset the table, and the mutex may be left from another boot.
        if _own_slots(table) and _is_locked(fd, 0):
            with mmap.mmap(fd, len(table)) as mapped, _locked(mapped):
                # A living process in another pid namespace holds a lock on the byte at its pid.
                if not _is_locked(fd, os.getpid()):
                    for offset in _own_slots(mapped[:]):
                        _PID.pack_into(mapped, offset, 0)
    finally:
        os.close(fd)


def _own_slots(table: bytes) -> List[int]:
    """Return the offsets at which the pid of this process is."""
    if len(table) < _SLOTS_OFFSET:
        return []
    magic, _, _, used = _HEADER.unpack_from(table)
    end = min(_SLOTS_OFFSET + used * _SLOT_BYTES, len(table) - _SLOT_BYTES + 1)
    offsets = range(_SLOTS_OFFSET + _PID_OFFSET, end, _SLOT_BYTES) if magic == _MAGIC else ()
    return [offset for offset in offsets if _PID.unpack_from(table, offset)[0] == os.getpid()]


def _is_locked(fd: int, start: int) -> bool:
    """Return whether another process has a lock on a byte.

    The byte is not locked here, because other processes would then believe that this one uses the queue.
    """
    found = fcntl.fcntl(fd, fcntl.F_GETLK, _FILE_LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
    return bool(_FILE_LOCK.unpack(found)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def _locked(mapped: mmap.mmap) -> Iterator[None]:
    """Hold LMDB's mutex of the reader table, which every process holds to occupy or free a slot."""
    with lazy_imports.NoFork():
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
        del word  # a mapping cannot be closed while something refers to it
