"""``check`` of queues with shared subscribers, and with dead letters."""

import contextlib
import pathlib
from typing import Callable, Iterator, Tuple

import pytest

import persipubsub
from persipubsub import Environment, errors
from persipubsub.lmdb_engine.records import database
from persipubsub.lmdb_engine.rules import invariants
from tests.damages import DELIVERY_DAMAGES, Raw, change_subscriber


@pytest.fixture(name="damaged")
def damaged_fixture(new_environment: Callable[..., Environment]) -> Iterator[Tuple[pathlib.Path, Raw]]:
    """Set up the queue that the damages are for."""
    with new_environment() as environment:
        control = environment.new_control()
        control.add_subscriber("shared", shared=True, max_deliveries=1)
        control.add_subscriber("limited", max_deliveries=3)
        control.add_subscriber("plain")
        environment.new_publisher().send_many([b"1", b"2", bytes(2 * 65520), b"4", b"5", b"6"])
        shared = environment.new_subscriber("shared")
        shared.receive().__enter__()  # pylint: disable=unnecessary-dunder-call  # the block never ends
        with shared.receive():
            pass
        for subscriber in (shared, shared, shared, environment.new_subscriber("limited")):
            with pytest.raises(ZeroDivisionError), subscriber.receive():
                raise ZeroDivisionError
        assert control.requeue_dead_letters("shared", [5]) == 1
        assert control.check() == ()
    raw = Raw(environment.path)
    with contextlib.closing(raw.environment):
        yield environment.path, raw


@pytest.mark.damages_queues
@pytest.mark.parametrize(
    "invariant, damage",
    [pytest.param(invariant, damage, id=f"{invariant}: {what}") for invariant, what, damage in DELIVERY_DAMAGES])
def test_check_finds(invariant: str, damage: Callable[[Raw], object], damaged: Tuple[pathlib.Path, Raw]) -> None:
    """``check`` finds every kind of damage to deliveries, and names the invariant that it breaks."""
    path, raw = damaged
    damage(raw)
    raw.environment.close()
    found = database.inspect(path, invariants.check)
    assert invariant in {violation.invariant for violation in found}


@pytest.mark.damages_queues
def test_a_status_of_requeued_messages_that_are_not_there(damaged: Tuple[pathlib.Path, Raw]) -> None:
    """Where a subscriber counts requeued messages and has none, its status is an error of ours."""
    path, raw = damaged
    change_subscriber(raw, b"limited", requeued=1)
    raw.environment.close()
    with persipubsub.new_environment(path) as environment, pytest.raises(errors.DamagedError, match="requeued"):
        environment.new_control().status()
