"""The log of messages in one transaction: their ids, when they were committed, and how many are between two ids.

Messages that were sent at nearly the same time are a *run*, and a run has one record in ``meta_db``. A send within
:data:`RUN_US_MAX` of the beginning of the newest run joins it and writes no record, since each further sub-database in
a commit costs as much as the message itself. So the end of the newest run is not stored: it is after the latest
message. Before that message is deleted, :meth:`.Transaction.mark_end` stores the end.
"""

from typing import TYPE_CHECKING, Callable, Iterator, Optional, Tuple

from persipubsub.lmdb_engine.records import layouts
from persipubsub.lmdb_engine.records.known import Span
from persipubsub.lmdb_engine.records.layouts import Run, pack_id, unpack_id

if TYPE_CHECKING:
    import lmdb

#: The end of the newest run, while later messages may join it.
_NO_END = 2**64
#: A run lasts at most this long, since all its messages have the commit time of the first.
RUN_US_MAX = 10_000
#: It also lasts at most the message timeout divided by this: a message expires early by less than clocks err.
RUNS_PER_TIMEOUT = 1000


def joins(newest: Run, time_us: int, largest_bytes: int, timeout_us: int) -> bool:
    """Return whether messages of this time and size belong to the newest run, so that no record is written for them.

    :param timeout_us: the message timeout
    """
    return largest_bytes <= newest.largest_bytes and time_us <= newest.time_us + joining_us(timeout_us)


def joining_us(timeout_us: int) -> int:
    """Return how long after its beginning messages join a run."""
    return min(RUN_US_MAX, timeout_us // RUNS_PER_TIMEOUT)


def following(newest: Run, next_id: int, first_id: int, time_us: int, largest_bytes: int) -> Run:
    """Return a run after the newest one, with the totals of all before it.

    :param next_id: the id after the messages of the newest run
    :param first_id: of the new run
    """
    messages = next_id - newest.first_id
    return Run(first_id, time_us, largest_bytes, newest.messages_before + messages,
               layouts.wrapped(newest.bytes_before + messages * newest.largest_bytes))


class Log:
    """The records of ``meta_db``, and the ids of ``data_db``, in one transaction."""

    __slots__ = ("_runs", "_messages")

    def __init__(self, runs: "lmdb.Cursor[bytes]", messages: "lmdb.Cursor[bytes]") -> None:
        self._runs = runs
        self._messages = messages

    # Reading

    def newest(self) -> Run:
        """Return the newest run, which always has a record."""
        self._runs.last()
        return layouts.decode_run(*self._runs.item())

    def oldest(self) -> Run:
        """Return the oldest run."""
        self._runs.first()
        return layouts.decode_run(*self._runs.item())

    def end(self) -> Tuple[Run, int]:
        """Return the newest run, and the id that the next message will get."""
        newest = self.newest()
        if self._messages.last():
            next_id = unpack_id(self._messages.key()) + 1
            if next_id > newest.first_id:
                return newest, next_id
        return newest, newest.first_id

    def next_id(self) -> int:
        """Return the id that the next message will get."""
        return self.end()[1]

    def at(self, message_id: int) -> Run:
        """Return the newest run that does not begin after the id, or the oldest if all do."""
        self._go_to(message_id)
        return layouts.decode_run(*self._runs.item())

    def span_at(self, message_id: int) -> Span:
        """Return the run that :meth:`at` returns, and the first id of the next one."""
        run, runs = self.at(message_id), self._runs
        return Span(run, unpack_id(runs.key()) if runs.next() else _NO_END)

    def _go_to(self, message_id: int) -> None:
        runs, key = self._runs, pack_id(message_id)
        if not runs.set_range(key):
            runs.last()
        elif runs.key() != key and not runs.prev():
            runs.first()

    def first_where(self, predicate: Callable[[Run], bool]) -> Optional[Run]:
        """Return the first run for which the predicate holds, by bisection, or None if there is none.

        If the predicate holds for a run, it must hold for all later ones.
        """
        newest = self.newest()
        if not predicate(newest):
            return None
        low, high = self.oldest().first_id, newest.first_id
        while low < high:
            middle = (low + high) // 2
            self._runs.set_range(pack_id(middle))
            run = layouts.decode_run(*self._runs.item())
            if predicate(run):
                high = middle
            else:
                low = run.first_id + 1
        self._runs.set_range(pack_id(low))
        return layouts.decode_run(*self._runs.item())

    def first_id_since(self, time_us: int) -> int:
        """Return the first id of the first run that did not begin before a time, or the next id if there is none."""
        run = self.first_where(lambda one: one.time_us >= time_us)
        return self.next_id() if run is None else run.first_id

    def since(self, message_id: int) -> Iterator[Run]:
        """Iterate over the runs, beginning with that of a message."""
        self._go_to(message_id)
        for key, value in self._runs:
            yield layouts.decode_run(key, value)

    def all(self) -> Iterator[Run]:
        """Iterate over all runs, the oldest first."""
        if self._runs.first():
            for key, value in self._runs:
                yield layouts.decode_run(key, value)

    # Counting

    def messages_before(self, message_id: int) -> int:
        """Return a count of the messages with lower ids, since the queue was created.

        The difference of two such counts is the exact number of messages between two ids of the present log.
        """
        run = self.at(message_id)
        if self._runs.next():
            messages = layouts.decode_run(*self._runs.item()).messages_before - run.messages_before
        else:
            messages = self.next_id() - run.first_id
        return run.messages_before + max(0, min(message_id - run.first_id, messages))

    def bytes_before(self, message_id: int) -> int:
        """Return the maximum size of the payloads with lower ids, since the queue was created; modulo 2 ** 64."""
        messages, run = self.messages_before(message_id), self.at(message_id)
        return layouts.wrapped(run.bytes_before + (messages - run.messages_before) * run.largest_bytes)

    def id_of(self, rank: int) -> int:
        """Return the id of the message with this many messages before it: the inverse of :meth:`messages_before`."""
        later = self.first_where(lambda run: run.messages_before > rank)
        if later is None:
            self._runs.last()
        elif not self._runs.prev():
            return later.first_id
        run = layouts.decode_run(*self._runs.item())
        return run.first_id + max(0, rank - run.messages_before)

    # Writing

    def delete_below(self, bound: int) -> None:
        """Delete the records of runs that end below the bound, but never that of the newest."""
        runs = self._runs
        self._go_to(bound)
        kept = runs.key()
        runs.first()
        while runs.key() != kept:
            runs.delete()

    def truncate(self, bound: int) -> None:
        """Stop counting the messages from an id on, which are about to be deleted. No id is used again."""
        newest, next_id = self.end()
        messages_before, bytes_before = self.messages_before(bound), self.bytes_before(bound)
        while self._runs.last() and self._runs.key() >= pack_id(bound):
            self._runs.delete()
        self._runs.put(*layouts.encode_run(Run(next_id, newest.time_us, 0, messages_before, bytes_before)))
