"""The protocols that an engine implements for the endpoints, whether it stores messages in LMDB or elsewhere."""

import pathlib
from typing import Any, Iterator, List, Optional, Protocol, Sequence, Tuple, Union, overload

from persipubsub.dead_letters import DeadLetter
from persipubsub.delayed import DelayedMessage
from persipubsub.engine.commands import (Acknowledge, AcknowledgeClaimed, Cancel, Command, Extend, Fail, GiveBack,
                                         Outcome, Put, PutLater, PutOnce, PutRelayed, Settlement)
from persipubsub.engine.values import (Cleared, Configuration, Delivering, Found, Position, Relayed, Route, Settled,
                                       Subscription)
from persipubsub.replay import StoredMessage
from persipubsub.status import QueueStatus, Violation


class Watch(Protocol):
    """The wait of one call for new messages."""

    def arm(self) -> None:
        """Note what has been published so far. Call this before looking into the queue."""

    def wait(self, timeout_s: float) -> None:
        """Return once something was published since arm(), or after the timeout. Spurious returns happen."""

    def reserve(self, due_us: int) -> bool:
        """Return True for one waiting process, which looks first; the others wait a little longer."""

    def close(self) -> None:
        """End the wait; more than once is fine."""


class Engine(Protocol):
    """A queue as its endpoints know it. Any thread may use it."""

    @overload
    def run(self, command: Union[Put, PutOnce]) -> Sequence[int]:
        ...

    @overload
    def run(self, command: PutRelayed) -> Relayed:
        ...

    @overload
    def run(self, command: PutLater) -> DelayedMessage:
        ...

    @overload
    def run(self, command: Cancel) -> bool:
        ...

    @overload
    def run(self, command: Acknowledge) -> None:
        ...

    @overload
    def run(self, command: Union[Fail, AcknowledgeClaimed, GiveBack, Extend]) -> Settled:
        ...

    @overload
    def run(self, command: Settlement) -> Optional[Settled]:
        ...

    @overload
    def run(self, command: Command) -> object:
        ...

    def run(self, command: Command) -> Any:
        """Run a command completely or not at all."""

    def submit(self, commands: Sequence[Command]) -> List[Outcome]:
        """Run commands in order, together if that is faster; each succeeds or fails by itself."""

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber.

        :raise UnknownSubscriberError: there is none
        """

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Find the next messages of a subscriber, none of which has expired; nothing is delivered.

        :param detailed: whether to fill ``Found.details``
        """

    def glance(self, subscription: Subscription) -> Found:
        """Return the next message of a plain subscriber if that needs neither a wait nor a read of a file.

        An event loop calls this. Finding nothing does not mean that there is nothing.
        """

    def look_at_top(self, subscription: Subscription, detailed: bool = False) -> Found:
        """Find the latest message of a subscriber; nothing is delivered.

        :param detailed: whether to fill ``Found.details``
        """

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int, detailed: bool = False) -> Found:
        """Lease messages of a shared subscriber to one worker.

        :param detailed: whether to fill ``Found.details``
        """

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait for messages of the queue; the bound applies if the wait has to poll."""

    def watch_room(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait until messages are deleted, so that a queue that refuses messages may have room again."""

    def interrupt(self) -> None:
        """Let all waits of this process return now. A signal handler may call this."""

    def announce(self, subscription: Subscription) -> bool:
        """Announce that this process receives as a subscriber; return whether another process does, too."""

    def renounce(self, subscription: Subscription) -> None:
        """Take one announcement back."""

    @property
    def administration(self) -> "Administration":
        """Return the administration of the queue."""


class Administration(Protocol):  # pylint: disable=too-many-public-methods  # one per thing that can be administered
    """Sets a queue up, changes and inspects it. Every change is durable when the method returns."""

    def is_initialized(self) -> bool:
        """Return whether the queue still exists."""

    def configure(self, configuration: Configuration, identifiers: Sequence[bytes], mode: Optional[int]) -> None:
        """Apply a configuration, and add the subscribers that are missing; all or nothing.

        :param mode: of the files, if the engine has files
        """

    def require_message_type(self, name: str) -> None:
        """Make sure that messages of a type may be sent and received.

        :raise MessageTypeError: the queue is bound to another type
        """

    def add_subscriber(self, identifier: bytes, start: Position, given: Delivering) -> int:
        """Add a subscriber at a position, or change one; return how many dead letters were deleted."""

    def remove_subscriber(self, identifier: bytes) -> int:
        """Remove a subscriber; return how many dead letters were deleted with it."""

    def rewind(self, identifier: bytes, position: Position) -> int:
        """Move the cursor of a subscriber back; return how many messages are then pending."""

    def expire_and_prune(self) -> int:
        """Delete expired messages and messages that no subscriber awaits; return how many."""

    def acknowledge_all(self, identifier: bytes) -> int:
        """Move the cursor of a subscriber to the end; return how many messages it skips."""

    def clear_messages(self) -> int:
        """Delete all messages; return how many."""

    def clear_subscribers(self) -> Cleared:
        """Remove all subscribers and delete all messages."""

    def history(self, start: Position, end: Position) -> Iterator[StoredMessage]:
        """Iterate over the messages that are stored between two positions."""

    def peek(self, identifier: bytes, max_messages: int) -> List[bytes]:
        """Return the messages that a subscriber of any kind would receive next; nothing is delivered."""

    def dead_letters(self, identifier: bytes) -> Iterator[DeadLetter]:
        """Iterate over the dead letters of a subscriber, in the order in which they were sent."""

    def requeue_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Requeue dead letters, all if no ids are given; return how many."""

    def discard_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Delete dead letters, all if no ids are given; return how many."""

    def identity(self) -> bytes:
        """Return the identity of the queue: 16 random bytes. A queue that is made anew has another one."""

    def route(self, identifier: bytes, target: bytes) -> Route:
        """Return the route of a relay that receives as a plain subscriber. It lasts as long as the subscriber.

        :param target: where the route leads to if there is none yet: the identity of another queue
        :raise UnknownSubscriberError: there is no such subscriber
        """

    def relayed(self, origin: bytes) -> Relayed:
        """Return how far a relay has come that brings messages into this queue; what it brought is durable then.

        :param origin: that of its route
        """

    def status(self) -> QueueStatus:
        """Return what the queue looks like at this moment."""

    def check(self) -> Tuple[Violation, ...]:
        """Return the violations of the queue's invariants."""

    def backup(self, path: pathlib.Path) -> None:
        """Write a consistent copy into a directory, which becomes a queue."""


class Access(Protocol):
    """The access of one Environment to a queue, which opens it when first needed. Creating it touches nothing."""

    @property
    def location(self) -> Union[pathlib.Path, str]:
        """Return where the queue is: a directory, or a URL."""

    def create(self, configuration: Configuration, mode: int) -> None:
        """Set the queue up, unless it exists."""

    def open(self) -> Engine:
        """Open the queue, or share it with other Environments of this process."""

    def close(self) -> None:
        """Close the queue unless other Environments use it; more than once is fine."""
