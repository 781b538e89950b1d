"""The time of the machine, in microseconds. Tests replace these functions; everything else calls them here."""

import functools
import sys
import time

# macOS lacks CLOCK_BOOTTIME; its monotonic clock is the nearest, and the boot id tells the boots apart.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


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
