"""Settings of a queue: when it overflows, which messages are deleted then, and what a message survives."""

import enum
from typing import Optional, Tuple

from persipubsub import errors

#: The longest message.
MESSAGE_BYTES_MAX = 1024**3
#: The largest batch of ``send_many``.
BATCH_MESSAGES_MAX = 1_000_000
#: The maximum space that a message takes besides its payload.
RECORD_BYTES_MAX = 64

__all__ = ["Durability", "HighWaterMark", "Strategy"]


class Strategy(enum.Enum):
    """Which messages are deleted when the queue overflows."""

    # pylint: disable=invalid-name  # the documented names are those of the README of 1.0.0

    #: The oldest messages.
    prune_first = 0
    #: The latest messages.
    prune_last = 1

    PRUNE_FIRST = 0
    PRUNE_LAST = 1


class Durability(enum.Enum):
    """What a message survives once ``send`` has returned."""

    #: The loss of power: ``send`` returns after fsync.
    POWER_LOSS = 0
    #: The death of any process, but not of the machine: faster, without fsync.
    PROCESS_CRASH = 1


class HighWaterMark:
    """The limits of a queue. A limit that is left out, or None, has its default.

    :param message_timeout: seconds after which an unacknowledged message expires; more than 0, at most 10 ** 11
    :param max_messages: number of messages at which the queue overflows; 1 to 2 ** 63 - 1
    :param hwm_db_size: bytes at which the queue overflows; 1 to 2 ** 46
    :param max_msgs_num: the name of ``max_messages`` in persipubsub 1.0.0
    :raise ArgumentTypeError: a wrong type, or both names of one argument
    :raise ArgumentError: a value outside its limits
    """

    __slots__ = ("message_timeout", "max_messages", "hwm_db_size")

    message_timeout: float
    max_messages: int
    hwm_db_size: int

    MESSAGE_TIMEOUT_S_DEFAULT = 500
    MESSAGE_TIMEOUT_S_MIN = 1e-6
    MESSAGE_TIMEOUT_S_MAX = 1e11
    MAX_MESSAGES_DEFAULT = 65536
    MAX_MESSAGES_MAX = 2**63 - 1
    HWM_DB_SIZE_BYTES_DEFAULT = 30 * 1024**3
    HWM_DB_SIZE_BYTES_MAX = 2**46

    def __init__(self,
                 message_timeout: Optional[float] = None,
                 max_messages: Optional[int] = None,
                 hwm_db_size: Optional[int] = None,
                 max_msgs_num: Optional[int] = None) -> None:
        if max_messages is not None and max_msgs_num is not None:
            raise errors.ArgumentTypeError(
                "Got both max_messages and max_msgs_num, which are one setting. Use max_messages.")
        if max_messages is None:
            max_messages = max_msgs_num
        if message_timeout is None:
            message_timeout = self.MESSAGE_TIMEOUT_S_DEFAULT
        if isinstance(message_timeout, bool) or not isinstance(message_timeout, (int, float)):
            raise errors.ArgumentTypeError(
                f"message_timeout must be a number of seconds, got {type(message_timeout).__name__}.")
        if not self.MESSAGE_TIMEOUT_S_MIN <= message_timeout <= self.MESSAGE_TIMEOUT_S_MAX:
            raise errors.ArgumentError(
                f"message_timeout must be from 0.000001 to 10 ** 11 seconds, got {message_timeout!r}.")
        for name, value, default, limit in (("max_messages", max_messages, self.MAX_MESSAGES_DEFAULT,
                                             self.MAX_MESSAGES_MAX),
                                            ("hwm_db_size", hwm_db_size, self.HWM_DB_SIZE_BYTES_DEFAULT,
                                             self.HWM_DB_SIZE_BYTES_MAX)):
            if value is None:
                value = default
            if isinstance(value, bool) or not isinstance(value, int):
                raise errors.ArgumentTypeError(f"{name} must be an int, got {type(value).__name__}.")
            if not 1 <= value <= limit:
                raise errors.ArgumentError(f"{name} must be from 1 to {limit}, got {value}.")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "message_timeout", message_timeout)

    @property
    def max_msgs_num(self) -> int:
        """Return ``max_messages``, by its name in persipubsub 1.0.0."""
        return self.max_messages

    @property
    def hwm_lmdb_size(self) -> int:
        """Return ``hwm_db_size``, by its name in persipubsub 1.0.0."""
        return self.hwm_db_size

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a HighWaterMark cannot be changed; make a new one to set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a HighWaterMark cannot be changed; {name} stays")

    def __reduce__(self) -> Tuple[object, ...]:
        return HighWaterMark, (self.message_timeout, self.max_messages, self.hwm_db_size)

    def _values(self) -> Tuple[float, int, int]:
        return self.message_timeout, self.max_messages, self.hwm_db_size

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, HighWaterMark) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return (f"HighWaterMark(message_timeout={self.message_timeout!r}, max_messages={self.max_messages!r}, "
                f"hwm_db_size={self.hwm_db_size!r})")


# The names of the released code of persipubsub 1.0.0.
_Strategy = Strategy
_HighWaterMark = HighWaterMark
