"""Everything at once, with processes that are killed at random: whatever was acknowledged is there at the end.

Each process does what its name says, in several threads; one does everything. The queue ``kept`` deletes only
what was acknowledged, so every message is accounted for. In the queue ``marked`` the high-water mark is reached all
the time, so the oldest may be dropped, but never one behind another that is still there. The queue ``refusing`` is full
most of the time: its senders wait for room, and only what was refused may be missing.
"""

import functools
import itertools
import os
import pathlib
import random
import signal
import tempfile
import threading
import time
import traceback
from typing import Callable, Dict, List, NamedTuple, Tuple

import persipubsub
from persipubsub import Durability, Environment, HighWaterMark, Strategy, errors
from tests.children import start_child, status_of
from tests.faults import oracle
from tests.faults.every_point import in_child
from tests.faults.figures import Figures
from tests.faults.journal import Journal, events
from tests.faults.oracle import Oracle
from tests.faults.recorder import Recorder

ROUND_S_MAX = 60  # what is noted has to fit into memory
WAIT_S = 120  # for what happens soon unless something is broken
#: Nobody receives as the first; each of the others has a process of its own. The last is pruned.
ALL, TAKERS, PRUNED = "all", ("s1", "s2", "s3", "s4"), "pruned"
#: The taker that rejects some messages, and how many of its dead letters are kept: more than it can reject.
REJECTING, DEAD_LETTERS_MAX = TAKERS[3], 10**6
MARK_MESSAGES_MIN, MARK_MESSAGES_MAX = 100, 400
NOTHING_GOES = HighWaterMark(10**7, 10**9)
#: The queue that refuses messages has one subscriber. A sender waits this long for room.
ONLY, FULL_MESSAGES, ROOM_S = "only", 100, 5
QUEUES = ("kept", "marked", "refusing")


class SubscriberRecord(NamedTuple):
    """Where a round happens."""

    directory: pathlib.Path

    def queue(self, name: str) -> pathlib.Path:
        """Return the directory of a queue."""
        return self.directory / name

    def journals(self, name: str) -> pathlib.Path:
        """Return the directory of the journals of what is done to it."""
        return self.directory / f"journals-{name}"


class Worker:
    """What one process does, until its time is over or it is killed."""

    def __init__(self, place: SubscriberRecord, name: str, until_s: float) -> None:
        self._place = place
        self._name = name
        self._until_s = until_s
        self._stopping = threading.Event()
        self._failed = False
        self._environments: Dict[str, Environment] = {
            queue: persipubsub.new_environment(place.queue(queue))
            for queue in QUEUES
        }

    def run(self, actions: List[Callable[["Worker", str], None]]) -> bool:
        """Do several things at once, each in a thread of its own; return whether all went well."""
        threads = [
            threading.Thread(target=self._run, args=(action, f"{self._name}.{number}"), daemon=True)
            for number, action in enumerate(actions)
        ]
        for thread in threads:
            thread.start()
        self._stopping.wait(max(0, self._until_s - time.monotonic()))
        self._stopping.set()
        for environment in self._environments.values():
            environment.stop()  # ends waits for room
        for thread in threads:
            thread.join(WAIT_S)
            self._failed |= thread.is_alive()
        for environment in self._environments.values():
            environment.close()
        return not self._failed

    def _run(self, action: Callable[["Worker", str], None], name: str) -> None:
        try:
            action(self, name)
        except BaseException:  # pylint: disable=broad-exception-caught  # run() shows it
            traceback.print_exc()
            self._failed = True
            self._stopping.set()

    def _recorder(self, queue: str, name: str) -> Recorder:
        return Recorder(self._place.journals(queue), name)

    def send(self, name: str) -> None:
        """Send single messages and batches to all queues."""
        chance = random.Random(name)
        publishers = [(self._recorder(queue, name), self._environments[queue].new_publisher()) for queue in QUEUES]
        while not self._stopping.is_set():
            recorder, publisher = chance.choice(publishers)
            sizes_bytes = [chance.choice([0, 0, 500, 70_000])] * chance.choice([1, 1, 1, 20])
            recorder.send(publisher, recorder.messages(*sizes_bytes))

    def send_when_there_is_room(self, name: str) -> None:
        """Send to the queue that is full most of the time."""
        chance = random.Random(name)
        recorder, publisher = self._recorder("refusing", name), self._environments["refusing"].new_publisher()
        while not self._stopping.is_set():
            recorder.send(publisher, recorder.messages(*[0] * chance.choice([1, 1, 1, 20])), ROOM_S)

    def take(self, name: str, identifier: str) -> None:
        """Receive and acknowledge messages of the queue that keeps them."""
        chance = random.Random(name)
        recorder = self._recorder("kept", name)
        subscriber = self._environments["kept"].new_subscriber(identifier)
        while not self._stopping.is_set():
            kind = chance.random()
            if kind < 0.01:
                recorder.retry(subscriber, chance.choice([1, 10]), chance.choice([0, 0.01]))
            elif kind < 0.02 and identifier == REJECTING:
                recorder.reject(subscriber)
            else:
                recorder.take(subscriber, chance.choice([1, 10, 1000]), chance.choice([0, 0.1]))

    def make_room(self, name: str) -> None:
        """Receive and acknowledge messages of the queue that is full, a few at a time."""
        chance = random.Random(name)
        recorder = self._recorder("refusing", name)
        subscriber = self._environments["refusing"].new_subscriber(ONLY)
        while not self._stopping.is_set():
            recorder.take(subscriber, chance.choice([1, 10, 50]), 0.1)
            self._stopping.wait(chance.choice([0, 0, 0.01]))

    def come_and_go(self, name: str) -> None:
        """Add subscribers that wait, and remove them."""
        chance = random.Random(name)
        control = self._environments["kept"].new_control()
        for number in itertools.count():
            if self._stopping.is_set():
                return
            identifier = f"{name}:{number}"
            control.add_subscriber(identifier)
            waiting = threading.Thread(target=self._run, args=(Worker.wait_as, identifier), daemon=True)
            waiting.start()
            self._stopping.wait(chance.uniform(0, 0.05))
            control.remove_subscriber(identifier)
            waiting.join(WAIT_S)
            assert not waiting.is_alive()

    def wait_as(self, identifier: str) -> None:
        """Wait for messages until the subscriber is removed."""
        try:
            for _ in self._environments["kept"].new_subscriber(identifier).messages(timeout=None):
                pass
        except errors.UnknownSubscriberError:
            pass

    def change(self, name: str) -> None:
        """Change the marks, the strategy and the durability, and prune."""
        chance = random.Random(name)
        kept, marked = (self._environments[queue].new_control() for queue in ("kept", "marked"))
        while not self._stopping.is_set():
            kept.set_hwm(HighWaterMark(chance.choice([10**6, 10**7]), chance.choice([10**9, 10**10])))
            kept.set_strategy(chance.choice(list(Strategy)))
            marked.set_hwm(HighWaterMark(max_messages=chance.randint(MARK_MESSAGES_MIN, MARK_MESSAGES_MAX)))
            for control in (kept, marked):
                control.prune_dangling_messages()
            kept.prune_all_messages_for(PRUNED)
            if chance.random() < 0.1:
                self._environments[chance.choice(QUEUES)].new_control(durability=chance.choice(list(Durability)))
            self._stopping.wait(chance.uniform(0, 0.05))

    def look(self, name: str) -> None:
        """Open the queues anew and look at them."""
        chance = random.Random(name)
        while not self._stopping.is_set():
            queue = chance.choice(QUEUES)
            with persipubsub.new_environment(self._place.queue(queue)) as environment:
                status = environment.new_control().status()
                assert status.floor <= status.next_id
                assert queue != "refusing" or status.messages <= FULL_MESSAGES
                environment.new_subscriber(ONLY if queue == "refusing" else ALL).front()
            self._stopping.wait(chance.uniform(0, 0.02))

    def fork(self, name: str) -> None:
        """Fork children that send through what they inherit, and kill some."""
        chance = random.Random(name)
        publisher = self._environments["kept"].new_publisher()
        for number in itertools.count():
            if self._stopping.is_set():
                return
            record = functools.partial(self._recorder, "kept", f"{name}.{number}")
            child = start_child(functools.partial(_live_as_a_child, record, publisher))
            if chance.random() < 0.2:
                time.sleep(chance.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
            status = status_of(child)
            assert status in (0, -signal.SIGKILL), status
            self._stopping.wait(chance.uniform(0, 0.1))


def _live_as_a_child(record: Callable[[], Recorder], publisher: persipubsub.Publisher) -> int:
    signal.alarm(WAIT_S)
    try:
        recorder = record()
        for sizes_bytes in ([0], [0, 500]):
            recorder.send(publisher, recorder.messages(*sizes_bytes))
    except errors.ForkError:
        pass  # another process wrote for too long
    return 0


def _take_as(identifier: str) -> Callable[[Worker, str], None]:
    return lambda worker, name: worker.take(name, identifier)


CREW: Dict[str, List[Callable[[Worker, str], None]]] = {
    "publisher0": [Worker.send, Worker.send],
    "publisher1": [Worker.send, Worker.send],
    "publisher2": [Worker.send_when_there_is_room, Worker.send_when_there_is_room],
    "subscriber-s1": [_take_as(TAKERS[0])],
    "subscriber-s2": [_take_as(TAKERS[1])],
    "subscriber-s3": [_take_as(TAKERS[2])],
    "subscriber-only": [Worker.make_room],
    "control": [Worker.come_and_go, Worker.change],
    "forker": [Worker.fork, Worker.send],
    "everything": [
        Worker.send, Worker.send, Worker.send_when_there_is_room,
        _take_as(TAKERS[3]), Worker.come_and_go, Worker.change, Worker.look, Worker.fork
    ],
}


class Round:
    """The crew at work, and what is left."""

    def __init__(self, directory: pathlib.Path, duration_s: float, seed: int) -> None:
        self._place = SubscriberRecord(directory)
        self._duration_s = duration_s
        self._chance = random.Random(seed)
        self._names = (f"{seed}-{number}" for number in itertools.count())

    def run(self, figures: Figures) -> None:
        """Run the crew, kill one process now and then, and judge what is there in the end."""
        assert in_child(self._set_up).status == 0
        killed, broken = self._kill_at_random()
        figures.rounds += 1
        figures.faults += killed
        figures.failures.extend(broken)
        looked = in_child(self._look)
        figures.failures.extend(looked.value if looked.status == 0 else [f"looking ended with {looked.status}"])
        self._judge(figures)

    def _set_up(self) -> None:
        marks = (NOTHING_GOES, *(HighWaterMark(max_messages=mark) for mark in (MARK_MESSAGES_MAX, FULL_MESSAGES)))
        for name, mark, subscribers in zip(QUEUES, marks, ([ALL, *TAKERS, PRUNED], [ALL], [ONLY])):
            self._place.journals(name).mkdir()
            with persipubsub.new_environment(self._place.queue(name)) as environment:
                strategy = Strategy.refuse if name == "refusing" else Strategy.prune_first
                control = environment.new_control(subscribers, mark, strategy, Durability.PROCESS_CRASH)
                if REJECTING in subscribers:
                    control.add_subscriber(REJECTING, max_deliveries=10**6, dead_letters_max=DEAD_LETTERS_MAX)

    def _kill_at_random(self) -> Tuple[int, List[str]]:
        """Return how many were killed, and which processes ended badly."""
        until_s = time.monotonic() + self._duration_s
        end, alive = os.pipe()
        running = {self._start(role, until_s, end): role for role in CREW}
        broken: List[str] = []
        killed = 0
        while time.monotonic() < until_s and not broken:
            time.sleep(self._chance.uniform(0.1, 0.3))  # not at once: they have to do something before
            pid = self._chance.choice(list(running))
            role = running.pop(pid)
            os.kill(pid, signal.SIGKILL)
            status = status_of(pid)
            killed += status == -signal.SIGKILL
            broken.extend([f"{role} ended with {status}"] if status > 0 else [])
            running[self._start(role, until_s, end)] = role
        for pid, role in running.items():
            status = status_of(pid)
            broken.extend([f"{role} ended with {status}"] if status else [])
        # Children of those that were killed may still be sending: wait until nobody has the pipe open any more.
        os.close(alive)
        os.read(end, 1)
        os.close(end)
        return killed, broken

    def _start(self, role: str, until_s: float, end: int) -> int:
        name = f"{role}-{next(self._names)}"

        def work() -> int:
            os.close(end)
            return 0 if Worker(self._place, name, until_s).run(CREW[role]) else 1

        return start_child(work)

    def _look(self) -> List[str]:
        """Drain both queues; return what is broken in them."""
        wrong: List[str] = []
        for name in QUEUES:
            with persipubsub.new_environment(self._place.queue(name)) as environment:
                control = environment.new_control()
                wrong.extend(f"{name}: {violation}" for violation in control.check())
                status = control.status()
                overflowed = name == "marked" and status.next_id > MARK_MESSAGES_MAX
                if overflowed and status.messages < MARK_MESSAGES_MIN // 2 - 1:
                    wrong.append(f"of the marked queue only {status.messages} messages are left")
                for identifier in status.subscribers.keys() & {ALL, *TAKERS, ONLY}:
                    letters = control.dead_letters(identifier) if identifier == REJECTING else ()
                    recorder = Recorder(self._place.journals(name), f"left-{identifier}")
                    recorder.drain(environment.new_subscriber(identifier), letters)
                wrong.extend(f"{name}, drained: {violation}" for violation in control.check())
        return wrong

    def _judge(self, figures: Figures) -> None:
        journal = Journal(self._place.journals("marked") / "pruning")
        journal.note(oracle.MAY_GO, [ALL, str(10**9)])
        journal.close()
        for name, identifiers in zip(QUEUES, ((ALL, *TAKERS), (ALL, ), (ONLY, ))):
            noted = events(self._place.journals(name))
            asked = Oracle(noted)
            figures.messages += len(asked.ids)
            figures.notes["sends refused"] += sum(event.what == oracle.REFUSED for event in noted)
            for identifier in identifiers:
                verdict = asked.verdict(identifier)
                figures.add(verdict)
                figures.failures.extend(f"{name}, {identifier}: {fault}" for fault in verdict.faults())


def campaign(duration_s: int) -> List[Figures]:
    """Run chaos for a number of seconds, in rounds."""
    figures = Figures("chaos")
    for seed in range(-(-duration_s // ROUND_S_MAX)):
        with tempfile.TemporaryDirectory(prefix="persipubsub-chaos-") as directory:
            Round(pathlib.Path(directory), min(ROUND_S_MAX, duration_s - ROUND_S_MAX * seed), seed).run(figures)
    return [figures]
