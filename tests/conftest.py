"""What all tests share: queues in temporary directories, each checked after the test that touched it."""

# Before persipubsub: its hook for forks takes a plain lock, so a handler that forks in a hook that runs after it hangs.
import concurrent.futures.thread  # noqa: F401  # pylint: disable=unused-import  # see above
import functools
import os
import pathlib
import signal
import sys
import threading
from typing import Any, Callable, Generator, Iterator, List

os.environ["ICONTRACT_SLOW"] = "1"  # before persipubsub is imported: turns the expensive postconditions on

# Children are not measured, and before persipubsub is imported, whose code runs in them first: where a fork comes while
# another thread holds a lock of coverage's, the child would wait for it for ever.
os.register_at_fork(after_in_child=functools.partial(sys.settrace, None))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell has what it starts in the background ignore Ctrl-C, and so would the programs that tests start and stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "coverage" in sys.modules:
    _RUNNING = sys.modules["coverage"].Coverage.current()
    if _RUNNING is not None:
        # A signal handler may come while its own thread holds the lock of the data, and is traced as well.
        _RUNNING._collector.data_lock = threading.RLock()  # pylint: disable=protected-access  # there is no other way

import hypothesis  # noqa: E402  # pylint: disable=wrong-import-position  # see above
import pytest  # noqa: E402  # pylint: disable=wrong-import-position  # see above

import persipubsub  # noqa: E402  # pylint: disable=wrong-import-position  # see above
from persipubsub import Durability  # noqa: E402  # pylint: disable=wrong-import-position  # see above
from persipubsub.lmdb_engine import open_queues  # noqa: E402  # pylint: disable=wrong-import-position  # see above
from tests.concurrency import MANY, WAIT_S, Opened  # noqa: E402  # pylint: disable=wrong-import-position  # see above

# How long an example takes depends on the machine: one that is busy for a moment would fail a test that is right.
hypothesis.settings.register_profile("persipubsub", deadline=None)
hypothesis.settings.load_profile("persipubsub")


@pytest.fixture(name="new_environment")
def new_environment_fixture(tmp_path: pathlib.Path) -> Iterator[Callable[..., persipubsub.Environment]]:
    """Make Environments, of the queue at ``tmp_path / name``, set up with what is given to new_control."""
    made: List[persipubsub.Environment] = []

    def make(*subscriber_ids: str, name: str = "queue", **configuration: Any) -> persipubsub.Environment:
        environment = persipubsub.new_environment(tmp_path / name)
        made.append(environment)
        environment.new_control(subscriber_ids, **configuration)
        return environment

    yield make
    for environment in made:
        environment.close()


@pytest.fixture(name="time_limit")
def time_limit_fixture() -> Iterator[None]:
    """End a test whose main thread hangs: no other thread can."""

    def give_up(*_signal: object) -> None:
        raise TimeoutError("the main thread hangs")

    before = signal.signal(signal.SIGUSR1, give_up)
    timer = threading.Timer(2 * WAIT_S, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(name="opened")
def opened_fixture(new_environment: Callable[..., persipubsub.Environment], time_limit: None) -> Iterator[Opened]:
    """Set up a queue that does not wait for the disk."""
    del time_limit
    environment = new_environment("a", "b", "all", durability=Durability.PROCESS_CRASH, high_watermark=MANY)
    held = open_queues.acquire(environment.path)
    yield Opened(environment, environment.new_control(), environment.new_publisher(), environment.new_subscriber("a"),
                 held)
    open_queues.release(held)


@pytest.fixture(name="patient_forks")
def patient_forks_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a fork wait longer than usual for the end of a transaction: the disk of a busy machine may be slow."""
    monkeypatch.setattr(open_queues, "FORK_WAIT_S_MAX", WAIT_S)


@pytest.fixture(autouse=True)
def check_queues(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[None]:
    """Verify the invariants of every queue that a test left behind, unless it is marked as damaging them."""
    yield
    if request.node.get_closest_marker("damages_queues") is None:
        for data_file in tmp_path.rglob("data.mdb"):
            with persipubsub.new_environment(data_file.parent) as environment:
                assert environment.new_control().check() == ()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skips into failures where everything has to run: on a continuous integration machine."""
    report = yield
    # xdist cannot send a name that is not UTF-8, which a test may have logged.
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    if report.skipped and os.environ.get("PERSIPUBSUB_NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and PERSIPUBSUB_NO_SKIPS is set"
    return report
