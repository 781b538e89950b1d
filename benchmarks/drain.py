"""Receive a whole backlog in a separate process: ``python -m benchmarks.drain HOW DIRECTORY``.

It prints the seconds that this took, and its peak of anonymous memory.
"""

import itertools
import pathlib
import sys
import time
from typing import Callable, Dict

from benchmarks import floors
from benchmarks.workloads_messages import BATCH_MESSAGES

#: It checks its memory each time it has received this number of messages.
LOOK_MESSAGES = 50_000


def rss_anon_kib() -> int:
    """Return the anonymous resident memory of this process: mapped pages of a file do not count."""
    with open("/proc/self/status", encoding="ascii") as fid:
        return next(int(line.split()[1]) for line in fid if line.startswith("RssAnon:"))


class MemoryWatch:
    """Checks the memory now and then, and keeps the maximum."""

    def __init__(self) -> None:
        self.most_kib = rss_anon_kib()
        self._messages = itertools.count(1)

    def saw(self, message: bytes) -> None:
        """Count a message."""
        if next(self._messages) % LOOK_MESSAGES == 0 and message:
            self.most_kib = max(self.most_kib, rss_anon_kib())


def raw(directory: pathlib.Path, watch: MemoryWatch) -> None:
    """Receive by raw py-lmdb."""
    with floors.open_raw(directory, durable=False) as environment:
        messages = [b""]
        while messages:
            with environment.begin(write=True) as txn:
                messages = floors.take_raw(txn.cursor(), BATCH_MESSAGES)
            for message in messages:
                watch.saw(message)


def batches(directory: pathlib.Path, watch: MemoryWatch) -> None:
    """Receive by receive_many."""
    import persipubsub
    with persipubsub.new_environment(directory) as environment:
        subscriber = environment.new_subscriber("subscriber-0")
        messages = [b""]
        while messages:
            with subscriber.receive_many(BATCH_MESSAGES, timeout=0) as messages:
                for message in messages:
                    watch.saw(message)


def loop(directory: pathlib.Path, watch: MemoryWatch) -> None:
    """Receive by a loop that acknowledges in groups."""
    import persipubsub
    with persipubsub.new_environment(directory) as environment:
        for message in environment.new_subscriber("subscriber-0").messages(timeout=0, acknowledge_every=BATCH_MESSAGES):
            watch.saw(message)


HOW: Dict[str, Callable[[pathlib.Path, MemoryWatch], None]] = {"raw": raw, "receive_many": batches, "messages": loop}


def main() -> None:
    """Drain the queue in the directory."""
    watch = MemoryWatch()
    start_s = time.perf_counter()
    HOW[sys.argv[1]](pathlib.Path(sys.argv[2]), watch)
    print(time.perf_counter() - start_s, max(watch.most_kib, rss_anon_kib()))


if __name__ == "__main__":
    main()
