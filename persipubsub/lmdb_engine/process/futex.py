"""Sleep until a word of memory changes, with Linux's futex. It works across processes in a mapped file.

See futex(2). :data:`AVAILABLE` is False on other systems, and on processors whose system call number is unknown here.
"""

import ctypes
import errno
import platform
import sys

_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_WAIT = 0
_WAKE = 1
_ALL = 2**31 - 1

AVAILABLE = sys.platform == "linux" and platform.machine() in _NUMBERS


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


_NUMBER = ctypes.c_long(_NUMBERS.get(platform.machine(), -1))
if AVAILABLE:
    _SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
    _SYSCALL.restype = ctypes.c_long


def wait(address: int, expected: int, timeout_s: float) -> None:
    """Sleep until woken, unless the word at the address differs from the expected one. Spurious wake-ups happen.

    :param address: address of a 32-bit word in shared memory
    :param timeout_s: longest sleep in seconds
    :raise OSError: the system call failed
    """
    timeout = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
    result = _SYSCALL(_NUMBER, ctypes.c_void_p(address), ctypes.c_int(_WAIT), ctypes.c_uint32(expected),
                      ctypes.byref(timeout), None, ctypes.c_int(0))
    if result < 0 and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
        raise OSError(ctypes.get_errno(), "futex")


def wake(address: int) -> None:
    """Wake all threads that sleep on the word at the address."""
    _SYSCALL(_NUMBER, ctypes.c_void_p(address), ctypes.c_int(_WAKE), ctypes.c_int(_ALL), None, None, ctypes.c_int(0))
