"""persipubsub beside its peers: one table, all of it measured in one run, in turn, at the same durability.

How each peer is used is in :mod:`benchmarks.peers`.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from benchmarks import floors, latency, measure, workloads_messages, workloads_together
from benchmarks.measure import Bounds, Contestant, Steps, Turn
from benchmarks.peers import Peer, Session
from benchmarks.results import OURS, Rate, Result, Setting
from benchmarks.scale import Scale
from benchmarks.workloads_messages import BATCH_MESSAGES, DURABILITIES

THREADS = 4
SUBSCRIBERS = 100
#: A batch is smaller where one of BATCH_MESSAGES would take longer.
BATCH_S_MAX = 1.0
#: Creating a backlog for a peer ends after this time; it is created again if it was too small.
FILL_S_MAX = 1.0
#: Peers without a wake-up are slow.
WAKE_UPS_MAX = 100

#: Makes the steps of a workload from a session.
MakeSteps = Callable[[Session, Setting], Steps]


class PeerSession:
    """One peer in one workload, in one session for all rounds: to start a server takes seconds."""

    def __init__(self, peer: Peer, directory: pathlib.Path, stack: contextlib.ExitStack) -> None:
        self._peer = peer
        self._directory = directory
        self._stack = stack
        self._steps: Optional[Steps] = None

    def _ready(self, setting: Setting, make: MakeSteps) -> Steps:
        """Return the steps of the session, which is opened when first needed."""
        if self._steps is None:
            directory = self._stack.enter_context(measure.fresh_directory(self._directory))
            session = self._peer.open(directory, setting.durability == "durable", setting.subscribers or 1)
            self._stack.callback(session.close)
            self._steps = make(session, setting)
        return self._steps

    def steps(self, make: MakeSteps) -> measure.Opening:
        """Make turns of steps."""

        def turn(steps: Steps) -> Turn:
            return functools.partial(measure.run_steps, steps)

        return self._opening(make, turn)

    def threads(self) -> measure.Opening:
        """Make turns of threads."""

        def turn(steps: Steps) -> Turn:
            return functools.partial(workloads_together.run_threads, [steps.step] * THREADS)

        return self._opening(sending, turn)

    def _opening(self, make: MakeSteps, turn: Callable[[Steps], Turn]) -> measure.Opening:
        """Let a peer that cannot do something, or that fails, leave the contest."""

        @contextlib.contextmanager
        def opening(_directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Turn]:
            with self._leaving(setting):
                one_turn = turn(self._ready(setting, make))

            def guarded(bounds: Bounds) -> measure.Tally:
                with self._leaving(setting):
                    return one_turn(bounds)

            yield guarded

        return opening

    @contextlib.contextmanager
    def _leaving(self, setting: Setting) -> Iterator[None]:
        try:
            yield
        except NotImplementedError as error:
            raise measure.LeftContest from error
        except Exception as error:  # pylint: disable=broad-exception-caught  # any error of any peer
            print(f"{self._peer.name} failed ({setting}): {error!r}", file=sys.stderr)
            raise measure.LeftContest from error


def sending(session: Session, setting: Setting) -> Steps:
    """Publish one message at a time, or batches; one at a time also where a peer knows no batches."""
    message, count = floors.payload(setting), setting.batch_messages or 1

    def step_one() -> int:
        session.publish(message)
        return 1

    def step_many() -> int:
        session.publish_batch(batch)
        return len(batch)

    if count == 1:
        return Steps(step_one)
    try:
        batch = [message] * _bearable_batch(session, message, count)
    except NotImplementedError:
        if setting.subscribers is None:
            raise
        return Steps(step_one)
    return Steps(step_many)


def _bearable_batch(session: Session, message: bytes, count: int) -> int:
    """Return how many messages of a batch a peer sends in BATCH_S_MAX."""
    tried = 10
    start_s = time.monotonic()
    session.publish_batch([message] * tried)
    each_s = (time.monotonic() - start_s) / tried
    return max(1, min(count, int(BATCH_S_MAX / max(each_s, 1e-9))))


def taking(session: Session, setting: Setting) -> Steps:
    """Receive one message at a time, or batches."""
    message, count = floors.payload(setting), setting.batch_messages or 1
    pending = 0

    def refill() -> None:
        nonlocal pending
        end_s = time.monotonic() + FILL_S_MAX
        try:
            while time.monotonic() < end_s and pending < 20 * BATCH_MESSAGES:
                session.publish_batch([message] * BATCH_MESSAGES)
                pending += BATCH_MESSAGES
        except NotImplementedError:
            while time.monotonic() < end_s:
                session.publish(message)
                pending += 1

    def step() -> int:
        nonlocal pending
        if not pending:
            return 0
        if count == 1:
            session.take()
            taken = 1
        else:
            taken = len(session.take_batch(min(count, pending)))
        pending -= taken
        return taken

    refill()
    return Steps(step, refill)


def compare(scale: Scale, directory: pathlib.Path, peers: Sequence[Peer]) -> Iterator[Result]:
    """Run every workload of the table."""
    for durability in DURABILITIES:
        for batch_messages in (1, BATCH_MESSAGES):
            setting = Setting(durability, 100, batch_messages)
            yield from _send(setting, scale, directory, peers)
            own = [
                Contestant(floors.RAW_LMDB, setting, workloads_messages.raw_take),
                Contestant(OURS, setting, workloads_messages.our_take)
            ]
            yield from _contest("peers-take", own, peers, taking, scale, directory)
        yield from _send(Setting(durability, 100, BATCH_MESSAGES, SUBSCRIBERS), scale, directory, peers)
    yield from _from_threads(scale, directory, peers)
    yield from _wake_ups(scale, directory, peers)


def _able(peers: Sequence[Peer], setting: Setting) -> List[Peer]:
    """Choose the peers that can have the durability of a setting."""
    durable = setting.durability == "durable"
    return [peer for peer in peers if durable in peer.durabilities]


def _send(setting: Setting, scale: Scale, directory: pathlib.Path, peers: Sequence[Peer]) -> Iterator[Rate]:
    own = [
        Contestant(floors.RAW_LMDB, setting, workloads_messages.raw_send),
        Contestant(OURS, setting, workloads_messages.our_send)
    ]
    if setting.durability == "durable":
        own.append(Contestant(floors.DISK, setting, workloads_messages.disk_send))
    yield from _contest("peers-send", own, peers, sending, scale, directory)


def _contest(workload: str, own: Sequence[Contestant], peers: Sequence[Peer], make: MakeSteps, scale: Scale,
             directory: pathlib.Path) -> Iterator[Rate]:
    with contextlib.ExitStack() as stack:
        setting = own[0].setting
        theirs = [
            Contestant(peer.name, setting,
                       PeerSession(peer, directory, stack).steps(make)) for peer in _able(peers, setting)
        ]
        yield from measure.contest(workload, [*own, *theirs], scale, directory)


def _from_threads(scale: Scale, directory: pathlib.Path, peers: Sequence[Peer]) -> Iterator[Rate]:
    setting = Setting("durable", 100, threads=THREADS)
    with contextlib.ExitStack() as stack:
        contestants = [
            Contestant(floors.RAW_LMDB, dataclasses.replace(setting, threads=1), workloads_messages.raw_send),
            Contestant(OURS, setting, workloads_together.threads_sending)
        ]
        for peer in _able(peers, setting):
            contestants.append(Contestant(peer.name, setting, PeerSession(peer, directory, stack).threads()))
        yield from measure.contest("peers-threads", contestants, scale, directory,
                                   workloads_together.slices_of_threads(scale))


def _wake_ups(scale: Scale, directory: pathlib.Path, peers: Sequence[Peer]) -> Iterator[Result]:
    for durability in DURABILITIES:
        setting = Setting(durability, latency.STAMP.size, waiting_processes=1)
        contestants: List[Tuple[str, Setting, latency.Exchange]] = [
            (floors.PIPE, setting, latency.through_pipes),
            (OURS, setting, latency.through_queue),
        ]
        contestants += [(peer.name, setting, _exchange(peer)) for peer in _able(peers, setting)]
        bounded = dataclasses.replace(scale, wake_ups=min(scale.wake_ups, WAKE_UPS_MAX))
        yield from latency.interleaved("peers-wake-up", contestants, bounded, directory)


def _exchange(peer: Peer) -> latency.Exchange:

    def exchange(directory: pathlib.Path, setting: Setting, count: int) -> List[float]:
        try:
            session = peer.open(directory, setting.durability == "durable", 1)
            with contextlib.closing(session):
                return session.wait_latencies(count)
        except NotImplementedError as error:
            raise measure.LeftContest from error
        except Exception as error:  # pylint: disable=broad-exception-caught  # any error of any peer
            print(f"{peer.name} failed (waking up): {error!r}", file=sys.stderr)
            raise measure.LeftContest from error

    return exchange
