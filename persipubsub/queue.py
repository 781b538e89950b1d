"""Settings of a queue: its limits, what happens when they are reached, and what a message survives."""

import enum
from typing import Dict, Optional, Tuple, Union

from persipubsub import errors

#: The longest message.
MESSAGE_BYTES_MAX = 1024**3
#: The largest batch of ``send_many``.
BATCH_MESSAGES_MAX = 1_000_000
#: The maximum space that a message takes besides its payload.
RECORD_BYTES_MAX = 64

__all__ = ["UNCHANGED", "Durability", "HighWaterMark", "Strategy", "Unchanged"]


class Unchanged(enum.Enum):
    """The default of an argument that may also be None."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


#: A limit that is left out: it keeps its stored value.
UNCHANGED = Unchanged.UNCHANGED


class Strategy(enum.Enum):
    """What happens when a message is sent and the queue has reached its high-water mark."""

    # pylint: disable=invalid-name  # the documented names are those of the README of 1.0.0

    #: The oldest messages are deleted.
    prune_first = 0
    #: The latest messages are deleted.
    prune_last = 1
    #: Nothing is deleted: ``send`` raises :class:`QueueFullError`, or waits for room.
    refuse = 2

    PRUNE_FIRST = 0
    PRUNE_LAST = 1
    REFUSE = 2


class Durability(enum.Enum):
    """What a message survives once ``send`` has returned."""

    #: The loss of power: ``send`` returns after fsync.
    POWER_LOSS = 0
    #: The death of any process, but not of the machine: faster, without fsync.
    PROCESS_CRASH = 1


class HighWaterMark:
    """The limits of a queue. None means no limit, which is what a new queue has.

    A limit that is left out keeps its stored value.

    :param message_timeout: seconds after which an unacknowledged message expires; 0.000001 to 10 ** 11
    :param max_messages: number of messages at which the queue is full; 1 to 2 ** 63 - 1
    :param hwm_db_size: bytes at which the queue is full; 1 to 2 ** 46
    :param max_msgs_num: the name of ``max_messages`` in persipubsub 1.0.0
    :raise ArgumentTypeError: a wrong type, or both names of one argument
    :raise ArgumentError: a value outside its limits
    """

    __slots__ = ("message_timeout", "max_messages", "hwm_db_size", "_given")

    #: Each limit reads as None if there is no limit, and also if it was left out: see :attr:`given`.
    message_timeout: Optional[float]
    max_messages: Optional[int]
    hwm_db_size: Optional[int]
    _given: Tuple[str, ...]

    MESSAGE_TIMEOUT_S_MIN = 1e-6
    MESSAGE_TIMEOUT_S_MAX = 1e11
    MAX_MESSAGES_MAX = 2**63 - 1
    HWM_DB_SIZE_BYTES_MAX = 2**46

    def __init__(self,
                 message_timeout: Union[float, None, Unchanged] = UNCHANGED,
                 max_messages: Union[int, None, Unchanged] = UNCHANGED,
                 hwm_db_size: Union[int, None, Unchanged] = UNCHANGED,
                 max_msgs_num: Union[int, None, Unchanged] = UNCHANGED) -> None:
        if max_messages is not UNCHANGED and max_msgs_num is not UNCHANGED:
            raise errors.ArgumentTypeError(
                "Got both max_messages and max_msgs_num, which are one setting. Use max_messages.")
        if max_messages is UNCHANGED:
            max_messages = max_msgs_num
        limits = {
            "message_timeout": _timeout(message_timeout),
            "max_messages": _whole("max_messages", max_messages, self.MAX_MESSAGES_MAX),
            "hwm_db_size": _whole("hwm_db_size", hwm_db_size, self.HWM_DB_SIZE_BYTES_MAX),
        }
        for name, value in limits.items():
            object.__setattr__(self, name, None if value is UNCHANGED else value)
        object.__setattr__(self, "_given", tuple(name for name, value in limits.items() if value is not UNCHANGED))

    @property
    def given(self) -> Tuple[str, ...]:
        """Return the names of the limits that were not left out."""
        return self._given

    def limits(self) -> Dict[str, Union[int, float, None]]:
        """Return the limits that were not left out, by their names."""
        return {name: getattr(self, name) for name in self.given}

    @property
    def max_msgs_num(self) -> Optional[int]:
        """Return ``max_messages``, by its name in persipubsub 1.0.0."""
        return self.max_messages

    @property
    def hwm_lmdb_size(self) -> Optional[int]:
        """Return ``hwm_db_size``, by its name in persipubsub 1.0.0."""
        return self.hwm_db_size

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a HighWaterMark cannot be changed; make a new one to set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a HighWaterMark cannot be changed; {name} stays")

    def __reduce__(self) -> Tuple[object, ...]:
        values = (getattr(self, name) if name in self.given else UNCHANGED for name in _LIMITS)
        return HighWaterMark, tuple(values)

    def __eq__(self, other: object) -> bool:
        return self.limits() == other.limits() if isinstance(other, HighWaterMark) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.limits().items()))

    def __repr__(self) -> str:
        return f"HighWaterMark({', '.join(f'{name}={value!r}' for name, value in self.limits().items())})"


_LIMITS = ("message_timeout", "max_messages", "hwm_db_size")


def _timeout(value: Union[float, None, Unchanged]) -> Union[float, None, Unchanged]:
    if value is None or isinstance(value, Unchanged):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise errors.ArgumentTypeError(
            f"message_timeout must be a number of seconds, or None for no limit, got {type(value).__name__}.")
    if not HighWaterMark.MESSAGE_TIMEOUT_S_MIN <= value <= HighWaterMark.MESSAGE_TIMEOUT_S_MAX:
        raise errors.ArgumentError(
            f"message_timeout must be from 0.000001 to 10 ** 11 seconds, or None for no limit, got {value!r}.")
    return value


def _whole(name: str, value: Union[int, None, Unchanged], most: int) -> Union[int, None, Unchanged]:
    if value is None or isinstance(value, Unchanged):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.ArgumentTypeError(f"{name} must be an int, or None for no limit, got {type(value).__name__}.")
    if not 1 <= value <= most:
        raise errors.ArgumentError(f"{name} must be from 1 to {most}, or None for no limit, got {value}.")
    return value


#: What a new queue has.
NO_LIMITS = HighWaterMark(None, None, None)

# The names of the released code of persipubsub 1.0.0.
_Strategy = Strategy
_HighWaterMark = HighWaterMark
