"""Test kills and errors at some system calls of operations; ``python -m tests.faults`` injects them at all."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.faults import campaigns
from tests.faults.figures import table
from tests.faults.interposed import preload

COUNTED = ("write,writev,pwrite64,pwritev,fsync,fdatasync,msync,ftruncate,fallocate,rename,renameat,renameat2,unlink,"
           "unlinkat,mkdir,mkdirat")
#: Prints how many calls it counted itself, in a queue that is new, filled, emptied and closed.
PROGRAM = """
import os, pathlib, sys
import persipubsub
from tests.faults.interposed import Fault, Interposed, Kind
os.truncate(sys.argv[2], 1)
interposed = Interposed()
interposed.arm(Fault(Kind.COUNT))
with persipubsub.new_environment(sys.argv[1]) as environment:
    environment.new_control(["a"])
    environment.new_publisher().send_many([bytes(100_000)] * 3)
    for _ in environment.new_subscriber("a").messages(timeout=0):
        pass
calls = interposed.disarm()
os.truncate(sys.argv[2], 0)
print(calls)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kills", "errors"])
def test_nothing_lost_at_any_point(name: str) -> None:
    """A kill, EIO or ENOSPC at any system call leaves the queue as before or as after the operation."""
    if campaigns.missing(name):
        pytest.skip(campaigns.missing(name))
    rows = campaigns.run(name, campaigns.CAMPAIGNS[name].short)
    print("\n" + table(rows))
    for row in rows:
        assert not row.failures
        assert row.lost == row.duplicated == 0
        assert row.faults > 30 and row.messages > 30


def test_no_system_call_is_missed(tmp_path: pathlib.Path) -> None:
    """Faults happen at every call of the kernel that changes a file: as many are counted as strace sees."""
    if campaigns.missing("kills"):
        pytest.skip(campaigns.missing("kills"))
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    report, mark = tmp_path / "strace.txt", tmp_path / "mark"
    mark.write_bytes(b"")
    environment = preload(tmp_path)
    library = environment.pop("LD_PRELOAD")
    counted = subprocess.run([
        "strace", "-f", "-E", f"LD_PRELOAD={library}", "-o", report, "-e", f"trace=truncate,{COUNTED}", sys.executable,
        "-c", PROGRAM, tmp_path / "queue", mark
    ],
                             check=True,
                             env=environment,
                             cwd=campaigns.ROOT,
                             stdout=subprocess.PIPE)
    lines = report.read_text().splitlines()
    begun, ended = (number for number, line in enumerate(lines) if re.match(r"\d+ +truncate\(", line))
    seen = [line for line in lines[begun + 1:ended] if re.match(r"\d+ +\w+\(", line)]
    assert int(counted.stdout) == len(seen) > 20
