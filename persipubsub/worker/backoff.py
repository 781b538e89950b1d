"""Pauses that grow."""

FIRST_S = 1.0
LONGEST_S = 60.0


class Backoff:
    """Pauses before something is tried again: 1 s, then twice as long each time, up to a minute."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def next_s(self) -> float:
        """Return the length of the next pause."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, LONGEST_S)
        return pause_s

    def reset(self) -> None:
        """Begin with the shortest pause again."""
        self._next_s = FIRST_S
