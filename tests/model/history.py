"""Whether what threads saw of a queue can have happened: a search for an order of their operations.

Each operation is recorded with the moments before its call and after its return, and with what came out of it. The
history is *linearizable* if its operations can be put in one order in which the model of tests/model/model.py gives
each the outcome that was seen, and in which whatever had returned before another was called comes before it. So what
was sent before ``send`` returned is seen by every later receive, ids tell the order of commits, nothing is invented,
and nothing is acknowledged twice or lost: else no such order exists.

The search (Wing and Gong's, with a memory of configurations as in Lowe's) tries, from every configuration, each
operation that no unfinished one precedes. It is sound and complete: it goes through all orders, and leaves out only
configurations that it has met, from which the same would follow: a configuration is the whole state of the model, and
how far each thread is. Operations that are several transactions (a look that meets expired messages; ``pop``; a loop)
are several steps, each atomic; others may come between.

The moments are of ``time.monotonic_ns``, which is one clock for all threads and processes of a machine; an operation
precedes another only if it ended strictly before. Where the clock is too coarse, that only allows more orders.
"""

import copy
import dataclasses
from collections.abc import Hashable
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from persipubsub import HighWaterMark, Strategy, errors
from tests.model.model import Message, Model


class Done(NamedTuple):
    """The end of an operation."""

    outcome: Hashable


#: A function of the model, and its further arguments. It returns the steps that may come next, or the end.
Step = Tuple[Any, ...]
Next = Sequence[Union[Step, Done]]


class Operation(NamedTuple):
    """What a thread did: when, and what came out of it."""

    thread: int
    begun_ns: int
    ended_ns: int
    name: str
    step: Step
    outcome: Hashable


class Subscription(NamedTuple):
    """A subscriber that was opened: its name, and which one of that name."""

    name: str
    number: int


UNKNOWN = "UnknownSubscriberError"
FULL = "QueueFullError"
EMPTY = "EmptyError"


def put(model: Model, payloads: Sequence[bytes]) -> Next:
    """Send messages in one transaction; return their ids, or the name of the error if they are refused."""
    try:
        return [Done(tuple(model.put(list(payloads))))]
    except (errors.QueueFullError, errors.BatchTooLargeError) as error:
        return [Done(type(error).__name__)]


def put_or_wait(model: Model, payloads: Sequence[bytes]) -> Next:
    """Send messages; if the queue is full, the time may be over or not."""
    after = put(model, payloads)
    return [*after, (put_or_wait, payloads)] if after == [Done(FULL)] else after


def look(model: Model, subscription: Subscription, top: bool, count: int, then: Step) -> Next:
    """Look; where the next message is too old, expire it and look again. `then` gets what was found."""
    place = model.places.get(subscription.name)
    if place is None or place.number != subscription.number:
        return [Done(UNKNOWN)]
    found = tuple(model.awaited(subscription.name)[-1 if top else 0:][:count])
    if found and not model.young(list(found[:1])):
        return [(expire, (look, subscription, top, count, then))]
    function, *arguments = then
    successors: Next = function(found, *arguments)
    return successors


def expire(model: Model, then: Step) -> Next:
    """Expire what is too old."""
    model.keep(model.young(model.log))
    return [then]


def take(model: Model, subscription: Subscription, last_id: int, then: Union[Step, Done]) -> Next:
    """Acknowledge up to an id."""
    model.take(subscription.name, subscription.number, last_id)
    return [then]


# What follows a look


def give(found: Tuple[Message, ...]) -> Next:
    """Return the payloads."""
    return [Done(tuple(message.payload for message in found))]


def give_or_wait(found: Tuple[Message, ...], again: Tuple[Any, ...]) -> Next:
    """Return the payloads; where there are none, the time may be over or not."""
    return give(found) if found else [Done(()), (look, *again, (give_or_wait, again))]


def pop(found: Tuple[Message, ...], subscription: Subscription) -> Next:
    """Acknowledge what was found."""
    return [(take, subscription, found[0].id, Done(None))] if found else [Done(EMPTY)]


def turn(found: Tuple[Message, ...], subscription: Subscription, every: int, turns: int, given: Tuple[bytes,
                                                                                                      ...]) -> Next:
    """Iterate over messages, and leave the loop before the last one is acknowledged."""
    given += tuple(message.payload for message in found[:turns])
    if not found:
        return [Done(given)]
    if turns <= len(found):
        return [(take, subscription, found[turns - 2].id, Done(given)) if turns > 1 else Done(given)]
    return [(take, subscription, found[-1].id, (look, subscription, False, every, (turn, subscription, every,
                                                                                   turns - len(found), given)))]


def loop(subscription: Subscription, every: int, turns: int) -> Step:
    """Make the first step of a loop over messages."""
    return look, subscription, False, every, (turn, subscription, every, turns, ())


# Control


def add(model: Model, name: str) -> Next:
    """Add a subscriber."""
    model.write()
    model.add(name)
    return [Done(None)]


def subscribe(model: Model, name: str) -> Next:
    """Open a subscriber; return its number."""
    return [Done(model.places[name].number if name in model.places else UNKNOWN)]


def remove(model: Model, name: str) -> Next:
    """Remove a subscriber."""
    if name not in model.places:
        return [Done(UNKNOWN)]
    del model.places[name]
    model.keep(model.log)
    return [Done(None)]


def set_limits(model: Model, mark: HighWaterMark) -> Next:
    """Set limits; those that are left out stay."""
    model.write()
    model.high_watermark = model.with_limits(mark)
    return [Done(None)]


def set_strategy(model: Model, strategy: Strategy) -> Next:
    """Set the strategy."""
    model.write()
    model.strategy = strategy
    return [Done(None)]


def prune_dangling(model: Model) -> Next:
    """Expire what is too old; return how many messages that were."""
    return [Done(model.keep(model.young(model.log)))]


def prune_all_for(model: Model, name: str) -> Next:
    """Move a subscriber to the end; return how many messages it skips."""
    if name not in model.places:
        return [Done(UNKNOWN)]
    pending = len(model.young(model.awaited(name)))
    model.take(name, model.places[name].number, model.next_id - 1)
    return [Done(pending)]


def clear(model: Model, subscribers_too: bool) -> Next:
    """Remove all messages; return how many of them had not expired."""
    model.keep(model.young(model.log))
    if subscribers_too:
        model.places.clear()
    return [Done(model.keep([]))]


def status(model: Model) -> Next:
    """Return what there is."""
    subscribers = {name: (place.next_id, len(model.young(model.awaited(name)))) for name, place in model.places.items()}
    return [
        Done((len(model.young(model.log)), model.next_id, model.floor(), model.high_watermark, model.strategy,
              tuple(sorted(subscribers.items()))))
    ]


def forward(model: Model, step_us: int) -> Next:
    """Let time pass."""
    model.boottime_us += step_us
    return [Done(None)]


# The search


@dataclasses.dataclass
class _Configuration:
    """How far each thread is: its next operation, and the step of it where some were done; and the model then."""

    places: Tuple[Tuple[int, Optional[Step]], ...]
    model: Model

    def key(self) -> Hashable:
        """Return what distinguishes configurations."""
        model = self.model
        return (self.places, model.boottime_us, model.next_id, model.next_number, model.high_watermark, model.strategy,
                tuple(model.log),
                tuple(sorted((name, place.number, place.next_id) for name, place in model.places.items())))


def copied(model: Model) -> Model:
    """Copy a model."""
    other = copy.copy(model)
    other.log = list(model.log)
    other.places = {name: copy.copy(place) for name, place in model.places.items()}
    return other


class Search:
    """The search for an order of the operations of a history."""

    def __init__(self, history: Sequence[Operation], model: Model) -> None:
        by_thread: Dict[int, List[Operation]] = {}
        for operation in sorted(history, key=lambda one: one.begun_ns):
            by_thread.setdefault(operation.thread, []).append(operation)
        self._threads = list(by_thread.values())
        self._start = _Configuration(((0, None), ) * len(self._threads), model)
        self.configurations = 0

    def succeeds(self) -> bool:
        """Return whether there is an order."""
        seen: Set[Hashable] = set()
        left = [self._start]
        while left:
            configuration = left.pop()
            key = configuration.key()
            if key in seen:
                continue
            seen.add(key)
            self.configurations += 1
            if all(index == len(operations) for (index, _), operations in zip(configuration.places, self._threads)):
                return True
            left += self._successors(configuration)
        return False

    def _successors(self, configuration: _Configuration) -> List[_Configuration]:
        unfinished = [(thread, operations[index], step)
                      for thread, ((index, step), operations) in enumerate(zip(configuration.places, self._threads))
                      if index < len(operations)]
        first_end_ns = min(operation.ended_ns for _, operation, _ in unfinished)
        successors = []
        # The one that ended first is tried first, being the last on the stack.
        for thread, operation, step in sorted(unfinished, key=lambda one: -one[1].ended_ns):
            if operation.begun_ns > first_end_ns:
                continue
            model = copied(configuration.model)
            function, *arguments = step or operation.step
            for after in function(model, *arguments):
                places = list(configuration.places)
                if not isinstance(after, Done):
                    places[thread] = (places[thread][0], after)
                elif after.outcome == operation.outcome:
                    places[thread] = (places[thread][0] + 1, None)
                else:
                    continue
                successors.append(_Configuration(tuple(places), model))
        return successors


def is_linearizable(history: Sequence[Operation], model: Model) -> bool:
    """Return whether some order of the operations yields all outcomes in the model, from its state."""
    return Search(history, model).succeeds()


def told(history: Sequence[Operation]) -> str:
    """Describe a history: a line for each operation, in the order in which they began."""
    start_ns = min(operation.begun_ns for operation in history)
    return "\n".join(f"thread {one.thread}  {(one.begun_ns - start_ns) / 1000:10.1f} to "
                     f"{(one.ended_ns - start_ns) / 1000:10.1f} us  {one.name} -> {one.outcome!r}"
                     for one in sorted(history, key=lambda one: one.begun_ns))
