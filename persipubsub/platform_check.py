"""Refuses the platforms on which a queue cannot work, with one clear error."""

import struct
import sys

if sys.platform == "win32":
    raise ImportError("persipubsub runs on Linux and macOS, not on Windows: it needs POSIX file locks and signals.")
if struct.calcsize("P") < 8:
    raise ImportError("persipubsub needs a 64-bit Python: a queue is mapped into 40 GiB of address space.")
