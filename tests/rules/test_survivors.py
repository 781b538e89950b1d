"""Compare the arithmetic of overflows with going through the messages one by one."""

from typing import Iterator, List

import pytest

from persipubsub.engine.settings import survivors
from persipubsub.queue import Strategy

STORED_MAX = 40
NEW_MAX = 40
MARK_MAX = 14


def put_one_by_one(stored: int, mark: int, strategy: Strategy) -> Iterator[List[int]]:
    """Yield the messages that are in the queue after the first new one, after the second, and so on for ever."""
    log, total = list(range(stored)), stored
    while True:
        while len(log) >= mark:
            count = len(log) // 2 + 1
            log = log[count:] if strategy == Strategy.prune_first else log[:-count]
        log = log + [total]
        total += 1
        yield log


@pytest.mark.parametrize("strategy", [Strategy.prune_first, Strategy.prune_last])
@pytest.mark.parametrize("mark", range(1, MARK_MAX + 1))
def test_survivors_are_those_of_puts_one_by_one(mark: int, strategy: Strategy) -> None:
    """What survives a batch is what survives when its messages are put alone: all small numbers are tried."""
    for stored in range(STORED_MAX + 1):
        for new, expected in zip(range(1, NEW_MAX + 1), put_one_by_one(stored, mark, strategy)):
            total = stored + new
            head, tail = survivors(stored, new, mark, strategy)
            assert [*range(head), *range(total - tail, total)] == expected, (stored, new)
            assert 1 <= tail and len(expected) <= mark


@pytest.mark.parametrize("strategy", [Strategy.prune_first, Strategy.prune_last])
def test_survivors_of_a_mark_that_was_lowered(strategy: Strategy) -> None:
    """A backlog far over the mark is halved until it is below, before the first message is put."""
    stored, mark = 100_000, 65_536
    kept = (stored + 1) // 2 - 1
    head, tail = survivors(stored, 1, mark, strategy)
    assert (head, tail) == ((0, kept + 1) if strategy == Strategy.prune_first else (kept, 1))
