"""The rules of the state machine for subscribers that are not shared, for threads and for tasks."""

import bisect
import contextlib
import functools
import itertools
import types
from typing import Any, Callable, ContextManager, Dict, Generator, Iterator, List, NamedTuple, Optional, Type

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from persipubsub import Reject, Retry, errors
from persipubsub.lmdb_engine.records.runs import RUN_US_MAX
from tests.model.control_machine import ControlMachine
from tests.model.lasting_machine import RETENTIONS
from tests.model.machine import Handle, Pause, first_of
from tests.model.model import Message
from tests.model.rules import MEANWHILE, WHICH, subscriber, uses
from tests.model.shared_model import OUTSIDE, PolicyPlace


class Interrupted(Exception):
    """Raised in the block of a receive."""


#: What happens in the turns of a loop, which is left or stopped in one of them.
TURNS = st.sampled_from(["nothing", "send", "stop"])
#: What ends a block, by the name of what happens in it.
OUTCOMES: Dict[str, Callable[[], Exception]] = {
    "error": Interrupted,
    "retry": Retry,
    "retry later": lambda: Retry(2),
    "reject": lambda: Reject("reason"),
}


class Block(NamedTuple):
    """A block that is to receive messages."""

    receipt: ContextManager[List[Any]]
    look: Callable[[], List[Message]]
    #: Whether it receives deliveries.
    detailed: bool = False
    #: Whether what is there before it is acknowledged with it.
    skipping: bool = False


@contextlib.contextmanager
def listed(receipt: ContextManager[Optional[Any]]) -> Iterator[List[Any]]:
    """Receive one message as a list."""
    with receipt as msg:
        yield [] if msg is None else [msg]


def close(iterated: Iterator[Any]) -> None:
    """Leave a loop."""
    assert isinstance(iterated, types.GeneratorType)
    iterated.close()


def within(messages: List[Message], max_bytes: int) -> List[Message]:
    """Return the first messages that fit into a number of bytes, but at least one."""
    sizes_bytes = list(itertools.accumulate(len(message.payload) for message in messages))
    return messages[:max(1, bisect.bisect_right(sizes_bytes, max_bytes))]


class ReceivingMachine(ControlMachine):
    """Subscribers of a queue that are not shared."""

    # Blocks

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, meanwhile=MEANWHILE, timeout=st.sampled_from([0, 0, 0.001]))
    @uses(*subscriber("receive"))
    def receive(self, which: int, meanwhile: str, timeout: float) -> None:
        """The next message is acknowledged when the block ends, unless it raises."""
        handle = self.handle(which)
        self.run_block(handle, Block(listed(handle.subscriber.receive(timeout)), lambda: self.look(handle)[:1]),
                       meanwhile)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, meanwhile=MEANWHILE)
    @uses(*subscriber("receive_delivery"))
    def receive_delivery(self, which: int, meanwhile: str) -> None:
        """A delivery has the message, and all that is known of it."""
        handle = self.handle(which)
        receipt = listed(handle.subscriber.receive_delivery(timeout=0))
        self.run_block(handle, Block(receipt, lambda: self.look(handle)[:1], True), meanwhile)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, meanwhile=MEANWHILE)
    @uses(*subscriber("receive_to_top"))
    def receive_to_top(self, which: int, meanwhile: str) -> None:
        """The block acknowledges the latest message and all before it; what came meanwhile stays."""
        handle = self.handle(which)
        receipt = listed(handle.subscriber.receive_to_top(timeout=0))
        self.run_block(handle, Block(receipt, lambda: self.look(handle, top=True), skipping=True), meanwhile)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH,
          max_messages=st.integers(1, 6),
          max_bytes=st.sampled_from([2**26, 2**26, 1, 16, 24, 65_528]),
          meanwhile=MEANWHILE,
          detailed=st.booleans())
    @uses(*subscriber("receive_many", "receive_deliveries"))
    def receive_many(self, which: int, max_messages: int, max_bytes: int, meanwhile: str, detailed: bool) -> None:
        """A batch is acknowledged when the block ends, unless it raises."""
        handle = self.handle(which)

        def look() -> List[Message]:
            return within(self.look(handle)[:max_messages], max_bytes)

        sub = handle.subscriber
        receive: Callable[..., ContextManager[List[Any]]] = sub.receive_deliveries if detailed else sub.receive_many
        self.run_block(handle, Block(receive(max_messages, 0, max_bytes=max_bytes), look, detailed), meanwhile)

    def run_block(self, handle: Handle, block: Block, meanwhile: str) -> None:
        """Receive what the model finds; the end of the block acknowledges it, unless an exception ends it."""
        if not handle.stopped and not self.is_known(handle):
            with pytest.raises(errors.UnknownSubscriberError), block.receipt:
                pass
            return
        found = block.look()
        outcome = OUTCOMES[meanwhile]() if meanwhile in OUTCOMES else None
        first_id = self.model.places[handle.name].next_id if found else 0
        if found and not block.skipping:
            first_id = found[0].id
        raised = self._raised(handle, outcome, found, block.skipping)
        with pytest.raises(raised) if raised else contextlib.nullcontext(), block.receipt as received:
            assert received == self.values(handle, found, block.detailed)
            self.meanwhile(handle, meanwhile)
            if outcome is not None:
                raise outcome
        if found and outcome is None:
            self._acknowledged(handle, found, first_id, block.skipping)
        elif found and outcome is not None and raised is not errors.SubscriberKindError:
            self._failed(handle, found, outcome, block.skipping)

    def _raised(self, handle: Handle, outcome: Optional[Exception], found: List[Message],
                skipping: bool) -> Optional[Type[Exception]]:
        """Return the error that leaves the block."""
        if isinstance(outcome, Reject) and found:
            skips = skipping and self.model.awaited(handle.name)[0].id < found[0].id
            has_dead_letters = isinstance(self.model.places[handle.name], PolicyPlace)
            return None if has_dead_letters and not skips else errors.SubscriberKindError
        return Interrupted if isinstance(outcome, Interrupted) else None

    def _acknowledged(self, handle: Handle, found: List[Message], first_id: int, skipping: bool) -> None:
        """Acknowledge in the model what a block received."""
        if first_id < OUTSIDE and self.is_known(handle) and self.model.has_between(handle.name, first_id):
            self.model.take(handle.name, handle.number, 0)  # it was moved back meanwhile, so it receives all again
        else:
            ids = {message.id for message in [*found, *(self.model.log if skipping else [])]}
            self.model.take(handle.name, handle.number, found[-1].id, ids)

    def _failed(self, handle: Handle, found: List[Message], outcome: Exception, skipping: bool) -> None:
        """Count in the model that a block raised an exception, unless that has no effect."""
        ids = [message.id for message in found]
        if skipping and isinstance(outcome, Interrupted):
            return
        if isinstance(outcome, Retry) and outcome.delay_s:
            handle.pause = Pause(ids[0], self.model.boottime_us + round(outcome.delay_s * 1e6))
        if not isinstance(outcome, Reject):
            handle.note_failure(ids)
        self.model.fail(handle.name, handle.number, ids, type(outcome).__name__)

    def meanwhile(self, handle: Handle, what: str) -> None:
        """Do something in the block of a receive."""
        if what == "send":
            self.send_many(0, [8, 8, 65521], False)
        if what == "take":
            self.peek()
            self.receive_many(self.handles().index(handle), 2, 2**26, "nothing", False)
        if what == "clear":
            self.clear_messages(0)
        if what == "expire":
            self.forward(10**9, 0)
            self.prune_dangling_messages(0)
        if what == "rewind":
            self.rewind(0, handle.name, "earliest")
        if what in ("remove", "replace"):
            self.remove_subscriber(0, handle.name)
        if what == "replace":
            self.add_subscriber(0, handle.name, False)
        if what == "close":
            self.drop_handle(handle)
        if what == "stop":
            self.stop(self.handles().index(handle))

    # Loops

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, every=st.integers(1, 4), turns=st.integers(1, 6), meanwhile=TURNS)
    @uses(*subscriber("messages"))
    def messages(self, which: int, every: int, turns: int, meanwhile: str) -> None:
        """A loop acknowledges what is finished, also if it is left or stopped; the last message comes again."""
        handle = self.handle(which)
        self.run_loop(handle, handle.subscriber.messages(0, every), self.iterated_by_model(handle, every, False), turns,
                      meanwhile)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, every=st.integers(1, 4), turns=st.integers(1, 6), meanwhile=TURNS)
    @uses(*subscriber("deliveries"))
    def deliveries(self, which: int, every: int, turns: int, meanwhile: str) -> None:
        """A loop over deliveries does the same."""
        handle = self.handle(which)
        self.run_loop(handle, handle.subscriber.deliveries(0, every), self.iterated_by_model(handle, every, True),
                      turns, meanwhile)

    # pylint: disable-next=too-many-arguments,too-many-positional-arguments  # two loops, and what happens in them
    def run_loop(self, handle: Handle, iterated: Iterator[Any], expected: Generator[Any, None, None], turns: int,
                 meanwhile: str) -> None:
        """Iterate over messages and over those of the model, and leave or stop the loop in one of its turns."""
        if not handle.stopped and not self.is_known(handle):
            with pytest.raises(errors.UnknownSubscriberError):
                next(iterated)
            return
        for number, one in enumerate(iterated, 1):
            assert one == next(expected)
            if number == turns and meanwhile == "stop":
                self.stop(self.handles().index(handle))
            elif number == turns:
                break
            elif meanwhile == "send":
                self.send_many(0, [8, 8], False)
        else:
            assert next(expected, None) is None
        close(iterated)
        expected.close()

    def iterated_by_model(self, handle: Handle, every: int, detailed: bool) -> Generator[Any, None, None]:
        """Do what a loop over messages or deliveries does."""
        while found := self.look(handle)[:every]:
            finished: List[int] = []
            begun: List[int] = []
            try:
                for message, value in zip(found, self.values(handle, found, detailed)):
                    if begun and handle.stopped:
                        break
                    begun.append(message.id)
                    yield value
                    finished.append(message.id)
            finally:
                if finished:
                    self.model.take(handle.name, handle.number, finished[-1], finished)
                if begun[len(finished):]:
                    handle.note_failure(begun[len(finished):])
                    self.model.fail(handle.name, handle.number, begun[len(finished):], "GeneratorExit")

    # Looks

    @precondition(lambda self: self.handles())
    @rule(which=WHICH)
    @uses("Control.peek", *subscriber("front", "front_delivery"))
    def front(self, which: int) -> None:
        """A subscriber and a control can look at the next message without acknowledging it."""
        handle = self.handle(which)
        known = self.is_known(handle)
        self.agree(handle.subscriber.front, known, lambda: first_of(self.model.look(handle.name)))
        self.agree(handle.subscriber.front_delivery, known, lambda: self._first_delivery(handle))
        if known:
            found = first_of(self.model.look(handle.name))
            assert self.opened[0].control.peek(handle.name) == ([] if found is None else [found])
            if self.model.is_due():
                self.model.write()

    def _first_delivery(self, handle: Handle) -> Optional[Any]:
        found = self.model.look(handle.name)[:1]
        return self.deliveries_of(handle, found)[0] if found else None

    @rule()
    @uses("Subscriber.receive_many")
    def peek(self) -> None:
        """Everything is there for everybody, in order."""
        for handle in filter(self.is_known, self.handles()):
            look = functools.partial(self.look, handle)
            self.run_block(handle, Block(handle.subscriber.receive_many(timeout=0), look), "error")

    @precondition(lambda self: self.handles())
    @rule(which=WHICH)
    @uses(*subscriber("pop"))
    def pop(self, which: int) -> None:
        """The next message can be acknowledged unread; where there is none, that is an error."""
        handle = self.handle(which)
        name, known = handle.name, self.is_known(handle)
        found = self.model.look(name) if known else []
        if found or not known:
            self.agree(handle.subscriber.pop, known,
                       lambda: self.model.take(name, handle.number, found[0].id, [found[0].id]))
        else:
            with pytest.raises(errors.EmptyError):
                handle.subscriber.pop()

    # Sequences

    @precondition(lambda self: self.handles())
    @rule(which=WHICH,
          delay=st.booleans(),
          sizes=st.integers(1, 3),
          step_us=st.sampled_from([RUN_US_MAX + 1, 10**6, 3 * 10**6]))
    def retry_in_vain(self, which: int, delay: bool, sizes: int, step_us: int) -> None:
        """A message that is retried is delivered again, not before its delay, with one delivery more."""
        self.send_many(which, [8] * sizes, False)
        for meanwhile in ("retry later" if delay else "retry", "error", "reject"):
            self.receive_delivery(which, meanwhile)
            self.forward(step_us, 0)

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, taken=st.integers(1, 3), left=st.integers(1, 3), retention_s=RETENTIONS)
    def fall_behind(self, which: int, taken: int, left: int, retention_s: float) -> None:
        """What one subscriber awaits for longer than the retention stays for it when others are deleted."""
        self.set_retention(which, retention_s)
        self.send_many(which, [8] * (taken + left), False)
        self.receive_many(which, taken, 2**26, "nothing", False)
        self.forward(round((retention_s + 0.5) * 1e6), 0)
        self.send_many(which, [8], False)
        self.peek()
