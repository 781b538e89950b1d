"""Whatever the environment of a queue, the same program has the same outcome."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any, Dict, List, NamedTuple, Tuple

import pytest

import persipubsub
from persipubsub import HighWaterMark
from tests.children import unmeasured
from tests.concurrency import WAIT_S

pytestmark = pytest.mark.slow  # starts many processes, or waits

NEEDS_ROOT = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None
                                or shutil.which("setpriv") is None,
                                reason="makes namespaces and changes users: needs root on Linux")
#: A user and a group that nobody has.
OTHER = 61234

#: Creates, sends, receives, fails, looks and closes, and prints what came of it. ``limit`` is called once all is open.
SCENARIO = """
import json, logging, sys
import persipubsub
from persipubsub import errors
warned = logging.Handler()
warned.emit = lambda record: outcome.append(f"warning: {record.getMessage()}")
outcome = []
logging.getLogger("persipubsub").addHandler(warned)

def failing(function, *arguments):
    try:
        function(*arguments)
    except errors.PersipubsubError as error:
        outcome.append(type(error).__name__)
    else:
        outcome.append("no error")

with persipubsub.new_environment(sys.argv[1]) as env:
    control = env.new_control(["a"])
    control.add_subscriber("workers", shared=True, lease_s=60, max_deliveries=1)
    publisher, subscriber, worker = env.new_publisher(), env.new_subscriber("a"), env.new_subscriber("workers")
    limit()
    outcome.append(list(publisher.send_many([b"1", b"2", b"3"])))
    publisher.send_later(b"4", delay_s=0.05)
    with subscriber.receive(timeout=5) as msg:
        outcome.append(msg.decode())
    for receiver in (subscriber, worker):
        try:
            with receiver.receive(timeout=5) as msg:
                outcome.append(msg.decode())
                raise LookupError("the work")
        except LookupError as error:
            outcome.append(repr(error))
    outcome.append([msg.decode() for msg in subscriber.messages(timeout=0.3)])
    outcome.append([msg.decode() for msg in worker.messages(timeout=0.3)])
    failing(publisher.send, "text")
    failing(env.new_subscriber, "unknown")
    status = control.status()
    outcome.append([status.messages, status.sent, status.subscribers["a"].taken, status.subscribers["workers"].pending,
                    status.subscribers["workers"].dead_letters])
    outcome.append(control.check())
failing(publisher.send, b"closed")
print(json.dumps(outcome))
"""

OUTCOME: List[Any] = [[1, 2, 3], "1", "2", "LookupError('the work')", "1", "LookupError('the work')", ["2", "3", "4"],
                      ["2", "3", "4"], "ArgumentTypeError", "UnknownSubscriberError", [0, 4, 4, 0, 1], [],
                      "ClosedError"]

#: CPython 3.12 and later warn where a thread has ended that the system still counts.
FORKS_ON_PURPOSE = ("-W", "ignore:This process:DeprecationWarning")
NO_LIMIT = "limit = lambda: None\n"
#: To be put behind ``unshare --mount``, which has its own mounts.
SHELL = ["unshare", "--mount", "sh", "-c"]
# Capabilities: to read a Python that lies below a closed directory, and nothing else.
AS_OTHER = [
    "setpriv", "--reuid",
    str(OTHER), "--regid",
    str(OTHER), "--clear-groups", "--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search",
    "--bounding-set", "-all,+dac_read_search"
]


class Surroundings(NamedTuple):
    """How the program is run."""

    before: str = NO_LIMIT
    command: Tuple[str, ...] = ()
    options: Tuple[str, ...] = ()
    owner: Tuple[int, int] = (-1, -1)  # of the directory in which the queue is made


PLAIN: Dict[str, Surroundings] = {
    "nothing special":
    Surroundings(),
    "without asserts":
    Surroundings(options=("-O", )),
    "without asserts and docstrings":
    Surroundings(options=("-OO", )),
    "a clock frozen before the import":
    Surroundings("import freezegun; freezegun.freeze_time('2020-01-01').start()\n" + NO_LIMIT),
    "a clock frozen after the import":
    Surroundings("import freezegun, persipubsub, persipubsub.aio\nlimit = freezegun.freeze_time('2020-01-01').start\n"),
    "a wall clock that stands still":
    Surroundings("import time_machine\nlimit = time_machine.travel(1_000_000_000, tick=False).start\n"),
    "greenlets patched before the import":
    Surroundings("import gevent.monkey; gevent.monkey.patch_all()\n" + NO_LIMIT),
    "greenlets patched after the import":
    Surroundings("import persipubsub, gevent.monkey; gevent.monkey.patch_all()\n" + NO_LIMIT, options=("-W", "ignore")),
    "no descriptors left":
    Surroundings("""
import os, resource
def limit():
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    while True:
        try:
            os.open("/", os.O_RDONLY)
        except OSError:
            return
"""),
    "no umask":
    Surroundings("import os; os.umask(0)\n" + NO_LIMIT),
    "a closing umask":
    Surroundings("import os; os.umask(0o777)\n" + NO_LIMIT),
}

ROOT: Dict[str, Surroundings] = {
    "another user":
    Surroundings(command=tuple(AS_OTHER), owner=(OTHER, OTHER)),
    "another group":
    Surroundings(command=("setpriv", "--regid", str(OTHER), "--clear-groups")),
    "no threads left":
    Surroundings("import resource; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n" + NO_LIMIT,
                 tuple(AS_OTHER),
                 owner=(OTHER, OTHER)),
    "a read-only /proc":
    Surroundings(command=(*SHELL, 'mount -o remount,ro,bind /proc && exec "$@"', "sh")),
    "a time namespace":
    Surroundings(command=("unshare", "--time", "--boottime", "100000", "--monotonic", "5000")),
}


def run(surroundings: Surroundings, path: pathlib.Path, program: str = SCENARIO) -> List[Any]:
    """Run a program in some surroundings, and return what it printed."""
    path.parent.mkdir(exist_ok=True)  # the directory above it is its owner's alone
    os.chown(path.parent, *surroundings.owner)
    done = subprocess.run([
        *surroundings.command, sys.executable, *FORKS_ON_PURPOSE, *surroundings.options, "-c",
        surroundings.before + program,
        str(path)
    ],
                          env={
                              **unmeasured(), "PYTHONPATH": os.pathsep.join(sys.path)
                          },
                          timeout=WAIT_S,
                          check=False,
                          capture_output=True,
                          text=True)
    assert (done.returncode, done.stderr) == (0, "")
    printed: List[Any] = json.loads(done.stdout)
    return printed


@pytest.mark.parametrize("name", PLAIN)
def test_surroundings(name: str, tmp_path: pathlib.Path) -> None:
    """Python's options, patched modules and limits of a process change nothing."""
    assert run(PLAIN[name], tmp_path / "all" / "queue") == OUTCOME
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "all" / "queue").iterdir()} == {0o600}
    assert (tmp_path / "all" / "queue").stat().st_mode & 0o777 == 0o700


@NEEDS_ROOT
@pytest.mark.parametrize("name", ROOT)
def test_surroundings_that_root_makes(name: str, tmp_path: pathlib.Path) -> None:
    """Other users and groups, no threads, a read-only /proc and another clock change nothing."""
    assert run(ROOT[name], tmp_path / "all" / "queue") == OUTCOME


# What a system lacks

HIDDEN = Surroundings(command=(*SHELL, 'mount -t tmpfs none /proc/sys && exec "$@"', "sh"))
#: Each use that needs the boot id, and what it raised.
HIDDEN_BOOT_ID = """
import json, sys
import persipubsub
found = []
with persipubsub.new_environment(sys.argv[1]) as env:
    for use in (env.new_control, lambda: env.new_publisher().send(b"1"),
                lambda: list(env.new_subscriber("a").messages(timeout=0))):
        try:
            use()
        except persipubsub.errors.StorageError as error:
            found.append(str(error))
print(json.dumps(found))
"""


@NEEDS_ROOT
def test_without_boot_id(tmp_path: pathlib.Path) -> None:
    """Where the system hides the boot id, each use that needs it says so and names the remedy; nothing is changed."""
    path = tmp_path / "all" / "queue"
    assert run(PLAIN["nothing special"], path) == OUTCOME
    path = path.rename(tmp_path / "all" / "other")
    found = run(HIDDEN, path, HIDDEN_BOOT_ID)
    assert found
    for told in found:
        for part in ("/proc/sys/kernel/random/boot_id", "ProcSubset=pid", "mount /proc", "Nothing was changed"):
            assert part in told
    with persipubsub.new_environment(path) as environment:
        assert environment.new_publisher().send(b"goes on") == 5


# Time namespaces


@NEEDS_ROOT
def test_messages_of_two_time_namespaces(tmp_path: pathlib.Path) -> None:
    """Messages do not age by a send from a time namespace, there or outside, in which the clock is far ahead."""
    ahead = Surroundings(NO_LIMIT, ("unshare", "--time", "--boottime", "100000"))
    program = """
import json, os, sys
import persipubsub
with persipubsub.new_environment(sys.argv[1]) as env:
    env.new_publisher().send(b"inside")
    if not (child := os.fork()):
        env.new_publisher().send(b"inside, forked")
        os._exit(0)
    os.waitpid(child, 0)
    print(json.dumps([env.new_control().status().messages, env.new_control().status().oldest_age_s]))
"""
    path = tmp_path / "all" / "queue"
    path.parent.mkdir()
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], HighWaterMark(message_timeout=3600))
        environment.new_publisher().send(b"outside")
        messages, oldest_s = run(ahead, path, program)
        assert messages == 3 and oldest_s < 2 * WAIT_S
        assert [bytes(msg) for msg in environment.new_subscriber("a").messages(timeout=0)
                ] == [b"outside", b"inside", b"inside, forked"]


LEAVES_ITS_NAMESPACE = """
import ctypes, json, os, sys
CLONE_NEWTIME = 0x80
def leave():
    assert ctypes.CDLL(None).unshare(CLONE_NEWTIME) == 0
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write("boottime 77777 0")
leave()
import persipubsub
found = []

def send(payload):
    try:
        publisher.send(payload)
    except persipubsub.errors.StorageError as error:
        found.append(str(error))

with persipubsub.new_environment(sys.argv[1]) as env:
    publisher = env.new_publisher()
    send(b"parent")
    if not (child := os.fork()):
        found.clear()
        send(b"child, which is in the new one")
        os._exit(len(found))
    found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(found))
"""


@NEEDS_ROOT
def test_a_child_in_another_time_namespace(tmp_path: pathlib.Path) -> None:
    """A forked child uses the clock of its birth; a process whose clock the system hides is refused."""
    path = tmp_path / "all" / "queue"
    path.parent.mkdir()
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], HighWaterMark(message_timeout=3600))
        environment.new_publisher().send(b"before")
        assert run(Surroundings(), path, LEAVES_ITS_NAMESPACE) == [0]
        inside = Surroundings("", ("unshare", "--time", "--boottime", "100000"))
        told, status = run(inside, path, LEAVES_ITS_NAMESPACE)
        assert "has chosen another time namespace" in told and status == 0
        assert [bytes(msg) for msg in environment.new_subscriber("a").messages(timeout=0)
                ] == [b"before", b"parent", *2 * [b"child, which is in the new one"]]


# Threads


@pytest.mark.parametrize("use", ["send", "receive"])
def test_at_exit_of_a_forked_child(use: str, tmp_path: pathlib.Path) -> None:
    """While Python ends, and starts no more threads, messages are still sent and acknowledged."""
    program = """
import atexit, json, os, sys
import persipubsub
env = persipubsub.new_environment(sys.argv[1])
env.new_control(["a"])
publisher, subscriber = env.new_publisher(), env.new_subscriber("a")
publisher.send(b"1")
if not os.fork():
    atexit.register(lambda: USE)
    sys.exit()
os.wait()
print(json.dumps(list(map(bytes.decode, subscriber.messages(timeout=0)))))
"""
    uses = {"send": "publisher.send(b'2')", "receive": "subscriber.pop()"}
    left = {"send": ["1", "2"], "receive": []}
    assert run(PLAIN["nothing special"], tmp_path / "all" / "queue", program.replace("USE", uses[use])) == left[use]


@NEEDS_ROOT
def test_asyncio_without_threads(tmp_path: pathlib.Path) -> None:
    """A task that needs a thread where the machine has none left gets an error that says which limit to raise."""
    program = """
import asyncio, json, resource, sys
import persipubsub
from persipubsub import aio
found = []

async def use():
    with persipubsub.new_environment(sys.argv[1]) as env:
        env.new_control(["a"])
        publisher, subscriber = env.new_async_publisher(), env.new_async_subscriber("a")
        limits = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, limits[1]))
        for attempt in (lambda: publisher.send(b"1"), subscriber.front):
            try:
                await attempt()
            except persipubsub.errors.StorageError as error:
                found.append(str(error))
        resource.setrlimit(resource.RLIMIT_NPROC, limits)
        found.append(await publisher.send(b"2"))
        found.append((await subscriber.front()).decode())

asyncio.run(use())
print(json.dumps(found))
"""
    *told, sent, front = run(ROOT["another user"], tmp_path / "all" / "queue", program)
    assert len(told) == 2 and all("ulimit -u" in text and "asyncio" in text for text in told)
    assert (sent, front) == (1, "2")


@NEEDS_ROOT
@pytest.mark.parametrize("shared", [False, True])
def test_a_worker_without_threads(shared: bool, tmp_path: pathlib.Path) -> None:
    """A worker program where the machine has no thread left ends with an error that says which limit to raise."""
    program = """
import json, resource, sys
import persipubsub
from persipubsub import worker
with persipubsub.new_environment(sys.argv[1]) as env:
    env.new_control().add_subscriber("a", shared=SHARED)
resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
try:
    worker.run(sys.argv[1], "a", print)
except persipubsub.errors.StorageError as error:
    print(json.dumps([str(error)]))
"""
    told, = run(ROOT["another user"], tmp_path / "all" / "queue", program.replace("SHARED", str(shared)))
    assert "ulimit -u" in told and "worker" in told


# Greenlets


@pytest.mark.parametrize("patched", ["before", "after"])
def test_other_greenlets_run_while_one_waits(patched: str, tmp_path: pathlib.Path) -> None:
    """Under gevent a waiting receive lets other greenlets run, one of which may send what it waits for."""
    patch, the_import = "import gevent.monkey; gevent.monkey.patch_all()\n", "import persipubsub\n"
    before = patch + the_import if patched == "before" else the_import + patch
    program = """
import json, sys, gevent
env = persipubsub.new_environment(sys.argv[1])
env.new_control(["a"])
found = []

def wait():
    with env.new_subscriber("a").receive(timeout=60) as msg:
        found.append(msg.decode())

def tick():
    for number in range(3):
        gevent.sleep(0.05)
        found.append(number)
    env.new_publisher().send(b"sent")

gevent.joinall([gevent.spawn(wait), gevent.spawn(tick)])
print(json.dumps(found))
"""
    assert run(Surroundings(before, options=("-W", "ignore")), tmp_path / "all" / "queue", program) == [0, 1, 2, "sent"]
