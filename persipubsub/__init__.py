"""Persistent publish/subscribe inside a Python process: one directory per queue, on LMDB, without a server."""

import persipubsub.platform_check  # isort: split  # before a missing module of the platform says it less clearly
import persipubsub.silent_logging
from persipubsub import clock, control, environment, errors, publisher, queue, subscriber
from persipubsub.control import Control
from persipubsub.environment import Environment, initialize, new_environment
from persipubsub.publisher import Publisher
from persipubsub.queue import Durability, HighWaterMark, Strategy
from persipubsub.subscriber import Subscriber

__version__ = "2.0.0.dev0"

__all__ = [
    "Control",
    "Durability",
    "Environment",
    "HighWaterMark",
    "Publisher",
    "Strategy",
    "Subscriber",
    "clock",
    "control",
    "environment",
    "errors",
    "initialize",
    "new_environment",
    "publisher",
    "queue",
    "subscriber",
]
