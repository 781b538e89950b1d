"""Test the values with units, and the times, that the command line takes."""

import datetime
from typing import Callable, Union

import click
import hypothesis
import pytest
from hypothesis import strategies as st

from persipubsub.cli import positions, quantities
from persipubsub.cli.positions import Position
from persipubsub.cli.quantities import Quantity

UTC = datetime.timezone.utc


@pytest.mark.parametrize("text, seconds", [("500", 500), ("0", 0), ("30s", 30), ("15m", 900), ("12h", 43_200),
                                           ("7d", 604_800), ("1.5h", 5400), ("0.25", 0.25), ("90 s", 90)])
def test_times(text: str, seconds: float) -> None:
    """A time has a unit, or is in seconds; a whole number of seconds is an int."""
    found = quantities.seconds(text)
    assert (found, type(found)) == (seconds, type(seconds))


@pytest.mark.parametrize("text, size_bytes", [("1048576", 2**20), ("64KiB", 2**16), ("3MiB", 3 * 2**20),
                                              ("2GiB", 2**31), ("1TiB", 2**40), ("5B", 5), ("1kB", 1000), ("1KB", 1000),
                                              ("10MB", 10**7), ("2GB", 2 * 10**9), ("1TB", 10**12), ("0.5KiB", 512),
                                              ("0.0001KiB", 0)])
def test_sizes(text: str, size_bytes: int) -> None:
    """A size has a unit with powers of 1000 or 1024, or is in bytes; it is a whole number."""
    found = quantities.size_bytes(text)
    assert (found, type(found)) == (size_bytes, int)


@pytest.mark.parametrize("read, wrong, told", [
    (quantities.seconds, ["", "s", "-1", "nan", "inf", "1e3", "5x", "5min", "5M", "1h30m", "1,5s", "٣", "9" * 5000,
                          "64KiB"], "is not a time: write seconds, or a number with s, m, h or d, such as 15m"),
    (quantities.size_bytes, ["", "B", "-1", "2G", "2g", "2gib", "1 2", "1e9", "30s", "9" * 5000],
     "is not a size: write bytes, or a number with KiB, MiB"),
    (quantities.count, ["", "-1", "1.0", "1k", "1_000", "٣", "9" * 5000], "is not a whole number"),
])  # yapf: disable
def test_wrong_units(read: Callable[[str], Union[int, float]], wrong: "list[str]", told: str) -> None:
    """What has another unit, or is no number, is an error that says how to write it."""
    for text in wrong:
        with pytest.raises(ValueError, match=told) as caught:
            read(text)
        assert len(str(caught.value)) < 200


@hypothesis.given(st.integers(0, 10**25), st.sampled_from(sorted(quantities.SECONDS.items())))
def test_whole_times_are_exact(number: int, unit: "tuple[str, int]") -> None:
    """A whole number of any unit is not rounded."""
    assert quantities.seconds(f"{number}{unit[0]}") == number * unit[1]


def test_no_limit() -> None:
    """The word for no limit is the value None where there may be none, and otherwise an error."""
    assert quantities.COUNT_LIMIT.convert("none", None, None) is None
    assert quantities.DURATION_LIMIT.convert("None", None, None) is None
    with pytest.raises(click.BadParameter, match="'lots' is not a whole number .*; or none for no limit"):
        quantities.COUNT_LIMIT.convert("lots", None, None)
    with pytest.raises(click.BadParameter, match="'none' is not a whole number"):
        quantities.COUNT.convert("none", None, None)


def test_the_least_value() -> None:
    """A value below the least one is an error that says it."""
    interval = Quantity("duration", quantities.seconds, least=0.1)
    assert interval.convert("0.1s", None, None) == 0.1
    with pytest.raises(click.BadParameter, match="'0.05' is less than 0.1"):
        interval.convert("0.05", None, None)


@pytest.mark.parametrize("text", [
    "2026-01-31T12:00:00Z", "2026-01-31 12:00:00z", "2026-01-31T12:00Z", "2026-01-31T14:00:00+02:00",
    "2026-01-31T12:00:00.000000+00:00"
])
def test_moments(text: str) -> None:
    """A time is written as in ISO 8601, with a timezone."""
    assert positions.moment(text) == datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_positions() -> None:
    """A position is a message id, a word or a time, as far as it may be."""
    anything, time_only = Position("earliest", ids=True), Position()
    assert anything.convert("17", None, None) == 17
    assert anything.convert("20260131", None, None) == 20_260_131, "an id, not a date"
    assert anything.convert("earliest", None, None) == "earliest"
    assert time_only.convert("2026-01-31T12:00:00Z", None, None) == datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)
    for wrong, told in (("2026-01-31", "no timezone. Write 2026-01-31T00:00:00Z for UTC"),
                        ("yesterday", "none of these: a time such as .*, a message id, earliest"),
                        ("-1", "none of these"), ("9" * 5000, "none of these")):
        with pytest.raises(click.BadParameter, match=told):
            anything.convert(wrong, None, None)
    for wrong in ("17", "earliest"):
        with pytest.raises(click.BadParameter, match=f"'{wrong}' is not a time such as"):
            time_only.convert(wrong, None, None)
