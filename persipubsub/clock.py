"""The time of the machine, in microseconds. Tests replace these functions; everything else calls them here."""

import datetime
import functools
import sys
import time

# macOS lacks CLOCK_BOOTTIME; its monotonic clock is the nearest, and the boot id tells the boots apart.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_LAST = datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)


def utc(time_us: int) -> datetime.datetime:
    """Give a time since the epoch as a datetime; what is later than any can tell is the latest."""
    try:
        return EPOCH + datetime.timedelta(microseconds=time_us)
    except OverflowError:
        return _LAST


def boottime_us() -> int:
    """Give the time since boot, which no step of the wall clock touches and which goes on in suspend."""
    return time.clock_gettime_ns(_SINCE_BOOT) // 1000


def wall_us() -> int:
    """Give the wall clock's time since the epoch."""
    return time.time_ns() // 1000


@functools.lru_cache(maxsize=None)
def boot_id() -> bytes:
    """Give the 16 bytes that the kernel draws at each boot."""
    if sys.platform == "linux":
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as fid:
            text = fid.read()
    else:
        import subprocess
        text = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], check=True, capture_output=True,
                              text=True).stdout
    return bytes.fromhex(text.strip().replace("-", ""))
