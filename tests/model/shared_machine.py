"""The rules of the state machine for subscribers that are shared, or limit their deliveries."""

import dataclasses
from typing import List, NamedTuple, Optional, Type

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from persipubsub import Control, Subscriber, errors
from persipubsub.dead_letters import DeadLetter
from persipubsub.subscriber import Receipt
from tests.model.machine import Interrupted, Machine, Opened
from tests.model.model import Message
from tests.model.rules import WHICH, WORKERS, uses
from tests.model.shared_model import PolicyPlace

SECONDS = st.sampled_from([0.5, 1, 2, 5])
DELIVERIES = st.integers(1, 3)
DEAD_LETTERS = st.sampled_from([1, 3, 100])


class Claim(NamedTuple):
    """What a worker was handed out in a block that has not ended."""

    opened: Opened
    worker: Subscriber
    receipt: "Receipt[List[bytes]]"
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
          extends=st.booleans())
    @uses("Environment.new_subscriber", "Subscriber.receive_many")
    def claim(self, which: int, max_messages: int, max_bytes: int, extends: bool) -> None:
        """A worker gets what no other one holds, for as long as the lease."""
        opened, place = self.some(which), self.workers()
        assert place is not None
        worker = opened.environment.new_subscriber(WORKERS)
        receipt = worker.receive_many(max_messages, timeout=0, max_bytes=max_bytes)
        number, found = self.model.claim(WORKERS, max_messages, max_bytes)
        # pylint: disable-next=unnecessary-dunder-call  # the block ends by another rule, or never
        assert receipt.__enter__() == [message.payload for message in found]
        if found:
            self.claims.append(Claim(opened, worker, receipt, place.number, number, found))
            if extends:
                self.extend_lease(which)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH, raised=st.sampled_from([None, None, Interrupted, KeyboardInterrupt]))
    def end_block(self, which: int, raised: Optional[Type[BaseException]]) -> None:
        """What a worker still holds is acknowledged when its block ends, and given back where that raises."""
        claim = self.some_claim(which)
        if claim is None:
            return
        place = self.model.policy_place(WORKERS, claim.subscriber_number)
        held = self.model.held(place, claim.number, claim.messages) if place else []
        if raised is not None:
            claim.receipt.__exit__(raised, raised("text"), None)
        elif place is not None and len(held) < len(claim.messages):
            with pytest.raises(errors.LeaseLostError):
                claim.receipt.__exit__(None, None, None)
        else:
            claim.receipt.__exit__(None, None, None)
        if place is None:
            self.model.write()
        elif raised is None:
            self.model.acknowledge(place, held)
        else:
            self.model.give_back(place, held, raised is Interrupted)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    @uses("Subscriber.extend_lease")
    def extend_lease(self, which: int) -> None:
        """The lease of what a worker still holds begins anew."""
        claim = self.some_claim(which)
        if claim is None:
            return
        self.claims.append(claim)
        place = self.model.policy_place(WORKERS, claim.subscriber_number)
        held = self.model.held(place, claim.number, claim.messages) if place else []
        self.model.write()
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
        place, kind = self.with_policy(name), f"{Interrupted.__module__}.{Interrupted.__qualname__}"
        found = [
            dataclasses.replace(letter, error_type=letter.error_type.replace("GeneratorExit", kind), error_text="")
            for letter in control.dead_letters(name)
        ]
        assert found == [
            DeadLetter(letter_id, one.message.payload, one.reason, one.deliveries, kind if one.failed else "", "",
                       one.message.time_us / 1e6, one.died_us / 1e6)
            for letter_id, one in sorted(place.dead.items() if place is not None else ())
        ]

    @precondition(lambda self: self.handles())
    @rule(which=WHICH, max_deliveries=DELIVERIES, dead_letters_max=DEAD_LETTERS)
    @uses("Control.add_subscriber")
    def limit(self, which: int, max_deliveries: int, dead_letters_max: int) -> None:
        """A subscriber that is not shared can limit its deliveries; open ones do so from then on."""
        name = self.handle(which).subscriber.identifier
        if name not in self.model.places:
            return
        self.some(which).control.add_subscriber(name, max_deliveries=max_deliveries, dead_letters_max=dead_letters_max)
        self.model.write()
        place = self.model.places[name]
        if not isinstance(place, PolicyPlace):
            place = self.model.places[name] = PolicyPlace(**dataclasses.asdict(place))
        place.max_deliveries, place.dead_letters_max = max_deliveries, dead_letters_max
        self.model.trim(place)
