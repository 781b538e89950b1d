"""Describe the machine of a run, without its name or any path."""

import dataclasses
import os
import pathlib
import platform
import subprocess

import lmdb

import persipubsub


@dataclasses.dataclass(frozen=True)
class Machine:  # pylint: disable=too-many-instance-attributes  # one per fact
    """The machine and what ran on it."""

    cpu_model: str
    cores: int
    memory_gib: float
    kernel: str
    file_system: str
    python: str
    py_lmdb: str
    lmdb: str
    persipubsub: str
    #: The commit of the checkout, with "-dirty" where files differ from it; empty where there is no git.
    commit: str = ""


def describe(directory: pathlib.Path) -> Machine:
    """Describe this machine, and the file system of a directory."""
    return Machine(cpu_model=_field("/proc/cpuinfo", "model name"),
                   cores=len(os.sched_getaffinity(0)),
                   memory_gib=round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1024**2, 1),
                   kernel=f"{platform.system()} {platform.release()}",
                   file_system=_file_system(directory),
                   python=f"{platform.python_implementation()} {platform.python_version()}",
                   py_lmdb=lmdb.__version__,
                   lmdb=".".join(map(str, lmdb.version())),
                   persipubsub=persipubsub.__version__,
                   commit=_commit())


def _commit() -> str:
    """Return the commit of this checkout."""
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
                              cwd=pathlib.Path(__file__).resolve().parent,
                              check=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL,
                              text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _field(file: str, name: str) -> str:
    """Return the value of the first line ``name: value`` of a file of the kernel."""
    with open(file, encoding="utf-8") as fid:
        for line in fid:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return "unknown"


def _file_system(directory: pathlib.Path) -> str:
    """Return the type of the file system, that of the longest mount point above the directory."""
    resolved = os.path.join(os.path.realpath(directory), "")
    longest, found = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8") as fid:
        for line in fid:
            _, mount_point, kind, *_ = line.split()
            if resolved.startswith(os.path.join(mount_point, "")) and len(mount_point) >= len(longest):
                longest, found = mount_point, kind
    return found
