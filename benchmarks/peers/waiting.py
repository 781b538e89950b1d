"""Measure how soon another process, which waits for a message, has it."""

import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Iterator

#: The receivers bound their waits by it, so that none outlives a killed benchmark for long.
RECEIVE_TIMEOUT_S = 60.0

#: Long enough for a receiver to acknowledge the last message and to wait again.
PAUSE_S = 0.01


def latencies(publish: Callable[[bytes], None],
              receiving: Callable[..., Iterator[bytes]],
              arguments: tuple[object, ...],
              count: int,
              pause_s: Callable[[], float] = lambda: PAUSE_S) -> list[float]:
    """Measure the seconds from just before ``publish`` here to the receipt in another process.

    ``receiving(*arguments)``, called there, yields the messages and acknowledges each when asked for the next one. Both
    processes read CLOCK_MONOTONIC, which is one clock for the whole machine.
    """
    # A fork would share the sockets and the threads of the session, so the other process begins afresh.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(receiving, arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    seconds = []
    try:
        # The first message finds a process that has yet to start: it is not measured.
        for number in range(count + 1):
            time.sleep(pause_s() if number else 0)
            start_ns = time.perf_counter_ns()
            publish(b"%d" % number)
            if not ours.poll(RECEIVE_TIMEOUT_S):
                raise TimeoutError(f"message {number} did not arrive within {RECEIVE_TIMEOUT_S:.0f} s")
            message, end_ns = ours.recv()
            if message != b"%d" % number:
                raise ValueError(f"the first subscriber had messages: expected message {number}, got {message!r}")
            seconds.append((end_ns - start_ns) / 1e9)
    finally:
        ours.close()
        process.terminate()
        process.join()
        process.close()
    return seconds[1:]


def _receive(receiving: Callable[..., Iterator[bytes]], arguments: tuple[object, ...],
             connection: multiprocessing.connection.Connection) -> None:
    for message in receiving(*arguments):
        connection.send((message, time.perf_counter_ns()))
