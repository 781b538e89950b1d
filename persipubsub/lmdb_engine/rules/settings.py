"""The settings of a queue, as Control sets them and as the header stores them; on an open transaction."""

from typing import Any, Dict, Sequence, Tuple

from persipubsub import errors
from persipubsub.engine.settings import require_bindable, require_retention_within_timeout, stored_seconds, timeout_us
from persipubsub.engine.values import DEFAULTS, NEVER_US, Configuration
from persipubsub.lmdb_engine.records.layouts import NO_LIMIT, Header, Run
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules.cursors import add_subscriber
from persipubsub.lmdb_engine.rules.message_log import count_from, first_unexpired_id, now_us, remove_dangling
from persipubsub.queue import HighWaterMark

#: The fields of the header that hold the limits of the high-water mark.
_FIELDS = {"message_timeout": "message_timeout_us", "max_messages": "max_messages", "hwm_db_size": "hwm_db_size"}


def applied(configuration: Configuration, header: Header) -> Header:
    """Return the header with a configuration applied.

    :raise ArgumentError: the retention is longer than the message timeout
    """
    if configuration.high_watermark is not None:
        header = _with_limits(header, configuration.high_watermark)
    if configuration.strategy is not None:
        header = header._replace(strategy=configuration.strategy.value)
    if configuration.durability is not None:
        header = header._replace(durability=configuration.durability.value)
    if configuration.retention_s is not None:
        header = header._replace(retention_us=round(configuration.retention_s * 1e6))
    if configuration.deduplication_window_s is not None:
        header = header._replace(deduplication_window_us=max(1, round(configuration.deduplication_window_s * 1e6)))
    if configuration.deduplication_max is not None:
        header = header._replace(deduplication_max=configuration.deduplication_max)
    require_retention_within_timeout(header.retention_us, header.message_timeout_us)
    return header


def _with_limits(header: Header, mark: HighWaterMark) -> Header:
    """Return the header with the limits that a high-water mark gives."""
    stored: Dict[str, Any] = {
        _FIELDS[name]: NO_LIMIT if limit is None else limit
        for name, limit in mark.limits().items()
    }
    if mark.message_timeout is not None:
        stored["message_timeout_us"] = timeout_us(mark.message_timeout)
    return header._replace(**stored)


def stored_high_watermark(header: Header) -> HighWaterMark:
    """Return the high-water mark in the header."""
    timeout_s = None if header.message_timeout_us == NO_LIMIT else stored_seconds(header.message_timeout_us)
    messages, size_bytes = (None if limit == NO_LIMIT else limit for limit in (header.max_messages, header.hwm_db_size))
    return HighWaterMark(timeout_s, messages, size_bytes)


def fresh(configuration: Configuration) -> Tuple[Header, Run]:
    """Return the records of a new queue, in which the first message will have the id 1."""
    header = Header(message_timeout_us=0,
                    max_messages=0,
                    hwm_db_size=0,
                    strategy=0,
                    durability=0,
                    next_subscriber_number=1,
                    first=0,
                    waiting=0,
                    boot_id=bytes(16),
                    clock_offset_us=0,
                    retention_us=0,
                    next_due_us=NEVER_US,
                    delayed=0,
                    next_delayed_number=1,
                    deduplication_window_us=0,
                    deduplication_max=0,
                    pruned_timeout=0,
                    pruned_overflow=0,
                    pruned_dangling=0)
    return applied(configuration, applied(Configuration(*DEFAULTS), header)), Run(1, 0, 0, 0, 0)


def configure(txn: Transaction, configuration: Configuration, identifiers: Sequence[bytes]) -> None:
    """Apply a configuration, and add the subscribers that are missing.

    :raise MessageTypeError: it binds the queue to another message type while the queue has messages
    """
    if configuration.message_type is not None:
        _bind(txn, configuration.message_type)
    retention_us = txn.header.retention_us
    txn.put_header(applied(configuration, txn.header))
    if txn.header.retention_us < retention_us:
        remove_dangling(txn)
    for identifier in identifiers:
        add_subscriber(txn, identifier)


def _bind(txn: Transaction, message_type: str) -> None:
    """Bind the queue to a message type, by its full name."""
    messages, _ = count_from(txn, first_unexpired_id(txn, now_us(txn)))
    require_bindable(txn.message_type(), message_type, messages)
    txn.put_message_type(message_type)


def require_message_type(txn: Transaction, wanted: str) -> None:
    """Raise MessageTypeError if the queue is bound to another message type than the wanted one."""
    bound = txn.message_type()
    if bound is not None and bound != wanted:
        class_name = bound.rpartition(".")[2].removeprefix("json:")
        raise errors.MessageTypeError(f"The queue is bound to the message type {bound}, not to {wanted}. Open it with "
                                      f"message_type={class_name}, or without one for the bytes.")
