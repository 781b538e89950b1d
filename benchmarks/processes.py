"""Processes that take part in a workload."""

import contextlib
import multiprocessing
import time
from typing import TYPE_CHECKING, Callable, Iterator, List, Sequence, TypeAlias, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")

#: The parent's end of a pipe, or that of the process.
Channel: TypeAlias = "Connection[object, object]"

#: The work of a process. It reports over the connection: first that it is ready, and at the end what it found.
Work: TypeAlias = Callable[[Channel], None]

#: A process that takes longer to answer hangs.
ANSWER_S_MAX = 120

# Fork is quick; nothing is open, and no other thread runs, when a crew is made.
CONTEXT = multiprocessing.get_context("fork")


@contextlib.contextmanager
def crew(works: Sequence[Work]) -> Iterator[List[Channel]]:
    """Start processes, yield the connections to them once each is ready, and end all of them afterwards."""
    processes, connections = [], []
    try:
        for work in works:
            mine, its = CONTEXT.Pipe()
            process = CONTEXT.Process(target=work, args=(its, ), daemon=True)
            process.start()
            its.close()  # so that the end of the process ends the connection
            processes.append(process)
            connections.append(mine)
        for connection in connections:
            answer(connection, str)
        yield connections
    finally:
        for process in processes:
            process.kill()
            process.join()
        for connection in connections:
            connection.close()


def answer(connection: Channel, kind: Callable[..., T]) -> T:
    """Wait for what a process reports."""
    if not connection.poll(ANSWER_S_MAX):
        raise TimeoutError(f"A process of the benchmark said nothing for {ANSWER_S_MAX} s.")
    return kind(connection.recv())


def report_ready(connection: Channel) -> None:
    """Say that this process is ready, and wait for the start."""
    connection.send("ready")
    connection.recv()


def run_together(connections: Sequence[Channel]) -> None:
    """Start all of them."""
    for connection in connections:
        connection.send("go")


def count_until(end_s: float, step: Callable[[], int]) -> int:
    """Repeat a step until a time of the monotonic clock; return how many messages went through."""
    total, clock = 0, time.monotonic
    while clock() < end_s:
        total += step()
    return total
