"""Rules for the settings of a queue, the same for every engine."""

from typing import Dict, Optional, Tuple, Union

from persipubsub import errors
from persipubsub.engine.checks import microseconds
from persipubsub.queue import HighWaterMark, Strategy

#: Limits of a high-water mark by their names; None means no limit.
Limits = Dict[str, Union[int, float, None]]


def require_retention_within_timeout(retention_us: int, message_timeout_us: int) -> None:
    """Refuse a retention that exceeds the message timeout.

    :raise ArgumentError: it does
    """
    if retention_us > message_timeout_us:
        raise errors.ArgumentError(
            f"retention_s={stored_seconds(retention_us)} is over the message timeout of "
            f"{stored_seconds(message_timeout_us)} seconds, after which messages expire in any case. "
            "Raise message_timeout of the high-water mark first, or lower the retention.")


def stored_seconds(time_us: int) -> Union[int, float]:
    """Return a stored time in seconds, as an int if it is whole."""
    seconds, rest_us = divmod(time_us, 1_000_000)
    return time_us / 1e6 if rest_us else seconds


def as_stored(mark: HighWaterMark) -> Limits:
    """Return the given limits of a high-water mark as a queue reports them, with its timeout in whole microseconds."""
    limits = mark.limits()
    if mark.message_timeout is not None:
        limits["message_timeout"] = stored_seconds(timeout_us(mark.message_timeout))
    return limits


def timeout_us(message_timeout: float) -> int:
    """Return a message timeout in whole microseconds."""
    return max(1, microseconds(message_timeout))


def require_bindable(bound: Optional[str], wanted: str, messages: int) -> None:
    """Make sure that a queue may be bound to a message type.

    :param bound: the type that it is bound to
    :param messages: how many messages it has
    :raise MessageTypeError: it may not
    """
    if bound is not None and bound != wanted and messages:
        raise errors.MessageTypeError(f"The queue is bound to the message type {bound} and has {messages} messages, so "
                                      f"it cannot be bound to {wanted}. Receive them first, or delete them "
                                      "with Control.clear_messages.")


def survivors(stored: int, new: int, mark: int, strategy: Strategy) -> Tuple[int, int]:
    """Return which messages stay when messages are sent one by one, each after an overflow if the limit is reached.

    An overflow at n messages drops n // 2 + 1 of them. Once the limit is reached, each further overflow comes after as
    many messages as the one before dropped, so the overflows need not be computed one by one.

    :param stored: the number of messages in the queue
    :param new: the number of messages to send, at least 1
    :param mark: ``max_messages``
    :param strategy: which messages are dropped
    :return: of stored and new messages, in their order: how many of the first stay, how many of the last
    """
    while stored >= mark:
        stored -= stored // 2 + 1
    lowest, until_overflow = stored, mark - stored
    if new <= until_overflow:
        stored += new
    else:
        period = mark // 2 + 1
        lowest = mark - period  # what each overflow at the limit leaves; those of the loop above left at least as many
        stored = mark - period + 1 + (new - until_overflow - 1) % period
    return (0, stored) if strategy == Strategy.prune_first else (lowest, stored - lowest)


def giving_way(stored: int, new: int, mark: int, retained: int) -> int:
    """Return how many retained messages are deleted when messages are sent one by one.

    If the limit is reached, n // 2 + 1 of n messages are deleted, as in any overflow, but only retained ones while
    there are any.

    :param stored: the number of messages in the queue
    :param new: the number of messages to send
    :param mark: ``max_messages``
    :param retained: the number of stored messages that no subscriber awaits
    """
    deleted = 0
    while deleted < retained and stored + new > mark:
        put = max(0, mark - stored)
        stored, new = stored + put, new - put
        count = min(retained - deleted, stored // 2 + 1)
        stored, deleted = stored - count, deleted + count
    return deleted
