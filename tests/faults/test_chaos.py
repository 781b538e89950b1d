"""Test that nothing is lost while everything happens at once; ``python -m tests.faults chaos --long`` takes longer."""

import pytest

from tests.faults import campaigns
from tests.faults.figures import table


@pytest.mark.slow
def test_everything_at_once() -> None:
    """While processes and threads do everything and are killed, what send acknowledged stays, once and in order."""
    (row, ) = rows = campaigns.run("chaos", campaigns.CAMPAIGNS["chaos"].short)
    print("\n" + table(rows))
    assert not row.failures
    assert row.lost == row.duplicated == 0
    assert row.faults and row.messages and row.pruned
