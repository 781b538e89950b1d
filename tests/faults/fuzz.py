"""Open, check and recover broken and hostile files: each case in a child of its own, which must end well and in time.

``python -m tests.faults.fuzz --cases 10000 --seed 1`` runs that many cases and prints their outcomes. A case
is a valid queue of which bytes were flipped, pages were overwritten or swapped, the end was cut off, or records were
replaced by crafted ones. It must end in an error of ours or in messages that were sent: no crash, no hang, no other
exception, no bytes from elsewhere.

What a plain opening has to find (cut files, broken meta pages, crafted records in sound pages, broken side files) goes
to it, and so does any damage of a small queue. What only verifying finds (flipped bytes anywhere) goes to the paths
that verify: an opening after another boot, check and recover. Where it meets plain use of a large queue, LMDB may end
the process, or keep it busy: such ends are counted apart, and one server that looks at all of these queues survives.
"""

import argparse
import collections
import contextlib
import dataclasses
import logging
import os
import pathlib
import random
import shutil
import signal
import struct
import sys
import tempfile
from typing import Callable, Counter, List

import persipubsub
from persipubsub import (Control, Durability, Envelope, Environment, HighWaterMark, clock, errors, recovery,
                         status_reader)
from persipubsub.lmdb_engine.process import files, opening_check
from tests.children import start_child, status_of
from tests.faults.file_damages import (Damage, break_meta, break_side_files, break_type, craft, flip, swap_pages,
                                       truncate)

#: A case takes some milliseconds.
CASE_S_MAX = 20
#: Each payload shows that it is one of ours: its number again and again.
LENGTHS = (8, 64, 1000, 5000, 70_000)
ENDED_WELL = 0
#: After this number of cases, the server looks at the queue first: it costs more than the case.
CASES_PER_LOOK = 7
#: Nobody.
OTHER_USER = 65534
SHARED, LIMITED = "shared", "limited"


class BlockError(Exception):
    """Raised in the blocks of receives."""


def payload(number: int) -> bytes:
    """Return a message that can be recognised."""
    return struct.pack(">Q", number) * (LENGTHS[number % len(LENGTHS)] // 8)


def envelope(number: int) -> "Envelope[bytes]":
    """Return a message that can be recognised; half of them have headers, of all lengths."""
    headers = {"number": "1" * LENGTHS[number % 4]} if number % 2 else None
    return Envelope(payload(number), headers)


def make_small_queue(path: pathlib.Path) -> None:
    """Make a queue that is verified at every opening: short messages, records in most sub-databases, free pages."""
    with persipubsub.new_environment(path) as environment:
        control = environment.new_control(["a", "b"], durability=Durability.PROCESS_CRASH)
        publisher = environment.new_publisher()
        for number in range(0, 200, len(LENGTHS)):
            publisher.send_many([envelope(number), *[payload(number)] * 9])
        with environment.new_subscriber("a").receive_many(100):
            pass
        add_deliveries(environment, control)
    assert (path / files.DATA_FILE).stat().st_size <= opening_check.VERIFIED_BYTES_MAX


def make_queue(path: pathlib.Path) -> None:
    """Make the queue that is damaged: messages of all sizes, records in all sub-databases, free pages."""
    mark = HighWaterMark(10**6, 1000)
    with persipubsub.new_environment(path) as environment:
        control = environment.new_control(["a", "b"], mark, durability=Durability.PROCESS_CRASH)
        publisher = environment.new_publisher()
        for number in range(1, 301):
            publisher.send(envelope(number))
        for identifier in ("a", "b"):
            with environment.new_subscriber(identifier).receive_many(100):
                pass
        with environment.new_subscriber("a").receive_many(50):
            pass
        add_deliveries(environment, control)
        for number in range(301, 321):
            publisher.send_later(envelope(number), delay_s=10**6)
            publisher.send(envelope(number), deduplication_id=f"{number:012d}")


def add_deliveries(environment: Environment, control: Control) -> None:
    """Set up messages in flight, dead letters and requeued messages of a shared and a plain subscriber."""
    control.add_subscriber(SHARED, start="earliest", shared=True, max_deliveries=1)
    control.add_subscriber(LIMITED, start="earliest", max_deliveries=1)
    for identifier in (SHARED, LIMITED):
        for _ in range(20):
            with contextlib.suppress(BlockError), environment.new_subscriber(identifier).receive():
                raise BlockError("failed " * 20)
        ids = [letter.id for letter in control.dead_letters(identifier)]
        control.requeue_dead_letters(identifier, ids[::2])
    control.add_subscriber(SHARED, max_deliveries=3)
    control.add_subscriber(LIMITED, max_deliveries=3)
    for identifier in (SHARED, LIMITED, SHARED):
        with contextlib.suppress(BlockError), environment.new_subscriber(identifier).receive_many(10):
            raise BlockError


# What is done with the damaged queue


def require_ours(messages: List[bytes]) -> None:
    """Make sure that no message has bytes from elsewhere."""
    for message in messages:
        number = int.from_bytes(message[:8], "big")
        assert message == payload(number), f"{len(message)} bytes that nobody sent: {message[:40]!r}"


def use(path: pathlib.Path) -> List[bytes]:
    """Open the queue, and do what users do."""
    with persipubsub.new_environment(path) as environment:
        messages: List[bytes] = []
        for identifier in ("a", "b", SHARED, LIMITED):
            try:
                deliveries = environment.new_subscriber(identifier).deliveries(timeout=0)
                messages += [delivery.message for delivery in deliveries]
            except errors.UnknownSubscriberError:
                pass
        environment.new_publisher().send(b"new")
        environment.new_control().status()
        environment.new_control().prune_dangling_messages()
        messages += use_letters(environment)
    return messages


def use_letters(environment: Environment) -> List[bytes]:
    """Do what users do with shared subscribers and dead letters."""
    messages: List[bytes] = []
    control = environment.new_control()
    for identifier in (SHARED, LIMITED):
        try:
            messages += [letter.payload for letter in control.dead_letters(identifier)]
            control.requeue_dead_letters(identifier)
            subscriber = environment.new_subscriber(identifier)
            for _ in range(2):
                with contextlib.suppress(BlockError), subscriber.receive_many(5, timeout=0) as found:
                    messages += found
                    raise BlockError
            control.discard_dead_letters(identifier)
            control.rewind(identifier, "earliest")
        except (errors.UnknownSubscriberError, errors.SubscriberKindError, errors.ArgumentError):
            pass
    control.status()
    return messages


def use_plainly(path: pathlib.Path) -> List[bytes]:
    """Open the queue in the boot in which it was closed."""
    return use(path)


def read_plainly(path: pathlib.Path) -> List[bytes]:
    """Read the status, as a program does."""
    status_reader.read_status(path)
    return []


def as_other_user(path: pathlib.Path) -> List[bytes]:
    """Use the queue as somebody who owns the directory, but perhaps not the files."""
    if not os.getuid():
        os.chown(path, OTHER_USER, OTHER_USER)
        if path.stat().st_ino % 2:
            os.chown(path / files.DATA_FILE, OTHER_USER, OTHER_USER, follow_symlinks=False)
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)
    return use(path)


def use_after_boot(path: pathlib.Path) -> List[bytes]:
    """Open the queue with the unclean marker of another boot."""
    (path / files.UNCLEAN_FILE).write_bytes(bytes(16))
    return use(path)


def check(path: pathlib.Path) -> List[bytes]:
    """Check the queue as the command does."""
    use_lock = opening_check.try_exclusive(path)
    assert use_lock is not None
    try:
        found = opening_check.violations(path)
    finally:
        use_lock.close()
    if found:
        raise errors.DamagedError(str(found[0]))
    return []


def recover(path: pathlib.Path) -> List[bytes]:
    """Recover the queue, which must then be sound."""
    recovery.recover(path)
    try:
        check(path)
        return use(path)
    except errors.DamagedError as error:
        raise AssertionError(f"recovered, and damaged: {error}") from error


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is damaged, and how it is looked at."""

    damage: Damage
    use: Callable[[pathlib.Path], List[bytes]]
    #: Whether payloads are as they were sent: LMDB has no checksums, so changed bytes within them cannot be found.
    payloads_intact: bool = False
    #: Whether the queue is so small that every opening verifies its pages.
    small: bool = False
    #: Whether LMDB may end the process: pages of a queue that nothing verifies.
    may_end: bool = False

    def __str__(self) -> str:
        return f"{self.damage.__name__}/{self.use.__name__}{' (small)' if self.small else ''}"


KINDS = [Kind(damage, used, False) for damage in (flip, swap_pages) for used in (use_after_boot, check, recover)] + [
    Kind(truncate, used, used is not recover) for used in (use_plainly, use_after_boot, check, recover)
] + [Kind(break_meta, used, True) for used in (use_plainly, use_after_boot, check)] + [
    Kind(break_meta, recover, False)
] + [Kind(craft, used) for used in (use_plainly, use_after_boot, check, recover)] + [
    Kind(damage, used, small=True) for damage in (flip, swap_pages) for used in (use_plainly, read_plainly)
] + [Kind(damage, used, may_end=True) for damage in (flip, swap_pages) for used in (use_plainly, read_plainly)] + [
    Kind(damage, used, True) for damage in (break_side_files, break_type) for used in (use_plainly, as_other_user)
]


def run_case(templates: pathlib.Path, server: status_reader.StatusReader, number: int, seed: int) -> str:
    """Run one case in a child and return its outcome; an outcome that is wrong begins with "BAD"."""
    kind = KINDS[number % len(KINDS)]
    path = templates / "queue"
    _lay_out(templates / ("small" if kind.small else "large"), path)
    kind.damage(path / files.DATA_FILE, random.Random(f"{seed}/{number}"))
    if not number % CASES_PER_LOOK:
        _require_survival(server, path, templates / "small")
    code = status_of(start_child(lambda: _child(kind, path)))
    if code == ENDED_WELL:
        return f"{kind}: {(templates / 'outcome').read_text()}"
    ended = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    if kind.may_end and -code in (*status_reader.CRASHES, signal.SIGALRM):
        return f"{kind}: {ended}"
    return f"BAD {kind} case {number}: {ended}"


def _lay_out(template: pathlib.Path, path: pathlib.Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    shutil.copyfile(template / files.DATA_FILE, path / files.DATA_FILE)
    (path / files.USE_FILE).touch()


def _require_survival(server: status_reader.StatusReader, path: pathlib.Path, good: pathlib.Path) -> None:
    """Have a server look at a damaged queue, and make sure that it can look at another one afterwards."""
    copy = path.parent / "looked-at"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.move(path, copy)
    with contextlib.suppress(errors.PersipubsubError):
        server.read_status(copy)
    assert server.read_status(good).subscribers
    shutil.move(copy, path)


def _child(kind: Kind, path: pathlib.Path) -> int:
    signal.alarm(CASE_S_MAX)
    outcome = "served"
    report = os.open(path.parent / "outcome", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        messages = kind.use(path)
        if kind.payloads_intact:
            require_ours(messages)
    except errors.PersipubsubError as error:
        outcome = type(error).__name__
    os.write(report, outcome.encode())
    return ENDED_WELL


def run(cases: int, seed: int) -> Counter[str]:
    """Run cases and count what came of them."""
    clock.boot_id()
    outcomes: Counter[str] = collections.Counter()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="persipubsub-fuzz-", dir=memory) as name:
        directory = pathlib.Path(name)
        directory.chmod(0o711)  # for another user to get to the queue
        make_queue(directory / "large")
        make_small_queue(directory / "small")
        server = status_reader.StatusReader()
        for number in range(cases):
            outcomes[run_case(directory, server, number, seed)] += 1
        server.close()
    return outcomes


def main() -> int:
    """Run a number of cases."""
    parser = argparse.ArgumentParser(description="Fuzz the opening, checking and recovering of damaged queues.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("persipubsub").addHandler(logging.NullHandler())  # warnings would hide the outcomes
    outcomes = run(arguments.cases, arguments.seed)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:6} {outcome}")
    return int(any(outcome.startswith("BAD") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
