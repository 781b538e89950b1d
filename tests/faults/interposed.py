"""Faults at the system calls of this process: the Python side of interpose.c, which has to be preloaded."""

import ctypes
import enum
import os
import pathlib
import subprocess
from typing import Dict, NamedTuple

from tests.children import unmeasured

SOURCE = pathlib.Path(__file__).parent / "interpose.c"


class Kind(enum.Enum):
    """What happens at a system call."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    #: The call fails, and the later ones go on.
    FAIL_ONCE = 3
    #: The call and all later ones fail, as on a disk that stays full or broken.
    FAIL_ON = 4


class Fault(NamedTuple):
    """What happens at which of the following system calls, counted from 1."""

    kind: Kind
    at: int = 0
    errno: int = 0


def preload(directory: pathlib.Path) -> Dict[str, str]:
    """Compile the library into a directory, and return the environment of an unmeasured process that loads it."""
    library = directory / "interpose.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return {**unmeasured(), "LD_PRELOAD": os.fspath(library)}


class Interposed:
    """The library in this process.

    :raise AttributeError: this process was started without it
    """

    def __init__(self) -> None:
        functions = ctypes.CDLL(None)
        self._arm = functions.fault_arm
        self._arm.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int]
        self._arm.restype = None
        self._disarm = functions.fault_disarm
        self._disarm.restype = ctypes.c_long

    def arm(self, fault: Fault) -> None:
        """Let the fault happen from now on."""
        self._arm(fault.kind.value, fault.at, fault.errno)

    def disarm(self) -> int:
        """Let nothing happen any more; return how many calls there were since it was armed."""
        return int(self._disarm())
