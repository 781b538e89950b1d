"""LMDB's table of readers, in ``lock.mdb``, looked at without taking a slot of it."""

import importlib.util
import os
import pathlib
from typing import Any

#: Of lmdb.h: read only, and no slot for a thread.
_FLAGS = 0x20000 | 0x200000
#: What the names of LMDB's functions begin with in py-lmdb's own builds, which hold two versions of LMDB (queues are of
#: the format of 0.9), and in one against the LMDB of the system.
PREFIXES = ("mdb09_", "mdb_")


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
