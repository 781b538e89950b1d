"""What can be set on a subscriber: whether it is shared, and how often messages are handed out to it."""

from typing import Any, List, NamedTuple, Optional

from persipubsub import dead_letters, errors, queue
from persipubsub.records import Place, Policy
from persipubsub.transaction import Transaction

LEASE_S_DEFAULT = 30.0
LEASE_S_MIN = 0.01
#: Of all times here: 31 years.
SECONDS_MAX = 1e9
MAX_DELIVERIES_DEFAULT = 5
MAX_DELIVERIES_MAX = 10**9
RETRY_DELAY_S_DEFAULT = 1.0
RETRY_DELAY_MAX_S_DEFAULT = 60.0
DEAD_LETTERS_MAX_DEFAULT = 10_000
DEAD_LETTERS_MAX_MAX = 1_000_000


class Delivering(NamedTuple):
    """What Control sets on a subscriber: each part that is None stays as stored, or is the default.

    Made by :func:`delivering`.
    """

    shared: Optional[bool] = None
    max_deliveries: Optional[int] = None
    dead_letters_max: Optional[int] = None
    lease_us: Optional[int] = None
    retry_delay_us: Optional[int] = None
    retry_delay_max_us: Optional[int] = None

    def applied(self, before: Optional[Policy]) -> Optional[Policy]:
        """Give the policy of a subscriber that has had another one, or none.

        :raise ArgumentError: the parts do not fit together
        """
        shared = before is not None and before.shared if self.shared is None else self.shared
        if before is not None and before.shared != shared:
            before = None  # what is left out is the default of the other kind
        if not shared:
            return self._limited(before)
        policy = before or Policy(True, MAX_DELIVERIES_DEFAULT, DEAD_LETTERS_MAX_DEFAULT, _us(LEASE_S_DEFAULT),
                                  _us(RETRY_DELAY_S_DEFAULT), _us(RETRY_DELAY_MAX_S_DEFAULT))
        # In the order of their fields.
        given: List[Any] = [old if new is None else new for old, new in zip(policy, self)]
        policy = Policy(*given)
        if policy.retry_delay_us > policy.retry_delay_max_us:
            raise errors.ArgumentError(
                f"retry_delay_max_s must be at least retry_delay_s, {policy.retry_delay_us / 1e6}"
                f", got {policy.retry_delay_max_us / 1e6}.")
        return policy

    def _limited(self, before: Optional[Policy]) -> Optional[Policy]:
        """Give the policy of a subscriber that is not shared."""
        for name, value in (("lease_s", self.lease_us), ("retry_delay_s", self.retry_delay_us),
                            ("retry_delay_max_s", self.retry_delay_max_us)):
            if value is not None:
                raise errors.ArgumentError(f"{name} is for a shared subscriber. Give shared=True, or leave it out.")
        max_deliveries = self.max_deliveries or (before and before.max_deliveries)
        if max_deliveries is None:
            if self.dead_letters_max is not None:
                raise errors.ArgumentError("dead_letters_max is for a subscriber that is shared or has max_deliveries. "
                                           "Give one of them, or leave it out.")
            return None
        dead_letters_max = before.dead_letters_max if before else DEAD_LETTERS_MAX_DEFAULT
        if self.dead_letters_max is not None:
            dead_letters_max = self.dead_letters_max
        return Policy(False, max_deliveries, dead_letters_max)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def delivering(shared: object = None,
               lease_s: object = None,
               max_deliveries: object = None,
               retry_delay_s: object = None,
               retry_delay_max_s: object = None,
               dead_letters_max: object = None) -> Delivering:
    """Check what is to be set on a subscriber.

    :raise ArgumentTypeError: one of a wrong type
    :raise ArgumentError: one outside its limits
    """
    if shared is not None and not isinstance(shared, bool):
        raise errors.ArgumentTypeError(f"shared must be a bool, got {type(shared).__name__}.")
    return Delivering(shared, _number("max_deliveries", max_deliveries, 1, MAX_DELIVERIES_MAX),
                      _number("dead_letters_max", dead_letters_max, 1, DEAD_LETTERS_MAX_MAX),
                      _seconds("lease_s", lease_s, LEASE_S_MIN), _seconds("retry_delay_s", retry_delay_s, 0),
                      _seconds("retry_delay_max_s", retry_delay_max_s, 0))


def _seconds(name: str, value: object, least: float) -> Optional[int]:
    """Give a time in whole microseconds."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise errors.ArgumentTypeError(f"{name} must be a number of seconds, got {type(value).__name__}.")
    if not least <= value <= SECONDS_MAX:
        raise errors.ArgumentError(f"{name} must be from {least} to 10 ** 9 seconds, got {value!r}.")
    return _us(value)


def _number(name: str, value: object, least: int, most: int) -> Optional[int]:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.ArgumentTypeError(f"{name} must be an int, got {type(value).__name__}.")
    if not least <= value <= most:
        raise errors.ArgumentError(f"{name} must be from {least} to {most}, got {value}.")
    return value


def can_be_set(policy: Policy) -> bool:
    """Tell whether a stored policy is one that can be set."""
    times_us = policy[3:]
    return (1 <= policy.max_deliveries <= MAX_DELIVERIES_MAX and 1 <= policy.dead_letters_max <= DEAD_LETTERS_MAX_MAX
            and max(times_us) <= _us(SECONDS_MAX) and policy.retry_delay_us <= policy.retry_delay_max_us
            and (policy.lease_us >= _us(LEASE_S_MIN) if policy.shared else not any(times_us)))


def apply(txn: Transaction, identifier: bytes, given: Delivering) -> int:
    """Add a subscriber, or change how messages are handed out to it; give how many dead letters became too many.

    :raise ArgumentError: it does not fit to the subscriber
    """
    place = txn.place(identifier)
    policy = given.applied(None if place is None else place.policy)
    if place is None:
        queue.add_subscriber(txn, identifier, policy)
        return 0
    if policy == place.policy:
        return 0
    if _is_shared(place.policy) != _is_shared(policy):
        _change_kind(txn, identifier, place, policy)
        return 0
    changed, dropped = dead_letters.trim(txn, place._replace(policy=policy))
    txn.put_place(identifier, changed)
    return dropped


def _is_shared(policy: Optional[Policy]) -> bool:
    return policy is not None and policy.shared


def require_changeable(identifier: str, before: Optional[Policy], after: Optional[Policy], in_flight: int,
                       dead_letters_count: int) -> None:
    """Refuse to make a shared subscriber of a plain one, or the other way round, where that could not take over all.

    :param in_flight: how many messages it has that were handed out, or requeued
    :param dead_letters_count: how many dead letters it has
    :raise ArgumentError: there are some
    """
    if _is_shared(before) != _is_shared(after) and (in_flight or dead_letters_count):
        raise errors.ArgumentError(
            f"The subscriber {identifier!r} has {in_flight} messages in flight and {dead_letters_count} dead letters, "
            "so shared cannot be changed. Have them acknowledged, and discard the dead letters, or add another "
            "subscriber.")


def _change_kind(txn: Transaction, identifier: bytes, place: Place, policy: Optional[Policy]) -> None:
    """Make a shared subscriber of a plain one, or the other way round. It is a new one, at the same place.

    So open handles, which know only the one kind, learn that they are of a subscriber that is there no more.

    :raise ArgumentError: the new one could not take over what the old one has
    """
    require_changeable(identifier.decode(), place.policy, policy, place.in_flight + place.requeued, place.dead_letters)
    if place.policy is not None:
        dead_letters.forget(txn, place)
    header = txn.header
    txn.put_place(identifier, Place(header.next_subscriber_number, place.next_id, place.taken, policy))
    txn.put_header(header._replace(next_subscriber_number=header.next_subscriber_number + 1))
    txn.published = True  # who waits as the old one must learn it
