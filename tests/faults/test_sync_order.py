"""Whatever is created or renamed is on the disk, under its name, when the call returns."""

import pathlib
import shutil
from typing import Callable, List

import pytest

from persipubsub import Durability, Environment
from tests.faults.sync_order import SyncOrder

MakeEnvironment = Callable[..., Environment]
LEGACY = pathlib.Path(__file__).parents[1] / "legacy"

OPERATIONS = {
    "create": "new.new_control(['a'])",
    "change": "environment.new_control(['b'], mode=0o660)",
    "send": "environment.new_publisher().send(b'durable')",
    "compact": "persipubsub.compaction.compact(path / 'queue')",
    "recover": "persipubsub.recovery.recover(path / 'queue')",
    "backup": "environment.new_control().backup(path / 'deeper' / 'copy')",
    "migrate": "persipubsub.migration.migrate(legacy, path / 'deeper' / 'migrated')",
}
PROGRAM = """
import os, pathlib, sys
import persipubsub, persipubsub.compaction, persipubsub.recovery, persipubsub.migration
path, legacy = map(pathlib.Path, sys.argv[1:])
environment, new = persipubsub.new_environment(path / 'queue'), persipubsub.new_environment(path / 'deeper' / 'new')
{operation}
os._exit(0)  # what closing would sync comes too late
"""


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_is_on_the_disk(operation: str, new_environment: MakeEnvironment, tmp_path: pathlib.Path) -> None:
    """A file is synced before it gets its name, and its directory, and each directory that is made, afterwards."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    with new_environment("a", name="root/queue") as environment:
        environment.new_publisher().send_many([b"message"] * 100)
    order = SyncOrder(tmp_path / "root")
    order.run(PROGRAM.format(operation=OPERATIONS[operation]), tmp_path / "root", LEGACY / "two-subscribers")
    assert not order.faults


@pytest.mark.slow
@pytest.mark.parametrize("operation, faults", [
    (OPERATIONS["send"], ["queue/data.mdb is not synced in the end"]),
    (OPERATIONS["send"] + "; environment.close()", []),
    (OPERATIONS["send"] + "; environment.new_control().add_subscriber('b')", []),
])
def test_a_relaxed_queue(operation: str, faults: List[str], new_environment: MakeEnvironment,
                         tmp_path: pathlib.Path) -> None:
    """The file ``unclean`` lies on the disk for as long as messages do not; changes of the control do not wait."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    new_environment("a", name="root/queue", durability=Durability.PROCESS_CRASH).close()
    order = SyncOrder(tmp_path / "root")
    order.run(PROGRAM.format(operation=operation), tmp_path / "root", LEGACY / "two-subscribers")
    assert order.faults == faults
