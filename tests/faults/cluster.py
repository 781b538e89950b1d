"""Servers of a cluster that die, stop, restart, are cut off and lose power, under load: what was confirmed stays.

Two processes send, one message at a time and in batches; one receives as a plain subscriber; two share a subscriber.
They note outside the cluster what they send and get, and which calls returned; the oracle judges that in the end. All
wait for lost servers: an operation that gives up after 30 seconds is a failure, except where it says so itself.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import random
import signal
import tempfile
import time
from typing import Callable, Dict, Iterator, List, Sequence

import persipubsub
from persipubsub import errors
from persipubsub.local_cluster import Node
from tests.children import start_child, status_of
from tests.concurrency import wait_until
from tests.faults import oracle
from tests.faults.every_point import in_child
from tests.faults.figures import Figures
from tests.faults.journal import Event, events, name_of
from tests.faults.loop_device import LoopDevice
from tests.faults.oracle import Oracle
from tests.faults.recorder import Recorder
from tests.nats.servers import Servers

NODES = 3
#: Nobody receives as the first until the end, one process as the second, two processes as the third.
ALL, PLAIN, SHARED = "all", "plain", "shared"
LEASE_S = 5
BATCH_MESSAGES = 20
#: Before a fault, so that there is load, and after it, so that there is load without one.
LOAD_S = 1.0
#: How long a server is dead. An election takes 4 to 9 s, so a leader that is stopped or cut off is away for longer.
DEAD_S, AWAY_S = 2.0, 10.0
#: An operation waited for as long as it does.
GAVE_UP = "gave-up"
#: How long there is load before a loss of power, so that servers that wait before they write have written something.
WRITTEN_S = 8.0


class Worker:
    """A process that sends or receives until SIGTERM."""

    def __init__(self, location: str, journals: pathlib.Path, name: str) -> None:
        self._recorder = Recorder(journals, name)
        self._chance = random.Random(name)
        self._environment = persipubsub.new_environment(location)
        self._stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopped = True
        self._environment.stop()

    def send(self, count: int) -> int:
        """Send messages, that many at a time."""
        publisher = self._environment.new_publisher()
        while not self._stopped:
            msgs = self._recorder.messages(*[self._chance.choice([0, 0, 500, 20_000])] * count)
            try:
                self._recorder.send(publisher, msgs)
            except errors.CommitUnknownError:
                self._recorder.note(GAVE_UP)  # whether they are there is unknown, and so it is noted
            except errors.UnavailableError:
                self._recorder.note(oracle.REFUSED, *map(name_of, msgs))
                self._recorder.note(GAVE_UP)
        self._environment.close()
        return 0

    def take(self, identifier: str) -> int:
        """Receive and acknowledge messages."""
        subscriber = self._environment.new_subscriber(identifier)
        while not self._stopped:
            try:
                self._recorder.take(subscriber, self._chance.choice([1, 10, 200]), 0.5)
            except errors.LeaseLostError:
                pass  # the server was away for longer than the lease
            except (errors.CommitUnknownError, errors.UnavailableError):
                self._recorder.note(GAVE_UP)
        self._environment.close()
        return 0


CREW: Dict[str, Callable[[Worker], int]] = {
    "one": lambda worker: worker.send(1),
    "batch": lambda worker: worker.send(BATCH_MESSAGES),
    PLAIN: lambda worker: worker.take(PLAIN),
    f"{SHARED}0": lambda worker: worker.take(SHARED),
    f"{SHARED}1": lambda worker: worker.take(SHARED),
}


class Round:
    """A cluster with a queue, the processes that use it, and what is done to its servers."""

    def __init__(self, directory: pathlib.Path, seed: int, servers: Servers) -> None:
        self._journals = directory / "journals"
        self._seed = seed
        self._chance = random.Random(seed)
        self.servers = servers

    @property
    def _location(self) -> str:
        return self.servers.queue("faults")

    def run(self, figures: Figures, faults: "Sequence[Fault]", load_s: float = LOAD_S, forgives: bool = False) -> None:
        """Let faults happen to the servers under load, and judge what is there in the end.

        :param load_s: how long there is load before each fault
        :param forgives: whether what is lost is noted, and is no failure
        """
        self._journals.mkdir()
        assert in_child(self._set_up).status == 0
        with self._load(figures, forgives):
            wait_until(self._has_load)
            for fault in faults:
                time.sleep(load_s)
                fault(self)
                self.servers.wait_until_ready()
                figures.faults += 1
            time.sleep(LOAD_S)
        figures.rounds += 1
        drained = in_child(self._drain)
        figures.failures.extend([] if drained.status == 0 else [f"draining ended with {drained.status}"])
        self._judge(figures, forgives)

    def _has_load(self) -> bool:
        """Return whether messages have arrived already."""
        return any(event.what == oracle.TAKEN and len(event.words) > 1 for event in events(self._journals))

    def leader(self) -> Node:
        """Return the server that leads the stream of messages."""
        return self.servers.leader_of(self._location)

    def follower(self) -> Node:
        """Return one of the others."""
        leader = self.leader()
        return self._chance.choice([node for node in self.servers.nodes if node is not leader])

    def _set_up(self) -> None:
        with persipubsub.new_environment(self._location) as environment:
            environment.new_control([ALL, PLAIN]).add_subscriber(SHARED,
                                                                 shared=True,
                                                                 lease_s=LEASE_S,
                                                                 max_deliveries=10**6)

    @contextlib.contextmanager
    def _load(self, figures: Figures, forgives: bool) -> Iterator[None]:
        pids = {role: start_child(self._child(role)) for role in CREW}
        try:
            yield
        finally:
            for pid in pids.values():
                os.kill(pid, signal.SIGTERM)
            for role, pid in pids.items():
                status = status_of(pid)
                if status and forgives:
                    figures.notes["processes that ended, since their subscriber was lost"] += 1
                elif status:
                    figures.failures.append(f"{role} ended with {status}")

    def _child(self, role: str) -> Callable[[], int]:

        def live() -> int:
            return CREW[role](Worker(self._location, self._journals, f"{role}-{self._seed}"))

        return live

    def _drain(self) -> None:
        with persipubsub.new_environment(self._location) as environment:
            for identifier in (ALL, PLAIN, SHARED):
                if identifier == SHARED:
                    time.sleep(LEASE_S + 1)  # what a worker had when it gave up comes again then
                Recorder(self._journals, f"left-{identifier}").drain(environment.new_subscriber(identifier))

    def _judge(self, figures: Figures, forgives: bool) -> None:
        noted = events(self._journals)
        asked = Oracle(noted)
        figures.messages += len(asked.ids)
        figures.notes["operations gave up"] += sum(event.what == GAVE_UP for event in noted)
        figures.notes["ms: longest wait of a send"] = max(figures.notes["ms: longest wait of a send"],
                                                          _longest_ms(noted))
        for identifier in (ALL, PLAIN, SHARED):
            verdict = asked.verdict(identifier)
            if identifier == SHARED:
                # Two processes note what they were handed, in no order.
                verdict = dataclasses.replace(verdict, misplaced=frozenset())
            figures.add(verdict)
            if forgives:
                figures.notes["lost or doubled messages"] += len(verdict.lost) + len(verdict.duplicated)
            else:
                figures.failures.extend(f"{identifier}: {fault}" for fault in verdict.faults())


def _longest_ms(noted: Sequence[Event]) -> int:
    """Return the longest time between the beginning of a send and its return."""
    began_ns: Dict[str, int] = {}
    longest_ns = 0
    for event in noted:
        if event.what == oracle.SENDING:
            began_ns[event.words[0]] = event.at_ns
        elif event.what == oracle.SENT:
            longest_ns = max(longest_ns, event.at_ns - began_ns[event.words[1]])
    return longest_ns // 10**6


Fault = Callable[[Round], None]


def _killed(node: Node) -> None:
    node.kill()
    time.sleep(DEAD_S)
    node.start()


def _stopped(node: Node, away_s: float) -> None:
    node.send_signal(signal.SIGSTOP)
    time.sleep(away_s)
    node.send_signal(signal.SIGCONT)


def _all_killed(one: Round) -> None:
    for node in one.servers.nodes:
        node.kill()
    time.sleep(DEAD_S)
    for node in one.servers.nodes:
        node.start()


def _restarted(one: Round) -> None:
    """Restart one server after the other, as an update does."""
    for node in one.servers.nodes:
        node.end(signal.SIGTERM)
        node.start()
        one.servers.wait_until_ready()


def _cut_off(one: Round) -> None:
    """Cut the leader off from the others; its clients still reach it."""
    with one.servers.cut_off(one.leader()):
        time.sleep(AWAY_S)


FAULTS: Dict[str, Fault] = {
    "leader killed": lambda one: _killed(one.leader()),
    "leader stopped": lambda one: _stopped(one.leader(), AWAY_S),
    "leader cut off": _cut_off,
    "follower killed": lambda one: _killed(one.follower()),
    "follower stopped": lambda one: _stopped(one.follower(), DEAD_S),
    "all killed": _all_killed,
    "rolling restart": _restarted,
}


def campaign(rounds: int) -> List[Figures]:
    """Let every fault happen once in each round."""
    figures = Figures("cluster")
    for seed in range(rounds):
        faults = list(FAULTS.values())
        random.Random(seed).shuffle(faults)
        with _directory() as name, Servers(pathlib.Path(name), NODES, linked=True) as servers:
            Round(pathlib.Path(name), seed, servers).run(figures, faults)
    return [figures]


# Losses of power


def _directory() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="persipubsub-cluster-")


def _lose_power(disks: Sequence[LoopDevice], one: Round) -> None:
    """Have all servers lose power at one time, and start them again with what was on their disks."""
    for disk in disks:
        disk.cut()
    for node in one.servers.nodes:
        node.kill()
    for disk in disks:
        disk.unmount()
        disk.mount()
    for node in one.servers.nodes:
        node.start()


def power_cuts(rounds: int) -> List[Figures]:
    """Cut the power of all servers once in each round.

    The long form shows in addition what happens where messages are not written to the disk before they are confirmed.
    By default that is every 2 minutes, for which nobody wants to wait here.
    """
    return [_power_cuts("always", rounds), *([_power_cuts("5s", rounds)] if rounds > 1 else [])]


def _power_cuts(sync: str, rounds: int) -> Figures:
    figures, is_safe = Figures(f"cluster-power-cuts, sync_interval: {sync}"), sync == "always"
    for seed in range(rounds):
        with contextlib.ExitStack() as stack:
            directory = pathlib.Path(stack.enter_context(_directory()))
            disks = []
            for number in range(NODES):
                (directory / f"disk{number}").mkdir()
                disks.append(stack.enter_context(LoopDevice(directory / f"disk{number}")))
            stores = [disk.path for disk in disks]
            servers = stack.enter_context(Servers(directory, NODES, f'"{sync}"', stores=stores))
            one = Round(directory, seed, servers)
            one.run(figures, [functools.partial(_lose_power, disks)], LOAD_S if is_safe else WRITTEN_S, not is_safe)
    return figures
