"""How messages are delivered to a subscriber that is shared or limits its deliveries."""

from typing import Any, List, NamedTuple, Optional

from persipubsub import errors
from persipubsub.engine.checks import microseconds
from persipubsub.engine.limits import (DEAD_LETTERS_MAX_DEFAULT, DEAD_LETTERS_MAX_MAX, LEASE_S_DEFAULT, LEASE_S_MIN,
                                       MAX_DELIVERIES_DEFAULT, MAX_DELIVERIES_MAX, RETRY_DELAY_MAX_S_DEFAULT,
                                       RETRY_DELAY_S_DEFAULT, SECONDS_MAX)
from persipubsub.engine.values import Delivering


class Policy(NamedTuple):
    """The delivery policy of a subscriber that is shared or limits its deliveries."""

    shared: bool
    max_deliveries: int
    dead_letters_max: int
    lease_us: int = 0  # this and the following: for shared subscribers only
    retry_delay_us: int = 0
    retry_delay_max_us: int = 0


def applied(given: Delivering, before: Optional[Policy]) -> Optional[Policy]:
    """Return the policy that results from a previous one, or none, and the given changes.

    :raise ArgumentError: the parts do not fit together
    """
    shared = before is not None and before.shared if given.shared is None else given.shared
    if before is not None and before.shared != shared:
        before = None  # settings that are left out have the defaults of the other kind
    if not shared:
        return _limited(given, before)
    policy = before or Policy(True, MAX_DELIVERIES_DEFAULT, DEAD_LETTERS_MAX_DEFAULT, microseconds(LEASE_S_DEFAULT),
                              microseconds(RETRY_DELAY_S_DEFAULT), microseconds(RETRY_DELAY_MAX_S_DEFAULT))
    # In the order of the fields.
    parts: List[Any] = [old if new is None else new for old, new in zip(policy, given)]
    policy = Policy(*parts)
    if policy.retry_delay_us > policy.retry_delay_max_us:
        raise errors.ArgumentError(f"retry_delay_max_s must be at least retry_delay_s, {policy.retry_delay_us / 1e6}"
                                   f", got {policy.retry_delay_max_us / 1e6}.")
    return policy


def _limited(given: Delivering, before: Optional[Policy]) -> Optional[Policy]:
    """Return the policy of a subscriber that is not shared."""
    for name, value in (("lease_s", given.lease_us), ("retry_delay_s", given.retry_delay_us),
                        ("retry_delay_max_s", given.retry_delay_max_us)):
        if value is not None:
            raise errors.ArgumentError(f"{name} is for a shared subscriber. Set shared=True, or leave it out.")
    max_deliveries = given.max_deliveries or (before and before.max_deliveries)
    if max_deliveries is None:
        if given.dead_letters_max is not None:
            raise errors.ArgumentError("dead_letters_max is for a subscriber that is shared or has max_deliveries. "
                                       "Set one of them, or leave it out.")
        return None
    dead_letters_max = before.dead_letters_max if before else DEAD_LETTERS_MAX_DEFAULT
    if given.dead_letters_max is not None:
        dead_letters_max = given.dead_letters_max
    return Policy(False, max_deliveries, dead_letters_max)


def can_be_set(policy: Policy) -> bool:
    """Return whether a stored policy is valid."""
    times_us = policy[3:]
    return (1 <= policy.max_deliveries <= MAX_DELIVERIES_MAX and 1 <= policy.dead_letters_max <= DEAD_LETTERS_MAX_MAX
            and max(times_us) <= microseconds(SECONDS_MAX) and policy.retry_delay_us <= policy.retry_delay_max_us
            and (policy.lease_us >= microseconds(LEASE_S_MIN) if policy.shared else not any(times_us)))


def is_shared(policy: Optional[Policy]) -> bool:
    """Return whether the policy is that of a shared subscriber."""
    return policy is not None and policy.shared


def require_changeable(identifier: str, before: Optional[Policy], after: Optional[Policy], in_flight: int,
                       dead_letters_count: int) -> None:
    """Refuse to change the kind of a subscriber that has messages in flight or dead letters.

    :param in_flight: how many of its messages are in flight, or requeued
    :param dead_letters_count: how many dead letters it has
    :raise ArgumentError: there are some
    """
    if is_shared(before) != is_shared(after) and (in_flight or dead_letters_count):
        raise errors.ArgumentError(
            f"The subscriber {identifier!r} has {in_flight} messages in flight and {dead_letters_count} dead letters, "
            "so shared cannot be changed. Have them acknowledged, and discard the dead letters, or add another "
            "subscriber.")
