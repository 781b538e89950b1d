"""The last minutes of a queue, and the rates that follow from them."""

import collections
from typing import Callable, Deque, Dict, List, NamedTuple, Optional

from persipubsub.status import QueueStatus

#: Older samples are forgotten: the last two minutes, with one a second.
SAMPLES_MAX = 121


class Sample(NamedTuple):
    """A queue at one moment."""

    #: On a clock that no one sets.
    time_s: float
    status: QueueStatus


class History:
    """The samples of one queue, in the order of time. A rate is that between two samples next to each other."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._samples: Deque[Sample] = collections.deque(maxlen=SAMPLES_MAX)
        #: Why the queue could not be read the last time; None if it could.
        self.error: Optional[str] = None

    def add(self, time_s: float, status: QueueStatus) -> None:
        """Add a sample. What was of another queue at the same path is forgotten."""
        if self._samples and status.sent < self._samples[-1].status.sent:
            self._samples.clear()
        self._samples.append(Sample(time_s, status))
        self.error = None

    def fail(self, error: str) -> None:
        """Note that the queue could not be read."""
        self.error = error

    def latest(self) -> QueueStatus:
        """Give the newest sample; there must be one."""
        return self._samples[-1].status

    def backlogs(self) -> List[float]:
        """Give how many messages some subscriber has not taken, in each sample."""
        return [sample.status.messages - sample.status.retained for sample in self._samples]

    def sent_per_s(self) -> List[float]:
        """Give how many messages were sent a second, between each two samples."""
        return self._rates(lambda before, after: after.sent - before.sent)

    def taken_per_s(self) -> List[float]:
        """Give how many messages all subscribers took together a second, between each two samples."""
        return self._rates(lambda before, after: sum(_taken(before, after).values()))

    def taken_per_s_by_subscriber(self) -> Dict[str, float]:
        """Give how many messages each subscriber took a second between the last two samples that it is in."""
        if len(self._samples) < 2:
            return {}
        before, after = self._samples[-2], self._samples[-1]
        elapsed_s = after.time_s - before.time_s
        return {identifier: taken / elapsed_s for identifier, taken in _taken(before.status, after.status).items()}

    def _rates(self, count: Callable[[QueueStatus, QueueStatus], int]) -> List[float]:
        samples = list(self._samples)
        return [
            count(before.status, after.status) / (after.time_s - before.time_s)
            for before, after in zip(samples, samples[1:])
        ]


def _taken(before: QueueStatus, after: QueueStatus) -> Dict[str, int]:
    """Count what those took who were there before; who was removed and added again begins anew."""
    return {
        identifier: max(0, subscriber.taken - before.subscribers[identifier].taken)
        for identifier, subscriber in after.subscribers.items() if identifier in before.subscribers
    }
