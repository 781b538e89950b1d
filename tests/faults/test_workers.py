"""Test that workers may be killed; ``python -m tests.faults workers --long`` has 100,000 messages worked on."""

from typing import Dict, List

import pytest

from tests.faults import campaigns
from tests.faults.figures import Figures, table
from tests.faults.journal import Event
from tests.faults.workers import Hands, Seen, judge

MESSAGE, OTHER = "plain:0:0", "plain:1:0"


@pytest.mark.slow
def test_killed_workers() -> None:
    """Of 8 workers one is killed every 200 ms: each message is acknowledged once or dead; only deaths repeat it.
    """
    plain, poisoned = rows = campaigns.run("workers", campaigns.CAMPAIGNS["workers"].short)
    print("\n" + table(rows))
    assert not plain.failures and not poisoned.failures
    assert plain.lost == plain.duplicated == poisoned.lost == poisoned.duplicated == 0
    assert plain.faults and plain.notes["redeliveries"] and not plain.notes["dead letters"]
    assert poisoned.notes["dead letters"] >= 10


def _line(words: str) -> str:
    """Return the note of a worker: of the one message, unless it only asks for some."""
    return words if words.startswith("asking") else f"{words} {MESSAGE}"


def judged(lines: List[str], dead: Dict[str, int], taken: int) -> Figures:
    """Judge the notes of workers, on one plain message with at most two deliveries."""
    noted = [Event(number, what, tuple(words)) for number, (what, *words) in enumerate(map(str.split, lines))]
    figures = Figures("workers")
    judge({MESSAGE}, Hands(noted), Seen(taken, dead, 0, []), 2, figures)
    return figures


@pytest.mark.parametrize("lines, dead, taken, expected", [
    ([], {}, 0, "lost"),
    (["handed 1 ?", "taken 1 ?"], {}, 2, "other bytes"),
    (["handed 1", "failed 1"], {}, 0, "lost"),
    (["handed 1", "taken 1", "handed 2"], {}, 1, "after they were taken"),
    (["handed 1", "handed 2", "taken 2", "taken 1"], {}, 1, "after they were taken"),
    (["handed 1", "taken 1", "asking 2", "handed 2", "late 2"], {}, 1, "after they were taken"),
    (["asking 2", "handed 1", "taken 1", "handed 2", "taken 2"], {}, 1, "after they were taken"),
    (["handed 1", "handed 2", "taken 2"], {}, 0, "the queue counts"),
    (["handed 1", "failed 1", "handed 1", "taken 1"], {
        MESSAGE: 2
    }, 1, "dead and taken"),
    (["handed 1", "failed 1"], {
        MESSAGE: 1
    }, 0, "right number"),
])
def test_what_is_wrong_is_named(lines: List[str], dead: Dict[str, int], taken: int, expected: str) -> None:
    """Each outcome that a message must not have is named."""
    failures = judged([_line(line) for line in lines], dead, taken).failures
    assert any(expected in failure for failure in failures)


@pytest.mark.parametrize("lines, dead, taken, ok, unknown", [
    (["handed 1", "taken 1"], {}, 1, 1, 0),
    (["handed 1"], {}, 1, 0, 1),
    (["handed 1", "handed 2", "taken 2"], {}, 1, 1, 0),
    (["handed 1", "late 1", "handed 2", "taken 2"], {}, 1, 1, 0),
    (["asking 2", "handed 1", "taken 1", "handed 2", "late 2"], {}, 1, 1, 0),
    (["handed 1", "failed 1", "handed 2", "failed 2"], {
        MESSAGE: 2
    }, 0, 0, 0),
])
def test_what_may_be(lines: List[str], dead: Dict[str, int], taken: int, ok: int, unknown: int) -> None:
    """A message is acknowledged once, or dead, or was held by a worker that died: then only the queue knows."""
    found = judged([_line(line) for line in lines], dead, taken)
    assert not found.failures and (found.ok, found.unknown) == (ok, unknown)


def test_what_comes_again_for_no_reason() -> None:
    """A worker has to die, raise or be late before another one is handed its message."""
    noted = [
        Event(number, what, (worker, MESSAGE))
        for number, (what, worker) in enumerate((("handed", "1"), ("handed", "2"), ("handed", "3"), ("taken", "3")))
    ]
    figures = Figures("workers")
    judge({MESSAGE}, Hands(noted), Seen(1, {}, 0, []), 5, figures)
    assert not figures.failures  # two died
    noted.append(Event(9, "taken", ("2", OTHER)))
    judge({MESSAGE, OTHER}, Hands(noted), Seen(2, {}, 0, []), 5, figures)
    assert any("let them go" in failure for failure in figures.failures)
