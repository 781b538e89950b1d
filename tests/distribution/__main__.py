"""Rehearse a release against an index on this machine: build, check, upload, install in an empty environment, run.

``python -m tests.distribution`` ends with status 0 if ``persipubsub demo`` of what was installed misses nothing.
Nothing leaves the machine; the dependencies come from where pip finds them otherwise.
"""

import contextlib
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import Iterator, List, Sequence

from tests.distribution import metadata

ROOT = pathlib.Path(__file__).resolve().parents[2]

INDEX = "pypiserver>=2.3"

START_S_MAX = 30


def run(*command: object, cwd: pathlib.Path = ROOT) -> str:
    """Run a command, show it, and return what it printed. Raise if it fails."""
    print("$", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}exit status {done.returncode}")
    return done.stdout


def build(directory: pathlib.Path) -> List[pathlib.Path]:
    """Build both distributions from the checkout, and check what is in them. Return their paths."""
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT)
    files = sorted(directory.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    run(sys.executable, "-m", "tests.distribution.metadata", *files)
    return files


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def index(directory: pathlib.Path) -> Iterator[str]:
    """Serve an index that accepts uploads; provide its address."""
    run(sys.executable, "-m", "venv", directory / "index")
    python = directory / "index" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", INDEX)
    (directory / "packages").mkdir()
    port = free_port()
    command: Sequence[object] = (python, "-m", "pypiserver", "run", "-p", port, "-i", "127.0.0.1", "-P", ".", "-a", ".",
                                 directory / "packages")
    with subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Wait until someone listens on a port."""
    end = time.monotonic() + START_S_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def rehearse(directory: pathlib.Path) -> None:
    """Do all steps, in an empty directory."""
    files = build(directory / "dist")
    with index(directory) as address:
        run(sys.executable, "-m", "twine", "upload", "--non-interactive", "--repository-url", address, "-u", "any",
            "-p", "any", *files)
        run(sys.executable, "-m", "venv", directory / "venv")
        programs = directory / "venv" / "bin"
        # Where the checkout is not the current directory: what runs must be what was installed.
        run(programs / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--pre",
            "--extra-index-url",
            f"{address}simple/",
            f"persipubsub=={metadata.version(files[0])}",
            cwd=directory)
    print(run(programs / "persipubsub", "--version", cwd=directory), end="")
    shown = run(programs / "persipubsub", "demo", cwd=directory)
    print(shown, end="")
    if " 0 missing" not in shown:
        raise SystemExit("The demo does not say that nothing is missing.")


def main() -> None:
    """Rehearse, and say how long it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="persipubsub-release-") as name:
        rehearse(pathlib.Path(name))
    print(f"The release was rehearsed in {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    main()
