"""Kills and errors at every system call of every operation.

An operation is one transaction: after a fault at any of its system calls, a process that opens the queue finds it as it
was before or as it is after the operation, nothing in between; after an operation that returned, as after it, and after
one that raised, as before it.

Runs in a process with interpose.c, which opens no queue itself: each operation and each look is in a child of its own.
"""

import errno
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import persipubsub
from persipubsub import Durability, errors
from tests.children import start_child, status_of
from tests.faults import operations, oracle
from tests.faults.figures import Figures
from tests.faults.interposed import Fault, Interposed, Kind
from tests.faults.journal import Journal, events, name_of
from tests.faults.operations import Operation, State
from tests.faults.oracle import Oracle
from tests.faults.shared_operations import WORKERS

KILLS = [(Kind.KILL_BEFORE, 0), (Kind.KILL_AFTER, 0)]
ERRORS = [(Kind.FAIL_ONCE, errno.EIO), (Kind.FAIL_ON, errno.EIO), (Kind.FAIL_ONCE, errno.ENOSPC),
          (Kind.FAIL_ON, errno.ENOSPC)]
#: The subscriber that is added after an error, in the same process, to see whether it works.
PROBE = "probe"
RETURNED = "returned"


class Child(NamedTuple):
    """How a child ended: what it returned, or None where it was killed."""

    status: int
    value: Any


def in_child(function: Callable[[], Any]) -> Child:
    """Run a function in a child, and return its result, through JSON."""
    reading, writing = os.pipe()

    def run() -> int:
        os.close(reading)
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(function(), pipe)
        return 0

    child = start_child(run)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    status = status_of(child)
    return Child(status, json.loads(text) if status == 0 else None)


def look(path: pathlib.Path) -> Optional[State]:
    """Look at a queue in a child."""
    child = in_child(lambda: operations.look(path))
    assert child.status == 0, f"a process that opened the queue at {path} ended with {child.status}"
    return State(*child.value) if child.value else None


class Range:  # pylint: disable=too-many-instance-attributes  # two locations and two states, beside the operation
    """One operation at which faults are injected: its queue, made anew each time, and the correct outcomes."""

    def __init__(self, operation: Operation, durability: Durability, directory: pathlib.Path) -> None:
        self.operation = operation
        self._filled = directory / "filled"
        self.path = directory / "queue"
        self._journals = directory / "journals"
        names = [] if operation.creates else in_child(lambda: operations.fill(self._filled, durability)).value
        self._filled.mkdir(exist_ok=True)
        self._names: List[str] = names
        self._make_anew()
        assert in_child(lambda: bool(operation.prepare(self.path))).status == 0
        self.before = look(self.path)
        self.calls: int = self.strike(Fault(Kind.COUNT)).value["calls"]
        self.after = look(self.path)

    def _make_anew(self) -> None:
        for directory in (self.path, self._journals):
            shutil.rmtree(directory, ignore_errors=True)
        self._journals.mkdir()
        if not self.operation.creates:
            shutil.copytree(self._filled, self.path)

    def strike(self, fault: Fault) -> Child:
        """Run the operation in a child, with a fault, and after an error change the queue in the same process."""
        self._make_anew()
        return in_child(lambda: self._run(fault))

    def _run(self, fault: Fault) -> Any:
        interposed = Interposed()
        journal = Journal(self._journals / "journal")
        journal.note(oracle.SENDING, self._names)
        journal.note(oracle.SENT, ["1", *self._names])
        for subscriber in self.operation.prunes:
            journal.note(oracle.MAY_GO, [subscriber, str(len(self._names))])
        if self.operation.is_last:
            journal.note(oracle.HANDED, ["b", *self._names])
        action = self.operation.prepare(self.path)
        sends = [name_of(payload) for payload in self.operation.sends]
        journal.note(oracle.SENDING, sends, durably=True)
        # Before it has them: a process that is killed can no longer note what it acknowledged.
        journal.note(oracle.HANDED, [self.operation.taker, *self._names[:self.operation.takes]], durably=True)
        outcome = RETURNED
        interposed.arm(fault)
        try:
            action()
        except Exception as error:  # pylint: disable=broad-exception-caught  # its type is judged by judge()
            outcome = type(error).__name__
        calls = interposed.disarm()
        if outcome == RETURNED:
            if sends:
                journal.note(oracle.SENT, [str(len(self._names) + 1), *sends], durably=True)
            journal.note(oracle.TAKEN, [self.operation.taker, *self._names[:self.operation.takes]], durably=True)
        return {"calls": calls, "outcome": outcome, "probe": self._probe() if fault.errno else ""}

    def _probe(self) -> str:
        """Change the queue after an error, and return what comes of it."""
        try:
            with persipubsub.new_environment(self.path) as environment:
                environment.new_control().add_subscriber(PROBE)
        except Exception as error:  # pylint: disable=broad-exception-caught  # its type is judged by judge()
            return type(error).__name__
        return RETURNED

    def judge(self, fault: Fault, child: Child, figures: Figures) -> None:
        """Look at the queue after a fault."""
        figures.faults += 1
        figures.rounds += 1
        where = f"{self.operation.name}, {fault.kind.name} {errno.errorcode.get(fault.errno, '')} at call {fault.at}"
        outcome = child.value["outcome"] if child.value else ""
        if child.status != (0 if fault.errno else -9):
            figures.failures.append(f"{where}: ended with {child.status}")
        found = look(self.path)
        for failure in self._wrong(outcome, child.value["probe"] if child.value else "", found):
            figures.failures.append(f"{where}: {outcome or 'killed'}, {failure}")
        if fault.errno:
            figures.notes[f"{errno.errorcode[fault.errno]} {fault.kind.name}: {outcome}, "
                          f"then a change {child.value['probe'] if child.value else '?'}"] += 1
        self._ask_oracle(where, found, figures)

    def _wrong(self, outcome: str, probe: str, found: Optional[State]) -> Iterator[str]:
        """Return what is not as it must be."""
        if outcome not in ("", RETURNED) and not hasattr(errors, outcome):
            yield "which is none of our errors"
        if found is None:
            if self.before is not None or outcome == RETURNED:
                yield "the queue is gone"
            return
        if found.violations:
            yield f"check() says {found.violations}"
        probed = PROBE in found.left
        if probe == RETURNED and not probed:
            yield "what was changed afterwards is lost"
        bare = found._replace(left={
            identifier: names
            for identifier, names in found.left.items() if identifier != PROBE
        })
        allowed = {
            RETURNED: [self.after],
            "": [self.before, self.after],
            "CommitUnknownError": [self.before, self.after]
        }
        if bare in self._also(outcome, allowed.get(outcome, [self.before])):
            return
        yield "although it is done" if bare == self.after else f"the queue is not as it must be: {bare}"

    def _also(self, outcome: str, states: Sequence[Optional[State]]) -> List[Optional[State]]:
        """Add what an interrupted setup may leave, which is not one transaction: a queue without its subscribers."""
        if self.operation.creates and outcome != RETURNED and self.after is not None:
            return [*states, State({}, self.after.settings, self.after.next_id, [])]
        return list(states)

    def _ask_oracle(self, where: str, found: Optional[State], figures: Figures) -> None:
        journal = Journal(self._journals / "left")
        left = {} if found is None else found.left
        for subscriber, names in left.items():
            journal.note(oracle.LEFT, [subscriber, *names])
        journal.close()
        asked = Oracle(events(self._journals))
        figures.messages += len(asked.ids)
        for subscriber in (*operations.SUBSCRIBERS, WORKERS):
            if subscriber in left:
                verdict = asked.verdict(subscriber)
                figures.add(verdict)
                figures.failures.extend(f"{where}: {subscriber}: {fault}" for fault in verdict.faults())


def campaign(kinds: Sequence[Tuple[Kind, int]], stride: int) -> List[Figures]:
    """Inject faults at every call, or at every n-th one with an offset that differs between the operations."""
    found = []
    for durability in Durability:
        figures = Figures(f"{'errors' if kinds[0][1] else 'kills'} at every point, {durability.name}")
        for place, operation in enumerate(operations.OPERATIONS):
            with tempfile.TemporaryDirectory(prefix="persipubsub-faults-") as directory:
                struck = Range(operation, durability, pathlib.Path(directory))
                figures.notes[f"{operation.name}: {struck.calls} calls"] += 1
                points = [Fault(kind, at, number) for at in range(1, struck.calls + 1) for kind, number in kinds]
                for fault in points[place % stride::stride]:
                    struck.judge(fault, struck.strike(fault), figures)
        found.append(figures)
    return found
