"""What workers do with messages of a shared subscriber, and with its dead letters, while faults happen."""

import pathlib
import time
from typing import Callable, List, NamedTuple, Tuple

import persipubsub
from persipubsub import Reject, Retry
from persipubsub.engine import headers
from persipubsub.lmdb_engine import open_queues
from persipubsub.lmdb_engine.records.delivery_layouts import NO_TOKEN, REQUEUED, DeadLetterPayload
from persipubsub.lmdb_engine.records.layouts import SubscriberRecord
from persipubsub.lmdb_engine.records.transaction import Transaction
from persipubsub.lmdb_engine.rules import message_log
from persipubsub.lmdb_engine.rules.dead_letters import payload_of
from persipubsub.subscriber import Receipt, Subscriber
from tests.faults.journal import name_with_headers

WORKERS = "workers"
BATCH_MESSAGES = 15
#: The unit of the times that are compared: so long that what happens meanwhile does not matter.
UNIT_S = 1000
LEASE_S, LONGER_S = UNIT_S, 50 * UNIT_S

#: The call during which a fault happens.
Action = Callable[[], object]


class Failed(Exception):
    """Raised in the block of a receive."""


class Shared(NamedTuple):
    """What there is to see of a shared subscriber."""

    names: List[str]  # of what it has not acknowledged, with its dead letters, in the order of their ids
    deliveries: List[str]  # what was handed out and not acknowledged: to be compared
    letters: List[str]


def add(path: pathlib.Path, **settings: float) -> Tuple[persipubsub.Environment, Subscriber[bytes]]:
    """Have workers share what is in the queue; be one of them."""
    environment = persipubsub.new_environment(path)
    given = {"lease_s": LEASE_S, "retry_delay_s": LONGER_S, "retry_delay_max_s": LONGER_S, **settings}
    environment.new_control().add_subscriber(WORKERS, start="earliest", shared=True, **given)  # type: ignore[arg-type]
    return environment, environment.new_subscriber(WORKERS)


def held(worker: Subscriber[bytes], count: int = BATCH_MESSAGES) -> Receipt[List[bytes]]:
    """Be handed messages out."""
    receipt = worker.receive_many(count, timeout=0)
    assert len(receipt.__enter__()) == count  # pylint: disable=unnecessary-dunder-call  # it is left elsewhere
    return receipt


def fail(receipt: Receipt[List[bytes]], error: Exception) -> None:
    """Raise in the block that was handed messages out."""
    receipt.__exit__(type(error), error, None)


def claim(path: pathlib.Path) -> Action:
    """Hand messages out for the first time."""
    _, worker = add(path)
    return lambda: held(worker)


def claim_again(path: pathlib.Path) -> Action:
    """Hand a message out whose lease has ended."""
    environment, worker = add(path, lease_s=0.01)
    held(worker)
    environment.new_control().add_subscriber(WORKERS, lease_s=LEASE_S)
    time.sleep(0.02)
    return lambda: held(worker, 1)


def acknowledge(path: pathlib.Path) -> Action:
    """Acknowledge what was handed out."""
    _, worker = add(path)
    receipt = held(worker)
    return lambda: receipt.__exit__(None, None, None)


def acknowledge_last(path: pathlib.Path) -> Action:
    """Acknowledge what nobody else awaits any more, so that it is deleted."""
    environment, worker = add(path)
    environment.new_control().remove_subscriber("a")
    with environment.new_subscriber("b").receive_many(timeout=0):
        pass
    receipt = held(worker)
    return lambda: receipt.__exit__(None, None, None)


def give_back(path: pathlib.Path) -> Action:
    """Give back the message of a block that raised."""
    _, worker = add(path)
    receipt = held(worker)
    return lambda: fail(receipt, Failed())


def retry(path: pathlib.Path) -> Action:
    """Ask for another delivery after a delay."""
    _, worker = add(path)
    receipt = held(worker)
    return lambda: fail(receipt, Retry(2 * LONGER_S))


def reject(path: pathlib.Path) -> Action:
    """Make dead letters of messages at once."""
    _, worker = add(path)
    receipt = held(worker)
    return lambda: fail(receipt, Reject("on purpose"))


def give_back_unbegun(path: pathlib.Path) -> Action:
    """Return back what nobody has begun to work on."""
    _, worker = add(path)
    return held(worker).give_back


def bury_what_raised(path: pathlib.Path) -> Action:
    """Make a dead letter of a message whose block raised."""
    environment, worker = add(path, max_deliveries=2)
    receipt = held(worker)
    environment.new_control().add_subscriber(WORKERS, max_deliveries=1)
    return lambda: fail(receipt, Failed())


def bury_what_ran_out(path: pathlib.Path) -> Action:
    """Make dead letters of messages whose lease ended, and hand out the next ones."""
    environment, worker = add(path, lease_s=0.01, max_deliveries=2)
    held(worker)
    environment.new_control().add_subscriber(WORKERS, lease_s=LEASE_S, max_deliveries=1)
    time.sleep(0.02)
    return lambda: held(worker, 1)  # alone, since it is handed out once


def _with_dead_letters(path: pathlib.Path) -> Tuple[persipubsub.Control, Subscriber[bytes]]:
    environment, worker = add(path, max_deliveries=2)
    receipt, control = held(worker), environment.new_control()
    control.add_subscriber(WORKERS, max_deliveries=1)  # only now: a message that is handed out once comes alone
    fail(receipt, Failed())
    return control, worker


def requeue(path: pathlib.Path) -> Action:
    """Requeue dead letters."""
    control, _ = _with_dead_letters(path)
    return lambda: control.requeue_dead_letters(WORKERS)


def acknowledge_requeued(path: pathlib.Path) -> Action:
    """Acknowledge what was a dead letter."""
    control, worker = _with_dead_letters(path)
    control.requeue_dead_letters(WORKERS)
    control.add_subscriber(WORKERS, max_deliveries=2)  # so that several come together
    receipt = held(worker)
    return lambda: receipt.__exit__(None, None, None)


def discard(path: pathlib.Path) -> Action:
    """Delete dead letters."""
    control, _ = _with_dead_letters(path)
    return lambda: control.discard_dead_letters(WORKERS)


def extend_lease(path: pathlib.Path) -> Action:
    """Extend a lease whose duration is longer by now."""
    environment, worker = add(path)
    held(worker)
    environment.new_control().add_subscriber(WORKERS, lease_s=LONGER_S)
    return worker.extend_lease


def look(path: pathlib.Path) -> Shared:
    """Look at the shared subscriber, if there is one, without being handed anything out."""
    opened = open_queues.acquire(path)
    try:
        return opened.read(_seen)
    finally:
        open_queues.release(opened)


def _seen(txn: Transaction) -> Shared:
    place = txn.subscriber(WORKERS.encode())
    if place is None:
        return Shared([], [], [])
    entries = list(txn.in_flight(place).all())
    ids, _ = txn.messages(max(place.next_id, txn.header.first), 2**31, 2**31)
    awaited = [*(message_id for message_id, _ in entries), *ids]
    found = {message_id % REQUEUED: _name(txn, place, message_id) for message_id in awaited}
    letters = txn.dead_letters(place.number)
    found.update((message_id, _name_of_letter(letters.get(message_id))) for message_id in list(letters.dead_ids()))
    names = [found[message_id] for message_id in sorted(found)]
    now_us = message_log.now_us(txn)
    deliveries = [
        f"{message_id}: {entry.deliveries} times, {'waits' if entry.token == NO_TOKEN else 'held'} for "
        f"{round(max(0, entry.due_us - now_us) / 1e6 / UNIT_S)} units, {entry.failure.type}"
        for message_id, entry in entries
    ]
    return Shared(names, [*deliveries, str(place)], _letters(txn, place))


def _name(txn: Transaction, place: SubscriberRecord, message_id: int) -> str:
    if message_id >= REQUEUED:
        return _name_of_letter(txn.dead_letters(place.number).get(message_id - REQUEUED))
    payload = payload_of(txn, place, message_id)
    assert payload is not None  # nothing is deleted from the log here
    return name_with_headers(payload, headers.decoded(txn.parts().headers(message_id)))


def _name_of_letter(letter: DeadLetterPayload) -> str:
    return name_with_headers(letter.payload, headers.decoded(letter.headers))


def _letters(txn: Transaction, place: SubscriberRecord) -> List[str]:
    letters, found = txn.dead_letters(place.number), []
    for message_id in list(letters.ids()):
        death = letters.death(message_id)
        told = "" if death is None else f"{death.reason}, {death.deliveries}, {death.failure.type}"
        found.append(f"{message_id} {_name_of_letter(letters.get(message_id))}: {told}")
    return found
