"""Test the verb ``top``: what it computes, what it draws, and how it behaves in a terminal."""

import contextlib
import fcntl
import io
import os
import pathlib
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import Iterator, List, Optional

import hypothesis
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import strategies as st

import persipubsub
from persipubsub.cli.opening import read_status
from persipubsub.cli.top_rates import SAMPLES_MAX, Rates

pytestmark = pytest.mark.slow  # starts many processes, or waits

PERSIPUBSUB = [sys.executable, "-m", "persipubsub"]
#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60


@pytest.fixture(name="env")
def fixture_env(tmp_path: pathlib.Path) -> Iterator[persipubsub.Environment]:
    """Set up a queue with two subscribers."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["fast", "slow"])
        yield env


class Terminal:
    """A terminal in which a command runs, and what it has drawn."""

    def __init__(self, *arguments: object, columns: int = 80) -> None:
        self._master, self.side = os.openpty()
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.before = termios.tcgetattr(self.side)
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with  # it lasts as long as this object
            # In a session of this terminal, so that Ctrl-C is a signal.
            ["setsid", "--ctty", *PERSIPUBSUB, *map(str, arguments)],
            env={
                **os.environ, "TERM": "xterm"
            },
            stdin=self.side,
            stdout=self.side,
            stderr=self.side)
        self.drawn = ""

    def wait_for(self, pattern: str) -> None:
        """Read what is drawn until it has the pattern."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not re.search(pattern, self.text()):
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{pattern!r} is not in what was drawn: {self.text()}"
            if select.select([self._master], [], [], left_s)[0]:
                self.drawn += os.read(self._master, 65536).decode(errors="replace")

    def text(self) -> str:
        """Return all that was drawn, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.drawn)

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._master, key)

    def ended(self) -> int:
        """Wait for the end; return the exit status. What is drawn meanwhile is read, or the end would wait for it."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s
            if select.select([self._master], [], [], 0.05)[0]:
                self.drawn += os.read(self._master, 65536).decode(errors="replace")
        while select.select([self._master], [], [], 0)[0]:
            self.drawn += os.read(self._master, 65536).decode(errors="replace")
        return self.process.wait()

    def close(self) -> None:
        """End it all."""
        self.process.kill()
        self.process.wait()
        os.close(self.side)
        os.close(self._master)


def test_rates_are_what_moved_between_two_looks(env: persipubsub.Environment) -> None:
    """All rates are the differences of the counters over the time between the looks."""
    rates = Rates("queue")
    rates.add(100, read_status(str(env.path)))
    assert (rates.sent_per_s(), rates.taken_per_s_by_subscriber()) == ([], {})
    env.new_publisher().send_many([b"x"] * 10)
    rates.add(102, read_status(str(env.path)))
    with env.new_subscriber("fast").receive_many(8):
        pass
    env.new_subscriber("slow").pop()
    env.new_control(["new"])
    rates.add(106, read_status(str(env.path)))
    assert rates.sent_per_s() == [5, 0]
    assert rates.taken_per_s() == [0, 9 / 4]
    assert rates.backlogs() == [0, 10, 9]
    assert rates.taken_per_s_by_subscriber() == {"fast": 2, "slow": 1 / 4}


def test_another_queue_at_the_path_begins_anew(env: persipubsub.Environment, tmp_path: pathlib.Path) -> None:
    """Where counters went back there is no rate; a subscriber that was added again has none."""
    env.new_publisher().send_many([b"x"] * 2)
    env.new_subscriber("fast").pop()
    rates = Rates("queue")
    rates.add(1, read_status(str(env.path)))
    control = env.new_control()
    control.remove_subscriber("fast")
    control.add_subscriber("fast")
    rates.add(2, read_status(str(env.path)))
    assert rates.taken_per_s() == [0]
    with persipubsub.new_environment(tmp_path / "other") as other:
        other.new_control()
        rates.add(3, read_status(str(other.path)))
    assert (rates.sent_per_s(), rates.backlogs()) == ([], [0])


def test_retained_messages_are_no_backlog(env: persipubsub.Environment) -> None:
    """Retained and delayed messages are nothing that anybody lags behind with."""
    env.new_control(retention_s=100)
    env.new_publisher().send_many([b"x"] * 5)
    env.new_publisher().send_later(b"x", delay_s=1000)
    rates = Rates("queue")
    for identifier, count in (("fast", 5), ("slow", 2), ("slow", 3)):
        with env.new_subscriber(identifier).receive_many(count):
            pass
        rates.add(len(rates.backlogs()) + 1, read_status(str(env.path)))
    assert rates.backlogs() == [5, 3, 0]


def drawn(path: pathlib.Path, columns: int = 80) -> List[str]:
    """Draw what top draws of a queue that it has looked at twice."""
    from rich.console import Console

    from persipubsub.cli.top_frame import frame
    rates = Rates("queue")
    for time_s in (1, 2):
        rates.add(time_s, read_status(str(path)))
    console = Console(width=columns, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(frame([rates], columns))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_what_a_queue_has_beside_its_messages_is_shown(env: persipubsub.Environment, tmp_path: pathlib.Path) -> None:
    """The type, what is retained and what is delayed are lines of their own, where the queue has them."""
    plain = "\n".join(drawn(env.path))
    assert not re.search(r"(?m)^  (type|retained|delayed) ", plain)
    with persipubsub.new_environment(tmp_path / "rich") as other:
        control = other.new_control(["a"], retention_s=2.5, message_type=StringValue)
        assert re.search(r"(?m)^  retained +0 of those messages, for 2.5 s *$", "\n".join(drawn(other.path)))
        control.set_retention(100)
        publisher = other.new_publisher(message_type=StringValue)
        publisher.send_many([StringValue(value="x")] * 1234)
        publisher.send_later(StringValue(value="x"), delay_s=1000)
        with other.new_subscriber("a", StringValue).receive_many(1200):
            pass
        text = "\n".join(drawn(other.path))
        assert re.search(r"(?m)^  messages +1,234$", text)
        assert re.search(r"(?m)^  type +google\.protobuf\.StringValue *$", text)
        assert re.search(r"(?m)^  retained +1,200 of those messages, for 100 s *$", text)
        assert re.search(r"(?m)^  delayed +1 *$", text)
        assert re.search(r"(?m)^  backlog +34 ", text)
        control.remove_subscriber("a")
        assert "no subscribers: what is sent is only retained" in "\n".join(drawn(other.path))
        control.set_retention(0)
        assert "no subscribers: what is sent is not stored" in "\n".join(drawn(other.path))


def test_old_samples_are_forgotten(env: persipubsub.Environment) -> None:
    """However long it runs, no more than two minutes are kept."""
    rates, status = Rates("queue"), read_status(str(env.path))
    for time_s in range(2 * SAMPLES_MAX):
        rates.add(time_s, status)
    assert (len(rates.backlogs()), len(rates.sent_per_s())) == (SAMPLES_MAX, SAMPLES_MAX - 1)


@hypothesis.given(st.lists(st.floats(0, 1e9)))
def test_a_sparkline_has_a_bar_for_each_value(values: List[float]) -> None:
    """The order of the bars is that of the values, and the largest value has the highest bar."""
    from persipubsub.cli.top_frame import BARS, sparkline
    heights = [BARS.index(drawn) for drawn in sparkline(values)]
    assert len(heights) == len(values)
    assert all(heights[one] <= heights[other] for one in range(len(values)) for other in range(len(values))
               if values[one] <= values[other])
    if any(values):
        assert max(heights) == len(BARS) - 1


def test_shared_subscribers_fit_into_80_columns(env: persipubsub.Environment) -> None:
    """Kind, messages in flight and dead letters stand in 80 columns, with no number cut, however long a name is."""
    assert drawn(env.path)[-3].split() == ["subscriber", "pending", "oldest", "out"]
    name = "w" * 100
    env.new_control().add_subscriber(name, shared=True, max_deliveries=1)
    env.new_publisher().send_many([b"x"] * 12_345)
    worker = env.new_subscriber(name)
    with pytest.raises(ValueError), worker.receive():
        raise ValueError
    with worker.receive_many(12_000) as messages:
        lines = drawn(env.path)
    head, = (line for line in lines if line.split()[:1] == ["subscriber"])
    assert head.split() == ["subscriber", "pending", "oldest", "out", "kind", "in", "flight", "dead", "letters"]
    assert max(map(len, lines)) <= 80
    rows = lines[lines.index(head) + 1:]
    row, = (line.split()[1:] for line in rows if "shared" in line)
    assert (row[0], row[-3:]) == ("12,344", ["shared", f"{len(messages):,}", "1"])
    assert sum(line[:30].count("w") for line in rows) == 100 + "slow".count("w")


@contextlib.contextmanager
def terminal(*arguments: object, columns: int = 80) -> Iterator[Terminal]:
    """Run a command in a terminal, which does not outlive the block."""
    made = Terminal(*arguments, columns=columns)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("key,signal_number,status", [(b"q", None, 0), (b"\x03", None, 0), (None, signal.SIGTERM, 143)])
def test_top_follows_the_queue(env: persipubsub.Environment, key: Optional[bytes],
                               signal_number: Optional[signal.Signals], status: int) -> None:
    """It draws what moves, the slowest subscriber first, and at q, Ctrl-C or SIGTERM the terminal is as before."""
    with terminal("top", env.path, env.path.parent / "later", "--interval", "0.1") as shown:
        shown.wait_for(r"messages +0 ")
        shown.wait_for("There is no queue at")
        env.new_publisher().send_many([b"x"] * 1234)
        shown.wait_for(r"messages +1,234 ")
        with env.new_subscriber("fast").receive_many(1000):
            pass
        shown.wait_for(r"'slow' +1,234 +\d\.\d s +0/s\s+'fast' +234 ")
        shown.wait_for(r"'fast' +234 +\d\.\d s +[1-9][\d,]*/s")
        with persipubsub.new_environment(env.path.parent / "later") as later:
            later.new_control()
        shown.wait_for("no subscribers")
        if key is not None:
            shown.press(b"x" + key)
        if signal_number is not None:
            shown.process.send_signal(signal_number)
        assert shown.ended() == status
        assert termios.tcgetattr(shown.side) == shown.before
        # The screen that was there before it, and the cursor.
        assert shown.drawn.rindex("\x1b[?1049l") > shown.drawn.rindex("\x1b[?1049h")
        assert shown.drawn.rindex("\x1b[?25h") > shown.drawn.rindex("\x1b[?25l")
        assert "Traceback" not in shown.text()


@pytest.mark.slow
def test_the_newest_bars_fit_into_a_narrow_terminal(env: persipubsub.Environment) -> None:
    """Where there are more looks than columns, the oldest ones are left out."""
    with terminal("top", env.path, "--interval", "0.1", columns=40) as shown:
        env.new_publisher().send_many([b"x"] * 3)
        # 40 columns, of which the name and the number take 16.
        shown.wait_for(r"backlog +3  █{24}\s")
        env.new_publisher().send_many([b"x"] * 6)
        shown.wait_for(r"backlog +9  ▃{20,23}█+\s")
        shown.press(b"q")
        assert shown.ended() == 0


def test_without_a_terminal_two_looks_are_written_once(env: persipubsub.Environment) -> None:
    """In a pipe there are no colours and no movements, and the exit status shows whether all could be read."""
    env.new_publisher().send_many([b"x"] * 3)
    command = [*PERSIPUBSUB, "top", str(env.path), "--interval", "0.1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert re.search(r"in +0/s  ▁\n", result.stdout) and re.search(r"backlog +3  ██\n", result.stdout)
    command.append(str(env.path.parent / "none"))
    result = subprocess.run(command,
                            env={
                                **os.environ, "PYTHONIOENCODING": "ascii"
                            },
                            capture_output=True,
                            text=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert (result.returncode, result.stderr) == (1, "")
    assert "There is no queue at" in result.stdout and re.search(r"backlog +3  \?\?\n", result.stdout)
