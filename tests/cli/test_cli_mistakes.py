"""Test that no mistake of a user, and no environment, causes a traceback."""

import os
import pathlib
import subprocess
import sys
from typing import Callable, Dict, List, Sequence

import click.testing
import pytest

import persipubsub
from persipubsub import cli
from persipubsub.cli.verbs import VERBS

PERSIPUBSUB = [sys.executable, "-m", "persipubsub"]
TIMEOUT_S = 60
#: In short runs, one verb of each kind: that changes, that shows, that writes messages, and that reads them.
SHORT = ("create", "status", "receive", "send")
#: A path and a name that are not UTF-8.
NO_UTF_8 = os.fsdecode(b"\xff\xfe")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.damages_queues,
]


def calls(verb: str, path: str, other: str) -> List[Sequence[str]]:
    """Return the ways to call a verb on a path; it may write to the other one."""
    arguments: Dict[str, List[Sequence[str]]] = {
        "create": [[path], [path, "--subscriber", NO_UTF_8], [path, "--shared-subscriber", NO_UTF_8],
                   [path, "--retention", "9" * 5000], [path, "--mode", "999"], [path, "--message-type", NO_UTF_8]],
        "deploy": [[path], [path, "--plan"], ["-"]],
        "schema": [[]],
        "send": [[path], [other, path], [path, "--header", f"{NO_UTF_8}={NO_UTF_8}", path], [path, "--delay", "1x"],
                 [path, "--at", "9" * 5000], [path, "--whole", "--deduplication-id", NO_UTF_8]],
        "receive": [[path, "a"], [path, "a", "--peek"], [path, NO_UTF_8], [path, "a", "--timeout", "nan"],
                    [path, "a", "--max", "9" * 5000]],
        "history": [[path], [path, "--from", "0"], [path, "--from", "9" * 5000], [path, "--to", "9" * 29],
                    [path, "--to", "2026-01-31"], [path, "--headers", "--format", "raw"]],
        "rewind": [[path, "a", "earliest"], [path, NO_UTF_8, "1"], [path, "a", "0"], [path, "a", "9" * 29],
                   [path, "a", NO_UTF_8]],
        "status": [[path], [path, "--json", path]],
        "top": [[path, "--interval", "0.1"], [path, "--interval", "nan"]],
        "metrics": [[path, "--listen", f"{NO_UTF_8}:1"], [path, "--listen", "a..b:80"]],
        "dashboard": [[path, "--listen", f"{NO_UTF_8}:1"], [path, "--listen", "a..b:80"], [path, "--token", NO_UTF_8],
                      [path, "--interval", "nan"]],
        "subscriber": [["list", path], ["add", path, NO_UTF_8], ["remove", path, "b"],
                       ["add", path, "b", "--lease-s", "nan"]],
        "set": [[path, "--max-messages", "9" * 4000], [path, "--message-timeout", "nan"], [path, "--strategy", "x"],
                [path, "--hwm-db-size", "1000"]],
        "clear": [[path], [path, "--yes"]],
        "dead-letters": [["list", path, "a"], ["show", path, "a", "1"], ["discard", path, "a", str(2**70)],
                         ["requeue", path, "a", "--all"], ["requeue", path, NO_UTF_8, "9"]],
        "demo": [["--path", path, "--publishers", "9" * 5000]],
        "backup": [[path, other], [path, path]],
        "migrate": [[path, other], [path, path]],
    }  # yapf: disable
    return arguments.get(verb, [[path]])


def run(arguments: Sequence[str], redirection: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command, which must end, and return what is wrong in words."""
    shell = " ".join(f'"${number}"' for number in range(len(PERSIPUBSUB) + len(arguments)))
    result = subprocess.run(["/bin/sh", "-c", f"{shell} {redirection}", *PERSIPUBSUB, *arguments],
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            text=True,
                            errors="replace",
                            timeout=TIMEOUT_S,
                            check=False)
    told = result.stdout + result.stderr
    assert "Traceback" not in told and "Exception ignored" not in told, (arguments, told)
    assert 0 <= result.returncode <= 2 or result.returncode == 141, (arguments, told)
    return result


def run_here(arguments: Sequence[str]) -> None:
    """Run the command in this process, which is faster."""
    result = click.testing.CliRunner().invoke(cli.main, arguments)
    assert isinstance(result.exception, (SystemExit, type(None))), (arguments, result.exception)
    assert 0 <= result.exit_code <= 2, (arguments, result.output)


def _missing(_queue: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    return place / "missing" / NO_UTF_8


def _file(_queue: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    (place / "file").write_bytes(b"\xff{")
    return place / "file"


def _below_a_file(queue: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    return _file(queue, place) / "queue"


def _damaged(queue: pathlib.Path, _place: pathlib.Path) -> pathlib.Path:
    content = bytearray((queue / "data.mdb").read_bytes())
    for start in range(2 * 4096, len(content), 4096):
        content[start:start + 64] = b"\xa5" * 64
    (queue / "data.mdb").write_bytes(content)
    (queue / "unclean").touch()
    return queue


def _short(queue: pathlib.Path, _place: pathlib.Path) -> pathlib.Path:
    os.truncate(queue / "data.mdb", 5000)
    return queue


def _foreign(queue: pathlib.Path, _place: pathlib.Path) -> pathlib.Path:
    (queue / "data.mdb").write_bytes(b"no queue" * 10_000)
    return queue


def _directories(queue: pathlib.Path, _place: pathlib.Path) -> pathlib.Path:
    (queue / "data.mdb").unlink()
    (queue / "data.mdb").mkdir()
    return queue


PLACES: List[Callable[[pathlib.Path, pathlib.Path],
                      pathlib.Path]] = [_missing, _file, _below_a_file, _damaged, _short, _foreign, _directories]


@pytest.fixture(name="queue")
def fixture_queue(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue with some messages."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["a"])
        env.new_publisher().send_many([b"x" * 100] * 1000)
    return tmp_path / "queue"


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_no_path_causes_a_traceback(place: Callable[[pathlib.Path, pathlib.Path], pathlib.Path], queue: pathlib.Path,
                                    tmp_path: pathlib.Path) -> None:
    """Whatever lies at the path, each verb ends with an exit status and says in words what is wrong."""
    path = place(queue, tmp_path)
    # What is damaged may end a process, so the verbs run in others.
    ends = place in (_damaged, _short)
    for number, verb in enumerate(SHORT if ends else VERBS):
        if verb != "demo":
            (run if ends else run_here)([verb, *calls(verb, str(path), str(tmp_path / f"other-{number}"))[0]])


@pytest.mark.parametrize("verb", VERBS)
def test_no_argument_causes_a_traceback(verb: str, queue: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Names that are not UTF-8, numbers beyond all limits, and NaN are refused in words; so is a missing path."""
    for arguments in calls(verb, str(queue), str(tmp_path / "other")):
        if arguments[1:]:
            run_here([verb, *arguments[:-1]])
        run_here([verb, *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("verb",
                         [pytest.param(verb, marks=[] if verb in SHORT else [pytest.mark.long]) for verb in VERBS])
def test_closed_standard_files_cause_no_traceback(verb: str, queue: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Where standard files are closed or the disk is full, each verb ends quietly or says so in one line."""
    arguments = [*calls(verb, str(queue), str(tmp_path / "other"))[0]]
    if verb == "demo":
        arguments = ["--publishers", "1", "--subscribers", "1", str(queue / "data.mdb")]
    for redirection in (">&-", ">/dev/full", "<&- >/dev/full 2>&-"):
        result = run([verb, *arguments], redirection=redirection)
        if redirection == ">/dev/full" and verb not in ("subscriber", "metrics", "dead-letters"):
            assert result.returncode in (1, 2) and result.stderr.count("\n") >= 1
    for option in ("--version", "--help"):
        assert run([option], redirection=">/dev/full").stderr == "Error: No space left on device.\n"
