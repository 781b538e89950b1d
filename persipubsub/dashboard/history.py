"""The samples of one queue that are kept in memory: those of the last hour, in slots of five seconds."""

import collections
from typing import Deque, Dict, List, NamedTuple, Optional, Tuple

from persipubsub.status import QueueStatus

#: Seconds of a slot. The last sample of each slot is kept.
SLOT_S = 5
#: One hour.
SLOTS_MAX = 720
#: Rates are computed between the latest sample and one that is about this old.
RATE_S = 5.0
#: For how many subscribers a sample has the backlog: those that lag most.
SUBSCRIBERS_MAX = 12


class Sample(NamedTuple):
    """What is kept of one look."""

    #: Seconds since the epoch.
    time_s: float
    backlog: int
    sent: int
    taken: int
    oldest_age_s: float
    in_flight: int
    dead_letters: int
    #: Messages that were dropped because of the limits.
    dropped: int
    #: By subscriber, for some.
    pending: Dict[str, int]


class _Recent(NamedTuple):
    """One of the last looks, with what the rates need."""

    time_s: float
    sent: int
    taken: Dict[str, int]


class History:
    """The samples of one queue. One thread adds to it, while others read."""

    def __init__(self) -> None:
        self.samples: Deque[Sample] = collections.deque(maxlen=SLOTS_MAX)
        self._recent: Deque[_Recent] = collections.deque()
        #: When a subscriber was last seen to acknowledge something, or was first seen, in seconds since the epoch.
        self.progress_s: Dict[str, float] = {}
        #: When something was last seen to be sent, or the first look.
        self.sent_s: Optional[float] = None

    def continues(self, time_s: float, status: QueueStatus) -> bool:
        """Return whether a look is of the same queue as before, later. If not, begin a new history."""
        last = self._recent[-1] if self._recent else None
        return last is None or (status.sent >= last.sent and time_s > last.time_s)

    def add(self, time_s: float, status: QueueStatus) -> None:
        """Add what a look has found."""
        taken = {name: one.taken for name, one in status.subscribers.items()}
        self._note_progress(time_s, status.sent, taken)
        self._recent.append(_Recent(time_s, status.sent, taken))
        while len(self._recent) > 2 and self._recent[1].time_s <= time_s - RATE_S:
            self._recent.popleft()
        if self.samples and self.samples[-1].time_s // SLOT_S == time_s // SLOT_S:
            self.samples[-1] = _sample(time_s, status)
        else:
            self.samples.append(_sample(time_s, status))

    def _note_progress(self, time_s: float, sent: int, taken: Dict[str, int]) -> None:
        before = self._recent[-1] if self._recent else None
        if before is None or sent != before.sent:
            self.sent_s = time_s
        self.progress_s = {
            name: self.progress_s[name] if before is not None and before.taken.get(name) == count else time_s
            for name, count in taken.items()
        }

    def sent_per_s(self) -> Optional[float]:
        """Return how many messages were sent per second in the last seconds; None before the second look."""
        found = self._span()
        return None if found is None else (found[1].sent - found[0].sent) / (found[1].time_s - found[0].time_s)

    def taken_per_s(self, name: str) -> Optional[float]:
        """Return how many messages a subscriber acknowledged per second in the last seconds; None if unknown."""
        found = self._span()
        if found is None or name not in found[0].taken or name not in found[1].taken:
            return None
        return max(0, found[1].taken[name] - found[0].taken[name]) / (found[1].time_s - found[0].time_s)

    def _span(self) -> Optional[Tuple[_Recent, _Recent]]:
        """Return the looks between which rates are computed; None before the second one."""
        recent = list(self._recent)
        return (recent[0], recent[-1]) if len(recent) > 1 else None

    def after(self, time_s: float) -> List[Sample]:
        """Return the samples of the slots after that of a time, and of that slot if it has a newer one."""
        return [sample for sample in list(self.samples) if sample.time_s > time_s]

    def risen(self, name: str) -> int:
        """Return by how much a counter of the samples has risen within the hour."""
        return max(0, getattr(self.samples[-1], name) - getattr(self.samples[0], name)) if self.samples else 0


def _sample(time_s: float, status: QueueStatus) -> Sample:
    lagging = sorted(status.subscribers.items(), key=lambda item: (-item[1].pending, item[0]))[:SUBSCRIBERS_MAX]
    return Sample(time_s=time_s,
                  backlog=status.messages - status.retained,
                  sent=status.sent,
                  taken=sum(one.taken for one in status.subscribers.values()),
                  oldest_age_s=oldest_awaited_s(status),
                  in_flight=sum(one.in_flight for one in status.subscribers.values()),
                  dead_letters=sum(one.dead_letters for one in status.subscribers.values()),
                  dropped=status.pruned.overflow + status.pruned.timeout,
                  pending={
                      name: one.pending
                      for name, one in lagging
                  })


def oldest_awaited_s(status: QueueStatus) -> float:
    """Return the age of the oldest message that some subscriber awaits, in seconds; 0 if there is none."""
    return max((one.oldest_pending_age_s or 0 for one in status.subscribers.values()), default=0)
