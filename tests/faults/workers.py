"""Workers that share a subscriber and are killed, one after the other: no message is lost, none is acknowledged twice.

A worker notes durably what it was handed before it acknowledges it, and that it did so after it. So of what was in the
hands of a worker that was killed, nobody knows whether it was acknowledged: it is of unknown outcome, unless it comes
again. The queue knows how many were.

Some messages are retried: their receiver asks for another delivery, until they have been delivered often enough. In the
second variation some are poisonous: the block of their receiver raises or rejects them, or its process dies.
"""

import collections
import itertools
import os
import pathlib
import random
import signal
import tempfile
import time
from typing import Counter, Dict, List, NamedTuple, Sequence, Set

import persipubsub
from persipubsub import Delivery, Durability, HighWaterMark, Reject, Retry, errors
from tests.children import start_child
from tests.faults import oracle
from tests.faults.every_point import in_child
from tests.faults.figures import Figures
from tests.faults.journal import (Event, Journal, envelope, events, is_broken, message, name_of, name_with_headers,
                                  sender_and_number)

WORKERS = 8
#: One message of that many has that many bytes; the others are as short as can be.
SIZES_BYTES = {50: 500, 500: 70_000}
#: That many are sent together, and the next ones one by one.
SENT_TOGETHER = 500
BATCH_MESSAGES = 10
KILL_EVERY_S = 0.2
WORK_S = 0.004  # on each message, so that most of those that die hold some
LEASE_S = 1.0
FOREVER_S = 600  # for what ends soon unless something is broken
#: More often than any message is in the hands of a worker that dies.
MANY_DELIVERIES = 10**6
POISON_DELIVERIES = 4
POISONOUS = 5  # messages of each kind
#: Senders of messages that raise, of those that kill, and of those that are rejected.
RAISING, KILLING, REJECTED = "raising", "killing", "rejected"
#: The sender of messages that are retried: how many there are, which delivery succeeds, and the delay before it.
RETRIED, RETRIED_MESSAGES, SUCCEEDS_AT, RETRY_S = "retried", 20, 3, 0.01
#: Further words of the journals: worker, names of messages.
ASKING = "asking"  # worker: it begins to wait for messages
FAILED = "failed"  # * given back, since the block raised
LATE = "late"  # * some of them were another worker's already


class Poisoned(Exception):
    """Raised by the work on a poisonous message."""


def name_of_delivery(delivery: "Delivery[bytes]") -> str:
    """Return the name of a message that was received."""
    return name_with_headers(delivery.message, delivery.headers)


def work(delivery: "Delivery[bytes]", alone: bool) -> None:
    """Do what a worker does with a message.

    :param alone: whether it was received alone, so that no other one is rejected with it
    """
    name = name_of_delivery(delivery)
    if is_broken(name):
        return  # it is noted, and judged in the end
    sender, _ = sender_and_number(name)
    if sender == RAISING:
        raise Poisoned(sender)
    if sender == KILLING:
        os.kill(os.getpid(), signal.SIGKILL)
    if sender == REJECTED and alone:
        raise Reject("on purpose")
    if sender == REJECTED or (sender == RETRIED and delivery.delivery_count < SUCCEEDS_AT):
        raise Retry(RETRY_S)
    time.sleep(WORK_S)


def live(path: pathlib.Path, journals: pathlib.Path, name: str) -> None:
    """Be a worker until nothing is left to do."""
    journal = Journal(journals / name)
    environment = persipubsub.new_environment(path)
    control, subscriber = environment.new_control(), environment.new_subscriber("workers")
    while True:
        words, outcome = [name], FAILED  # the block swallows Retry and Reject
        journal.note(ASKING, words)
        try:
            with subscriber.receive_deliveries(BATCH_MESSAGES, timeout=LEASE_S) as deliveries:
                if not deliveries:
                    if not control.status().subscribers["workers"].pending:
                        return
                    continue
                words += map(name_of_delivery, deliveries)
                journal.note(oracle.HANDED, words, durably=True)
                for delivery in deliveries:
                    work(delivery, len(deliveries) == 1)
                outcome = oracle.TAKEN
        except Poisoned:
            pass
        except errors.LeaseLostError:
            outcome = LATE
        journal.note(outcome, words, durably=True)


class Seen(NamedTuple):
    """What the queue says in the end."""

    taken: int
    dead: Dict[str, int]  # how often each dead letter was handed out, by its name
    left: int
    violations: List[str]


class Round:
    """The workers, and the messages that they work on."""

    def __init__(self, directory: pathlib.Path, messages: int, poisonous: bool) -> None:
        self._queue = directory / "queue"
        self._journals = directory / "journals"
        self._messages = [
            message("plain", number, max((size for every, size in SIZES_BYTES.items() if number % every == 0),
                                         default=0)) for number in range(messages)
        ]
        self._max_deliveries = POISON_DELIVERIES if poisonous else MANY_DELIVERIES
        self._spread(RETRIED, RETRIED_MESSAGES)
        for sender in (RAISING, KILLING, REJECTED) if poisonous else ():
            self._spread(sender, POISONOUS)
        self._chance = random.Random(messages)
        self._names = (str(number) for number in itertools.count())

    def _spread(self, sender: str, count: int) -> None:
        """Put the messages of a sender among the others."""
        spread = len(self._messages) // count
        for number in range(count):
            self._messages.insert(number * spread, message(sender, number))

    def run(self, figures: Figures) -> None:
        """Run workers, kill them, and judge what became of the messages."""
        figures.rounds, figures.messages = 1, len(self._messages)
        self._journals.mkdir()
        assert in_child(self._set_up).status == 0
        start_s = time.monotonic()
        ended = self._kill_one_after_the_other()
        figures.faults = ended[-signal.SIGKILL]
        figures.failures.extend(f"a worker ended with {code}" for code in ended.keys() - {0, -signal.SIGKILL})
        figures.notes["seconds"] = round(time.monotonic() - start_s)
        looked = in_child(self._look)
        if looked.status:
            figures.failures.append(f"looking ended with {looked.status}")
        else:
            names = {name_of(msg) for msg in self._messages}
            judge(names, Hands(events(self._journals)), Seen(*looked.value), self._max_deliveries, figures)

    def _set_up(self) -> None:
        with persipubsub.new_environment(self._queue) as environment:
            control = environment.new_control([], HighWaterMark(10**7, 10**9), durability=Durability.PROCESS_CRASH)
            control.add_subscriber("workers",
                                   shared=True,
                                   lease_s=LEASE_S,
                                   max_deliveries=self._max_deliveries,
                                   retry_delay_s=0.01)
            publisher = environment.new_publisher()
            for start in range(0, len(self._messages), 2 * SENT_TOGETHER):
                publisher.send_many(map(envelope, self._messages[start:start + SENT_TOGETHER]))
                for msg in self._messages[start + SENT_TOGETHER:start + 2 * SENT_TOGETHER]:
                    publisher.send(envelope(msg))

    def _kill_one_after_the_other(self) -> Counter[int]:
        """Kill a worker now and then, until one finds nothing left; return how they ended."""
        running = {self._start() for _ in range(WORKERS)}
        ended: Counter[int] = collections.Counter()
        next_s = time.monotonic()
        while not ended.keys() - {-signal.SIGKILL}:
            next_s += KILL_EVERY_S
            time.sleep(max(0, next_s - time.monotonic()))
            victim = self._chance.choice(sorted(running))
            os.kill(victim, signal.SIGKILL)
            for pid in sorted(running):
                found, status = os.waitpid(pid, 0 if pid == victim else os.WNOHANG)
                if found:
                    running.remove(pid)
                    ended[os.waitstatus_to_exitcode(status)] += 1
                    running.add(self._start())
        ended.update(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running)
        return ended

    def _start(self) -> int:
        name = next(self._names)

        def begin() -> int:
            signal.alarm(FOREVER_S)
            live(self._queue, self._journals, name)
            return 0

        return start_child(begin)

    def _look(self) -> Seen:
        with persipubsub.new_environment(self._queue) as environment:
            control = environment.new_control()
            status = control.status().subscribers["workers"]
            dead = {
                name_with_headers(letter.payload, letter.headers): letter.deliveries
                for letter in control.dead_letters("workers")
            }
            return Seen(status.taken, dead, status.pending, list(map(str, control.check())))


class Hands:
    """What workers held."""

    def __init__(self, noted: Sequence[Event]) -> None:
        self.handed: Counter[str] = collections.Counter()
        self.taken: Counter[str] = collections.Counter()
        #: How often each was given up by a worker that did not acknowledge it: it raised, was late, or died.
        self.let_go: Counter[str] = collections.Counter()
        #: In the hands of those that died or were late: they may be acknowledged.
        self.doubtful: Set[str] = set()
        self.handed_after_taken: Set[str] = set()
        self.times: Counter[str] = collections.Counter()  # of each outcome
        holding: Dict[str, Sequence[str]] = {}
        asked_ns: Dict[str, int] = {}
        taken_ns: Dict[str, int] = {}
        for event in noted:
            worker, *names = event.words
            self.times[event.what] += 1
            if event.what == ASKING:
                asked_ns[worker] = event.at_ns
                continue
            if event.what == oracle.HANDED:
                # A worker may be so slow to note it that its lease has ended and another one has taken the messages.
                since_ns = asked_ns.get(worker, event.at_ns)
                self.handed_after_taken.update(name for name in names if taken_ns.get(name, since_ns) < since_ns)
                self.handed.update(names)
                holding[worker] = names
                continue
            del holding[worker]
            if event.what == oracle.TAKEN:
                self.taken.update(names)
                taken_ns.update(dict.fromkeys(names, event.at_ns))
            else:
                self._let_go(names, doubtful=event.what == LATE)
        for held in holding.values():
            self._let_go(held, doubtful=True)
        self.died_holding = len(holding)

    def _let_go(self, names: Sequence[str], doubtful: bool) -> None:
        self.let_go.update(names)
        if doubtful:
            self.doubtful.update(names)


def judge(sent: Set[str], hands: Hands, seen: Seen, max_deliveries: int, figures: Figures) -> None:
    """Return what became of each message, and what must not be."""
    again = {name for name, times in hands.taken.items() if times > 1} | hands.handed_after_taken
    once = hands.taken.keys() - again
    unknown = (hands.doubtful & sent) - hands.taken.keys() - seen.dead.keys()
    lost = sent - hands.taken.keys() - unknown - seen.dead.keys()
    figures.ok, figures.duplicated, figures.unknown, figures.lost = map(len, (once, again, unknown, lost))
    redelivered = sum(hands.handed.values()) - len(hands.handed)
    figures.notes.update({
        "deliveries": sum(hands.handed.values()),
        "redeliveries": redelivered,
        "dead letters": len(seen.dead),
        "workers died holding messages": hands.died_holding,
        "blocks raised": hands.times[FAILED],
        "leases ended before the acknowledgement": hands.times[LATE],
    })
    rejected = {name for name in sent if sender_and_number(name)[0] == REJECTED}
    poisonous = {name for name in sent if sender_and_number(name)[0] in (RAISING, KILLING)} | rejected
    too_often = {name for name, times in hands.handed.items() if times - 1 > hands.let_go[name]}
    let_go = hands.died_holding + hands.times[FAILED] + hands.times[LATE]
    wrong = {
        "lost": lost,
        "taken or handed out again after they were taken": again,
        "handed out again though nobody had let them go": too_often,
        "invented, or with other bytes than were sent": (hands.handed.keys() | seen.dead.keys()) - sent,
        "dead and taken": seen.dead.keys() & hands.taken.keys(),
        "dead, but not after the right number of deliveries": {
            name
            for name, times in seen.dead.items()
            if (times != max_deliveries and name not in rejected) or hands.handed[name] > times
        },
        "poisonous and not dead": poisonous - seen.dead.keys(),
    }
    figures.failures.extend(f"{len(names)} {what}: {', '.join(sorted(names)[:5])}" for what, names in wrong.items()
                            if names)
    if redelivered > let_go * BATCH_MESSAGES:
        figures.failures.append(f"{redelivered} redeliveries, but only {let_go} times were messages let go")
    if seen.taken != len(once) + len(unknown) or seen.left:
        figures.failures.append(f"the queue counts {seen.taken} messages taken and {seen.left} left, "
                                f"but {len(once)} were acknowledged, and {len(unknown)} maybe")
    figures.failures.extend(f"check() says {violation}" for violation in seen.violations)


def campaign(messages: int) -> List[Figures]:
    """Have a number of messages worked on, and a tenth of that with poisonous ones among them."""
    found = []
    for name, count, poisonous in (("workers", messages, False), ("workers, poisoned", messages // 10, True)):
        with tempfile.TemporaryDirectory(prefix="persipubsub-workers-") as directory:
            figures = Figures(name)
            Round(pathlib.Path(directory), count, poisonous).run(figures)
            found.append(figures)
    return found
