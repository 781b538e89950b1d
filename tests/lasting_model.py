"""What a queue does with messages beyond their way through it: those that are kept after all have taken them."""

from typing import List

from persipubsub.log import RUN_US_MAX
from persipubsub.queue import Strategy
from tests.model import Message, Model


class LastingModel(Model):
    """A queue that may retain messages."""

    def __init__(self) -> None:
        super().__init__()
        self.retention_us = 0

    def is_awaited(self, message: Message) -> bool:
        """Tell whether some subscriber has not taken it."""
        return bool(self.places) and message.id >= self.floor()

    def kept(self, messages: List[Message]) -> List[Message]:
        """Leave out those that nobody awaits, unless they are retained."""
        oldest_us = self.now_us() - self.retention_us
        retains = self.retention_us > 0
        return [one for one in messages if self.is_awaited(one) or retains and one.time_us >= oldest_us]

    def there(self) -> List[Message]:
        """Give the messages that are there for anybody who looks."""
        return self.kept(self.young(self.log))

    def write(self) -> None:
        """Begin to write: what was retained for long enough goes."""
        super().write()
        if self.retention_us:
            self.log = self.kept(self.log)

    def keep(self, kept: List[Message], reason: str = "") -> int:
        """Let all go but some of the messages, of which those go that nobody awaits; give how many went."""
        self.write()
        staying = {message.id for message in self.kept(kept)}
        went = [message for message in self.log if message.id not in staying]
        self.log = [message for message in self.log if message.id in staying]
        # Retained ones are not let go: they have served.
        self.pruned[reason] += len([message for message in went if self.is_awaited(message) or not self.retention_us])
        return len(went)

    def put(self, payloads: List[bytes]) -> List[int]:
        """Send messages one by one at one time; give their ids."""
        if not self.retention_us:
            return super().put(payloads)
        self.keep(self.young(self.log), "timeout")
        self.newest_us = self.now_us()
        ids = list(range(self.next_id, self.next_id + len(payloads)))
        for message_id, payload in zip(ids, payloads):
            while len(self.log) >= self.high_watermark.max_messages:
                self._overflow(ids[0])
            self.log.append(Message(message_id, self.newest_us, payload))
        self.next_id += len(payloads)
        return ids

    def _overflow(self, first_new_id: int) -> None:
        """Let go what nobody awaits, and only where there is no such message what the strategy says."""
        count = len(self.log) // 2 + 1
        retained = len([one for one in self.log if one.id < first_new_id and not self.is_awaited(one)])
        if retained:
            self.log = self.log[min(count, retained):]
        else:
            self.pruned["overflow"] += count
            self.log = self.log[count:] if self.strategy == Strategy.prune_first else self.log[:-count]

    def rewind(self, name: str, first_id: int = 0, time_us: int = 0) -> int:
        """Move a subscriber back to what is there from an id on and from a time on; give how many it then awaits."""
        place = self.places[name]
        start = [one.id for one in self.there() if one.id >= first_id and one.time_us >= time_us - RUN_US_MAX]
        place.next_id = min([place.next_id, *start])
        return len(self.young(self.awaited(name)))
