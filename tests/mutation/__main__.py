"""Change modules in every way of cosmic-ray, show which changes no test notices, and compare the scores.

``python -m tests.mutation`` mutates all modules in :mod:`tests.mutation.core`, and with names of modules only those. It
works on copies of the tree in a temporary directory, never on the tree itself. The exit status is 1 if a score is lower
than recorded in ``scores.txt``.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Dict, Iterator, List, Mapping, NamedTuple, Sequence, Set, Tuple

from tests.mutation import core, scores

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
#: How many mutants are tested at the same time.
WORKERS = 2
#: Between two looks at what has survived so far.
LOOK_S = 60
#: What of the tree is not copied.
NOT_COPIED = (".git", "venv", ".tox", "__pycache__", "_build", "build", "dist", "*.egg-info")


class Result(NamedTuple):
    """A mutant that was tested: the function or class it is in, its lines as a diff, and what became of it."""

    definition: str
    diff: str
    outcome: str

    @property
    def killed(self) -> bool:
        """Return whether a test failed, or hung, on the mutant."""
        return self.outcome == "killed"


def cosmic_ray(*arguments: str, cwd: pathlib.Path) -> "subprocess.CompletedProcess[str]":
    """Run a command of cosmic-ray."""
    return subprocess.run([sys.executable, "-m", "cosmic_ray.cli", *arguments],
                          cwd=cwd,
                          check=True,
                          text=True,
                          stdout=subprocess.PIPE)


def command_of_tests(tests: Sequence[str], root: pathlib.Path) -> str:
    """Return the command that runs the tests of a module in a copy of the tree."""
    pytest = shlex.join([sys.executable, "-m", "pytest", "--assert=plain", *core.pytest_arguments(tests, root)])
    return f"sh -c {shlex.quote(f'ulimit -d {core.DATA_KIB_MAX}; exec {pytest}')}"


def configuration(module: str, command: str, timeout_s: float, urls: Sequence[str]) -> str:
    """Return the configuration of cosmic-ray; JSON's strings and lists are TOML's."""
    return "\n".join([
        "[cosmic-ray]",
        f"module-path = {json.dumps(module)}",
        f"timeout = {timeout_s:.1f}",
        f"test-command = {json.dumps(command)}",
        "excluded-modules = []",
        "[cosmic-ray.distributor]",
        'name = "http"',
        "[cosmic-ray.distributor.http]",
        f"worker-urls = {json.dumps(urls)}",
        "[cosmic-ray.filters.operators-filter]",
        f"exclude-operators = {json.dumps(core.LEFT_OUT)}",
        "",
    ])


def unmutated_s(command: str, tree: pathlib.Path) -> float:
    """Return how long the tests of a module take as it is. Tests that fail without a mutation kill nothing."""
    begun = time.monotonic()
    if subprocess.run(shlex.split(command), cwd=tree, check=False).returncode != 0:
        sys.exit("The tests fail without any mutation.")
    return time.monotonic() - begun


@contextlib.contextmanager
def workers(root: pathlib.Path, directory: pathlib.Path) -> Iterator[List[str]]:
    """Start the processes that test mutants, each in a copy of the tree; yield their URLs."""
    urls: List[str] = []
    with contextlib.ExitStack() as stack:
        for number in range(WORKERS):
            tree = directory / f"tree{number}"
            shutil.copytree(root, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            worker = stack.enter_context(
                subprocess.Popen([sys.executable, "-m", "cosmic_ray.cli", "http-worker", "--port",
                                  str(port)],
                                 cwd=tree,
                                 stdout=subprocess.DEVNULL))
            stack.callback(worker.kill)
            urls.append(f"http://127.0.0.1:{port}")
        yield urls


def results(session: pathlib.Path) -> List[Result]:
    """Return what is known so far."""
    found: List[Result] = []
    for line in cosmic_ray("dump", str(session), cwd=session.parent).stdout.splitlines():
        work, result = json.loads(line)
        # An exception means that there was no mutant: cosmic-ray stumbles over dotted names in a tuple after except.
        if result is None or result["worker_outcome"] in ("skipped", "exception"):
            continue
        lines = (result["diff"] or "").splitlines()
        changed = [line for line in lines if line[:1] in "-+" and not line.startswith(("---", "+++"))]
        found.append(
            Result(work["mutations"][0]["definition_name"] or "module", "\n".join(changed), result["test_outcome"]
                   or result["worker_outcome"]))
    return found


def begin(name: str, tests: Sequence[str], urls: Sequence[str], directory: pathlib.Path) -> Tuple[str, str]:
    """List the mutants of a module; return the paths of cosmic-ray's configuration and session."""
    tree, config, session = directory / "tree0", directory / "cosmic-ray.toml", directory / "session.sqlite"
    command = command_of_tests(tests, tree)
    tests_s = unmutated_s(command, tree)
    print(f"{name}: its tests take {tests_s:.1f} s.", flush=True)
    module = str(core.find(name, tree / "persipubsub").relative_to(tree))
    timeout_s = max(core.MUTANT_S_MIN, core.PATIENCE * tests_s)
    config.write_text(configuration(module, command, timeout_s, urls), encoding="utf-8")
    session.unlink(missing_ok=True)
    cosmic_ray("init", str(config), str(session), cwd=tree)
    left_out = [sys.executable, "-m", "cosmic_ray.tools.filters.operators_filter", str(session), str(config)]
    subprocess.run(left_out, cwd=tree, check=True)
    return str(config), str(session)


def run(name: str, tests: Sequence[str], urls: Sequence[str], directory: pathlib.Path) -> scores.Score:
    """Test all mutants of a module; print those that survive as they come."""
    config, session = begin(name, tests, urls, directory)
    printed: Set[Result] = set()
    with subprocess.Popen([sys.executable, "-m", "cosmic_ray.cli", "exec", config, session],
                          cwd=directory / "tree0") as trying, contextlib.ExitStack() as stack:
        stack.callback(trying.kill)
        while trying.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                trying.wait(LOOK_S)
            for result in results(pathlib.Path(session)):
                if not result.killed and result not in printed:
                    printed.add(result)
                    print(f"{result.outcome}: {name} {result.definition}\n{result.diff}\n", flush=True)
    if trying.returncode != 0:
        sys.exit(f"cosmic-ray ended with exit status {trying.returncode}.")
    found = results(pathlib.Path(session))
    return scores.Score(sum(result.killed for result in found), len(found))


def measure(root: pathlib.Path, tests: Mapping[str, Sequence[str]], directory: pathlib.Path) -> Dict[str, scores.Score]:
    """Return the score of each module that has tests, in copies of a tree."""
    with workers(root, directory) as urls:
        return {name: run(name, tests[name], urls, directory) for name in tests}


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="module", help=f"one of {', '.join(core.TESTS)}")
    modules = parser.parse_args().modules or list(core.TESTS)
    unknown = [name for name in modules if name not in core.TESTS]
    if unknown:
        parser.error(f"tests/mutation/core.py names no tests of: {', '.join(unknown)}")
    # The tests need no disk, and a memory file system does not let them wait for one.
    memory = "/dev/shm"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))  # so that no worker is left behind
    with tempfile.TemporaryDirectory(prefix="persipubsub-mutation-",
                                     dir=memory if os.access(memory, os.W_OK) else None,
                                     ignore_cleanup_errors=True) as name:
        directory = pathlib.Path(name)
        (directory / "tmp").mkdir()
        os.environ.update(TMPDIR=str(directory / "tmp"), PERSIPUBSUB_HYPOTHESIS="core")
        os.environ.pop("PYTHONPATH", None)
        measured = measure(ROOT, {name: core.TESTS[name] for name in modules}, directory)
    recorded = scores.read(scores.FILE.read_text(encoding="utf-8"))
    print(scores.table(list(core.TESTS), measured, recorded))
    return 1 if scores.fallen(measured, recorded) else 0


if __name__ == "__main__":
    sys.exit(main())
