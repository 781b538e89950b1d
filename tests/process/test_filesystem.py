"""Where a queue may lie: on file systems of this machine, unless the caller insists."""

import os
import pathlib
import pickle
import subprocess
import sys
from typing import Callable

import pytest

import persipubsub
from persipubsub import Environment, errors
from persipubsub.lmdb_engine.process import filesystem

MakeEnvironment = Callable[..., Environment]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the type of a file system is told on Linux only")


def test_the_type_of_known_file_systems(tmp_path: pathlib.Path) -> None:
    """The type is the one that the system calls it by, also through a link; of what is not there it is unknown."""
    assert filesystem.type_of(pathlib.Path("/proc/self")) == "proc"
    assert filesystem.type_of(pathlib.Path("/sys")) == "sysfs"
    (tmp_path / "link").symlink_to("/proc")
    assert filesystem.type_of(tmp_path / "link") == "proc"
    assert filesystem.type_of(tmp_path / "missing") == ""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts file systems: needs root on Linux")
def test_the_type_of_mounts_above_each_other(tmp_path: pathlib.Path) -> None:
    """Of mounts at one place it is the type of the upper one, whatever characters the path has."""
    place = tmp_path / "a place\twith - blanks"
    place.mkdir()
    for kind in ("tmpfs", "ramfs"):
        subprocess.run(["mount", "-t", kind, "none", place], check=True)
    try:
        assert filesystem.type_of(place) == "ramfs"
        subprocess.run(["umount", place], check=True)
        assert filesystem.type_of(place) == "tmpfs"
    finally:
        subprocess.run(["umount", "-q", place], check=True)


@pytest.fixture(name="remote")
def remote_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every directory lie on NFS."""
    monkeypatch.setattr(filesystem, "type_of", lambda _: "nfs4")


OPENINGS = {
    "new_control": lambda environment: environment.new_control(),
    "new_publisher": lambda environment: environment.new_publisher(),
    "new_subscriber": lambda environment: environment.new_subscriber("a"),
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_remote_queue_is_refused(opening: str, new_environment: MakeEnvironment,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue on a remote file system is not opened; the error names the path, the type and the way to insist."""
    with new_environment("a") as there:
        path = there.path
    monkeypatch.setattr(filesystem, "type_of", lambda _: "nfs4")
    with persipubsub.new_environment(path) as environment:
        with pytest.raises(errors.PathError) as raised:
            OPENINGS[opening](environment)
    for told in (str(path), "nfs4", "local disk", "allow_remote=True"):
        assert told in str(raised.value)
    monkeypatch.undo()


def test_a_remote_queue_is_not_created(remote: None, tmp_path: pathlib.Path) -> None:
    """Nothing is made on a remote file system, not even the directory."""
    del remote
    with persipubsub.new_environment(tmp_path / "parent" / "queue") as environment:
        with pytest.raises(errors.PathError, match="nfs4"):
            environment.new_control(["a"])
    assert not list(tmp_path.iterdir())


def test_allow_remote_permits_a_remote_queue(remote: None, tmp_path: pathlib.Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """With allow_remote a queue is created and used there, also by a pickled Environment."""
    del remote
    with persipubsub.new_environment(tmp_path / "queue", allow_remote=True) as environment:
        environment.new_control(["a"])
        environment.new_publisher().send(b"x")
        again = pickle.loads(pickle.dumps(environment))
    with again:
        assert again.new_subscriber("a").front() == b"x"
    monkeypatch.undo()


def test_allow_remote_is_a_bool(tmp_path: pathlib.Path) -> None:
    """Anything else raises an error."""
    with pytest.raises(errors.ArgumentTypeError, match="allow_remote must be a bool, got str"):
        persipubsub.new_environment(tmp_path, allow_remote="no")  # type: ignore[arg-type]  # the mistake
