"""Test that servers of a cluster may fail; ``python -m tests.faults cluster --long`` has each fault happen 20 times."""

import os

import pytest

from tests.faults import campaigns
from tests.faults.figures import table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["cluster", "cluster-power-cuts"])
def test_servers_that_fail(name: str) -> None:
    """Servers die, stop, restart, are cut off and lose power: what was confirmed arrives, once and in order."""
    lack = campaigns.missing(name)
    if lack and ("nats-server" not in lack or not os.environ.get("CI")):
        pytest.skip(lack)  # servers can be installed in CI; not every machine may mount
    rows = campaigns.run(name, campaigns.CAMPAIGNS[name].short)
    print("\n" + table(rows))
    assert not [failure for row in rows for failure in row.failures]
    assert rows[0].lost == rows[0].duplicated == 0
    assert rows[0].faults and rows[0].messages
