"""Persistent publish/subscribe inside a Python process: one directory per queue, on LMDB, without a server.

Each name is loaded on first use, so that importing the package costs a program next to nothing.
"""

import sys

# Before anything else, so that an unsupported platform is reported as such, not as a module that it lacks.
if sys.platform == "win32":
    raise ImportError("persipubsub runs on Linux and macOS, not on Windows: it needs POSIX file locks and signals.")
if sys.maxsize < 2**32:
    raise ImportError("persipubsub needs a 64-bit Python: a queue is mapped into 40 GiB of address space.")

import atexit
import importlib
from typing import TYPE_CHECKING, List

if TYPE_CHECKING:
    # For type checkers, and for tools such as PyInstaller, which find only modules that a statement imports.
    from persipubsub import clock, control, environment, errors, message, publisher, queue, subscriber
    from persipubsub.control import Control
    from persipubsub.environment import Environment, initialize, new_environment
    from persipubsub.message import Delivery, Envelope, Reject, Retry
    from persipubsub.publisher import Publisher
    from persipubsub.queue import Durability, HighWaterMark, Strategy
    from persipubsub.subscriber import Subscriber

__version__ = "2.0.0.dev0"

__all__ = [
    "Control",
    "Delivery",
    "Durability",
    "Envelope",
    "Environment",
    "HighWaterMark",
    "Publisher",
    "Reject",
    "Retry",
    "Strategy",
    "Subscriber",
    "clock",
    "control",
    "environment",
    "errors",
    "initialize",
    "message",
    "new_environment",
    "publisher",
    "queue",
    "subscriber",
]

#: The module of each public name that is not a module itself.
_MODULES = {
    "Control": "control",
    "Delivery": "message",
    "Durability": "queue",
    "Envelope": "message",
    "Environment": "environment",
    "HighWaterMark": "queue",
    "Publisher": "publisher",
    "Reject": "message",
    "Retry": "message",
    "Strategy": "queue",
    "Subscriber": "subscriber",
    "initialize": "environment",
    "new_environment": "environment",
}


@atexit.register
def _close_all() -> None:
    """Close every queue. Registered here, so that whatever a program registers after its import can still send."""
    loaded = sys.modules.get("persipubsub.environment")
    if loaded is not None:
        loaded._close_all()  # pylint: disable=protected-access  # of this package


if not TYPE_CHECKING:  # type checkers take the imports above, and report names that do not exist

    def __getattr__(name: str) -> object:
        """Load a public name on first use (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
        # Stored, so that Python does not ask again.
        found = globals()[name] = getattr(module, name) if name in _MODULES else module
        return found


def __dir__() -> List[str]:
    return __all__
