"""Test that the library is silent until logging is configured, and what it says then."""

import pathlib
import re
import subprocess
import sys

import pytest

import persipubsub
from persipubsub.testing import Clock

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


def test_an_overflow_is_silent_where_logging_is_not_configured(tmp_path: pathlib.Path) -> None:
    """A program that did not configure logging finds nothing of ours in its output, also of imported submodules."""
    result = run("import persipubsub.publisher\n" + OVERFLOW, tmp_path)
    assert (result.stdout, result.stderr) == ("", "")


def test_an_overflow_is_one_warning_with_the_counts(tmp_path: pathlib.Path) -> None:
    """Where logging is configured, an overflow is one line with the path and the number, from the module's logger."""
    code = "import logging\nlogging.basicConfig(format='%(levelname)s %(name)s %(message)s')\n" + OVERFLOW
    assert run(code, tmp_path).stderr == (f"WARNING persipubsub.publisher The queue at {tmp_path} reached its "
                                          "high-water mark: 6 messages were dropped.\n")


def test_configuring_the_logger_of_the_package_is_enough(tmp_path: pathlib.Path) -> None:
    """Each logger is below that of the package: its level and its handlers hold for all."""
    code = ("import logging\nlogger = logging.getLogger('persipubsub')\nlogger.addHandler(logging.StreamHandler())\n"
            "logger.setLevel(sys.argv[2])\n")
    assert "6 messages" in run("import sys\n" + code + OVERFLOW, tmp_path / "warning", "WARNING").stderr
    assert run("import sys\n" + code + OVERFLOW, tmp_path / "error", "ERROR").stderr == ""


def test_what_expires_is_a_warning_once_a_minute(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture,
                                                 persipubsub_clock: Clock) -> None:
    """Who lets messages expire says how many, and what expired since then with the first after a minute."""
    told = re.compile(r"^Messages of the queue at (.*) expired, .*: (\d+)\. ")
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(["a"], high_watermark=persipubsub.HighWaterMark(message_timeout=5))
        publisher, subscriber = env.new_publisher(), env.new_subscriber("a")
        publisher.send_many([b"1", b"2", b"3"])
        persipubsub_clock.forward(6)
        assert subscriber.front() is None
        for _ in range(4):
            publisher.send(b"4")
            persipubsub_clock.forward(6)
        persipubsub_clock.forward(60)
        publisher.send(b"5")
    found = [told.match(record.getMessage()) for record in caplog.records]
    assert [match and match.groups() for match in found] == [(str(tmp_path), "3"), (str(tmp_path), "4")]


@pytest.mark.damages_queues
def test_the_command_shows_warnings(tmp_path: pathlib.Path) -> None:
    """What the library warns of is a line on standard error: here, that a power cut may have cost some."""
    with persipubsub.new_environment(tmp_path) as env:
        env.new_control(["a"], durability=persipubsub.Durability.PROCESS_CRASH)
    (tmp_path / "unclean").write_text("another boot")
    result = run("from persipubsub.cli import main\nmain()", "status", tmp_path)
    assert "messages" in result.stdout
    assert result.stderr.startswith(f"Warning: The machine stopped while commits of the queue at {tmp_path} ")
    assert len(result.stderr.splitlines()) == 1
