"""The life of a message in the queue, from put to pop, each step on an open transaction.

A message is appended to one log (:func:`put`) and stays until all subscribers have taken it. A subscriber is a *place*
in the log: :func:`look` finds what lies there, :func:`take` moves the place on. The smallest of all places is the
*floor*: messages below it await nobody and are deleted, unless they are retained (:mod:`persipubsub.retention`).
Messages also go when they are older than the timeout (:func:`expire`), or when the queue overflows (:func:`put`).

Each subscriber's record counts the messages that it has taken; the header counts those that went otherwise, by reason.

What holds before and after each function, and what ``check()`` verifies, is listed in
:mod:`persipubsub.invariants`.
"""

import bisect
from typing import List, NamedTuple, Optional, Sequence, Tuple

import icontract

from persipubsub import clock, dead_letters, errors, retention
from persipubsub.configuration import Configuration, Durability, HighWaterMark, Strategy
from persipubsub.delivery_records import REQUEUED
from persipubsub.log import joins
from persipubsub.records import NEVER_US, Header, Place, Policy, Run, bytes_between, require_count
from persipubsub.transaction import Transaction

__all__ = ["Durability", "HighWaterMark", "Strategy"]

MESSAGE_BYTES_MAX = 1024**3
#: How many messages (and parts of long ones) one removal deletes at most; the others wait behind ``Header.first``.
DELETIONS_MAX = 10_000
IDENTIFIER_BYTES_MAX = 255
#: What a message takes in its page beside its payload, at most.
RECORD_BYTES_MAX = 64

# The names of the released code of persipubsub 1.0.0.
_Strategy = Strategy
_HighWaterMark = HighWaterMark


def configure(txn: Transaction, configuration: Configuration, identifiers: Sequence[bytes]) -> None:
    """Apply a configuration, and add the subscribers that are missing.

    :raise MessageTypeError: it binds the queue to another message type while there are messages
    """
    if configuration.message_type is not None:
        _bind(txn, configuration.message_type)
    retention_us = txn.header.retention_us
    txn.put_header(configuration.applied(txn.header))
    if txn.header.retention_us < retention_us:
        remove_dangling(txn)
    for identifier in identifiers:
        add_subscriber(txn, identifier)


def _bind(txn: Transaction, message_type: str) -> None:
    """Bind the queue to a protobuf type, by its full name."""
    messages, _ = count_from(txn, first_unexpired_id(txn, now_us(txn)))
    require_bindable(txn.message_type(), message_type, messages)
    txn.put_message_type(message_type)


def require_bindable(bound: Optional[str], wanted: str, messages: int) -> None:
    """Make sure that a queue with so many messages may be bound to a protobuf type.

    :param bound: the type that it is bound to
    :raise MessageTypeError: it may not
    """
    if bound is not None and bound != wanted and messages:
        raise errors.MessageTypeError(f"The queue is bound to the message type {bound} and has {messages} messages, so "
                                      f"it cannot be bound to {wanted}. Let the subscribers take them first, or drop "
                                      "them with Control.clear_messages.")


def require_message_type(txn: Transaction, wanted: str) -> None:
    """Make sure that messages of a protobuf type may be sent and received.

    :raise MessageTypeError: the queue is bound to another
    """
    bound = txn.message_type()
    if bound is not None and bound != wanted:
        raise errors.MessageTypeError(f"The queue is bound to the message type {bound}, not to {wanted}. Open it with "
                                      f"message_type={bound.rpartition('.')[2]}, or without one for the bytes.")


def begin(txn: Transaction) -> None:
    """Start a write transaction: the clock holds for this boot, and some of what has gone for everybody is deleted."""
    header = txn.header
    if header.boot_id != clock.boot_id():
        txn.put_header(_with_clock(txn))
    if header.waiting:
        remove_below(txn, header.first)
    if header.retention_us and retention.is_over(txn, now_us(txn)):
        remove_dangling(txn)


def _with_clock(txn: Transaction) -> Header:
    """Give the header with the offset for this boot; a clock set back at boot makes no commit older than the newest."""
    header, boot_id = txn.header, clock.boot_id()
    if header.boot_id == boot_id:
        return header
    start_us = max(clock.wall_us(), txn.log().newest().time_us)
    return header._replace(boot_id=boot_id, clock_offset_us=start_us - clock.boottime_us())


def now_us(txn: Transaction) -> int:
    """Give the queue's time, in microseconds since the epoch."""
    return clock.boottime_us() + _with_clock(txn).clock_offset_us


# Putting


class Sent(NamedTuple):
    """What became of a put: the ids of its messages, and whether any subscriber awaits them."""

    ids: range
    awaited: bool


class Batch(NamedTuple):
    """Messages to put together, at least one."""

    payloads: Sequence[bytes]
    size_bytes: int
    largest_bytes: int


def put(txn: Transaction, batch: Batch) -> Sent:
    """Append messages, keeping the high-water mark as if each had been put alone."""
    header, log = txn.header, txn.log()
    if batch.largest_bytes > header.hwm_db_size:
        require_below_mark(header, batch.largest_bytes)
    newest, first_id = log.end()
    ids = range(first_id, first_id + len(batch.payloads))
    if ids.stop > REQUEUED:
        raise errors.StorageError(
            f"The queue has given the message ids up to {first_id - 1}, and there are none from 2 ** 63 on, so "
            f"{len(ids)} messages cannot be sent. Set up another queue.")
    if not txn.has_subscribers() and not header.retention_us:
        log.mark_end(ids.stop)
        remove_below(txn, ids.stop)
        header = txn.header
        txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + len(ids)))
        return Sent(ids, False)
    txn.published = True
    # Not now_us: begin() has seen to it that the offset is of this boot.
    time_us = max(clock.boottime_us() + header.clock_offset_us, newest.time_us)
    oldest = log.oldest()
    if oldest.time_us < time_us - header.message_timeout_us:
        expire(txn)
        newest, oldest = log.newest(), log.oldest()
    if not _surely_below_the_mark(header, oldest, newest, batch, first_id):
        _put_at_the_mark(txn, time_us, first_id, batch.payloads)
        return Sent(ids, True)
    if not joins(newest, time_us, batch.largest_bytes, header.message_timeout_us):
        log.begin_run(time_us, batch.largest_bytes)
    txn.append(first_id, batch.payloads, batch.largest_bytes)
    return Sent(ids, True)


def require_below_mark(header: Header, size_bytes: int) -> None:
    """Refuse a message that is larger than the queue may be.

    :raise MessageTooLargeError: it is
    """
    if size_bytes > header.hwm_db_size:
        raise errors.MessageTooLargeError(
            f"A message of {size_bytes} bytes is over the high-water mark of the queue, hwm_db_size="
            f"{header.hwm_db_size} bytes. Send a smaller one, or raise the mark with Control.set_hwm.")


def pass_over(txn: Transaction, count: int) -> None:
    """Give ids to messages that the mark does not let in."""
    if count:
        log = txn.log()
        log.mark_end(log.next_id() + count)
        _count_overflow(txn, count)


def _surely_below_the_mark(header: Header, oldest: Run, newest: Run, batch: Batch, first_id: int) -> bool:
    """Tell, from the totals of the log, that no mark is reached: cheaper than asking LMDB for its pages.

    A page is at least half full.
    """
    in_newest = first_id - newest.first_id
    messages = newest.messages_before + in_newest + len(batch.payloads) - oldest.messages_before
    if messages > header.max_messages:
        return False
    payload_bytes = bytes_between(oldest, newest) + in_newest * newest.largest_bytes + batch.size_bytes
    return 2 * (payload_bytes + RECORD_BYTES_MAX * messages) + 16 * 4096 < header.hwm_db_size


def survivors(stored: int, new: int, mark: int, strategy: Strategy) -> Tuple[int, int]:
    """Tell what stays when messages are put one by one, each after an overflow where the mark is reached.

    An overflow at n messages takes n // 2 + 1 of them. Once the mark is reached, each further overflow comes after as
    many messages as the one before took, so there is no need to go through them.

    :param stored: how many messages are in the queue
    :param new: how many are put, at least 1
    :param mark: ``max_messages``
    :param strategy: which go
    :return: of stored and new messages, in their order: how many of the first stay, how many of the last
    """
    while stored >= mark:
        stored -= stored // 2 + 1
    lowest, until_overflow = stored, mark - stored
    if new <= until_overflow:
        stored += new
    else:
        period = mark // 2 + 1
        lowest = mark - period  # the first overflow that a new message meets leaves no more, and no later one less
        stored = mark - period + 1 + (new - until_overflow - 1) % period
    return (0, stored) if strategy == Strategy.prune_first else (lowest, stored - lowest)


def _put_at_the_mark(txn: Transaction, time_us: int, first_id: int, payloads: Sequence[bytes]) -> None:
    """Append messages where a mark may be reached."""
    live = live_messages(txn)
    if txn.header.retention_us:
        count = retention.giving_way(live, len(payloads), txn.header.max_messages, retained_messages(txn))
        _remove_oldest(txn, count)
        live -= count
    strategy = Strategy(txn.header.strategy)
    head, tail = survivors(live, len(payloads), txn.header.max_messages, strategy)
    _remove(txn, live - min(live, head if strategy == Strategy.prune_last else max(0, tail - len(payloads))))
    overflowed = live + len(payloads) - head - tail
    # Of the new messages stay those that belong to the first `head` of all, and the last ones.
    first, last = payloads[:max(0, head - live)], payloads[-tail:]
    overflowed += _append_below_size_mark(txn, time_us, first)
    txn.log().mark_end(first_id + len(payloads) - len(last))
    overflowed += _append_below_size_mark(txn, time_us, last)
    _count_overflow(txn, overflowed)


def _count_overflow(txn: Transaction, count: int) -> None:
    """Count messages that a mark has let go. Nobody is warned of them where the mark is to keep the latest only."""
    header = txn.header
    txn.put_header(header._replace(pruned_overflow=header.pruned_overflow + count))
    if header.max_messages > 1:
        txn.overflowed += count


def _append_below_size_mark(txn: Transaction, time_us: int, payloads: Sequence[bytes]) -> int:
    """Append messages, making room wherever the bytes reach the mark; give how many messages went for it."""
    overflowed = start = 0
    while start < len(payloads):
        if live_bytes(txn) >= txn.header.hwm_db_size:
            overflowed += _make_room(txn)
        part = payloads[start:start + _count_that_fits(payloads, start, txn.header.hwm_db_size - live_bytes(txn))]
        largest_bytes = max(map(len, part))
        log = txn.log()
        log.begin_run(time_us, largest_bytes)
        txn.append(log.next_id(), part, largest_bytes)
        start += len(part)
    return overflowed


def _count_that_fits(payloads: Sequence[bytes], start: int, room_bytes: int) -> int:
    """Count the messages that surely fit into the room; one goes in anyhow."""
    count, used_bytes = 0, 0
    for payload in payloads[start:]:
        used_bytes += 2 * (len(payload) + RECORD_BYTES_MAX)
        if used_bytes >= room_bytes and count:
            break
        count += 1
    return count


def _make_room(txn: Transaction) -> int:
    """Remove messages until at most half of the bytes of the mark are used; give how many went."""
    removed = 0
    while live_bytes(txn) > txn.header.hwm_db_size // 2:
        count = live_messages(txn) // 2 + 1
        retained = min(count, retained_messages(txn)) if txn.header.retention_us else 0
        if retained:
            _remove_oldest(txn, retained)
        else:
            _remove(txn, count)
            removed += count
    return removed


def _remove(txn: Transaction, count: int) -> None:
    """Remove the oldest or the latest messages, as the strategy says."""
    if not count:
        return
    if Strategy(txn.header.strategy) == Strategy.prune_last:
        txn.delete_last(count)
    else:
        _remove_oldest(txn, count)


def _remove_oldest(txn: Transaction, count: int) -> None:
    if count:
        log = txn.log()
        remove_below(txn, log.id_of(log.messages_before(first_live_id(txn)) + count))


# Removing


def expire(txn: Transaction) -> int:
    """Remove what is older than the timeout; give how many messages went. Commit times never fall: bisection."""
    # What all have taken is not let go: it has served.
    retained = retained_messages(txn) if txn.header.retention_us else 0
    count = remove_below(txn, first_unexpired_id(txn, now_us(txn)))
    header, expired = txn.header, max(0, count - retained)
    txn.put_header(header._replace(pruned_timeout=header.pruned_timeout + expired))
    txn.expired += expired
    return count


def first_unexpired_id(txn: Transaction, time_us: int) -> int:
    """Give the first id whose message, if it is there, has not expired at a time; the next id where all have."""
    return txn.log().first_id_since(time_us - txn.header.message_timeout_us)


def first_kept_id(txn: Transaction, time_us: int) -> int:
    """Give the first id whose message, if it is there, neither has expired at a time nor been retained for long enough.

    What is below may still be stored, until somebody writes. For everybody it has gone.
    """
    unexpired_id = first_unexpired_id(txn, time_us)
    return max(unexpired_id, retention.bound(txn, time_us)) if txn.header.retention_us else unexpired_id


def remove_below(txn: Transaction, bound: int) -> int:
    """Remove all messages below an id; give how many went.

    Deleting 500,000 messages takes LMDB most of a second, in which every process waits. So a transaction deletes a
    limited number. Those left are gone at once for everybody, being below ``Header.first``, and each later write
    transaction deletes some of them (:func:`begin`).
    """
    header = txn.header
    bound = max(bound, header.first)
    deleted, all_gone = txn.delete_below(bound, DELETIONS_MAX)
    if all_gone and not header.waiting:
        return deleted
    log = txn.log()
    waiting = 0 if all_gone else log.messages_before(bound) - log.messages_before(txn.first_id(0) or 0)
    txn.put_header(header._replace(first=bound, waiting=waiting))
    return deleted + waiting - header.waiting


def prune_dangling(txn: Transaction) -> int:
    """Remove the messages that nobody awaits, since who did was removed; give how many went."""
    count = remove_dangling(txn)
    header = txn.header
    if not header.retention_us:  # else they had been taken, or have been kept for as long as was wanted
        txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + count))
    return count


def remove_dangling(txn: Transaction) -> int:
    """Remove the messages below the floor, but for those that are to be retained; give how many went."""
    return remove_below(txn, retention.bound(txn, now_us(txn)))


def clear(txn: Transaction) -> int:
    """Remove all messages, also the delayed ones; give how many went, of those that had not expired."""
    expire(txn)
    return remove_below(txn, txn.log().next_id()) + _clear_delayed(txn)


def _clear_delayed(txn: Transaction) -> int:
    header = txn.header
    if header.delayed:
        txn.clear_schedule()
        txn.put_header(header._replace(delayed=0, next_due_us=NEVER_US))
    return header.delayed


# Counting


def first_live_id(txn: Transaction, start: int = 0) -> int:
    """Give the id of the first message from an id on that is not gone; the next id where there is none."""
    message_id = txn.first_id(max(start, txn.header.first))
    return txn.log().next_id() if message_id is None else message_id


def live_messages(txn: Transaction) -> int:
    """Count the messages."""
    return txn.stored_messages() - txn.header.waiting


def live_bytes(txn: Transaction) -> int:
    """Give the size of the messages: their pages, less the share of the messages that wait to be deleted."""
    stored = txn.stored_messages()
    return txn.stored_bytes() * (stored - txn.header.waiting) // stored if stored else 0


def retained_messages(txn: Transaction) -> int:
    """Count the messages that are there though nobody awaits them."""
    log, floor = txn.log(), txn.floor()
    end = log.next_id() if floor is None else floor
    return max(0, log.messages_before(end) - log.messages_before(first_live_id(txn)))


def count_from(txn: Transaction, start: int) -> Tuple[int, int]:
    """Count the messages from an id on that are not gone.

    :return: the number, and the id of the first one, or the next id where there is none
    """
    first_id = first_live_id(txn, start)
    log = txn.log()
    return require_count(log.messages_before(log.next_id()) - log.messages_before(first_id)), first_id


# Subscribers


class Subscription(NamedTuple):
    """A subscriber as its handle knows it. The number tells it from a later one of the same identifier."""

    identifier: bytes
    number: int
    shared: bool


def subscribe(txn: Transaction, identifier: bytes) -> Subscription:
    """Find a subscriber.

    :raise UnknownSubscriberError: there is none
    """
    place = txn.place(identifier)
    if place is None:
        names = ", ".join(repr(name.decode()) for name, _ in txn.places()[:20]) or "none"
        raise errors.UnknownSubscriberError(f"The queue has no subscriber {identifier.decode()!r}; it has: {names}. "
                                            "Add it with Control.add_subscriber, or with persipubsub subscriber add.")
    return Subscription(identifier, place.number, place.policy is not None and place.policy.shared)


# What holds afterwards is looked at in the same transaction: others may change it in the next one.


@icontract.ensure(lambda txn, identifier: txn.place(identifier) is not None, enabled=icontract.SLOW)
def add_subscriber(txn: Transaction, identifier: bytes, policy: Optional[Policy] = None) -> bool:
    """Add a subscriber at the end of the queue; tell whether it was missing. One that exists stays as it is."""
    if txn.place(identifier) is not None:
        return False
    header = txn.header
    next_id = txn.log().next_id()
    txn.put_place(identifier, Place(header.next_subscriber_number, next_id, policy=policy))
    txn.count_place(next_id, 1)
    txn.put_header(header._replace(next_subscriber_number=header.next_subscriber_number + 1))
    return True


@icontract.ensure(lambda txn, identifier: txn.place(identifier) is None, enabled=icontract.SLOW)
def remove_subscriber(txn: Transaction, identifier: bytes) -> int:
    """Remove a subscriber, and what it alone still awaited; give how many dead letters went with it.

    :raise UnknownSubscriberError: there is none
    """
    place = own_place(txn, subscribe(txn, identifier))
    _remove_place(txn, identifier, place)
    prune_dangling(txn)
    return place.dead_letters


class Cleared(NamedTuple):
    """How many messages and dead letters went."""

    messages: int
    dead_letters: int


def clear_subscribers(txn: Transaction) -> Cleared:
    """Remove all subscribers and all messages; those that had expired do not count."""
    expire(txn)
    retained, places = retained_messages(txn), list(txn.places())
    for identifier, place in places:
        _remove_place(txn, identifier, place)
    count = remove_below(txn, txn.log().next_id())
    header = txn.header
    txn.put_header(header._replace(pruned_dangling=header.pruned_dangling + count - retained))
    return Cleared(count + _clear_delayed(txn), sum(place.dead_letters for _, place in places))


def _remove_place(txn: Transaction, identifier: bytes, place: Place) -> None:
    txn.delete_place(identifier)
    txn.count_place(dead_letters.position(txn, place), -1)
    if place.policy is not None:
        dead_letters.remove_all(txn, place)
    txn.published = True  # who waits as this subscriber must learn that it is gone


# Taking


class Found(NamedTuple):
    """What lies at a subscriber's place: ids and payloads, in order. Where expired messages lie there: only that."""

    ids: Sequence[int]
    payloads: List[bytes]
    expired: bool = False
    expires_us: int = 0  # time since boot after which the first of them has expired, or is another worker's
    # Time since boot at which there may be something though nobody sends: a delayed message, or, where nothing was
    # found, one that another worker holds.
    due_us: int = NEVER_US
    token: bytes = b""  # of the claim of a shared subscriber, which they are then
    dropped: int = 0  # so many dead letters went, since they became too many
    process: int = 0  # which claimed them
    since: Optional[int] = None  # of the latest message: from which id on those before it are skipped with it


NOTHING = Found((), [])


def look(txn: Transaction, subscription: Subscription, max_messages: int, max_bytes: int) -> Found:
    """Find the next messages of a subscriber: at most so many, and at most so many bytes, but at least one.

    :raise UnknownSubscriberError: the subscriber was removed
    """
    place = own_place(txn, subscription)
    start = max(place.next_id, txn.header.first)
    if place.policy is not None:
        requeued = dead_letters.next_requeued(txn, place)
        if requeued is not None:
            return Found([requeued[0]], [requeued[1]], expires_us=NEVER_US)
        if place.policy.max_deliveries == 1 or dead_letters.failed_before(txn, place, start):
            max_messages = 1  # what has failed, or may be a last try, comes alone: no other one fails with it
    ids, payloads = txn.messages(start, max_messages, max_bytes)
    found = _unexpired(txn, ids, payloads) if ids else NOTHING
    return found if txn.header.next_due_us == NEVER_US else _with_due_time(txn, found)


def look_at_top(txn: Transaction, subscription: Subscription) -> Found:
    """Find the latest message of a subscriber.

    :raise UnknownSubscriberError: the subscriber was removed
    """
    start = max(own_place(txn, subscription).next_id, txn.header.first)
    last_id = txn.last_id()
    found = NOTHING if last_id is None or last_id < start else _unexpired(txn, *txn.messages(last_id, 1, 0))
    found = found._replace(since=start)
    return found if txn.header.next_due_us == NEVER_US else _with_due_time(txn, found)


def _with_due_time(txn: Transaction, found: Found) -> Found:
    """Say when something is due: now, if time does not go on yet, because nobody has written since the boot."""
    return found._replace(due_us=delayed_until_us(txn))


def delayed_until_us(txn: Transaction) -> int:
    """Give the time since boot at which the first delayed message is due; NEVER_US where there is none.

    It is 0 where time does not go on yet, because nobody has written since the boot.
    """
    header = txn.header
    if header.next_due_us == NEVER_US:
        return NEVER_US
    return max(0, header.next_due_us - header.clock_offset_us) if header.boot_id == clock.boot_id() else 0


def known_place(txn: Transaction, subscription: Subscription) -> Optional[Place]:
    """Give the record of a subscriber; None if it was removed, also if one of that name was added again."""
    # own_place and take do so without this call, which test_counts would count: they are for every message.
    place = txn.place(subscription.identifier)
    return None if place is None or place.number != subscription.number else place


def own_place(txn: Transaction, subscription: Subscription) -> Place:
    """Give the record of a subscriber as it was opened.

    :raise UnknownSubscriberError: it was removed, also if one of that name was added again
    """
    place = txn.place(subscription.identifier)
    if place is None or place.number != subscription.number:
        raise errors.UnknownSubscriberError(
            f"The subscriber {subscription.identifier.decode()!r} was removed from the queue. If it was added again, "
            "it is a new one: open it with Environment.new_subscriber.")
    return place


def _unexpired(txn: Transaction, ids: Sequence[int], payloads: List[bytes]) -> Found:
    """Give what was found, or that the first of it has expired; then none of those behind it was committed before."""
    sent_us = txn.log().at(ids[0]).time_us
    expires_us = sent_us + txn.header.message_timeout_us - _with_clock(txn).clock_offset_us
    return Found((), [], True) if expires_us < clock.boottime_us() else Found(ids, payloads, False, expires_us)


def take(txn: Transaction, subscription: Subscription, ids: Sequence[int], since: Optional[int] = None) -> None:
    """Move a subscriber on behind messages that it was handed out. One that was removed is left alone.

    What it has taken before, as by another handle, is neither taken nor counted again. What went after it was handed
    out is counted: it was received.

    :param ids: of the messages, in order, at least one
    :param since: from which id on it takes those before them unread; those that are still there are counted
    """
    place, last_id = txn.place(subscription.identifier), ids[-1]
    if place is None or place.number != subscription.number or place.next_id > last_id:
        return
    if last_id >= REQUEUED:
        txn.put_place(subscription.identifier, dead_letters.settle(txn, place, ids))
        return
    first_id = ids[0] if since is None else since
    if place.next_id < first_id and first_live_id(txn, place.next_id) < first_id:
        return  # it was moved back meanwhile: it wants to have them all again
    if place.policy is not None:
        dead_letters.forget_below(txn, place, last_id + 1)
    taken = len(ids) - bisect.bisect_left(ids, place.next_id)
    if since is not None:
        log = txn.log()
        taken += max(0, log.messages_before(ids[0]) - log.messages_before(first_live_id(txn, place.next_id)))
    move(txn, subscription.identifier, place._replace(next_id=last_id + 1, taken=place.taken + taken), place.next_id,
         last_id + 1)


@icontract.ensure(lambda txn, identifier: not count_from(txn, txn.place(identifier).next_id)[0], enabled=icontract.SLOW)
def take_all(txn: Transaction, identifier: bytes) -> int:
    """Move a subscriber to the end of the queue; give how many messages it no longer gets.

    What workers hold is theirs no more.

    :raise UnknownSubscriberError: there is none
    """
    place = own_place(txn, subscribe(txn, identifier))
    start, before = first_unexpired_id(txn, now_us(txn)), dead_letters.position(txn, place)
    pending, _ = count_from(txn, max(place.next_id, start))
    if place.policy is not None:
        pending += dead_letters.awaited(txn, place, max(start, first_live_id(txn))).messages
        place = dead_letters.forget(txn, place)
    next_id = txn.log().next_id()
    move(txn, identifier, place._replace(next_id=next_id), before, next_id)
    return pending


def move(txn: Transaction, identifier: bytes, place: Place, before: int, after: int) -> None:
    """Store a subscriber whose place was at one id and is now at another one."""
    txn.put_place(identifier, place)
    if before == after:
        return
    txn.count_place(before, -1)
    txn.count_place(after, 1)
    floor = txn.floor()
    if floor is not None and floor > before:
        remove_below(txn, retention.bound(txn, now_us(txn)) if txn.header.retention_us else floor)
