"""Start a server of its own for one session, and stop it whatever happens."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence

HOST = "127.0.0.1"

START_TIMEOUT_S = 60.0
START_POLL_S = 0.05
STOP_TIMEOUT_S = 20.0
VERSION_TIMEOUT_S = 10.0
LOG_TAIL_CHARACTERS = 2000

# Debian keeps servers where only root's PATH leads.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# Where pip installs programs, even if the virtual environment is not activated.
_SCRIPTS = sysconfig.get_path("scripts")


def find(program: str, package: str) -> pathlib.Path:
    """Find a program of a Debian package, or raise FileNotFoundError."""
    path = shutil.which(program, path=_PATH)
    if path is None:
        raise FileNotFoundError(f"there is no {program}; Debian has it in the package {package}")
    return pathlib.Path(path)


def find_in_environment(program: str, package: str) -> pathlib.Path:
    """Find a program of a package from PyPI, installed beside this Python, or raise FileNotFoundError."""
    path = shutil.which(program, path=_SCRIPTS)
    if path is None:
        raise FileNotFoundError(f"there is no {program} in {_SCRIPTS}; PyPI has it in the package {package}")
    return pathlib.Path(path)


def version(text: str) -> str:
    """Find the first thing in ``text`` that looks like a version."""
    match = re.search(r"\d+\.\d+\.\d+", text)
    return match.group() if match else "of unknown version"


def version_of(program: pathlib.Path) -> str:
    """Ask a program for its version."""
    command = [str(program), "--version"]
    return version(
        subprocess.run(command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True).stdout)


def free_port() -> int:
    """Find a port that nobody listens on. Someone may be quicker: the server then ends, and ``running`` raises."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str],
            directory: pathlib.Path,
            port: int,
            environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Keep a server running that listens on ``port``, with its output in ``directory``."""
    # The kernel ends the server if this process dies without a chance to. A session of its own keeps Ctrl-C from it,
    # and gives the processes that it starts a group by which they are found.
    setpriv = shutil.which("setpriv")
    leash = [] if setpriv is None else [setpriv, "--pdeathsig", "TERM"]
    log = directory / f"{pathlib.Path(command[0]).name}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(  # pylint: disable=consider-using-with  # stopped below: with would only wait
            [*leash, *command],
            cwd=directory,
            env={
                **os.environ,
                **(environment or {})
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True)
    try:
        _wait_until_listening(process, port, log)
        yield
    finally:
        _stop(process)


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port), timeout=START_POLL_S).close()
            return
        tail = log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]
        if process.poll() is not None:
            raise RuntimeError(f"{log.stem} ended with exit status {process.returncode}: {tail}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{log.stem} does not listen on {HOST}:{port} after {START_TIMEOUT_S:.0f} s: {tail}")
        time.sleep(START_POLL_S)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the whole group: in good order, or else by force."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
