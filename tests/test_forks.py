"""Forks: children use what they inherit and what they open, the parent notices nothing, and nothing can deadlock."""

# pylint: disable=protected-access  # whether a transaction is going on, no public method tells

import collections
import concurrent.futures
import contextlib
import faulthandler
import fcntl
import itertools
import multiprocessing
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
import urllib.request
from multiprocessing.connection import Connection
from typing import Any, Callable, Dict, Generic, Iterator, List, NamedTuple, Sequence, Set, TypeVar

import lmdb
import pytest

import persipubsub
from persipubsub import Control, Durability, Environment, HighWaterMark, Publisher, Subscriber, errors, futex, handle
from persipubsub import subscriber as subscriber_module
from persipubsub.handle import Handle
from persipubsub.transaction import Transaction

T = TypeVar("T")
MakeEnvironment = Callable[..., Environment]

WAIT_S = 30  # for what happens soon unless something is broken
LOOK_S = 0.0005
#: A fork is held up for at most 100 ms. The fork itself and a busy machine add.
FORK_S_MAX = 0.5 if "CI" in os.environ else 0.2
FORKS = 100
PACKAGE = os.path.dirname(persipubsub.__file__)
#: More than any test sends.
MANY = HighWaterMark(max_messages=2**40)
#: How a child ends that could not use the queue, and was told so.
FORK_ERROR = 7

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["persipubsub", "pytest"])

pytestmark = pytest.mark.long


class Task(Generic[T]):
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._future: "concurrent.futures.Future[T]" = concurrent.futures.Future()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised again by result()
            self._future.set_exception(error)

    def done(self) -> bool:
        """Tell whether it has ended."""
        return self._future.done()

    def result(self) -> T:
        """Wait for the end; give or raise what came of it."""
        return self._future.result(WAIT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what happens soon unless something is broken."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(LOOK_S)


@contextlib.contextmanager
def process(function: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run a function in a process that is no child of this one, with a connection to it. It has to end well."""
    ours, theirs = CONTEXT.Pipe()
    running = CONTEXT.Process(target=function, args=(theirs, *arguments), daemon=True)
    running.start()
    theirs.close()
    try:
        yield ours
        running.join(WAIT_S)
        assert running.exitcode == 0
    finally:
        running.kill()
        running.join()
        ours.close()


def told(connection: Connection) -> Any:
    """Give what another process tells."""
    assert connection.poll(WAIT_S)
    return connection.recv()


def hold_write_lock(connection: Connection, *paths: pathlib.Path) -> None:
    """Keep LMDB's write locks of queues: the main function of a process."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            raw = stack.enter_context(lmdb.Environment(os.fspath(path), create=False, max_readers=1024, max_dbs=32))
            stack.enter_context(raw.begin(write=True))
        connection.send("held")
        told(connection)


def limit_time() -> None:
    """Have this process, if it hangs, tell where, and end."""
    faulthandler.unregister(signal.SIGALRM)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Not dump_traceback_later: it hangs in the child of a process that uses it.
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    signal.alarm(WAIT_S)


def fork(function: Callable[[], object]) -> int:
    """Run a function in a forked child; give its process id. The child's status tells what came of it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            sys.setprofile(None)
            limit_time()
            function()
            status = 0
        except errors.ForkError as error:
            status = FORK_ERROR if "spawn or forkserver" in str(error) else 1
        except BaseException:  # pylint: disable=broad-exception-caught  # nothing may return into the parent's code
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    """Wait for the end of a child; one that hangs ends itself."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Opened(NamedTuple):
    """A queue with the subscribers "a", "b" and "all", and everything to use it."""

    environment: Environment
    control: Control
    publisher: Publisher
    subscriber: Subscriber
    handle: Handle

    def send(self, payload: bytes) -> Callable[[], int]:
        """Give a function that sends a message."""
        return lambda: self.publisher.send(payload)

    def sent(self) -> List[bytes]:
        """Take everything that was sent."""
        return list(self.environment.new_subscriber("all").messages(timeout=0, acknowledge_every=1000))

    def is_used(self) -> bool:
        """Tell whether a transaction is going on in this process."""
        return bool(self.handle._storage._gate.inside)

    def use(self, name: str) -> None:
        """Send and receive: with what is there, inherited or not, and with what is opened afresh."""
        self.publisher.send(f"{name}:0".encode())
        with persipubsub.new_environment(self.environment.path) as fresh:
            fresh.new_publisher().send(f"{name}:1".encode())
            with self.subscriber.receive(timeout=WAIT_S) as msg:
                assert msg is not None
            with fresh.new_subscriber("b").receive(timeout=WAIT_S) as msg:
                assert msg is not None

    def use_without_hope(self) -> None:
        """Make sure that every use raises ForkError."""
        for use in (self.send(b"x"), self.subscriber.front, self.subscriber.pop, self.control.status,
                    lambda: self.environment.new_subscriber("a"), lambda: self.environment.new_publisher().send(b"x"),
                    lambda: persipubsub.new_environment(self.environment.path).new_publisher().send(b"x")):
            with pytest.raises(errors.ForkError, match="spawn or forkserver"):
                use()


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """End a test whose main thread hangs: no other thread can."""

    def give_up(*_signal: object) -> None:
        raise TimeoutError("the main thread hangs")

    before = signal.signal(signal.SIGUSR1, give_up)
    timer = threading.Timer(2 * WAIT_S, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    timer.start()
    yield
    timer.cancel()
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(name="opened")
def opened_fixture(new_environment: MakeEnvironment) -> Iterator[Opened]:
    """Set up a queue that does not wait for the disk."""
    environment = new_environment("a", "b", "all", durability=Durability.PROCESS_CRASH, high_watermark=MANY)
    held = handle.acquire(environment.path)
    yield Opened(environment, environment.new_control(), environment.new_publisher(), environment.new_subscriber("a"),
                 held)
    handle.release(held)


def numbered(sender: object, count: int) -> List[bytes]:
    """Give messages that tell who sends them and in which order."""
    return [f"{sender}:{number}".encode() for number in range(count)]


def by_sender(payloads: Sequence[bytes]) -> Dict[str, List[bytes]]:
    """Sort what :func:`numbered` gave by sender, in the order given."""
    found: Dict[str, List[bytes]] = collections.defaultdict(list)
    for payload in payloads:
        found[payload.decode().rpartition(":")[0]].append(payload)
    return found


class Busy:
    """Threads that write, read and wait all the time, and what they have sent."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._stop = threading.Event()
        opened.control.add_subscriber("waiting")
        waiting = opened.environment.new_subscriber("waiting")
        self._tasks: List[Task[Any]] = [Task(self._read), Task(lambda: self._wait(waiting))]
        self._writers = [
            Task(lambda name=name: self._write(name))  # type: ignore[misc]
            for name in ("parent 0", "parent 1")
        ]

    def _write(self, name: str) -> List[bytes]:
        sent: List[bytes] = []
        while not self._stop.is_set():
            payload = f"{name}:{len(sent)}".encode()
            self._opened.publisher.send(payload)
            sent.append(payload)
        return sent

    def _read(self) -> None:
        while not self._stop.is_set():
            self._opened.environment.new_subscriber("waiting").front()

    def _wait(self, waiting: Subscriber) -> None:
        for payload in waiting.messages(timeout=WAIT_S):
            if payload == b"stop:0":
                return
        raise AssertionError("the wait ended without a message")

    def __enter__(self) -> "Busy":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()

    def sent(self) -> Dict[str, List[bytes]]:
        """Stop; give what was sent by whom, as :func:`by_sender` would find it in the queue."""
        self._stop.set()
        sent = {f"parent {number}": writer.result() for number, writer in enumerate(self._writers)}
        self._opened.publisher.send(b"stop:0")
        for task in self._tasks:
            task.result()
        return {"stop": [b"stop:0"], **{name: payloads for name, payloads in sent.items() if payloads}}


# Forks of all kinds


@pytest.mark.parametrize("durability", Durability)
def test_a_hundred_forks_while_threads_use_the_queue(opened: Opened, durability: Durability) -> None:
    """Children use inherited and fresh objects while threads of the parent write, read and wait; nothing is lost."""
    opened.environment.new_control(durability=durability)
    with Busy(opened) as busy:
        for number in range(FORKS // 2):
            assert status_of(fork(lambda: opened.use(f"child {number}"))) == 0  # pylint: disable=cell-var-from-loop
        expected = busy.sent()
    expected.update({f"child {number}": numbered(f"child {number}", 2) for number in range(FORKS // 2)})
    assert by_sender(opened.sent()) == expected
    assert opened.control.check() == ()


def test_children_at_the_same_time(opened: Opened) -> None:
    """Many children, and children of children, use the queue at the same time as their parent."""
    children = []

    def use_and_fork(number: int) -> None:
        opened.use(f"child {number}")
        assert status_of(fork(lambda: opened.use(f"grandchild {number}"))) == 0

    for number in range(10):
        children.append(fork(lambda: use_and_fork(number)))  # pylint: disable=cell-var-from-loop
        opened.use(f"parent {number}")
    assert [status_of(child) for child in children] == [0] * 10
    assert by_sender(opened.sent()) == {
        name: numbered(name, 2)
        for number in range(10)
        for name in (f"child {number}", f"grandchild {number}", f"parent {number}")
    }


def test_a_fork_in_a_thread(opened: Opened) -> None:
    """A thread forks while others use the queue: its child uses it as well."""
    with Busy(opened) as busy:
        for number in range(10):
            name = f"child {number}"
            # pylint: disable-next=cell-var-from-loop  # run before the next turn
            assert Task(lambda: status_of(fork(lambda: opened.use(name)))).result() == 0
        expected = busy.sent()
    expected.update({f"child {number}": numbered(f"child {number}", 2) for number in range(10)})
    assert by_sender(opened.sent()) == expected


def test_threads_fork_at_the_same_time(opened: Opened) -> None:
    """Several threads fork at the same time, again and again, while others use the queue."""

    def fork_often(thread: int) -> None:
        for number in range(5):
            name = f"child {thread}.{number}"
            # pylint: disable-next=cell-var-from-loop  # run before the next turn
            assert status_of(fork(lambda: opened.use(name))) in (0, FORK_ERROR)

    with Busy(opened) as busy:
        tasks = [Task(lambda thread=thread: fork_often(thread)) for thread in range(4)]  # type: ignore[misc]
        for task in tasks:
            task.result()
        expected = busy.sent()
    found = by_sender(opened.sent())
    assert {name: payloads for name, payloads in found.items() if not name.startswith("child")} == expected
    Task(lambda: opened.use("afterwards")).result()


def use_in_process(publisher: Publisher, subscriber: Subscriber) -> None:
    """Use inherited or unpickled objects, and fresh ones: the main function of a process."""
    publisher.send(b"process:0")
    with subscriber.receive(timeout=WAIT_S) as msg:
        assert msg is not None
    with persipubsub.new_environment(publisher._environment.path) as fresh:
        fresh.new_publisher().send(b"process:1")
        with fresh.new_subscriber("b").receive(timeout=WAIT_S) as msg:
            assert msg is not None


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(opened: Opened, method: str) -> None:
    """Processes of multiprocessing use what they are given, and what they open, while threads of the parent write."""
    context: Any = multiprocessing.get_context(method)
    with Busy(opened) as busy:
        running = context.Process(target=use_in_process, args=(opened.publisher, opened.subscriber))
        running.start()
        running.join(WAIT_S)
        assert running.exitcode == 0
        expected = busy.sent()
    expected["process"] = numbered("process", 2)
    assert by_sender(opened.sent()) == expected


SUBPROCESS = """
import os, sys, persipubsub
print([name for fd in os.listdir("/proc/self/fd") if (name := os.path.realpath(f"/proc/self/fd/{fd}"))
       .startswith(sys.argv[1])])
with persipubsub.new_environment(sys.argv[1]) as environment:
    environment.new_publisher().send(b"subprocess:0")
    environment.new_subscriber("a").pop()
"""


@pytest.mark.parametrize("start", [{}, {
    "close_fds": False
}, {
    "preexec_fn": lambda: None
}],
                         ids=["plain", "open files", "with a function"])
def test_subprocess_while_threads_write(opened: Opened, start: Dict[str, Any]) -> None:
    """A subprocess starts while threads write, inherits no file of the queue, and uses it."""
    with Busy(opened) as busy:
        found = subprocess.run([sys.executable, "-c", SUBPROCESS, opened.environment.path],
                               env={
                                   **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)
                               },
                               timeout=WAIT_S,
                               check=True,
                               capture_output=True,
                               text=True,
                               **start)
        expected = busy.sent()
    # LMDB leaves data.mdb open to whoever asks for all files.
    data_file = opened.environment.path / "data.mdb"
    assert found.stdout in ("[]\n", f"['{data_file}']\n" if "close_fds" in start else "")
    expected["subprocess"] = numbered("subprocess", 1)
    assert by_sender(opened.sent()) == expected


GUNICORN_APP = """
import os, persipubsub

environment = persipubsub.new_environment(os.environ["QUEUE"])
publisher = environment.new_publisher()
publisher.send(b"loaded")


def app(request, start_response):
    publisher.send(request["QUERY_STRING"].encode())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


def test_gunicorn_with_preload_app(opened: Opened, tmp_path: pathlib.Path) -> None:
    """Workers of gunicorn publish through what the application opened before they were forked; nothing is lost."""
    (tmp_path / "application.py").write_text(GUNICORN_APP)
    (tmp_path / "gunicorn.conf.py").write_text("preload_app = True\nworkers = 2\nlogconfig_dict = {}\n")
    payloads = [b"%d" % number for number in range(60)]
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/?"
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listening.fileno()}", "application:app"]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
            "QUEUE": os.fspath(opened.environment.path)
        }
        with subprocess.Popen(command, cwd=tmp_path, env=environment, pass_fds=[listening.fileno()]) as server:
            try:
                with concurrent.futures.ThreadPoolExecutor(4) as pool:
                    workers = set(pool.map(lambda payload: fetched(url + payload.decode()), payloads))
            finally:
                server.terminate()
            assert server.wait(WAIT_S) == 0
    assert workers and str(server.pid).encode() not in workers
    sent = opened.sent()
    assert sent[0] == b"loaded"
    assert sorted(sent[1:]) == sorted(payloads)


def fetched(url: str) -> bytes:
    """Give what a server answers."""
    with urllib.request.urlopen(url, timeout=WAIT_S) as response:
        content: bytes = response.read()
    return content


# What the child has of its own


def test_an_inherited_subscriber_waits_in_the_child(opened: Opened) -> None:
    """A child waits with an inherited subscriber and is woken by its parent, and the other way round."""
    asleep_read, asleep_write = os.pipe()

    def wait_in_the_child() -> None:
        subscriber_module.SLEEP_S_MAX = 10 * WAIT_S
        wait = futex.wait

        def telling_wait(address: int, expected: int, timeout_s: float) -> None:
            os.write(asleep_write, b"x")
            wait(address, expected, timeout_s)

        futex.wait = telling_wait
        with opened.subscriber.receive(timeout=WAIT_S) as msg:
            assert msg == b"from the parent"
        opened.publisher.send(b"from the child")

    child = fork(wait_in_the_child)
    assert os.read(asleep_read, 1) == b"x"
    opened.publisher.send(b"from the parent")
    subscriber = opened.environment.new_subscriber("all")
    for expected in (b"from the parent", b"from the child"):
        with subscriber.receive(timeout=WAIT_S) as msg:
            assert msg == expected
    assert status_of(child) == 0
    os.close(asleep_read)
    os.close(asleep_write)


def is_locked(path: pathlib.Path) -> bool:
    """Tell whether anybody has the queue open."""
    with open(path / "use.lock", "rb") as use_lock:
        try:
            fcntl.flock(use_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_child_has_its_own_lock(new_environment: MakeEnvironment) -> None:
    """The child holds ``use.lock`` for itself: also when its parent has closed the queue, until it ends itself."""
    environment = new_environment("a")
    publisher = environment.new_publisher()
    used, end = os.pipe(), os.pipe()

    def use_until_the_end() -> None:
        publisher.send(b"x")
        os.write(used[1], b"x")
        os.read(end[0], 1)
        os._exit(0)  # without closing anything

    child = fork(use_until_the_end)
    assert os.read(used[0], 1) == b"x"
    environment.close()
    assert is_locked(environment.path)
    os.write(end[1], b"x")
    assert status_of(child) == 0
    assert not is_locked(environment.path)
    for fd in used + end:
        os.close(fd)


@pytest.mark.parametrize("used", [False, True])
def test_a_child_that_closes_what_it_inherited(opened: Opened, used: bool) -> None:
    """A child that closes its objects, used or not, or ends, takes nothing away from its parent."""

    def close() -> None:
        if used:
            opened.use("child")
        opened.environment.close()
        with pytest.raises(errors.ClosedError):
            opened.publisher.send(b"x")

    for _ in range(3):
        with contextlib.suppress(errors.EmptyError):
            opened.subscriber.pop()  # so that there is a reader's slot to lose
        assert status_of(fork(close)) == 0
        assert is_locked(opened.environment.path)
        opened.use("parent")
        assert opened.control.check() == ()


EXITS = """
import os, sys, threading
import persipubsub
from persipubsub import errors, handle

environment = persipubsub.new_environment(sys.argv[1])
publisher, subscriber = environment.new_publisher(), environment.new_subscriber("a")
inside, go = threading.Event(), threading.Event()
operation = {"write": handle.acquire(environment.path).change, "read": handle.acquire(environment.path).read}
if sys.argv[2] in operation:
    run = operation[sys.argv[2]]
    thread = threading.Thread(target=run, args=(lambda txn: (inside.set(), go.wait()), ))
    thread.start()
    inside.wait()
child = os.fork()
if not child:
    try:
        publisher.send(b"from the child")
    except errors.ForkError:
        sys.exit(7)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go.set()
publisher.send(b"from the parent")
"""


@pytest.mark.parametrize("kind, status", [("quiet", 3), ("read", FORK_ERROR), ("write", FORK_ERROR)])
def test_a_child_that_ends_like_a_program(opened: Opened, kind: str, status: int) -> None:
    """A child that runs to the end of the interpreter, which finalizes everything, ends, and disturbs nobody."""
    found = subprocess.run([sys.executable, "-c", EXITS, opened.environment.path, kind],
                           env={
                               **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)
                           },
                           timeout=WAIT_S,
                           check=True,
                           capture_output=True,
                           text=True)
    assert (found.stdout, found.stderr) == (f"{status}\n", "")
    assert opened.sent() == [b"from the child"] * (kind == "quiet") + [b"from the parent"]


# Forks at a bad moment


def test_a_fork_while_another_process_writes(opened: Opened) -> None:
    """A fork is not held up by another process that writes: the child gets ForkError, the parent goes on."""
    took_s = []
    with process(hold_write_lock, opened.environment.path) as holder:
        assert told(holder) == "held"
        waiting = Task(opened.send(b"waiting:0"))
        wait_until(opened.is_used)
        for _ in range(3):
            start_s = time.monotonic()
            child = fork(opened.use_without_hope)
            took_s.append(time.monotonic() - start_s)
            assert status_of(child) == 0
        # The children of such a child have no hope either.
        assert status_of(fork(lambda: os._exit(status_of(fork(opened.use_without_hope))))) == 0
        assert opened.subscriber.front() is None
        assert not waiting.done()
        holder.send("go")
    waiting.result()
    # The shortest, since all the machine can do is to add.
    assert min(took_s) < FORK_S_MAX
    assert status_of(fork(lambda: opened.use("child"))) == 0
    assert by_sender(opened.sent()) == {"waiting": numbered("waiting", 1), "child": numbered("child", 2)}


def test_several_queues_hold_up_a_fork_together(opened: Opened, new_environment: MakeEnvironment) -> None:
    """The bound for a fork holds for all queues together; those that nobody uses can be used in the child."""
    busy = [opened.environment] + [new_environment("a", name=f"busy {number}") for number in range(3)]
    free = new_environment("a", name="free").new_publisher()
    took_s = []

    def use() -> None:
        free.send(b"x")
        for publisher in publishers:
            with pytest.raises(errors.ForkError):
                publisher.send(b"x")

    publishers = [environment.new_publisher() for environment in busy]
    with process(hold_write_lock, *(environment.path for environment in busy)) as holder:
        assert told(holder) == "held"
        tasks = [
            Task(lambda publisher=publisher: publisher.send(b"x"))  # type: ignore[misc]
            for publisher in publishers
        ]
        for environment in busy:
            held = handle.acquire(environment.path)
            wait_until(lambda: bool(held._storage._gate.inside))  # pylint: disable=cell-var-from-loop
            handle.release(held)
        for _ in range(3):
            start_s = time.monotonic()
            child = fork(use)
            took_s.append(time.monotonic() - start_s)
            assert status_of(child) == 0
        holder.send("go")
    assert [task.result() for task in tasks] == [1] * len(busy)
    assert min(took_s) < FORK_S_MAX


def test_threads_that_fork_while_another_process_writes(opened: Opened) -> None:
    """Threads that fork at the same time, while another process writes, leave no lock behind."""

    def fork_often() -> None:
        for _ in range(4):
            assert status_of(fork(opened.use_without_hope)) == 0

    # So that a fork takes some time.
    ballast = [bytearray(2**20) for _ in range(200)]
    with process(hold_write_lock, opened.environment.path) as holder:
        assert told(holder) == "held"
        waiting = Task(opened.send(b"waiting"))
        wait_until(opened.is_used)
        tasks = [Task(fork_often) for _ in range(4)]
        for task in tasks:
            task.result()
        holder.send("go")
    del ballast
    waiting.result()
    Task(lambda: opened.use("afterwards")).result()
    assert status_of(fork(lambda: opened.use("child"))) == 0


def test_a_fork_while_a_thread_opens_the_queue(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork while a thread waits in opening the queue: the child gets ForkError however it opens it."""
    path = opened.environment.path
    opened.environment.close()
    handle.release(opened.handle)
    environment = persipubsub.new_environment(path)
    inside = threading.Event()
    open_lmdb = lmdb.Environment

    def noting_open(*arguments: Any, **options: Any) -> "lmdb.Environment":
        raw = open_lmdb(*arguments, **options)
        inside.set()
        return raw

    monkeypatch.setattr(lmdb, "Environment", noting_open)
    with process(hold_write_lock, path) as holder:
        assert told(holder) == "held"
        opening = Task(environment.new_publisher)
        assert inside.wait(WAIT_S)
        start_s = time.monotonic()
        child = fork(lambda: [other.new_publisher() for other in (environment, persipubsub.new_environment(path))])
        took_s = time.monotonic() - start_s
        assert not opening.done()
        holder.send("go")
    assert status_of(child) == FORK_ERROR
    assert took_s < 0.5
    assert opening.result().send(b"sent") == 1
    environment.close()
    assert handle.acquire(path).path == path


class Point:
    """One of the points of an operation where Python looks for signals: beginnings of functions, returns from C."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self._left = number
        self._action = action
        self.reached = False

    def run(self, function: Callable[[], T]) -> T:
        """Run an operation, with the action where it reaches the point."""
        sys.setprofile(self._profile)
        try:
            return function()
        finally:
            sys.setprofile(None)

    def _profile(self, frame: types.FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            self._left -= 1
            if self._left < 0:
                sys.setprofile(None)
                self.reached = True
                self._action()


def everywhere(operation: Callable[[], object], action: Callable[[], object]) -> int:
    """Do something at each point of an operation in turn; give the number of points."""
    for number in itertools.count():
        point = Point(number, action)
        point.run(operation)
        if not point.reached:
            return number
    raise AssertionError


class Accounts:
    """Sends messages that are all different, and knows which of them must be there."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._numbers = itertools.count()
        self._process = os.getpid()
        self.sent: Set[bytes] = set()

    def send(self) -> None:
        """Send a message."""
        payload = b"parent:%d" % next(self._numbers)
        self._opened.publisher.send(payload)
        self.sent.add(payload)

    def fork_and_send(self) -> None:
        """Have a child send a message, if it can."""
        if os.getpid() != self._process:
            return  # in a fork that was interrupted: nobody would learn of it
        payload = b"child:%d" % next(self._numbers)
        status = status_of(fork(lambda: self._opened.publisher.send(payload)))
        if not status:
            self.sent.add(payload)
        else:
            assert status == FORK_ERROR

    def check(self) -> None:
        """Hold what was sent against what must be there."""
        assert collections.Counter(self._opened.sent()) == collections.Counter(self.sent)
        Task(lambda: self._opened.use("afterwards")).result()


def test_a_fork_from_a_handler_in_the_midst_of_a_write(opened: Opened) -> None:
    """A signal handler that forks while it has interrupted a transaction: the child gets ForkError, both end."""
    children: List[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: children.append(fork(opened.use_without_hope)))
    try:
        opened.handle.change(lambda txn: signal.raise_signal(signal.SIGALRM))
        opened.handle.read(lambda txn: signal.raise_signal(signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [status_of(child) for child in children] == [0, 0]
    opened.use("parent")
    assert by_sender(opened.sent()) == {"parent": numbered("parent", 2)}


@pytest.mark.parametrize("kind", ["send", "receive", "reopen", "open", "fork"])
def test_a_handler_that_forks_anywhere(opened: Opened, kind: str) -> None:
    """Wherever a signal handler forks, also in a fork, nothing hangs; what it interrupted happens exactly once."""
    accounts = Accounts(opened)
    durabilities = itertools.cycle(Durability)

    def reopen() -> None:
        opened.environment.new_control(durability=next(durabilities))
        accounts.send()

    def open_and_close() -> None:
        with persipubsub.new_environment(opened.environment.path) as environment:
            environment.new_subscriber("a").front()

    operations: Dict[str, Callable[[], object]] = {
        "send": accounts.send,
        "receive": opened.subscriber.front,
        "reopen": reopen,
        "open": open_and_close,
        "fork": lambda: status_of(fork(lambda: None)),
    }
    assert everywhere(operations[kind], accounts.fork_and_send) > 10
    accounts.check()


@pytest.mark.parametrize("kind", ["send", "look"])
def test_a_handler_that_uses_the_queue_anywhere_in_a_fork(opened: Opened, kind: str) -> None:
    """A signal handler that uses the queue while its thread forks does it, or gets ReentryError; nothing hangs."""
    accounts = Accounts(opened)

    def handler() -> None:
        with contextlib.suppress(errors.ReentryError):
            if kind == "send":
                accounts.send()
            else:
                opened.subscriber.front()

    def fork_and_use() -> None:
        in_parent = os.getpid()
        status = status_of(fork(opened.subscriber.front))
        assert os.getpid() == in_parent and status in (0, FORK_ERROR)

    assert everywhere(fork_and_use, handler) > 10
    sent = collections.Counter(opened.sent())
    assert all(sent[payload] >= 1 for payload in accounts.sent)
    Task(lambda: opened.use("afterwards")).result()


def interrupt(*_signal: object) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints what a hook raises
def test_interrupt_anywhere_in_a_fork(opened: Opened) -> None:
    """Wherever KeyboardInterrupt strikes a fork, the parent's threads go on; the child works or gets ForkError."""

    def fork_and_use() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            assert status_of(fork(lambda: opened.use("child"))) in (0, FORK_ERROR)
        Task(lambda: opened.use("parent")).result()

    assert everywhere(fork_and_use, interrupt) > 10
    assert status_of(fork(lambda: opened.use("last child"))) == 0
    opened.sent()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints what a hook raises
def test_storm_of_interrupts_of_forks(opened: Opened) -> None:
    """KeyboardInterrupts at random moments of forks, while threads use the queue, stop none of them."""
    chance = random.Random(3)
    before = signal.signal(signal.SIGALRM, interrupt)
    children: List[int] = []
    try:
        with Busy(opened) as busy:
            for _ in range(FORKS):
                with contextlib.suppress(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.000001, 0.001))
                    try:
                        children.append(fork(lambda: opened.use("child")))
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
            expected = busy.sent()
    finally:
        signal.signal(signal.SIGALRM, before)
    for child in children:
        assert status_of(child) in (0, FORK_ERROR)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()  # whom an interrupt took away from us
    found = by_sender(opened.sent())
    found.pop("child", None)
    assert found == expected


def test_storm_of_handlers_that_fork(opened: Opened) -> None:
    """Forks from a signal handler at random moments of sends, while threads use the queue, lose and double nothing."""
    chance = random.Random(4)
    accounts = Accounts(opened)
    forks = 0

    def handler(*_signal: object) -> None:
        nonlocal forks
        forks += 1
        accounts.fork_and_send()
        # Only now, so that handlers do not interrupt each other without end.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.005))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Busy(opened) as busy:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            while forks < FORKS // 2:
                accounts.send()
            signal.setitimer(signal.ITIMER_REAL, 0)
            expected = busy.sent()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found = by_sender(opened.sent())
    assert collections.Counter(found.pop("parent") + found.pop("child", [])) == collections.Counter(accounts.sent)
    assert found == expected


def test_a_fork_in_an_operation(opened: Opened) -> None:
    """A fork from within a transaction of the same thread does not deadlock; the transaction is whole."""
    children: List[int] = []

    def operation(_txn: Transaction) -> None:
        children.append(fork(opened.use_without_hope))

    opened.handle.change(operation)
    opened.handle.read(operation)
    assert [status_of(child) for child in children] == [0, 0]
    opened.use("parent")
