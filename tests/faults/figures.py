"""What a campaign of faults found, as a row of a table."""

import collections
import dataclasses
from typing import Any, Counter, Dict, List, Sequence

from tests.faults.oracle import Verdict


@dataclasses.dataclass
class Figures:  # pylint: disable=too-many-instance-attributes  # the columns of a table
    """What was done and what became of the messages, summed over all rounds and subscribers."""

    campaign: str
    faults: int = 0
    rounds: int = 0
    messages: int = 0  # whose send returned
    ok: int = 0
    lost: int = 0
    pruned: int = 0
    duplicated: int = 0
    unknown: int = 0
    #: What must not be, a line each.
    failures: List[str] = dataclasses.field(default_factory=list)
    #: What is worth knowing, and how often it was so.
    notes: Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, verdict: Verdict) -> None:
        """Add what became of the messages for one subscriber."""
        for name in ("ok", "lost", "pruned", "duplicated", "unknown"):
            setattr(self, name, getattr(self, name) + len(getattr(verdict, name)))

    @classmethod
    def of(cls, row: Dict[str, Any]) -> "Figures":
        """Return figures as they were before vars() and JSON."""
        return cls(**{**row, "notes": collections.Counter(row["notes"])})

    def as_lines(self) -> List[str]:
        """Return the notes and at most a bounded number of failures."""
        more = [f"... and {len(self.failures) - 20} more failures"] if len(self.failures) > 20 else []
        return ([f"{count:6} x {note}" for note, count in sorted(self.notes.items())] +
                [f"FAILED {failure}" for failure in self.failures[:20]] + more)


COLUMNS = ("faults", "rounds", "messages", "ok", "lost", "pruned", "duplicated", "unknown")


def table(campaigns: Sequence[Figures]) -> str:
    """Return the table of all campaigns, and what else there is to say."""
    width = max(len(figures.campaign) for figures in campaigns)
    lines = [" " * width + "".join(f"{column:>12}" for column in COLUMNS)]
    for figures in campaigns:
        lines.append(f"{figures.campaign:{width}}" + "".join(f"{getattr(figures, column):>12}" for column in COLUMNS))
    for figures in campaigns:
        lines.extend(f"{figures.campaign}: {line}" for line in figures.as_lines())
    return "\n".join(lines)
