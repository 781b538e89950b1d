"""Test that nothing grows in use; ``python -m tests.faults soak --long`` looks longer."""

import itertools
import pathlib
import sys
from multiprocessing.connection import Connection
from typing import Callable, List

import pytest

import persipubsub
from tests.concurrency import WAIT_S, MakeEnvironment, process, told
from tests.faults import campaigns, soak
from tests.faults.figures import Figures, table
from tests.faults.journal import message
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


def leak_in_use(connection: Connection, path: pathlib.Path, leaked_bytes: int) -> None:
    """Fill Python's table of strings as openings do, as often as the long form opens a queue.

    :param leaked_bytes: by each time
    """
    openings, strings = 31_000, 5
    numbers = itertools.count()
    leak: List[bytes] = []

    def action() -> None:
        for _ in range(strings):
            sys.intern(f"string {next(numbers)}")  # as pathlib does with each part of a path
        if leaked_bytes:
            leak.append(bytes(leaked_bytes - sys.getsizeof(b"")))

    soak.OPERATIONS_MAX = openings // SAMPLES  # that many end a sample, and not the time
    soak.give_tables_back()
    connection.send(list(soak.measured(action, path, WAIT_S * SAMPLES)))


@pytest.mark.parametrize("leaked_bytes, limit_bytes", [(0, soak.MEMORY_GROWTH_BYTES_MAX // 4),
                                                       (100, soak.MEMORY_GROWTH_BYTES_MAX)])
def test_a_leak_is_distinguished_from_a_table(leaked_bytes: int, limit_bytes: int, new_environment: MakeEnvironment,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """A leak of 100 bytes an opening is seen in the long form; Python's table of strings is not."""
    monkeypatch.setattr(soak, "MEMORY_GROWTH_BYTES_MAX", limit_bytes)
    figures = Figures("soak")
    with process(leak_in_use, new_environment("a").path, leaked_bytes) as connection:
        growth(figures, "look", told(connection), lenient=True)
    assert sum("memory_bytes" in failure for failure in figures.failures) == bool(leaked_bytes)


def wrong(msgs: List[bytes], path: pathlib.Path) -> List[str]:
    """Send other messages instead of the sender's; return the violations that are found in what is left."""
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["slow", "fast"])
        environment.new_publisher().send_many(msgs)
    return [line for line in soak.check(path) if line.startswith("message")]


@pytest.mark.parametrize("change", [lambda msg: b"", lambda msg: msg[:-1], lambda msg: msg[:-1] + b"x"])
def test_other_bytes_are_seen(change: Callable[[bytes], bytes], tmp_path: pathlib.Path) -> None:
    """A message of which a byte is not as it was sent is named, when it is received and when it is left."""
    msgs = [message(soak.SENDER, number, soak.MESSAGE_BYTES) for number in (1, 2, 3)]
    assert not wrong(msgs, tmp_path / "right")
    take = soak.take(tmp_path / "right")
    for _ in msgs:
        take()
    msgs[1] = change(msgs[1])
    assert wrong(msgs, tmp_path / "wrong") == [f"message 2 is {msgs[1]!r}"]
    take = soak.take(tmp_path / "wrong")
    take()
    with pytest.raises(soak.WrongMessage):
        take()


def test_even_samples_are_no_growth() -> None:
    """What stays as it is is no failure."""
    figures = Figures("soak")
    growth(figures, "send", [EVEN] * SAMPLES, lenient=False)
    assert not figures.failures
