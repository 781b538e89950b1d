"""What the rules of the state machine build on: a queue and its model, what is open of it, and how they compare."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import pathlib
import tempfile
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant

import persipubsub
from persipubsub import Control, Delivery, Environment, errors, moments
from persipubsub.lmdb_engine.records import transaction
from persipubsub.lmdb_engine.rules import delays, message_log
from tests.conformance.forms import AnyPublisher, AnySubscriber, Form, Plain, Tasks
from tests.model.model import Message, SubscriberRecord
from tests.model.shared_model import OUTSIDE, PolicyPlace, SharedModel


class Pause(NamedTuple):
    """A message that a subscriber retries later, and the time since boot before which it does not."""

    message_id: int
    until_us: int


@dataclasses.dataclass(eq=False)
class Handle:
    """An open subscriber, and which one of that name it was when it was opened; and what only this object knows."""

    subscriber: AnySubscriber
    number: int
    stopped: bool = False
    pause: Optional[Pause] = None
    #: How often messages failed, if the queue does not count that.
    failures: Dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the subscriber."""
        return self.subscriber.identifier

    def note_failure(self, ids: List[int]) -> None:
        """Count a failed delivery."""
        later = {one: times for one, times in self.failures.items() if one > ids[-1]}
        self.failures = {**later, **{one: 1 + self.failures.get(one, 0) for one in ids}}


@dataclasses.dataclass
class Opened:
    """An open Environment and what it made."""

    environment: Environment
    control: Control
    publisher: AnyPublisher
    autosync: bool = False
    handles: List[Handle] = dataclasses.field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """A queue and its model. The clocks of the library are those of the model."""

    deletions_max = message_log.DELETIONS_MAX
    stretch_messages = transaction.BATCH_MESSAGES
    appended_max = delays.APPENDED_MESSAGES_MAX

    def __init__(self) -> None:
        super().__init__()
        self.model = SharedModel(self.appended_max)
        self.sent = 0
        self.opened: List[Opened] = []
        self.cleanup = contextlib.ExitStack()
        self.root = pathlib.Path(self.cleanup.enter_context(tempfile.TemporaryDirectory(prefix="persipubsub-model-")))
        self.path = self.root / "queue"
        #: For threads, and for tasks.
        self.forms: List[Form] = [Plain(), Tasks()]
        patch = self.cleanup.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(persipubsub.clock, "boottime_us", lambda: self.model.boottime_us)
        patch.setattr(persipubsub.clock, "wall_us", lambda: self.model.wall_us)
        patch.setattr(persipubsub.clock, "boot_id", lambda: self.model.boot.to_bytes(16, "big"))
        patch.setattr(message_log, "DELETIONS_MAX", self.deletions_max)
        patch.setattr(transaction, "BATCH_MESSAGES", self.stretch_messages)
        patch.setattr(delays, "APPENDED_MESSAGES_MAX", self.appended_max)
        # A report of a failure would drown in its warnings.
        patch.setattr(logging.getLogger("persipubsub.writer"), "disabled", True)

    def teardown(self) -> None:
        """Close everything and delete the queue."""
        with self.cleanup:
            self.close_all()
            for form in self.forms:
                form.close()

    def open(self, path: pathlib.Path, tasks: bool = False) -> Opened:
        """Open an Environment with all subscribers."""
        environment = persipubsub.new_environment(path)
        opened = Opened(environment, environment.new_control(), self.forms[tasks].publisher(environment, False))
        for name, place in sorted(self.model.places.items()):
            if not is_shared(place):
                opened.handles.append(Handle(self.forms[tasks].subscriber(environment, name), place.number))
        self.opened.append(opened)
        return opened

    def close_all(self) -> None:
        """Close all Environments; then no process has the queue open."""
        while self.opened:
            self.opened.pop().environment.close()
        self.model.busy.clear()
        if (self.path / "use.lock").exists():
            fd = os.open(self.path / "use.lock", os.O_RDWR)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(fd)

    def some(self, which: int) -> Opened:
        """Return one of the open Environments."""
        return self.opened[which % len(self.opened)]

    def handles(self) -> List[Handle]:
        """Return all open subscribers, also those that were removed from the queue."""
        return [handle for opened in self.opened for handle in opened.handles]

    def handle(self, which: int) -> Handle:
        """Return one of the open subscribers."""
        return self.handles()[which % len(self.handles())]

    def is_known(self, handle: Handle) -> bool:
        """Return whether it is still the subscriber that was opened."""
        place = self.model.places.get(handle.name)
        return place is not None and place.number == handle.number

    def drop_handle(self, handle: Handle) -> None:
        """Close a subscriber, which then cannot be used."""
        handle.subscriber.close()
        with pytest.raises(errors.ClosedError):
            handle.subscriber.front()
        for opened in self.opened:
            opened.handles = [other for other in opened.handles if other is not handle]

    def payloads(self, sizes_bytes: List[int]) -> List[bytes]:
        """Make messages, all of them different but for those of 0 bytes."""
        first, self.sent = self.sent, self.sent + len(sizes_bytes)
        return [(b"%08d" % number).ljust(size, b".")[:size] for number, size in enumerate(sizes_bytes, first)]

    # Comparing

    def same(self, method: Callable[[], object], model: Callable[[], object]) -> None:
        """Do the same in queue and model: the results are equal, or both refuse it with the same error."""
        expected = outcome_of(model)
        assert outcome_of(method) == expected

    def agree(self, method: Callable[[], object], known: bool, model: Callable[[], object]) -> None:
        """Do the same in queue and model; with an unknown subscriber it is an error, and nothing is done."""
        if known:
            self.same(method, model)
        else:
            with pytest.raises(errors.UnknownSubscriberError):
                method()

    def look(self, handle: Handle, top: bool = False) -> List[Message]:
        """Return what an open subscriber finds, which may have stopped or wait for a retry."""
        if handle.stopped:
            return []
        found, pause = self.model.look(handle.name, top), handle.pause
        if pause is not None and found:
            first = self.model.awaited(handle.name)[0] if top else found[0]
            if first.id <= pause.message_id <= found[0].id and self.model.boottime_us < pause.until_us:
                return []
        handle.pause = None
        return found

    def deliveries_of(self, handle: Handle, found: List[Message]) -> List[Delivery[bytes]]:
        """Return what is found as deliveries."""
        return [
            Delivery(one.payload, one.id % OUTSIDE, moments.utc(one.time_us), self._deliveries(handle, one.id),
                     dict(one.headers)) for one in found
        ]

    def values(self, handle: Handle, found: List[Message], detailed: bool) -> List[Any]:
        """Return what is found as payloads or as deliveries."""
        return self.deliveries_of(handle, found) if detailed else payloads_of(found)

    def _deliveries(self, handle: Handle, message_id: int) -> int:
        """Return how often a message was delivered, with the delivery that begins."""
        place = self.model.places[handle.name]
        if not isinstance(place, PolicyPlace):
            return 1 + handle.failures.get(message_id, 0)
        entry = place.entries.get(message_id)
        if place.shared:
            assert entry is not None
            return entry.deliveries
        return 1 if entry is None else entry.deliveries + 1

    def append_all_due(self) -> None:
        """Have queue and model append all messages that are due."""
        while self.model.is_due():
            next(self.opened[0].control.history(), None)
            self.model.write()

    def remove_from_model(self, *names: str) -> int:
        """Remove subscribers; return how many messages were deleted."""
        self.model.write()
        for name in names:
            del self.model.places[name]
        return self.model.let_go(self.model.log, "dangling")

    def clear_model(self) -> int:
        """Delete everything, also all subscribers; return how many messages were deleted."""
        count = self.model.clear("dangling")
        self.model.places.clear()
        return count

    @invariant()
    def all_is_well(self) -> None:
        """The invariants hold, and the status is that of the model."""
        assert self.opened[0].control.check() == ()
        self.compare(self.opened[0].control)

    def compare(self, control: Control) -> None:
        """Compare the status of the queue with the model."""
        status, model = control.status(), self.model
        assert status.deduplication_window_s == model.deduplication_window_us / 1e6
        assert status.deduplication_max == model.deduplication_max
        assert status.delayed == len(model.delayed)
        young = model.there()
        assert (status.messages, status.oldest_age_s) == (len(young), self._age_s(young))
        assert (status.next_id, status.floor) == (model.next_id, model.floor())
        assert (status.sent, dataclasses.asdict(status.pruned)) == (model.next_id - 1, {
            reason: model.pruned[reason]
            for reason in ("timeout", "overflow", "dangling")
        })
        assert status.high_watermark == model.high_watermark
        assert status.retention_s == model.retention_us / 1e6
        assert status.retained == len([message for message in young if not model.is_awaited(message)])
        assert (status.strategy, status.durability) == (model.strategy, model.durability)
        assert (status.size_bytes > 0) == bool(model.log)
        assert status.subscribers.keys() == model.places.keys()
        for name, subscriber in status.subscribers.items():
            pending = model.young(model.awaited(name))
            place = model.places[name]
            assert (subscriber.next_id, subscriber.taken) == (place.next_id, place.taken)
            pending = sorted([*pending, *model.outside(name)], key=lambda message: message.time_us)
            assert (subscriber.pending, subscriber.oldest_pending_age_s) == (len(pending), self._age_s(pending))
            early = model.outside(name) + [message for message in pending if message.id < place.next_id]
            dead_letters = len(place.dead) if isinstance(place, PolicyPlace) else 0
            assert (subscriber.in_flight, subscriber.dead_letters) == (len(early), dead_letters)

    def _age_s(self, messages: List[Message]) -> Optional[float]:
        return (self.model.now_us() - messages[0].time_us) / 1e6 if messages else None


def outcome_of(function: Callable[[], object]) -> object:
    """Return the result of a function, or the class of the error of the library that it raises."""
    try:
        return function()
    except errors.PersipubsubError as error:
        return type(error)


def is_shared(place: SubscriberRecord) -> bool:
    """Return whether workers share a subscriber of the model."""
    return isinstance(place, PolicyPlace) and place.shared


def payloads_of(messages: List[Message]) -> List[bytes]:
    """Return the payloads of messages."""
    return [message.payload for message in messages]


def first_of(messages: List[Message]) -> Optional[bytes]:
    """Return the payload of the first message."""
    return messages[0].payload if messages else None
