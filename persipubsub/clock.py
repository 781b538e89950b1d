"""The time of the machine, and sleeping. Tests replace these functions; everything else calls them here.

No other module uses :mod:`time`. Libraries that freeze time in tests replace the functions of that module, even where
they were imported by name. They do not replace ``clock_gettime``. A wait that follows a frozen clock would never end.
"""

import contextlib
import functools
import os
import pathlib
import sys
import time
from time import CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clock_gettime_ns
from typing import Callable, Optional

from persipubsub import errors, os_errors

# macOS lacks CLOCK_BOOTTIME. Its monotonic clock is the closest, and the boot id distinguishes the boots.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", CLOCK_MONOTONIC)
# Captured at import, before a test replaces it. Those of gevent and eventlet are looked up when they are needed.
_python_sleep = time.sleep
_COOPERATIVE = ("gevent", "eventlet")

_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/time"
#: The namespace into which children of this process are born. /proc/self/timens_offsets holds its offsets.
_NAMESPACE_OF_CHILDREN = "/proc/self/ns/time_for_children"
_OFFSETS = pathlib.Path("/proc/self/timens_offsets")
#: Linux's number for the time namespace in which it booted.
_FIRST_NAMESPACE = "time:[4026531834]"


def boottime_us() -> int:
    """Return the time since boot. It ignores changes of the wall clock, and continues during suspend."""
    return clock_gettime_ns(_SINCE_BOOT) // 1000 - _ahead_us


def wall_us() -> int:
    """Return the time since the epoch by the wall clock."""
    return clock_gettime_ns(CLOCK_REALTIME) // 1000


def monotonic_s() -> float:
    """Return a time in seconds that never goes back, for deadlines in this process."""
    return clock_gettime(CLOCK_MONOTONIC)


def sleep(seconds: float) -> None:
    """Sleep. Where gevent or eventlet has replaced ``time.sleep``, other greenlets run meanwhile."""
    (cooperative_sleep() or _python_sleep)(seconds)


def cooperative_sleep() -> Optional[Callable[[float], object]]:
    """Return the sleep that gevent or eventlet put in place of Python's, or None where threads are system threads."""
    found = time.sleep
    return found if getattr(found, "__module__", "").partition(".")[0] in _COOPERATIVE else None


@functools.lru_cache(maxsize=None)
def boot_id() -> bytes:
    """Return the 16 random bytes that the kernel chooses at each boot.

    :raise StorageError: the system hides it, or the time of this process cannot be compared with that of others
    """
    _clock_ahead_us()
    if sys.platform == "linux":
        try:
            text = _BOOT_ID.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            remedy = os_errors.shortage(getattr(error, "errno", None)) or (
                "let this process see it: mount /proc in its chroot or container, and leave ProcSubset=pid out of its "
                "systemd unit")
            raise errors.StorageError(
                f"{_BOOT_ID} cannot be read ({error}), so it is unknown whether the machine has restarted, and how "
                f"old messages are; {remedy}. Nothing was changed.") from error
    else:
        import subprocess
        text = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], check=True, capture_output=True,
                              text=True).stdout
    return bytes.fromhex(text.strip().replace("-", ""))


def _clock_ahead_us() -> int:
    """Return how far this process's time namespace is ahead of the machine's time since boot.

    :raise StorageError: it cannot be determined
    """
    try:
        namespace, of_children = os.readlink(_NAMESPACE), os.readlink(_NAMESPACE_OF_CHILDREN)
    except OSError:
        return 0  # a system without time namespaces
    if namespace == _FIRST_NAMESPACE:
        return 0
    if namespace != of_children:
        raise errors.StorageError(
            "This process has chosen another time namespace for its children, and the system no longer shows how far "
            "its own clock is ahead, so messages would expire early or late. Use the queue in a child of it. Nothing "
            "was changed.")
    try:
        offsets = dict(line.split(maxsplit=1) for line in _OFFSETS.read_text(encoding="ascii").splitlines())
        seconds, nanoseconds = map(int, offsets["boottime"].split())
    except (OSError, KeyError, ValueError) as error:
        raise errors.StorageError(
            f"{_OFFSETS} cannot be read ({error}), though this process is in a time namespace of its own, so messages "
            "would expire early or late. Mount /proc, or use the queue outside this namespace. Nothing was changed."
        ) from error
    return seconds * 1_000_000 + nanoseconds // 1000


def _update_clock_offset() -> None:
    """Determine how far the clock is ahead: at import, and in a forked child, which may be in another namespace."""
    global _ahead_us  # pylint: disable=global-statement  # read for every message
    _forget_boot_id()
    with contextlib.suppress(errors.StorageError):  # every use of a queue needs boot_id, which raises it
        _ahead_us = _clock_ahead_us()


_forget_boot_id = boot_id.cache_clear  # tests replace boot_id
_ahead_us = 0  # pylint: disable=invalid-name  # it is not a constant
_update_clock_offset()
os.register_at_fork(after_in_child=_update_clock_offset)
