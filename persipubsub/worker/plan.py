"""What the processes of a worker program have in common."""

from typing import Any, Callable, NamedTuple, Optional, Union


class Plan(NamedTuple):
    """What each process does. Spawned processes get it pickled."""

    location: str
    subscriber: str
    handler: Union[str, Callable[[Any], object]]
    #: A message type, or its name, such as ``shop:Order``; None for bytes.
    message_type: Any
    #: How many messages a process handles at a time.
    threads: int
    grace_s: float
    max_messages: Optional[int]
    max_seconds: Optional[float]

    @property
    def recycles(self) -> bool:
        """Return whether a process ends by itself, to be replaced."""
        return self.max_messages is not None or self.max_seconds is not None
