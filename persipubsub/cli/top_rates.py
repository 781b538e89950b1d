"""The rates that ``top`` shows: recent samples of a queue, and what follows from them."""

import collections
from typing import Callable, Deque, Dict, List, NamedTuple, Optional

from persipubsub.status import QueueStatus

#: Two minutes with one sample per second; older samples are dropped.
SAMPLES_MAX = 121


class Sample(NamedTuple):
    """A queue at one moment."""

    #: On a monotonic clock.
    time_s: float
    status: QueueStatus


class Rates:
    """The samples of one queue in order of time. A rate is computed between two adjacent samples."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._samples: Deque[Sample] = collections.deque(maxlen=SAMPLES_MAX)
        #: Why the queue could not be read the last time; None if it could.
        self.error: Optional[str] = None

    def add(self, time_s: float, status: QueueStatus) -> None:
        """Add a sample. Samples of an earlier queue at the same path are dropped."""
        if self._samples and status.sent < self._samples[-1].status.sent:
            self._samples.clear()
        self._samples.append(Sample(time_s, status))
        self.error = None

    def fail(self, error: str) -> None:
        """Note that the queue could not be read."""
        self.error = error

    def latest(self) -> QueueStatus:
        """Return the newest sample; there must be one."""
        return self._samples[-1].status

    def backlogs(self) -> List[float]:
        """Return how many messages some subscriber has not acknowledged, for each sample."""
        return [sample.status.messages - sample.status.retained for sample in self._samples]

    def sent_per_s(self) -> List[float]:
        """Return how many messages were sent per second between adjacent samples."""
        return self._rates(lambda before, after: after.sent - before.sent)

    def taken_per_s(self) -> List[float]:
        """Return how many messages all subscribers acknowledged per second between adjacent samples."""
        return self._rates(lambda before, after: sum(_taken(before, after).values()))

    def taken_per_s_by_subscriber(self) -> Dict[str, float]:
        """Return how many messages each subscriber of the last two samples acknowledged per second between them."""
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
    """Return how many messages each common subscriber acknowledged; one that was added again starts from 0."""
    return {
        identifier: max(0, subscriber.taken - before.subscribers[identifier].taken)
        for identifier, subscriber in after.subscribers.items() if identifier in before.subscribers
    }
