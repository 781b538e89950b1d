"""How soon each wake-up mechanism wakes a process, and what a fork costs.

The means that persipubsub could be built on, each by itself without a queue, beside persipubsub and
:class:`multiprocessing.Pipe`, all in one run and in turn.
"""

import contextlib
import ctypes
import dataclasses
import functools
import mmap
import os
import pathlib
import socket
import time
from typing import Callable, ContextManager, Iterator, List, NamedTuple, Sequence, Tuple

import lmdb

from benchmarks import floors, latency, measure, queues
from benchmarks.latency import ARRIVAL_S_MAX, PAUSE_S, STAMP, Exchange
from benchmarks.processes import CONTEXT, Channel, answer, crew, report_ready, run_together
from benchmarks.results import OURS, Duration, Latency, Setting
from benchmarks.scale import Scale
from persipubsub.lmdb_engine.process import futex

#: Where the stamp lies in the shared page: in another line of the cache than the word that is waited on.
STAMP_OFFSET = 64
IN_MODIFY = 2
#: How many forks are timed together.
FORKS = 50


class Ends(NamedTuple):
    """Both ends of something that wakes a process: sent by this one, received by a child."""

    send: Callable[[bytes], object]
    receive: Callable[[], bytes]


@contextlib.contextmanager
def through_futex(_directory: pathlib.Path) -> Iterator[Ends]:
    """Wait for a word in shared memory to change."""
    mapped = mmap.mmap(-1, mmap.PAGESIZE)
    words = memoryview(mapped).cast("I")
    address = ctypes.addressof(ctypes.c_uint32.from_buffer(mapped))
    seen = 0

    def send(stamp: bytes) -> None:
        mapped[STAMP_OFFSET:STAMP_OFFSET + len(stamp)] = stamp
        words[0] += 1
        futex.wake(address)

    def receive() -> bytes:
        nonlocal seen
        while words[0] == seen:
            futex.wait(address, seen, 1)
        seen = words[0]
        return mapped[STAMP_OFFSET:STAMP_OFFSET + STAMP.size]

    yield Ends(send, receive)


@contextlib.contextmanager
def through_raw_lmdb(directory: pathlib.Path) -> Iterator[Ends]:
    """Commit to LMDB, then wake by futex; the other process reads it there. No queue that uses them can be faster."""
    key = b"stamp"

    @functools.lru_cache(maxsize=None)
    def opened() -> "lmdb.Environment":
        # By each process when it first needs it: LMDB must not be open in a fork.
        return floors.open_raw(directory, durable=False)

    def put(stamp: bytes) -> None:
        with opened().begin(write=True) as txn:
            txn.put(key, stamp)

    def get() -> bytes:
        with opened().begin() as txn:
            return txn.get(key, b"")

    with through_futex(directory) as ends:

        def send(stamp: bytes) -> None:
            put(stamp)
            ends.send(stamp)

        def receive() -> bytes:
            ends.receive()
            return get()

        yield Ends(send, receive)


@contextlib.contextmanager
def through_inotify(directory: pathlib.Path) -> Iterator[Ends]:
    """Wait for a file to be written."""
    libc = ctypes.CDLL(None, use_errno=True)
    file = directory / "written"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(file), IN_MODIFY) < 0:
        raise OSError(ctypes.get_errno(), "inotify")

    def receive() -> bytes:
        os.read(watch, 4096)
        return os.pread(fd, STAMP.size, 0)

    yield Ends(lambda stamp: os.pwrite(fd, stamp, 0), receive)
    os.close(watch)
    os.close(fd)


@contextlib.contextmanager
def through_socket(_directory: pathlib.Path) -> Iterator[Ends]:
    """Wait for a datagram."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sending, receiving:
        yield Ends(sending.send, lambda: receiving.recv(STAMP.size))


def bare(opening: Callable[[pathlib.Path], ContextManager[Ends]]) -> Exchange:
    """Make an exchange with one waiting process, which no queue takes part in."""

    def exchange(directory: pathlib.Path, _setting: Setting, count: int) -> List[float]:
        arrived = CONTEXT.RawValue("q", 0)
        with opening(directory) as ends:

            def work(connection: Channel) -> None:
                samples = []
                report_ready(connection)
                for number in range(count):
                    stamp = ends.receive()
                    samples.append(time.monotonic() - STAMP.unpack(stamp)[0])
                    arrived.value = number + 1
                connection.send(samples)

            with crew([work]) as connections:
                run_together(connections)
                for number in range(count):
                    _wait_until(lambda: arrived.value == number)  # pylint: disable=cell-var-from-loop
                    time.sleep(PAUSE_S)
                    ends.send(STAMP.pack(time.monotonic()))
                return answer(connections[0], list)

    return exchange


def _wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + ARRIVAL_S_MAX
    while not condition():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"A stamp did not arrive in {ARRIVAL_S_MAX} s.")
        time.sleep(PAUSE_S / 4)


def means(scale: Scale, directory: pathlib.Path) -> Iterator[Latency]:
    """The time from before the send until a process that waited has it."""
    setting = Setting(None, STAMP.size, waiting_processes=1)
    contestants: Sequence[Tuple[str, Setting, Exchange]] = (
        (floors.PIPE, setting, latency.through_pipes),
        ("futex", setting, bare(through_futex)),
        ("inotify", setting, bare(through_inotify)),
        ("datagram socket", setting, bare(through_socket)),
        (f"{floors.RAW_LMDB} and futex", setting, bare(through_raw_lmdb)),
        (OURS, dataclasses.replace(setting, durability="relaxed"), latency.through_queue),
        (OURS, dataclasses.replace(setting, durability="durable"), latency.through_queue),
    )
    yield from latency.interleaved("wake-up-means", contestants, scale, directory)


def forks(scale: Scale, directory: pathlib.Path) -> Iterator[Duration]:
    """The time from a fork until its child has ended: without a queue, with one open, with a child that sends."""

    def fork(in_child: Callable[[], object]) -> float:
        start_s = time.perf_counter()
        for _ in range(FORKS):
            child = os.fork()
            if not child:
                try:
                    in_child()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
        return (time.perf_counter() - start_s) / FORKS

    def fork_with_queue(sending: bool) -> float:
        with measure.fresh_directory(directory) as fresh, queues.opened(fresh, Setting()) as environment:
            publisher = environment.new_publisher()
            publisher.send(b"x")
            return fork(lambda: publisher.send(b"from the child") if sending else None)

    timed: List[Tuple[str, Setting, Callable[[], float]]] = [
        ("os.fork", Setting(detail="no queue"), lambda: fork(lambda: None)),
        (OURS, Setting(detail="a queue is open"), functools.partial(fork_with_queue, False)),
        (OURS, Setting("relaxed", detail="the child sends"), functools.partial(fork_with_queue, True)),
    ]
    yield from measure.durations("fork", timed, scale.rounds)
