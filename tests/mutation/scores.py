"""The score of each module, in ``scores.txt``: how many of its mutants the tests killed when it was last measured.

A line there is the name of a module, without its folders, and ``killed/total``. A module without a line is unmeasured.
"""

import pathlib
import re
from typing import Dict, List, Mapping, NamedTuple, Sequence

FILE = pathlib.Path(__file__).with_name("scores.txt")

_LINE = re.compile(r"([\w/]+) +(\d+)/(\d+)")


class Score(NamedTuple):
    """How many mutants of a module the tests killed, and how many there were."""

    killed: int
    total: int

    @property
    def percent(self) -> float:
        """Return the killed share of all mutants. A module without mutants has nothing to kill."""
        return 100 * self.killed / self.total if self.total else 100

    def __str__(self) -> str:
        return f"{self.killed}/{self.total} {self.percent:.1f}%"


def read(text: str) -> Dict[str, Score]:
    """Return the scores in a table.

    :raise ValueError: a line has another form, names a module again, or counts more killed than there were
    """
    scores: Dict[str, Score] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[1] in scores or int(match[2]) > int(match[3]):
            raise ValueError(f"not a score: {line!r}")
        scores[match[1]] = Score(int(match[2]), int(match[3]))
    return scores


def fallen(measured: Mapping[str, Score], recorded: Mapping[str, Score]) -> List[str]:
    """Return the modules whose score is lower than recorded. As shares: a changed module has other mutants."""
    return [name for name, score in measured.items() if name in recorded and score.percent < recorded[name].percent]


def table(modules: Sequence[str], measured: Mapping[str, Score], recorded: Mapping[str, Score]) -> str:
    """Return a row for each module: its score now, and the recorded one."""
    rows = [f"{'module':24}{'now':>20}{'recorded':>20}"]
    for name in modules:
        now, before = measured.get(name, "-"), recorded.get(name, "unmeasured")
        rows.append(f"{name:24}{str(now):>20}{str(before):>20}" + "  fell" * (name in fallen(measured, recorded)))
    return "\n".join(rows)
