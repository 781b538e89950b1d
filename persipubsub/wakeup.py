"""Waiting for a commit, and telling those who wait."""

import time

POLLING_DELAY_S_MIN = 0.0002
POLLING_DELAY_S_MAX = 0.02


class Wakeup:
    """How the waiting subscribers of all processes learn that something was published."""

    def notify(self, transaction_id: int) -> None:
        """Tell those who wait that this transaction published something."""

    def watch(self, longest_sleep_s: float) -> "PollingWatch":
        """Prepare to wait.

        :param longest_sleep_s: a bound for the time between two looks
        """
        return PollingWatch(longest_sleep_s)


class PollingWatch:
    """Waits by sleeping, a little longer each time."""

    def __init__(self, longest_sleep_s: float) -> None:
        self._longest_sleep_s = min(longest_sleep_s, POLLING_DELAY_S_MAX)
        self._delay_s = POLLING_DELAY_S_MIN

    def arm(self) -> None:
        """Do nothing: the next look is never far."""

    def wait(self, timeout_s: float) -> None:
        """Sleep."""
        time.sleep(min(self._delay_s, self._longest_sleep_s, timeout_s))
        self._delay_s = min(self._delay_s * 2, POLLING_DELAY_S_MAX)
