"""Test what a loss of power leaves of a queue; ``python -m tests.faults power-cuts --long`` cuts it more often."""

import pytest

from tests.faults import campaigns
from tests.faults.figures import table
from tests.faults.journal import Event
from tests.faults.recorder import DOING, DONE, allowed_values


@pytest.mark.slow
def test_nothing_acknowledged_is_lost() -> None:
    """A durable queue holds all that was acknowledged before a power cut; no loss of a relaxed one is silent."""
    if campaigns.missing("power-cuts"):
        pytest.skip(campaigns.missing("power-cuts"))
    durable, relaxed = rows = campaigns.run("power-cuts", campaigns.CAMPAIGNS["power-cuts"].short)
    print("\n" + table(rows))
    assert not durable.failures and not relaxed.failures
    assert durable.lost == durable.duplicated == 0
    assert durable.ok and durable.messages and relaxed.messages


def test_allowed_values() -> None:
    """What was changed has the last value that was acknowledged, or one that was being set since."""
    noted = [
        Event(number, what, tuple(words))
        for number, (what, *words) in enumerate([(DOING, "hwm", "1"), (DOING, "new",
                                                                       "there"), (DONE, "hwm",
                                                                                  "1"), (DOING, "hwm",
                                                                                         "2"), (DONE, "hwm",
                                                                                                "2"), (DOING, "hwm",
                                                                                                       "3")])
    ]
    assert allowed_values(noted) == {"hwm": {"2", "3"}, "new": {"", "there"}}
