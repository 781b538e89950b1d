"""Which workloads there are, and running them one after the other."""

import contextlib
import logging
import pathlib
import tempfile
import time
from typing import Callable, Dict, Iterator, List, Optional, Sequence

from benchmarks import (footprint, growth, latency, machine, overflow, tables, wakeups, workloads_details,
                        workloads_messages, workloads_protobuf, workloads_shared, workloads_tasks, workloads_together)
from benchmarks.results import Document, Result
from benchmarks.scale import Scale

Workload = Callable[[Scale, pathlib.Path], Iterator[Result]]

#: In the order in which they run: first those whose figures depend most on a machine at rest.
WORKLOADS: Dict[str, Workload] = {
    "send": workloads_messages.send,
    "send-limit": workloads_messages.send_limit,
    "send-batch": workloads_messages.send_batch,
    "take": workloads_messages.take,
    "take-batch": workloads_messages.take_batch,
    "batch-sizes": workloads_messages.batch_sizes,
    "subscribers": workloads_messages.subscribers,
    "backlog": workloads_messages.backlog,
    "details": workloads_details.details,
    "protobuf": workloads_protobuf.protobuf,
    "shared": workloads_shared.taken,
    "in-flight": workloads_shared.in_flight,
    "threads": workloads_together.threads,
    "processes": workloads_together.processes,
    "tasks-sent": workloads_tasks.sending,
    "tasks-taken": workloads_tasks.taking,
    "end-to-end": workloads_together.end_to_end,
    "wake-up": latency.wake_ups,
    "wake-up-means": wakeups.means,
    "fork": wakeups.forks,
    "idle": latency.idle,
    "tasks-waiting": workloads_tasks.waiting,
    "overflow": overflow.overflow,
    "expired": overflow.expired,
    "drain": footprint.drains,
    "opening": footprint.opening,
    "import": footprint.imports,
    "file-size": growth.file_sizes,
    "churn": growth.churns,
}


def run(scale: Scale, workloads: Sequence[str], peers: bool, parent: Optional[pathlib.Path]) -> Document:
    """Run workloads, and print each result as soon as it is there.

    :param workloads: their names
    :param peers: run the table of peers as well
    :param parent: where the queues are made, in a directory that is removed afterwards
    """
    start_s = time.monotonic()
    with _without_warnings(), tempfile.TemporaryDirectory(prefix="persipubsub-benchmarks-", dir=parent) as name:
        directory = pathlib.Path(name)
        document = Document(machine.describe(directory), scale.name, 0, [])
        for workload in workloads:
            _collect(document, workload, WORKLOADS[workload](scale, directory))
        if peers:
            _run_peers(document, scale, directory)
    document.took_s = round(time.monotonic() - start_s, 1)
    return document


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress warnings of overflow, which is not what is measured."""
    logger = logging.getLogger("persipubsub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run_peers(document: Document, scale: Scale, directory: pathlib.Path) -> None:
    # Imported here: the dependencies of the peers are optional.
    from benchmarks import peers, versus
    available = peers.available()
    document.peer_notes = {peer.name: peer.note for peer in available}
    document.weaker_peers = [peer.name for peer in available if peer.weaker]
    _collect(document, "peers", versus.compare(scale, directory, available))


def _collect(document: Document, workload: str, results: Iterator[Result]) -> None:
    start_s = time.monotonic()
    for result in results:
        document.results.append(result)
        print(tables.line(result), flush=True)
    print(f"({workload} took {time.monotonic() - start_s:.1f} s)\n", flush=True)


def names() -> List[str]:
    """List the names of the workloads."""
    return list(WORKLOADS)
