"""Whatever is made, renamed or removed durably is on the disk, in an order that no power cut can break."""

import os
import pathlib
from typing import Any, Callable, Dict, List, Tuple

import pytest

import persipubsub
from persipubsub import Durability, compaction, files, migration, recovery

OLD = pathlib.Path(__file__).parent / "legacy" / "two-subscribers"


class Disk:
    """What this process brings to the disk, and what only waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: List[str] = []
        self.renamed: List[str] = []
        self._synced: Dict[int, Tuple[int, int]] = {}
        self._pending: Dict[int, str] = {}  # by the inode of the directory whose entries changed
        for name in ("fsync", "rename", "mkdir", "link"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name), getattr(self, f"_after_{name}")))

    @staticmethod
    def _noting(original: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:

        def noting(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            after(*args)
            return result

        return noting

    def _after_fsync(self, fd: int) -> None:
        status = os.fstat(fd)
        self._synced[status.st_ino] = status.st_size, status.st_mtime_ns
        self._pending.pop(status.st_ino, None)

    def _after_rename(self, source: Any, target: Any) -> None:
        status = os.stat(target)
        self.renamed.append(os.fspath(target))
        if self._synced.get(status.st_ino) != (status.st_size, status.st_mtime_ns):
            self.faults.append(f"{source} was renamed before its content was on the disk")
        self._changed(target)

    def _after_mkdir(self, directory: Any, *_mode: int) -> None:
        self._changed(directory)

    def _after_link(self, _source: Any, target: Any) -> None:
        self._changed(target)

    def _changed(self, entry: Any) -> None:
        directory = os.path.dirname(os.path.abspath(entry))
        self._pending[os.stat(directory).st_ino] = f"{entry} may be gone: {directory} was not brought to the disk"

    def verdict(self) -> List[str]:
        """Return what a power cut could destroy now."""
        return self.faults + list(self._pending.values())


def create(path: pathlib.Path) -> None:
    """Make a queue below directories that are not there."""
    with persipubsub.new_environment(path / "deeper" / "new") as environment:
        environment.new_control(["a"])


def back_up(path: pathlib.Path) -> None:
    """Copy the queue."""
    with persipubsub.new_environment(path) as environment:
        environment.new_control().backup(path / "deeper" / "copy")


def migrate(path: pathlib.Path) -> None:
    """Take an old queue over."""
    migration.migrate(OLD, path / "deeper" / "migrated")


WORKS: Dict[str, Callable[[pathlib.Path], object]] = {
    "create": create,
    "compact": compaction.compact,
    "recover": recovery.recover,
    "backup": back_up,
    "migrate": migrate,
}


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("work", WORKS)
def test_what_is_made_is_on_the_disk(work: str, durability: Durability, tmp_path: pathlib.Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A data file is synced before it gets its name, and every directory after its entries changed."""
    path = tmp_path / "queue"
    with persipubsub.new_environment(path) as environment:
        environment.new_control(["a"], durability=durability)
        environment.new_publisher().send_many([b"x" * 1000] * 100)
        marks = {file: file.read_bytes() for file in path.glob(files.UNCLEAN_FILE)}
    for file, mark in marks.items():
        file.write_bytes(mark)  # as after a kill
    disk = Disk(monkeypatch)
    WORKS[work](path)
    assert len(disk.renamed) == 1 and disk.renamed[0].endswith(files.DATA_FILE)
    assert disk.verdict() == []
