"""The time of the machine, and sleeping. Tests replace these functions; everything else calls them here.

No other module uses :mod:`time`. Libraries that freeze time in tests replace the functions of that module, also where
they were imported by name; they leave ``clock_gettime`` alone. A wait that goes by a frozen clock would never end.
"""

import contextlib
import datetime
import functools
import os
import pathlib
import sys
import time
from time import CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clock_gettime_ns
from typing import Callable, Optional

from persipubsub import errors, os_errors

# macOS lacks CLOCK_BOOTTIME; its monotonic clock is the nearest, and the boot id tells the boots apart.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", CLOCK_MONOTONIC)
# Not one that a test replaced for a while: those of gevent and eventlet are found when they are needed.
_python_sleep = time.sleep
_COOPERATIVE = ("gevent", "eventlet")

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_LAST = datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)

_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/time"
#: What /proc/self/timens_offsets tells of: the namespace that children of this process are born into.
_NAMESPACE_OF_CHILDREN = "/proc/self/ns/time_for_children"
_OFFSETS = pathlib.Path("/proc/self/timens_offsets")
#: Linux's number of the time namespace in which it booted.
_FIRST_NAMESPACE = "time:[4026531834]"


def utc(time_us: int) -> datetime.datetime:
    """Give a time since the epoch as a datetime; what is later than any can tell is the latest."""
    try:
        return EPOCH + datetime.timedelta(microseconds=time_us)
    except OverflowError:
        return _LAST


def boottime_us() -> int:
    """Give the time since boot, which no step of the wall clock touches and which goes on in suspend."""
    return clock_gettime_ns(_SINCE_BOOT) // 1000 - _ahead_us


def wall_us() -> int:
    """Give the wall clock's time since the epoch."""
    return clock_gettime_ns(CLOCK_REALTIME) // 1000


def monotonic_s() -> float:
    """Give a time in seconds that only rises, for deadlines in this process."""
    return clock_gettime(CLOCK_MONOTONIC)


def sleep(seconds: float) -> None:
    """Sleep; where gevent or eventlet has replaced ``time.sleep``, other greenlets run meanwhile."""
    (cooperative_sleep() or _python_sleep)(seconds)


def cooperative_sleep() -> Optional[Callable[[float], object]]:
    """Return the sleep that gevent or eventlet put in place of Python's, or None: threads run on system threads."""
    found = time.sleep
    return found if getattr(found, "__module__", "").partition(".")[0] in _COOPERATIVE else None


@functools.lru_cache(maxsize=None)
def boot_id() -> bytes:
    """Give the 16 bytes that the kernel draws at each boot.

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
                f"{_BOOT_ID} cannot be read ({error}), so nobody can tell whether the machine has restarted, and how "
                f"old messages are; {remedy}. Nothing was changed.") from error
    else:
        import subprocess
        text = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], check=True, capture_output=True,
                              text=True).stdout
    return bytes.fromhex(text.strip().replace("-", ""))


def _clock_ahead_us() -> int:
    """Return how far the time since boot is ahead of the machine's in the time namespace of this process.

    :raise StorageError: it cannot be found out
    """
    try:
        namespace, of_children = os.readlink(_NAMESPACE), os.readlink(_NAMESPACE_OF_CHILDREN)
    except OSError:
        return 0  # a system without time namespaces
    if namespace == _FIRST_NAMESPACE:
        return 0
    if namespace != of_children:
        raise errors.StorageError(
            "This process has left its time namespace for its children, and the system no longer tells how far its own "
            "clock is ahead, so messages would expire early or late. Use the queue in a child of it. Nothing was "
            "changed.")
    try:
        offsets = dict(line.split(maxsplit=1) for line in _OFFSETS.read_text(encoding="ascii").splitlines())
        seconds, nanoseconds = map(int, offsets["boottime"].split())
    except (OSError, KeyError, ValueError) as error:
        raise errors.StorageError(
            f"{_OFFSETS} cannot be read ({error}), though this process is in a time namespace of its own, so messages "
            "would expire early or late. Mount /proc, or use the queue outside of it. Nothing was changed.") from error
    return seconds * 1_000_000 + nanoseconds // 1000


def _look_at_namespace() -> None:
    """Find out how far the clock is ahead: at import, and in a forked child, which may be in another namespace."""
    global _ahead_us  # pylint: disable=global-statement  # read for every message
    _forget_boot_id()
    with contextlib.suppress(errors.StorageError):  # boot_id, which every use of a queue needs, raises it
        _ahead_us = _clock_ahead_us()


_forget_boot_id = boot_id.cache_clear  # tests replace boot_id
_ahead_us = 0  # pylint: disable=invalid-name  # it is no constant
_look_at_namespace()
os.register_at_fork(after_in_child=_look_at_namespace)
