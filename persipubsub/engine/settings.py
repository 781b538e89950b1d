"""Settings of a queue, as every engine stores and refuses them."""

from typing import Optional, Union

from persipubsub import errors
from persipubsub.engine.checks import microseconds
from persipubsub.queue import HighWaterMark


def require_retention_within_timeout(retention_us: int, message_timeout_us: int) -> None:
    """Refuse a retention that promises more than the message timeout lets be true.

    :raise ArgumentError: the message timeout ends before the retention
    """
    if retention_us > message_timeout_us:
        raise errors.ArgumentError(
            f"retention_s={stored_seconds(retention_us)} is over the message timeout of "
            f"{stored_seconds(message_timeout_us)} seconds, at which messages go in any case. Raise "
            "message_timeout of the high-water mark first, or keep them for less.")


def stored_seconds(time_us: int) -> Union[int, float]:
    """Give a stored time in seconds, an int where it is whole."""
    seconds, rest_us = divmod(time_us, 1_000_000)
    return time_us / 1e6 if rest_us else seconds


def as_stored(mark: HighWaterMark) -> HighWaterMark:
    """Give a high-water mark as a queue tells it once it is set there: the timeout in whole microseconds."""
    timeout_us = max(1, microseconds(mark.message_timeout))
    return HighWaterMark(stored_seconds(timeout_us), mark.max_messages, mark.hwm_db_size)


def require_bindable(bound: Optional[str], wanted: str, messages: int) -> None:
    """Make sure that a queue with so many messages may be bound to a protobuf type.

    :param bound: the type that it is bound to
    :raise MessageTypeError: it may not
    """
    if bound is not None and bound != wanted and messages:
        raise errors.MessageTypeError(f"The queue is bound to the message type {bound} and has {messages} messages, so "
                                      f"it cannot be bound to {wanted}. Let the subscribers take them first, or drop "
                                      "them with Control.clear_messages.")
