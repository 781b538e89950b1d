"""Test that whatever is lost is reported, also where logging is not configured, but not all the time."""

import asyncio
import logging
import pathlib
import re
import subprocess
import sys
from typing import Callable

import pytest

import persipubsub
from persipubsub import clock

#: For what takes a second; only a hang takes longer.
TIMEOUT_S = 60

OVERFLOW = """
import sys
import persipubsub
with persipubsub.new_environment(sys.argv[1]) as env:
    env.new_control(["a"], high_watermark=persipubsub.HighWaterMark(max_messages=10))
    env.new_publisher().send_many([b""] * 11)
"""


def run(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)],
                          capture_output=True,
                          text=True,
                          timeout=TIMEOUT_S,
                          check=True)


#: Loses messages every 20 seconds, for two minutes of a clock that it moves; prints how many.
LOSING = """
import sys
import persipubsub
from persipubsub import clock
now_us = clock.boottime_us()
clock.boottime_us = lambda: now_us
with persipubsub.new_environment(sys.argv[1]) as env:
    control = env.new_control([SUBSCRIBERS], high_watermark=persipubsub.HighWaterMark(MARK))
    for _ in range(6):
        env.new_publisher().send_many([b""] * 4)
        env.new_publisher().send(b"")
        now_us += 20_000_000
    pruned = control.status().pruned
print(pruned.overflow + pruned.timeout + pruned.dangling)
"""


@pytest.mark.parametrize("subscribers, mark, text", [
    ("'a'", "max_messages=2", r"The queue at (.*) reached its high-water mark: (\d+) messages were dropped\."),
    ("'a'", "message_timeout=15", r"Messages of the queue at (.*) expired, .* message timeout: (\d+)\."),
    ("", "", r"The queue at (.*) has no subscribers, so it did not store what was sent: (\d+) messages\."),
])
def test_losses_reach_whoever_has_not_configured_logging(subscribers: str, mark: str, text: str,
                                                         tmp_path: pathlib.Path) -> None:
    """Each kind of loss is a line on standard error with the path and the number, at most once a minute."""
    result = run(LOSING.replace("SUBSCRIBERS", subscribers).replace("MARK", mark), tmp_path)
    found = [
        re.fullmatch(f"{text} More in the next 60 seconds are reported together\\.", line)
        for line in result.stderr.splitlines()
    ]
    assert len(found) == 3 and {match and match[1] for match in found} == {str(tmp_path)}, result.stderr
    assert sum(int(match[2]) for match in found if match) == int(result.stdout) > 20


def test_a_program_that_loses_nothing_prints_nothing(tmp_path: pathlib.Path) -> None:
    """A program that sends and receives within the limits finds nothing of ours in its output."""
    code = ("import sys, persipubsub\nwith persipubsub.new_environment(sys.argv[1]) as env:\n"
            "    env.new_control(['a'])\n    env.new_publisher().send(b'', headers={'a': 'b'})\n"
            "    with env.new_subscriber('a').receive() as msg: pass\n")
    result = run(code, tmp_path)
    assert (result.stdout, result.stderr) == ("", "")


def test_an_overflow_is_one_warning_with_the_counts(tmp_path: pathlib.Path) -> None:
    """Where logging is configured, an overflow is one line with the path and the number, from the module's logger."""
    code = "import logging\nlogging.basicConfig(format='%(levelname)s %(name)s %(message)s')\n" + OVERFLOW
    assert run(code, tmp_path).stderr == (f"WARNING persipubsub.writer The queue at {tmp_path} reached its "
                                          "high-water mark: 6 messages were dropped. More in the next 60 "
                                          "seconds are reported together.\n")


def test_overflows_are_one_warning_a_minute(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mark is reached again and again, a warning a minute has the number, and one at the end has the rest."""
    booted_us = 10_000_000
    monkeypatch.setattr(clock, "boottime_us", lambda: booted_us)
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(["a"], high_watermark=persipubsub.HighWaterMark(max_messages=2))
        for _ in range(5):
            for _ in range(10):
                env.new_publisher().send(b"x")
            booted_us += 20_000_000
        pruned = env.new_control().status().pruned.overflow
    found = [re.search(r": (\d+) messages were dropped", record.getMessage()) for record in caplog.records]
    assert len(found) == 3 and sum(int(match.group(1)) for match in found if match) == pruned


@pytest.mark.parametrize("how", ["send", "task", "later"])
def test_the_latest_value_replaces_the_one_before_without_a_word(how: str, tmp_path: pathlib.Path,
                                                                 caplog: pytest.LogCaptureFixture) -> None:
    """A queue that may hold one message warns of nothing when the next one takes its place; the status counts it."""
    with persipubsub.new_environment(tmp_path) as env:
        control = env.new_control(["a"], high_watermark=persipubsub.HighWaterMark(max_messages=1))
        for _ in range(3):
            if how == "send":
                env.new_publisher().send(b"x")
            elif how == "task":
                asyncio.run(env.new_async_publisher().send(b"x"))
            else:
                env.new_publisher().send_later(b"x", delay_s=0)
        assert control.status().pruned.overflow == 2
    assert not caplog.records


class Sending(logging.Handler):
    """Sends each line of the log into a queue that it opens for it."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = path
        self.sent = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send it."""
        self.sent += 1
        with persipubsub.new_environment(self._path) as env:
            env.new_publisher().send_many([record.getMessage().encode()] * 3)


@pytest.mark.parametrize("stays_open", [True, False])
def test_logging_into_a_full_queue_ends(stays_open: bool, tmp_path: pathlib.Path) -> None:
    """Messages that a log handler drops by its own sends call it only once more, when the queue closes."""
    handler, logger = Sending(tmp_path), logging.getLogger("persipubsub")
    logger.addHandler(handler)
    try:
        with persipubsub.new_environment(tmp_path) as env:
            env.new_control(["a"], high_watermark=persipubsub.HighWaterMark(max_messages=2))
            if stays_open:
                env.new_publisher().send_many([b"x"] * 3)
        if not stays_open:
            handler.handle(logging.makeLogRecord({"msg": "first"}))
    finally:
        logger.removeHandler(handler)
    assert handler.sent == (2 if stays_open else 3)


def test_configuring_the_logger_of_the_package_is_enough(tmp_path: pathlib.Path) -> None:
    """Each logger is below that of the package: its level and its handlers hold for all."""
    code = ("import logging\nlogger = logging.getLogger('persipubsub')\nlogger.addHandler(logging.StreamHandler())\n"
            "logger.setLevel(sys.argv[2])\n")
    assert "6 messages" in run("import sys\n" + code + OVERFLOW, tmp_path / "warning", "WARNING").stderr
    assert run("import sys\n" + code + OVERFLOW, tmp_path / "error", "ERROR").stderr == ""


def look(env: persipubsub.Environment) -> None:
    """Find that nothing is left."""
    assert env.new_subscriber("a").front() is None


def send(env: persipubsub.Environment) -> None:
    """Send a message."""
    env.new_publisher().send(b"4")


def send_as_a_task(env: persipubsub.Environment) -> None:
    """Send a message from a coroutine, whose commits are made by another thread."""
    asyncio.run(env.new_async_publisher().send(b"4"))


@pytest.mark.parametrize("use", [look, send, send_as_a_task])
def test_what_expires_is_a_warning_once_a_minute(use: Callable[[persipubsub.Environment], None], tmp_path: pathlib.Path,
                                                 caplog: pytest.LogCaptureFixture,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Expired messages are logged with their number, at most once a minute, also soon after a boot."""
    told = re.compile(r"^Messages of the queue at (.*) expired, .*: (\d+)\. .* the next 60 seconds ")
    booted_us = 10_000_000
    monkeypatch.setattr(clock, "boottime_us", lambda: booted_us)
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(["a"], high_watermark=persipubsub.HighWaterMark(message_timeout=15))
        publisher = env.new_publisher()
        publisher.send_many([b"1", b"2", b"3"])
        booted_us += 20_000_000
        use(env)
        for _ in range(3):
            publisher.send(b"5")
            assert len(caplog.records) == 1
            booted_us += 20_000_000
        use(env)
    found = [told.match(record.getMessage()) for record in caplog.records]
    later = 3 if use is look else 4
    assert [match and match.groups() for match in found] == [(str(tmp_path), "3"), (str(tmp_path), str(later))]


@pytest.mark.damages_queues
def test_the_command_shows_warnings(tmp_path: pathlib.Path) -> None:
    """A warning of the library is a line on standard error: here, of what a power cut may have cost."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(["a"], durability=persipubsub.Durability.PROCESS_CRASH)
    (tmp_path / "unclean").write_text("another boot")
    result = run("from persipubsub.cli import main\nmain()", "status", tmp_path)
    assert "messages" in result.stdout
    assert result.stderr.startswith(f"Warning: The machine stopped while commits of the queue at {tmp_path} ")
    assert len(result.stderr.splitlines()) == 1
