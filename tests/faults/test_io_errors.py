"""I/O errors at every system call of a send: an error of ours, nothing half done, and the next send works."""

import pathlib
import shutil
import subprocess
import sys
from typing import Callable, List, Set

import pytest

from persipubsub import Durability, Environment
from tests.children import unmeasured

MakeEnvironment = Callable[..., Environment]

#: No send makes more system calls of one kind.
CALLS_MAX = 6

#: Sends three messages, and prints what came of each: the id, or the name of the error.
PROGRAM = """
import sys
import persipubsub
publisher = persipubsub.new_environment(sys.argv[1]).new_publisher()
for name in ("first", "second", "third"):
    try:
        print(name, publisher.send(name.encode()), flush=True)
    except persipubsub.errors.PersipubsubError as error:
        print(name, type(error).__name__, flush=True)
"""


def outcomes(path: pathlib.Path, injection: str, program: str = PROGRAM) -> List[List[str]]:
    """Run a program into which one error is injected; return which messages it sent, and what came of each."""
    done = subprocess.run([
        "strace", "-qq", "-f", "-o", "/dev/null", "-P", path / "data.mdb", "-e", f"inject={injection}", sys.executable,
        "-c", program, path
    ],
                          env=unmeasured(),
                          stdout=subprocess.PIPE,
                          text=True,
                          check=True,
                          timeout=60)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("call", ["pwrite64", "pwritev", "fdatasync"])
@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
def test_an_error_at_any_call(code: str, call: str, durability: Durability, new_environment: MakeEnvironment) -> None:
    """After an error nothing of the message is there, or the outcome is unknown; the next send works."""
    seen: Set[str] = set()
    for number in range(1, CALLS_MAX + 1):
        with new_environment("a", name=str(number), durability=durability) as environment:
            environment.new_publisher().send(b"there")
        found = outcomes(environment.path, f"{call}:error={code}:when={number}")
        with new_environment("a", name=str(number)) as environment:
            stored = [msg.decode() for msg in environment.new_subscriber("a").messages(timeout=0)]
            assert environment.new_control().check() == ()
        sent = [name for name, what in found if what.isdigit()]
        unknown = [name for name, what in found if what == "CommitUnknownError"]
        assert len(sent) >= 2
        assert [name for name in stored if name not in unknown] == ["there", *sent]
        seen.update(what for _, what in found if not what.isdigit())
    refused = "DiskFullError" if code == "ENOSPC" else "StorageError"
    assert seen <= {"CommitUnknownError", refused}
    if call == "pwrite64":
        # The message is written in one, and in another one that it is there.
        assert seen == {"CommitUnknownError", refused}
