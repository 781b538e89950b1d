"""The rules of the state machine for subscribers that are shared, or limit their deliveries."""

import dataclasses
from typing import Any, Callable, ContextManager, List, NamedTuple, Optional

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from persipubsub import Control, Reject, Retry, errors
from persipubsub.dead_letters import DeadLetter
from tests.conformance.forms import AnySubscriber
from tests.model.machine import Handle, Machine, Opened
from tests.model.model import Message
from tests.model.rules import WHICH, WORKERS, subscriber, uses
from tests.model.shared_model import PolicyPlace

SECONDS = st.sampled_from([0.5, 1, 2, 5])
DELIVERIES = st.integers(1, 3)
DEAD_LETTERS = st.sampled_from([1, 3, 100])
#: What ends the block of a worker.
ENDS = st.sampled_from(
    [None, None,
     ValueError("text"),
     KeyboardInterrupt("text"),
     Retry(),
     Retry(0),
     Retry(1.5),
     Reject("reason")])


class Claim(NamedTuple):
    """What a worker was handed out in a block that has not ended."""

    opened: Opened
    worker: AnySubscriber
    receipt: ContextManager[List[Any]]
    subscriber_number: int
    number: int
    messages: List[Message]


class SharedMachine(Machine):
    """Workers that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: List[Claim] = []

    def workers(self) -> Optional[PolicyPlace]:
        """Return the shared subscriber of the model."""
        place = self.model.places.get(WORKERS)
        return place if isinstance(place, PolicyPlace) else None

    def some_claim(self, which: int) -> Optional[Claim]:
        """Pick one of the blocks that have not ended, to end it; those of closed Environments never end."""
        self.claims = [claim for claim in self.claims if claim.opened in self.opened]
        return self.claims.pop(which % len(self.claims)) if self.claims else None

    @rule(which=WHICH,
          lease_s=SECONDS,
          max_deliveries=DELIVERIES,
          retry_delay_s=st.one_of(st.just(0), SECONDS),
          dead_letters_max=DEAD_LETTERS)
    @uses("Control.add_subscriber")
    def share(self, which: int, lease_s: float, max_deliveries: int, retry_delay_s: float,
              dead_letters_max: int) -> None:
        """A shared subscriber is added, or its settings change for all workers."""
        self.some(which).control.add_subscriber(WORKERS,
                                                shared=True,
                                                lease_s=lease_s,
                                                max_deliveries=max_deliveries,
                                                retry_delay_s=retry_delay_s,
                                                retry_delay_max_s=5,
                                                dead_letters_max=dead_letters_max)
        self.model.write()
        if WORKERS not in self.model.places:
            self.model.add(WORKERS)
            self.model.places[WORKERS] = PolicyPlace(**dataclasses.asdict(self.model.places[WORKERS]), shared=True)
        place = self.workers()
        assert place is not None
        place.lease_us, place.max_deliveries, place.dead_letters_max = round(lease_s * 1e6), max_deliveries, \
            dead_letters_max
        place.retry_delay_us, place.retry_delay_max_us = round(retry_delay_s * 1e6), 5_000_000
        self.model.trim(place)

    @precondition(lambda self: self.workers())
    @rule(which=WHICH,
          max_messages=st.integers(1, 4),
          max_bytes=st.sampled_from([2**26, 2**26, 16, 65_528]),
          extends=st.booleans(),
          detailed=st.booleans(),
          tasks=st.booleans())
    @uses(*subscriber("receive_many", "receive_deliveries"))
    def claim(  # pylint: disable=too-many-arguments,too-many-positional-arguments  # the ways to claim
            self, which: int, max_messages: int, max_bytes: int, extends: bool, detailed: bool, tasks: bool) -> None:
        """A worker gets what no other one holds, for as long as the lease."""
        opened, place = self.some(which), self.workers()
        assert place is not None
        worker = self.forms[tasks].subscriber(opened.environment, WORKERS)
        receive: Callable[..., ContextManager[List[Any]]]
        receive = worker.receive_deliveries if detailed else worker.receive_many
        receipt = receive(max_messages, 0, max_bytes=max_bytes)
        number, found = self.model.claim(WORKERS, max_messages, max_bytes)
        # pylint: disable-next=unnecessary-dunder-call  # the block ends by another rule, or never
        assert receipt.__enter__() == self.values(Handle(worker, place.number), found, detailed)
        if found:
            self.claims.append(Claim(opened, worker, receipt, place.number, number, found))
            if extends or tasks:  # workers of tasks are rarer, so theirs always do
                self.extend_lease(len(self.claims) - 1)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH, end=ENDS, stops=st.booleans())
    @uses(*subscriber("stop"))
    def end_block(self, which: int, end: Optional[BaseException], stops: bool) -> None:
        """What a worker still holds is acknowledged when its block ends; if it raises, given back or a dead letter."""
        claim = self.some_claim(which)
        if claim is None:
            return
        place = self.model.policy_place(WORKERS, claim.subscriber_number)
        held = self.model.held(place, claim.number, claim.messages) if place else []
        if stops:
            claim.worker.stop()
            assert not list(claim.worker.messages())
        if end is not None:
            assert bool(claim.receipt.__exit__(type(end), end, None)) == isinstance(end, (Retry, Reject))
        elif place is not None and len(held) < len(claim.messages):
            with pytest.raises(errors.LeaseLostError):
                claim.receipt.__exit__(None, None, None)
        else:
            claim.receipt.__exit__(None, None, None)
        if place is None:
            self.model.write()
        elif end is None:
            self.model.acknowledge(place, held)
        else:
            delay_us = None if not isinstance(end, Retry) or end.delay_s is None else round(end.delay_s * 1e6)
            failure = type(end).__name__ if isinstance(end, Exception) else ""
            self.model.give_back(place, held, failure, delay_us)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    @uses(*subscriber("extend_lease"))
    def extend_lease(self, which: int) -> None:
        """The lease of what a worker still holds begins anew."""
        claim = self.some_claim(which)
        if claim is None:
            return
        self.claims.append(claim)
        place = self.model.policy_place(WORKERS, claim.subscriber_number)
        held = self.model.held(place, claim.number, claim.messages) if place else []
        self.model.write()  # each of its messages that it still holds is extended, even if others are lost
        if len(held) < len(claim.messages):
            with pytest.raises(errors.LeaseLostError):
                claim.worker.extend_lease()
        else:
            claim.worker.extend_lease()
        for message_id in held if place else ():
            assert place is not None
            place.entries[message_id].due_us = self.model.now_us() + place.lease_us

    # Dead letters, also of those that are not shared

    def with_policy(self, name: str) -> Optional[PolicyPlace]:
        """Return a subscriber of the model that can have dead letters."""
        place = self.model.places.get(name)
        return place if isinstance(place, PolicyPlace) else None

    @rule(which=WHICH,
          name=st.sampled_from(["a", "b", WORKERS]),
          ids=st.one_of(st.none(), st.lists(st.integers(0, 20), max_size=3)),
          discarded=st.booleans())
    @uses("Control.dead_letters", "Control.requeue_dead_letters", "Control.discard_dead_letters")
    def settle_dead_letters(self, which: int, name: str, ids: Optional[List[int]], discarded: bool) -> None:
        """Dead letters are requeued to their subscriber, or discarded."""
        control, place = self.some(which).control, self.with_policy(name)
        change = control.discard_dead_letters if discarded else control.requeue_dead_letters
        if name not in self.model.places:
            for call in (lambda: control.dead_letters(name), lambda: change(name, ids)):
                with pytest.raises(errors.UnknownSubscriberError):
                    call()
            return
        self.compare_dead_letters(control, name)
        dead = list(place.dead) if place is not None else []
        chosen = [letter_id for letter_id in dead if ids is None or letter_id in ids]
        assert change(name, ids) == len(chosen)
        self.model.write()
        if place is not None and discarded:
            for letter_id in chosen:
                del place.dead[letter_id]
        elif place is not None:
            self.model.requeue(place, chosen)

    def compare_dead_letters(self, control: Control, name: str) -> None:
        """Compare the dead letters of a subscriber with the model."""
        place = self.with_policy(name)
        found = [
            dataclasses.replace(letter,
                                error_type=letter.error_type.rpartition(".")[2],
                                error_text="",
                                error_traceback="") for letter in control.dead_letters(name)
        ]
        assert found == [
            DeadLetter(letter_id, one.message.payload, one.reason, one.deliveries, one.failure, "",
                       one.message.time_us / 1e6, one.died_us / 1e6, dict(one.message.headers))
            for letter_id, one in sorted(place.dead.items() if place is not None else ())
        ]

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, max_deliveries=DELIVERIES, dead_letters_max=DEAD_LETTERS)
    @uses("Control.add_subscriber")
    def limit(self, which: int, max_deliveries: int, dead_letters_max: int) -> None:
        """A subscriber that is not shared can limit its deliveries; open ones do so from then on."""
        name = self.handle(which).name
        if name not in self.model.places:
            return
        self.some(which).control.add_subscriber(name, max_deliveries=max_deliveries, dead_letters_max=dead_letters_max)
        self.model.write()
        place = self.model.places[name]
        if not isinstance(place, PolicyPlace):
            place = self.model.places[name] = PolicyPlace(**dataclasses.asdict(place))
        place.max_deliveries, place.dead_letters_max = max_deliveries, dead_letters_max
        self.model.trim(place)
