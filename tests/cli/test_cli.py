"""Test the command ``persipubsub`` as a user runs it, and the parts of the demo that count."""

import collections
import contextlib
import functools
import io
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Dict, Iterator, List, Sequence, Set, Tuple

import hypothesis
import pytest
from hypothesis import strategies as st

import persipubsub
from persipubsub.cli.demo import workers
from persipubsub.cli.verbs import VERBS

pytestmark = pytest.mark.slow  # starts many processes, or waits

ROOT = pathlib.Path(__file__).resolve().parents[2]
PERSIPUBSUB = [sys.executable, "-m", "persipubsub"]
#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run([*PERSIPUBSUB, *map(str, arguments)],
                          cwd=ROOT,
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=False)


@contextlib.contextmanager
def started(*arguments: object, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the command in a process group of its own, of which nobody outlives the block."""
    with subprocess.Popen([*PERSIPUBSUB, *map(str, arguments)],
                          cwd=ROOT,
                          env={
                              **os.environ,
                              **environ
                          },
                          stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE,
                          text=True,
                          start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def sent(stdout: str) -> Dict[str, str]:
    """Read from the demo's output how many messages each publisher sent."""
    return dict(re.findall(r"^(publisher-\d+) sent ([\d,]+) messages?$", stdout, re.MULTILINE))


def received(stdout: str) -> Dict[str, Tuple[str, str]]:
    """Read from the demo's output how many messages each subscriber received, and what was wrong with them."""
    lines = re.findall(r"^(subscriber-\d+) received ([\d,]+) messages?: (.*)$", stdout, re.MULTILINE)
    return {name: (count, faults) for name, count, faults in lines}


def assert_all_arrived(result: "subprocess.CompletedProcess[str]", counts: Sequence[str], total: str,
                       subscribers: int) -> None:
    """Assert that the demo found nothing wrong, and sent and received what it should."""
    assert (result.returncode, result.stderr) == (0, "")
    assert sent(result.stdout) == {f"publisher-{index}": count for index, count in enumerate(counts, 1)}
    nothing_wrong = "0 missing, 0 duplicated, 0 out of order, 0 altered"
    assert received(result.stdout) == {
        f"subscriber-{index + 1}": (total, nothing_wrong)
        for index in range(subscribers)
    }
    assert len(result.stdout.splitlines()) == len(counts) + subscribers


def assert_ended_early(stdout: str) -> None:
    """Assert that a demo of two publishers and three subscribers shows their counts, and doubled nothing."""
    assert len(sent(stdout)) == 2
    assert [faults for _, faults in received(stdout).values()] == ["0 duplicated, 0 out of order, 0 altered"] * 3


def opened(pid: int) -> Set[str]:
    """Name the files that a process has open."""
    names = set()
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                names.add(os.path.basename(os.readlink(entry.path)))
    return names


def worker(process: "subprocess.Popen[str]", publisher: bool) -> int:
    """Wait for a publisher or a subscriber among the children of a demo of the large file; return its process id."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
        # In the order of their start: Python's resource tracker, the subscribers, the publishers, which open the queue
        # before their file. lock.mdb is opened last: a process that is stopped before may hold use.lock exclusively.
        workers = list(map(int, children.split()))[1:]
        for pid in workers if publisher else workers[:1]:
            if ("large_file" if publisher else "lock.mdb") in opened(pid):
                return pid
        time.sleep(0.005)
    raise AssertionError(f"the demo has no such process; its exit status is {process.poll()}")


@pytest.fixture(name="large_file", scope="session")
def large_file_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """Make a file that a demo needs seconds for."""
    path = tmp_path_factory.mktemp("large") / "large_file"
    path.write_bytes(b"A line among many others.\n" * 2_000_000)
    yield path
    path.unlink()


def test_version() -> None:
    """``python -m persipubsub --version`` prints the version of the package."""
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"persipubsub {persipubsub.__version__}\n")


def test_version_loads_no_verb() -> None:
    """What only a verb needs is not loaded before it is called."""
    program = ("import sys; from persipubsub.cli import VERBS, main; main(['--version'], standalone_mode=False); "
               "print({'rich', 'msgspec', *(f'persipubsub.cli.verbs.{verb}' for verb in VERBS)} & set(sys.modules))")
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == f"persipubsub {persipubsub.__version__}\nset()\n"


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)], ids=lambda verb: " ".join(["main", *verb]))
def test_help_begins_with_an_example(verb: List[str]) -> None:
    """The help of the command and of each verb begins with an example of its use."""
    result = run(*verb, "--help")
    assert result.returncode == 0
    assert re.match(" ".join(["Example: persipubsub", *verb]) + r"\b.*\n\nUsage: ", result.stdout)


def test_unknown_verb() -> None:
    """A verb that does not exist is a mistake of usage."""
    result = run("destroy")
    assert result.returncode == 2
    assert "No such command 'destroy'" in result.stderr


def test_create(tmp_path: pathlib.Path) -> None:
    """What ``create`` sets up works from the API, and ``create`` again adds what is missing and keeps what is there."""
    path = tmp_path / "new" / "queue"
    result = run("create", path, "--subscriber", "b", "--subscriber", "a")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{path}: 2 subscribers ('a', 'b'), 0 messages\n"
    with persipubsub.new_environment(path) as environment:
        environment.new_publisher().send(b"hello")
    result = run("create", path, "--subscriber", "c")
    assert result.stdout == f"{path}: 3 subscribers ('a', 'b', 'c'), 1 message\n"
    with persipubsub.new_environment(path) as environment:
        with environment.new_subscriber("a").receive(timeout=0) as message:
            assert message == b"hello"


def test_create_names_few_of_many_subscribers(tmp_path: pathlib.Path) -> None:
    """The line about a queue with many subscribers gives their number, and the names of some."""
    names = [option for index in range(30) for option in ("--subscriber", f"s{index:02}")]
    assert "30 subscribers ('s00', " in (line := run("create", tmp_path / "queue", *names).stdout)
    assert "'s19', and 10 more)" in line


@pytest.mark.parametrize("verb", [["create"], ["demo", "--path"]], ids=" ".join)
@pytest.mark.parametrize("path", ["", "file", "file/queue"])
def test_refused_paths(verb: List[str], path: str, tmp_path: pathlib.Path) -> None:
    """A path that cannot be a queue's is refused in one line that names it, and nothing is left there."""
    (tmp_path / "file").touch()
    result = run(*verb, tmp_path / path if path else "")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert path in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_debug(tmp_path: pathlib.Path) -> None:
    """With ``--debug`` an error of ours shows its traceback."""
    result = run("--debug", "create", tmp_path / "queue", "--subscriber", "")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "persipubsub.errors.ArgumentError" in result.stderr


@pytest.mark.slow
def test_demo_of_the_default_text(tmp_path: pathlib.Path) -> None:
    """Without a file, 60,000 lines reach 3 subscribers in less than 15 seconds, and the temporary queue is removed."""
    start_s = time.monotonic()
    with started("demo", TMPDIR=str(tmp_path)) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert time.monotonic() - start_s < 15
    result = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
    assert_all_arrived(result, ["30,000", "30,000"], "60,000", 3)
    assert not list(tmp_path.iterdir())


def test_demo_of_binary_lines(tmp_path: pathlib.Path) -> None:
    """Lines arrive that are no text, that are empty, that are long, and the last one that lacks its end."""
    piece = workers.PIECE_BYTES_MAX
    lines = [
        b"\n", b"\0\n", b"\xff\xfe\0\n", b"\r\n", b"\n", b"x" * (piece - 1) + b"\n", b"y" * piece + b"\n",
        b"z" * (3 * piece + 1), b"\n", b"no end"
    ]
    (tmp_path / "file").write_bytes(b"".join(lines))
    result = run("demo", tmp_path / "file", "--publishers", 1, "--subscribers", 2, "--path", tmp_path / "queue")
    # Beyond one for each line: one for the end of the second long line, and three for the rest of the third.
    assert_all_arrived(result, ["13"], "13", 2)


@pytest.mark.slow
def test_demo_leaves_the_queue_at_a_given_path(tmp_path: pathlib.Path) -> None:
    """The queue at ``--path`` stays, with everything acknowledged, and a second demo does not touch it."""
    (tmp_path / "file").write_bytes(b"a\nb\nc\n")
    assert_all_arrived(run("demo", tmp_path / "file", "--path", tmp_path / "queue"), ["2", "1"], "3", 3)
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        before = environment.new_control().status()
    assert (before.messages, before.next_id, len(before.subscribers)) == (0, 4, 3)
    result = run("demo", tmp_path / "file", "--path", tmp_path / "queue")
    assert result.returncode == 2
    assert f"'{tmp_path / 'queue'}' already holds a queue" in result.stderr
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        assert environment.new_control().status() == before


def test_demo_of_an_empty_file(tmp_path: pathlib.Path) -> None:
    """Of an empty file nothing is sent, and nothing is missing."""
    (tmp_path / "file").touch()
    assert_all_arrived(run("demo", tmp_path / "file"), ["0", "0"], "0", 3)


def test_demo_refuses_what_is_no_regular_file(tmp_path: pathlib.Path) -> None:
    """A file that is missing, a directory or a pipe is refused with the reason, without waiting for the pipe."""
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("missing", "does not exist"), (".", "is a directory"), ("pipe", "is not a regular file")):
        result = run("demo", tmp_path / name)
        assert result.returncode == 2
        assert str(tmp_path / name) in result.stderr and reason in result.stderr


def test_demo_draws_progress_on_a_terminal(tmp_path: pathlib.Path) -> None:
    """Where stderr is a terminal, it shows the progress of receiving."""
    (tmp_path / "file").write_bytes(b"a line\n" * 1000)
    terminal, side = os.openpty()
    with subprocess.Popen([*PERSIPUBSUB, "demo", tmp_path / "file"], cwd=ROOT, stdout=subprocess.DEVNULL,
                          stderr=side) as process:
        os.close(side)
        drawn = b""
        with contextlib.suppress(OSError):  # the terminal is closed on the other side
            while part := os.read(terminal, 65536):
                drawn += part
    os.close(terminal)
    assert process.returncode == 0
    assert re.search(rb"received .*100%", drawn)


@pytest.mark.slow
@pytest.mark.parametrize("publisher", [True, False], ids=["publisher", "subscriber"])
def test_demo_tells_of_a_killed_process(publisher: bool, large_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """After kill -9 of a worker the demo names it, stops the others, shows the counts and exits with 1."""
    with started("demo", large_file, "--path", tmp_path / "queue") as process:
        pid = worker(process, publisher)
        os.kill(pid, signal.SIGKILL)
        # Ends when all workers have: they share its outputs.
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    name = "publisher" if publisher else "subscriber"
    assert re.match(rf"Error: {name}-\d \(process {pid}\) was killed by SIGKILL\n", stderr)
    assert re.search(r"^Error: [\d,]+ of 2,000,000 lines were sent$", stderr, re.MULTILINE)
    assert stderr.count("process") == 1 and "Traceback" not in stderr and "missing" not in stderr
    assert_ended_early(stdout)
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        control = environment.new_control()
        assert control.check() == ()
        counts = [int(count.replace(",", "")) for count in sent(stdout).values()]
        assert control.status().next_id - 1 >= sum(counts)


@pytest.mark.slow
def test_demo_tells_of_missing_messages(tmp_path: pathlib.Path) -> None:
    """Messages that vanish from the queue are counted as missing, with the exit status 1, though nobody died."""
    large_file = tmp_path / "large_file"
    large_file.write_bytes(b"A line among many others.\n" * 200_000)
    with started("demo", large_file, "--subscribers", 1, "--path", tmp_path / "queue") as process:
        pid = worker(process, publisher=False)
        os.kill(pid, signal.SIGSTOP)
        with persipubsub.new_environment(tmp_path / "queue") as environment:
            control = environment.new_control()
            while not control.status().messages:
                time.sleep(0.005)
            cleared = control.clear_messages()
        os.kill(pid, signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    missing = int(received(stdout)["subscriber-1"][1].split(" missing")[0].replace(",", ""))
    # What it had received when it was stopped, and not yet acknowledged, is not missing.
    assert cleared - workers.BATCH_MESSAGES_MAX <= missing <= cleared
    assert stderr == f"Error: {missing:,} messages missing\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: str(number.name))
def test_demo_stopped_by_a_signal(number: signal.Signals, large_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Ctrl-C, which all processes get, and kill end all of them without a traceback, and leave nothing behind."""
    with started("demo", large_file, TMPDIR=str(tmp_path)) as process:
        worker(process, publisher=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert stderr.startswith(f"Error: stopped by {number.name}\n") and "Traceback" not in stderr
    assert_ended_early(stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("children", [0, 2, 6])
def test_demo_interrupted_while_it_starts(children: int, tmp_path: pathlib.Path) -> None:
    """Ctrl-C while the processes start ends all of them without a traceback, and leaves nothing behind."""
    with started("demo", TMPDIR=str(tmp_path)) as process:
        started_children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline_s = time.monotonic() + TIMEOUT_S
        while not list(tmp_path.iterdir()) or len(started_children.read_text(encoding="ascii").split()) < children:
            assert process.poll() is None and time.monotonic() < deadline_s
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert stderr.startswith("Error: stopped by SIGINT\n") and "Traceback" not in stderr
    assert_ended_early(stdout)
    assert not list(tmp_path.iterdir())


def test_interrupted_demo_leaves_the_queue_whole(large_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """After Ctrl-C the queue at ``--path`` can be used as before."""
    with started("demo", large_file, "--path", tmp_path / "queue") as process:
        worker(process, publisher=True)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    with persipubsub.new_environment(tmp_path / "queue") as environment:
        control, subscriber = environment.new_control(), environment.new_subscriber("subscriber-1")
        assert control.check() == ()
        control.clear_messages()
        environment.new_publisher().send(b"still works")
        assert subscriber.front() == b"still works"


def test_workers_end_with_their_parent(large_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """After kill -9 of the demo itself its workers end."""
    with started("demo", large_file, "--path", tmp_path / "queue") as process:
        worker(process, publisher=True)
        worker(process, publisher=False)
        process.kill()
        # Ends when all workers have: they share its outputs.
        process.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize("debug", [False, True])
def test_worker_reports_its_error(debug: bool, tmp_path: pathlib.Path) -> None:
    """A worker that cannot go on tells the parent why, with the traceback if it is asked for, and exits with 1."""
    reports, reporting = multiprocessing.Pipe(duplex=False)
    plan = workers.Plan(str(tmp_path / "queue"), None, 0, 1, ("a", ), debug)
    work = functools.partial(workers.subscribe, plan=plan, identifier="a", ended=reports)
    with reports, reporting:
        with pytest.raises(SystemExit) as info:
            workers.run(work, reporting, debug)
        error = reports.recv().error
    assert info.value.code == 1
    assert f"There is no queue at {tmp_path / 'queue'}" in error and ("Traceback" in error) == debug


def test_report_distinguishes_gaps_from_duplicates() -> None:
    """What arrives twice is a duplicate, what arrives late is out of order, and what never arrives leaves the end."""
    report = workers.Report()
    for number in (0, 1, 5, 3, 3, 1, 6, 7):
        report.add(4, number, intact=number != 7)
    assert report == workers.Report(8, collections.Counter({4: 8}), duplicated=2, out_of_order=1, altered=1)


def test_report_distinguishes_publishers() -> None:
    """The same number from two publishers is no duplicate, and a gap of one is not filled by the other."""
    report = workers.Report()
    for publisher, number in ((0, 0), (1, 0), (0, 2), (1, 1), (0, 1)):
        report.add(publisher, number, intact=True)
    assert report == workers.Report(5, collections.Counter({0: 3, 1: 2}), out_of_order=1)


def test_report_remembers_a_bounded_number_of_gaps() -> None:
    """A gap of any size takes a bounded amount of memory; what is late beyond it counts as a duplicate."""
    report = workers.Report()
    for number in (2**60, 0, workers.GAPS_MAX - 1, workers.GAPS_MAX):
        report.add(0, number, intact=True)
    assert report == workers.Report(4, collections.Counter({0: 2**60 + 1}), duplicated=1, out_of_order=2)


def lines_of(file: pathlib.Path, lines: int, publishers: int) -> List[List[Tuple[int, int, bytes]]]:
    """Return the publisher, the number and the line of each message that each publisher would send."""
    plan = workers.Plan("queue", file, lines, publishers, (), debug=False)
    header = len(workers.encode(0, 0, b""))
    return [[(*workers.decode(message)[:2], message[header:]) for message in plan.messages(publisher)]
            for publisher in range(publishers)]


@hypothesis.given(content=st.lists(st.sampled_from([b"\n", b"a", b"bc", b"longer", b"\0"])).map(b"".join),
                  publishers=st.integers(1, 5),
                  grown=st.booleans())
def test_shares_make_the_whole(content: bytes, publishers: int, grown: bool) -> None:
    """The shares of all publishers together are the lines as they were counted, even if the file has grown."""
    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile() as file:
        patch.setattr(workers, "PIECE_BYTES_MAX", 4)
        pieces = [line[start:start + 4] for line in io.BytesIO(content) for start in range(0, len(line), 4)]
        file.write(content)
        file.flush()
        assert list(workers.read(pathlib.Path(file.name))) == pieces
        file.write(b"\nmore" * grown)
        file.flush()
        if grown and pieces and len(pieces[-1]) < 4 and not pieces[-1].endswith(b"\n"):
            pieces[-1] += b"\n"  # a last line without its end is read as it then is
        expected = [[(publisher, number, line) for number, line in enumerate(pieces[publisher::publishers])]
                    for publisher in range(publishers)]
        assert lines_of(pathlib.Path(file.name), len(pieces), publishers) == expected


def test_share_of_a_file_that_shrank(tmp_path: pathlib.Path) -> None:
    """A publisher ends where its file ends, should it have become shorter."""
    (tmp_path / "file").write_bytes(b"a\nb")
    assert lines_of(tmp_path / "file", 3, 1) == [[(0, 0, b"a\n"), (0, 1, b"b")]]


def test_message_tells_whether_it_was_altered() -> None:
    """A message gives back its publisher and number, and shows where a byte of its line was changed."""
    message = workers.encode(3, 2**40, b"line\n")
    assert workers.decode(message) == (3, 2**40, True)
    assert workers.decode(message[:-1] + b"\0") == (3, 2**40, False)
