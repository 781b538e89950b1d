"""Test that nothing grows in use; ``python -m tests.faults soak --long`` looks longer."""

import pytest

from tests.faults import campaigns
from tests.faults.figures import Figures, table
from tests.faults.soak import SAMPLES, Sample, growth

EVEN = Sample(operations=1000,
              memory_bytes=30_000_000,
              descriptors=9,
              file_bytes=4_000_000,
              median_us=20,
              worst_us=9000)


@pytest.mark.slow
def test_nothing_grows() -> None:
    """At full speed, with the mark reached all the time, memory, file, descriptors and latency stay as they are."""
    rows = campaigns.run("soak", campaigns.CAMPAIGNS["soak"].short)
    print("\n" + table(rows))
    assert not rows[0].failures
    assert rows[0].messages


@pytest.mark.parametrize("field, each_time", [("memory_bytes", 200_000), ("descriptors", 1), ("file_bytes", 100_000),
                                              ("median_us", 10)])
def test_growth_is_seen(field: str, each_time: int) -> None:
    """What grows from sample to sample is named, and only that."""
    figures = Figures("soak")
    samples = [EVEN._replace(**{field: getattr(EVEN, field) + number * each_time}) for number in range(SAMPLES)]
    growth(figures, "send", samples, lenient=False)
    assert [failure.split()[1] for failure in figures.failures] == [field]


def test_even_samples_are_no_growth() -> None:
    """What stays as it is is no failure."""
    figures = Figures("soak")
    growth(figures, "send", [EVEN] * SAMPLES, lenient=False)
    assert not figures.failures
