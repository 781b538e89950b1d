"""What an engine does for the endpoints. Behind these protocols, messages are stored by LMDB or by something else."""

import pathlib
from typing import Any, Iterator, List, Optional, Protocol, Sequence, Tuple, Union, overload

from persipubsub.dead_letters import DeadLetter
from persipubsub.delayed import DelayedMessage
from persipubsub.engine.commands import (Acknowledge, AcknowledgeClaimed, Cancel, Command, Extend, Fail, GiveBack,
                                         Outcome, Put, PutLater, PutOnce, Settlement)
from persipubsub.engine.values import Cleared, Configuration, Delivering, Found, Position, Sent, Settled, Subscription
from persipubsub.replay import StoredMessage
from persipubsub.status import QueueStatus, Violation


class Watch(Protocol):
    """The wait of one call for messages."""

    def arm(self) -> None:
        """Note what has been published so far. To be called before looking into the queue."""

    def wait(self, timeout_s: float) -> None:
        """Return once something was published since arm(); also after the timeout, and sometimes for no reason."""

    def reserve(self, due_us: int) -> bool:
        """Return True for one of those who wait for a moment: it looks first. The others wait a little longer."""

    def close(self) -> None:
        """End the wait; more than once is fine."""


class Engine(Protocol):
    """A queue as its endpoints know it. Any thread may use it."""

    @overload
    def run(self, command: Union[Put, PutOnce]) -> Sent:
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
        """Run a command to its end, all of it or nothing."""

    def submit(self, commands: Sequence[Command]) -> List[Outcome]:
        """Run commands in order, together where that is faster; each succeeds or fails alone."""

    def subscribe(self, identifier: bytes) -> Subscription:
        """Find a subscriber.

        :raise UnknownSubscriberError: there is none
        """

    def look(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Find the next messages of a subscriber, none of which has expired; nothing is handed out."""

    def look_at_top(self, subscription: Subscription) -> Found:
        """Find the latest message of a subscriber; nothing is handed out."""

    def claim(self, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
        """Hand messages of a shared subscriber out to one worker, for as long as the lease."""

    def watch(self, longest_sleep_s: float) -> Watch:
        """Prepare to wait for messages of the queue; the bound holds where the wait has to poll."""

    @property
    def administration(self) -> "Administration":
        """Return what sets the queue up and looks after it."""


class Administration(Protocol):
    """What sets a queue up, changes it and looks after it. Every change is durable when the method returns."""

    def is_initialized(self) -> bool:
        """Return whether the queue exists still."""

    def configure(self, configuration: Configuration, identifiers: Sequence[bytes], mode: Optional[int]) -> None:
        """Apply a configuration, and add the subscribers that are missing; all of it or nothing.

        :param mode: of the files, where the engine has files
        """

    def require_message_type(self, name: str) -> None:
        """Make sure that messages of a type may be sent and received.

        :raise MessageTypeError: the queue is bound to another
        """

    def add_subscriber(self, identifier: bytes, start: Position, given: Delivering) -> int:
        """Add a subscriber at a position, or change one; return how many dead letters were deleted."""

    def remove_subscriber(self, identifier: bytes) -> int:
        """Remove a subscriber; return how many dead letters were deleted with it."""

    def rewind(self, identifier: bytes, position: Position) -> int:
        """Move the cursor of a subscriber back; return how many messages the subscriber then awaits."""

    def expire_and_prune(self) -> int:
        """Delete what has expired and what nobody awaits; return how many messages."""

    def acknowledge_all(self, identifier: bytes) -> int:
        """Move the cursor of a subscriber to the end; return how many messages it will not get."""

    def clear_messages(self) -> int:
        """Delete all messages; return how many."""

    def clear_subscribers(self) -> Cleared:
        """Remove all subscribers and delete all messages."""

    def history(self, start: Position, end: Position) -> Iterator[StoredMessage]:
        """Iterate over the messages that are stored between two positions."""

    def peek(self, identifier: bytes, max_messages: int) -> List[bytes]:
        """Return the messages that a subscriber of any kind would be handed out next; nothing is handed out."""

    def dead_letters(self, identifier: bytes) -> Iterator[DeadLetter]:
        """Iterate over the dead letters of a subscriber, in the order in which they were sent."""

    def requeue_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Hand dead letters out again, all without ids; return how many."""

    def discard_dead_letters(self, identifier: bytes, ids: Optional[Sequence[int]]) -> int:
        """Delete dead letters, all without ids; return how many."""

    def status(self) -> QueueStatus:
        """Return what the queue looks like at this moment."""

    def check(self) -> Tuple[Violation, ...]:
        """Return the violations of the queue's invariants."""

    def backup(self, path: pathlib.Path) -> None:
        """Write a consistent copy into a directory, which becomes a queue."""


class Access(Protocol):
    """What one Environment holds of a queue: opened when first needed. Making it touches nothing."""

    @property
    def location(self) -> Union[pathlib.Path, str]:
        """Return where the queue is: a directory, or a URL."""

    def create(self, configuration: Configuration, mode: int) -> None:
        """Set the queue up, unless it is."""

    def open(self) -> Engine:
        """Open the queue, or share it with others that have it open in this process."""

    def close(self) -> None:
        """Close the queue unless others use it; more than once is fine."""
