"""Measuring: every contestant in turn, a slice at a time, so that a slow spell of the disk affects all of them."""

import contextlib
import dataclasses
import functools
import gc
import math
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Callable, ContextManager, Dict, Iterator, List, NamedTuple, Sequence, Tuple, TypeVar

from benchmarks.results import Duration, Latency, Rate, Setting
from benchmarks.scale import Scale

T = TypeVar("T")

#: Steps before the clock starts, which open what is opened on first use.
WARM_UP_STEPS = 3
#: The slow spells of a disk may be shorter than a round.
SLICES = 10
#: On a busy machine the time of a short slice may be over before its first message.
TRIES = 100


class LeftContest(Exception):
    """A contestant cannot go on, or cannot do this at all; the others go on without it."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Where a round ends, whichever comes first."""

    seconds: float
    messages_max: int


class Tally(NamedTuple):
    """How many messages went through, and how long that took."""

    messages: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Steps:
    """A contestant that is ready to run.

    A step does one operation and returns its number of messages; 0 means that it needs a refill, which is not timed.
    """

    step: Callable[[], int]
    refill: Callable[[], None] = lambda: None


#: Runs within the bounds.
Turn = Callable[[Bounds], Tally]
#: Sets up what a turn needs in a fresh directory, for a round of these bounds.
Opening = Callable[[pathlib.Path, Setting, Bounds], ContextManager[Turn]]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A contestant: its name, and how it runs a workload."""

    name: str
    setting: Setting
    opening: Opening


def stepwise(opening: Callable[[pathlib.Path, Setting, Bounds], ContextManager[Steps]],
             clock: Callable[[], float] = time.perf_counter) -> Opening:
    """Make turns of steps.

    :param clock: what time is measured, in seconds: that which passes, or that of the processor
    """

    @contextlib.contextmanager
    def opened(directory: pathlib.Path, setting: Setting, bounds: Bounds) -> Iterator[Turn]:
        with opening(directory, setting, bounds) as steps:
            for _ in range(WARM_UP_STEPS):
                steps.step()
            yield functools.partial(run_steps, steps, clock=clock)

    return opened


def at_once(run: Callable[[pathlib.Path, Setting, Bounds], Tally]) -> Opening:
    """Make turns that set everything up themselves."""

    @contextlib.contextmanager
    def opened(directory: pathlib.Path, setting: Setting, _bounds: Bounds) -> Iterator[Turn]:
        yield functools.partial(run, directory, setting)

    return opened


def run_steps(steps: Steps, bounds: Bounds, clock: Callable[[], float] = time.perf_counter) -> Tally:
    """Run steps, and refill as often as necessary."""
    step = steps.step
    total, spent_s = 0, 0.0
    while True:
        start_s = now_s = clock()
        end_s = start_s + bounds.seconds - spent_s
        done = 1
        while done and now_s < end_s and total < bounds.messages_max:
            done = step()
            total += done
            now_s = clock()
        spent_s += now_s - start_s
        if done:
            return Tally(total, spent_s)
        steps.refill()


def contest(workload: str,
            contestants: Sequence[Contestant],
            scale: Scale,
            parent: pathlib.Path,
            slices: int = SLICES) -> Iterator[Rate]:
    """Measure contestants in turn; the first one is the floor of the others.

    :param slices: the number of turns in which each runs its round; all are set up before the first
    """
    rounds: Dict[int, List[float]] = {number: [] for number in range(len(contestants))}
    bounds = Bounds(scale.round_s, scale.round_messages_max)
    for _ in range(scale.rounds):
        remaining = {number: contestants[number] for number in rounds}
        found = _round(remaining, bounds, slices, parent)
        rounds = {number: [*rounds[number], found[number]] for number in found}
    for number, own in rounds.items():
        yield rate(workload, contestants[number].name, contestants[number].setting, own, rounds[0])


def _round(contestants: Dict[int, Contestant], bounds: Bounds, slices: int, parent: pathlib.Path) -> Dict[int, float]:
    """Run one round of all; return the messages per second of those that did not leave."""
    tallies: Dict[int, Tally] = {}
    with contextlib.ExitStack() as stack:
        turns: Dict[int, Turn] = {}
        for number, contestant in contestants.items():
            with contextlib.suppress(LeftContest):
                directory = stack.enter_context(fresh_directory(parent))
                turns[number] = stack.enter_context(contestant.opening(directory, contestant.setting, bounds))
                tallies[number] = Tally(0, 0)
        gc.collect()
        for _ in range(slices):
            for number, turn in turns.items():
                if number in tallies:
                    try:
                        tallies[number] = _add_slice(turn, tallies[number], bounds, slices)
                    except LeftContest:
                        del tallies[number]
    return {number: tally.messages / tally.seconds for number, tally in tallies.items()}


def _add_slice(turn: Turn, tally: Tally, bounds: Bounds, slices: int) -> Tally:
    """Run one slice, unless the round of this contestant is over."""
    if tally.seconds >= bounds.seconds or tally.messages >= bounds.messages_max:
        return tally
    more = Tally(0, 0)
    for _ in range(TRIES):
        more = turn(Bounds(bounds.seconds / slices, bounds.messages_max - tally.messages))
        if more.messages:
            break
    return Tally(tally.messages + more.messages, tally.seconds + more.seconds)


def in_turn(turns: Sequence[Callable[[], T]], rounds: int) -> Dict[int, List[T]]:
    """Call each function in turn, round after round; return the results of those that did not leave."""
    found: Dict[int, List[T]] = {number: [] for number in range(len(turns))}
    for _ in range(rounds):
        for number in list(found):
            try:
                found[number].append(turns[number]())
            except LeftContest:
                del found[number]
    return found


def rate(workload: str, name: str, setting: Setting, own: Sequence[float], floor: Sequence[float]) -> Rate:
    """Sum up rounds."""
    return Rate(workload=workload,
                contestant=name,
                setting=setting,
                messages_per_s=significant(statistics.median(own)),
                of_floor=significant(statistics.median(mine / best for mine, best in zip(own, floor))),
                rounds_messages_per_s=tuple(map(significant, own)))


def duration(workload: str, name: str, setting: Setting, rounds_s: Sequence[float]) -> Duration:
    """Sum up times, in seconds, of something that happens once."""
    return Duration(workload, name, setting, significant(statistics.median(rounds_s) * 1000),
                    tuple(significant(one_s * 1000) for one_s in rounds_s))


def durations(workload: str, timed: Sequence[Tuple[str, Setting, Callable[[], float]]], rounds: int) -> List[Duration]:
    """Time things that happen once, in turn. Each function returns seconds."""
    found = in_turn([function for _, _, function in timed], rounds)
    return [duration(workload, name, setting, found[number]) for number, (name, setting, _) in enumerate(timed)]


def latency(workload: str, name: str, setting: Setting, samples_s: Sequence[float]) -> Latency:
    """Sum up single times, in seconds."""
    ordered = sorted(samples_s)

    def quantile_us(part: float) -> float:
        return significant(ordered[max(0, math.ceil(part * len(ordered)) - 1)] * 1e6)

    return Latency(workload, name, setting, len(ordered), quantile_us(0.5), quantile_us(0.99), quantile_us(0.999),
                   quantile_us(0.9999), quantile_us(1))


def significant(value: float) -> float:
    """Round to four digits: more are not significant."""
    return float(f"{value:.4g}")


@contextlib.contextmanager
def fresh_directory(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Return an empty directory, which is removed afterwards."""
    directory = pathlib.Path(tempfile.mkdtemp(dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
