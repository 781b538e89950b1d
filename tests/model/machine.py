"""What the rules of the state machine build on: a queue and its model, what is open of it, and how they compare."""

import bisect
import contextlib
import dataclasses
import fcntl
import itertools
import logging
import os
import pathlib
import pickle
import tempfile
from typing import Callable, ContextManager, Generator, Iterator, List, NamedTuple, Optional, TypeVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant

import persipubsub
from persipubsub import Control, Environment, Publisher, Subscriber, errors
from persipubsub.lmdb_engine.records import transaction
from persipubsub.lmdb_engine.rules import delays, message_log
from tests.model.model import Message, SubscriberRecord
from tests.model.shared_model import PolicyPlace, SharedModel

T = TypeVar("T")


class Interrupted(Exception):
    """Raised in the block of a receive."""


class Handle(NamedTuple):
    """An open subscriber, and which one of that name it was when it was opened."""

    subscriber: Subscriber
    number: int


@dataclasses.dataclass
class Opened:
    """An open Environment and what it made."""

    environment: Environment
    control: Control
    publisher: Publisher
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

    def open(self, path: pathlib.Path) -> Opened:
        """Open an Environment with all subscribers."""
        environment = persipubsub.new_environment(path)
        opened = Opened(environment, environment.new_control(), environment.new_publisher())
        for name, place in sorted(self.model.places.items()):
            if not is_shared(place):
                opened.handles.append(Handle(environment.new_subscriber(name), place.number))
        self.opened.append(opened)
        return opened

    def close_all(self) -> None:
        """Close all Environments; then nobody has the queue open any more."""
        while self.opened:
            self.opened.pop().environment.close()
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
        place = self.model.places.get(handle.subscriber.identifier)
        return place is not None and place.number == handle.number

    def close_handle(self, handle: Handle) -> None:
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

    def agree(self, method: Callable[[], T], known: bool, model: Callable[[], T]) -> None:
        """Do the same in queue and model; with an unknown subscriber it is an error, and nothing is done."""
        if known:
            assert method() == model()
        else:
            with pytest.raises(errors.UnknownSubscriberError):
                method()

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

    def taken_in_block(self,
                       handle: Handle,
                       receipt: ContextManager[List[bytes]],
                       look: Callable[[], List[Message]],
                       meanwhile: Callable[[], None],
                       refused: Optional[type[Exception]],
                       skipping: bool = False) -> None:
        """Receive what the model finds; the end of the block acknowledges it, unless an exception ends it.

        :param skipping: whether what is there before it is acknowledged with it
        """
        if not self.is_known(handle):
            with pytest.raises(errors.UnknownSubscriberError), receipt:
                pass
            return
        found = look()
        name, first_id = handle.subscriber.identifier, self.model.places[handle.subscriber.identifier].next_id
        if found and not skipping:
            first_id = found[0].id
        with pytest.raises(refused) if refused else contextlib.nullcontext(), receipt as received:
            assert received == payloads_of(found)
            meanwhile()
            if not found and refused:
                raise refused  # nothing was received that a closed subscriber could not acknowledge
        if found and not refused and self.is_known(handle) and self.model.has_between(name, first_id):
            self.model.take(name, handle.number, 0)  # it was moved back meanwhile, and wants to have them all again
        elif found and not refused:
            ids = {message.id for message in [*found, *(self.model.log if skipping else [])]}
            self.model.take(name, handle.number, found[-1].id, ids)
        elif found and refused is Interrupted and not skipping:
            self.model.fail(name, handle.number, [message.id for message in found])

    def messages_of_model(self, name: str, number: int, every: int) -> Generator[bytes, None, None]:
        """Do what Subscriber.messages does."""
        while found := self.model.look(name)[:every]:
            finished: List[int] = []
            begun: List[int] = []
            try:
                for message in found:
                    begun.append(message.id)
                    yield message.payload
                    finished.append(message.id)
            finally:
                if finished:
                    self.model.take(name, number, finished[-1], finished)
                self.model.fail(name, number, begun[len(finished):])

    @invariant()
    def all_is_well(self) -> None:
        """The invariants hold, and the status is that of the model."""
        assert self.opened[0].control.check() == ()
        self.compare(self.opened[0].control)

    def compare(self, control: Control) -> None:
        """Compare the status of the queue with the model."""
        status, model = control.status(), self.model
        if model.is_due():
            model.write()
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


def is_shared(place: SubscriberRecord) -> bool:
    """Return whether workers share a subscriber of the model."""
    return isinstance(place, PolicyPlace) and place.shared


def payloads_of(messages: List[Message]) -> List[bytes]:
    """Return the payloads of messages."""
    return [message.payload for message in messages]


def within(messages: List[Message], max_bytes: int) -> List[Message]:
    """Return the first messages that fit into a number of bytes, but at least one."""
    sizes_bytes = list(itertools.accumulate(len(message.payload) for message in messages))
    return messages[:max(1, bisect.bisect_right(sizes_bytes, max_bytes))]


def first_of(messages: List[Message]) -> Optional[bytes]:
    """Return the payload of the first message."""
    return messages[0].payload if messages else None


@contextlib.contextmanager
def listed(receipt: ContextManager[Optional[bytes]]) -> Iterator[List[bytes]]:
    """Receive one message as a list."""
    with receipt as msg:
        yield [] if msg is None else [msg]


def pickled(original: T) -> T:
    """Return what comes out of a pickle."""
    copied: T = pickle.loads(pickle.dumps(original))
    return copied
