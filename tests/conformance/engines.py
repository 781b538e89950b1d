"""The engines that the suite runs on: what each can do, and how to make a fresh queue of it.

To add one, add an entry to :data:`ENGINES`.
"""

import dataclasses
import os
import pathlib
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Sequence, Union

import pytest

import persipubsub
from persipubsub import Durability, Environment
from tests.conformance import nats_servers, toy_engine
from tests.nats.servers import delete_queues

Location = Union[str, os.PathLike[str]]

#: What not every engine can do. All else is required of each of them.
CAPABILITIES: Dict[str, str] = {
    "asyncio": "endpoints for tasks: new_async_publisher, new_async_subscriber",
    "backup": "Control.backup",
    "check": "Control.check; then each queue is verified after its test",
    "clearing": "Control.clear_messages, clear_all_subscribers, prune_all_messages_for, prune_dangling_messages",
    "clock": "time goes by the fixture persipubsub_clock; without it, a test waits in real time",
    "create": "new_control(create=False), is_initialized, NotInitializedError where there is no queue",
    "dead_letters": "max_deliveries, Control.dead_letters, requeue_dead_letters, discard_dead_letters",
    "deduplication": "deduplication_id, deduplication_window_s",
    "deduplication_max": "deduplication_max",
    "delayed": "send_later, cancel",
    "durability": "Durability.PROCESS_CRASH beside POWER_LOSS, and autosync",
    "expiry": "the message timeout",
    "forks": "a forked child uses what it inherited",
    "gapless_ids": "ids without gaps: a delayed message takes one when it is due, and not before",
    "high_water_mark": "the marks for the number and the bytes of messages, Strategy.prune_first",
    "history": "Control.history",
    "large_batches": "batches of more than 1,000 messages",
    "large_messages": "messages of more than a mebibyte",
    "message_types": "a queue that is bound to a message type",
    "persistent": "the queue outlives the Environments that use it",
    "processes": "several processes use one queue",
    "prune_last": "Strategy.prune_last",
    "refuse": "Strategy.refuse, and waiting for room",
    "relay": "queues that messages are relayed from and to: PutRelayed, identity, route, relayed",
    "replay": "Control.rewind, and a new subscriber with a start",
    "retention": "retention_s",
    "shared": "shared subscribers, with leases and delayed retries",
    "status": "Control.status",
}


@dataclasses.dataclass(frozen=True)
class Engine:  # pylint: disable=too-many-instance-attributes  # what the suite has to know of each
    """What the suite knows of an engine."""

    name: str
    #: Some of the keys of CAPABILITIES.
    capabilities: FrozenSet[str]
    #: Return the location of a queue that does not exist yet, given an empty directory for this queue.
    new_location: Callable[[pathlib.Path], Location]
    #: Return an Environment of the queue at a location. Child processes call it, too.
    open: Callable[[Location], Environment] = persipubsub.new_environment
    #: Delete the queues at locations, as far as there are some and they are not in the directory that was given.
    delete: Callable[[Sequence[Location]], None] = lambda locations: None
    #: What new_control is given unless a test says otherwise: tests need not wait for a disk.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: How much later than asked for something may happen, if the clock of the engine cannot be moved.
    late_s: float = 0
    #: The marks of its tests.
    marks: Sequence[pytest.MarkDecorator] = ()
    #: More marks of its tests with endpoints for tasks.
    marks_of_tasks: Sequence[pytest.MarkDecorator] = ()


#: What a queue on a cluster cannot do: docs/cluster.rst says what to do instead.
NOT_ON_A_CLUSTER = {
    "backup", "check", "clock", "deduplication_max", "durability", "gapless_ids", "large_batches", "large_messages",
    "prune_last"
}

ENGINES: List[Engine] = [
    Engine(name="lmdb",
           capabilities=frozenset(CAPABILITIES),
           new_location=lambda directory: directory / "queue",
           settings={"durability": Durability.PROCESS_CRASH}),
    *(
        Engine(
            name=name,
            capabilities=frozenset(CAPABILITIES) - NOT_ON_A_CLUSTER,
            late_s=0.3,
            marks=nats_servers.marks(),
            # Whether a message has replicas is nothing to the code for tasks, which runs on one server.
            marks_of_tasks=[pytest.mark.long] if count > 1 else [],
            new_location=nats_servers.new_location(count),
            delete=delete_queues) for name, count in (("nats", 1), ("nats3", 3))),
    Engine(name="toy",
           capabilities=frozenset({"asyncio"}),
           new_location=lambda directory: f"{toy_engine.SCHEME}://{directory}"),
]
toy_engine.register()


def engine_of(name: str) -> Engine:
    """Return the engine of a name: a child process finds it so."""
    return next(engine for engine in ENGINES if engine.name == name)
