"""The settings of a queue, as Control sets them, and the streams that follow from them."""

import asyncio
from typing import Any, Dict, Optional

import msgspec

from persipubsub import errors
from persipubsub.engine.settings import require_bindable, require_retention_within_timeout, stored_seconds, timeout_us
from persipubsub.engine.values import Configuration
from persipubsub.nats_engine.reading import Reading
from persipubsub.nats_engine.records import QueueRecord, new_identity
from persipubsub.nats_engine.state import Change, Records
from persipubsub.nats_engine.streams import (EXISTS, NO_ROOM_FOR_REPLICAS, NO_STREAM, Api, ApiError, Names,
                                             messages_config, not_initialized, state_config)
from persipubsub.queue import Durability, HighWaterMark, Strategy

#: How many replicas a queue has on a cluster that is large enough, unless its location says otherwise.
REPLICAS_DEFAULT = 3
#: Settings that the server changed beside a request are compared without those that it adds.
_COMPARED = ("max_age", "duplicate_window", "num_replicas")


def require_possible(configuration: Configuration) -> None:
    """Refuse what a cluster cannot do.

    :raise UnsupportedError: the configuration asks for it
    """
    if configuration.strategy == Strategy.prune_last:
        raise errors.UnsupportedError(
            "A cluster cannot delete the latest messages when a queue is full: JetStream deletes the oldest. Use "
            "Strategy.prune_first, or Strategy.refuse, which keeps the publishers waiting.")
    if configuration.durability == Durability.PROCESS_CRASH:
        raise errors.UnsupportedError(
            "On a cluster the servers decide what a message survives, not a queue: sync_interval in their "
            "configuration. Leave the durability out.")
    if configuration.deduplication_max is not None:
        raise errors.UnsupportedError(
            "A cluster does not limit the number of deduplication ids that it remembers, only their age. Set "
            "deduplication_window_s, and leave deduplication_max out.")


def applied(configuration: Configuration, record: QueueRecord) -> QueueRecord:
    """Return the record with a configuration applied.

    :raise ArgumentError: the retention is longer than the message timeout
    """
    changes: Dict[str, Any] = {}
    if configuration.high_watermark is not None:
        changes.update(configuration.high_watermark.limits())
        if "message_timeout" in changes:
            seconds = changes.pop("message_timeout")
            changes["message_timeout_us"] = None if seconds is None else timeout_us(seconds)
    if configuration.strategy is not None:
        changes["strategy"] = configuration.strategy.value
    if configuration.retention_s is not None:
        changes["retention_us"] = round(configuration.retention_s * 1e6)
    if configuration.deduplication_window_s is not None:
        changes["deduplication_window_us"] = max(1, round(configuration.deduplication_window_s * 1e6))
    if configuration.message_type is not None:
        changes["message_type"] = configuration.message_type
    changed = msgspec.structs.replace(record, **changes)
    if changed.message_timeout_us is not None:
        require_retention_within_timeout(changed.retention_us, changed.message_timeout_us)
    return changed


def high_watermark_of(record: QueueRecord) -> HighWaterMark:
    """Return the high-water mark of a queue."""
    timeout_s = None if record.message_timeout_us is None else stored_seconds(record.message_timeout_us)
    return HighWaterMark(timeout_s, record.max_messages, record.hwm_db_size)


class Settings:
    """The settings of a queue and of its streams."""

    def __init__(self, api: Api, names: Names, records: Records, reading: Reading) -> None:
        self._api = api
        self._names = names
        self._records = records
        self._reading = reading

    async def is_initialized(self) -> bool:
        """Return whether there is a queue."""
        try:
            await self._api.state(self._names.messages)
            return await self._records.queue.read() is not None
        except (ApiError, errors.NotInitializedError):
            return False

    async def create(self, configuration: Configuration) -> None:
        """Set up the queue, unless it exists."""
        require_possible(configuration)
        if await self.is_initialized():
            return
        record = applied(configuration, QueueRecord(identity=new_identity()))
        replicas = self._api.connection.target.replicas or await self._replicas()
        await self._create(state_config(self._names, replicas))
        await self._create(
            messages_config(self._names, replicas, record.deduplication_window_us, record.message_timeout_us))
        await self._records.queue.change(lambda before: Change(record if before is None else None))

    async def _replicas(self) -> int:
        """Return how many replicas the cluster can have."""
        return REPLICAS_DEFAULT if await self._api.connection.is_cluster() else 1

    async def _create(self, config: Dict[str, Any]) -> None:
        try:
            await self._api.call(f"STREAM.CREATE.{config['name']}", config, writes=True)
        except ApiError as error:
            if error.code == EXISTS:
                return  # another process creates the queue, too
            raise self._translated(error, config) from error

    def _translated(self, error: ApiError, config: Dict[str, Any]) -> Exception:
        shown = self._api.connection.target.shown
        if error.code in NO_ROOM_FOR_REPLICAS:
            return errors.StorageError(
                f"The cluster of {shown} has no room for {config['num_replicas']} replicas of the queue ({error}). Add "
                "servers, or ask for fewer with ?replicas=1 at the end of the location.")
        if error.code == NO_STREAM:
            return not_initialized(shown)
        return errors.StorageError(f"The cluster of {shown} refused to set the queue up: {error}. Persipubsub needs "
                                   "NATS servers of version 2.12 or later, with JetStream.")

    async def configure(self, configuration: Configuration) -> None:
        """Apply a configuration to the record of the queue, and then to its streams."""
        require_possible(configuration)
        messages = 0
        if configuration.message_type is not None:
            settings = await self._records.settings()
            kept_id = await self._reading.kept_id(settings, await self._records.all())
            messages = await self._reading.count(kept_id)

        def operation(record: Optional[QueueRecord]) -> Change:
            if record is None:
                raise not_initialized(self._api.connection.target.shown)
            if configuration.message_type is not None:
                require_bindable(record.message_type, configuration.message_type, messages)
            changed = applied(configuration, record)
            return Change(None if changed == record else changed)

        await self._records.queue.change(operation)
        await self.follow()

    async def follow(self) -> None:
        """Give the streams the settings that follow from the record."""
        while True:
            record = await self._records.queue.read()
            assert record is not None
            state, own = await asyncio.gather(self._api.state(self._names.messages), self._api.state(self._names.state))
            replicas = self._api.connection.target.replicas or state.config["num_replicas"]
            wanted = messages_config(self._names, replicas, record.deduplication_window_us, record.message_timeout_us)
            if own.config["num_replicas"] != replicas:
                await self._update(state_config(self._names, replicas))
            if any(state.config.get(name, 0) != wanted[name] for name in _COMPARED):
                await self._update(wanted)
            elif record == self._records.queue.known:
                return  # another process may have changed the record meanwhile

    async def _update(self, config: Dict[str, Any]) -> None:
        try:
            await self._api.call(f"STREAM.UPDATE.{config['name']}", config, writes=True)
        except ApiError as error:
            raise self._translated(error, config) from error

    async def require_message_type(self, wanted: str) -> None:
        """Raise MessageTypeError if the queue is bound to another message type than the wanted one."""
        bound = (await self._records.settings()).message_type
        if bound is not None and bound != wanted:
            raise errors.MessageTypeError(
                f"The queue is bound to the message type {bound}, not to {wanted}. Open it with "
                f"message_type={bound.rpartition('.')[2]}, or without one for the bytes.")
