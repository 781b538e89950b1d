"""Change the heart of the library in every way of cosmic-ray, and tell which changes no test notices.

``python -m tests.mutation`` mutates all modules, and with names of modules only those. It works on copies of the tree
in a temporary directory, never on the tree itself. What is mutated, and which tests have to notice, stands in
:mod:`tests.mutation.core`. Mutants that survive have to be explained in ``survivors.txt``: the exit status is 1 if one
is not.
"""

import argparse
import collections
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
from typing import Counter, Iterator, List, NamedTuple, Sequence, Set

from tests.mutation import core, explained

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
#: How many mutants are tested at the same time.
WORKERS = 2
#: Between two looks at what has survived so far.
LOOK_S = 60
#: What of the tree is not copied.
NOT_COPIED = (".git", "venv", ".tox", "__pycache__", "_build", "build", "dist", "*.egg-info")


class Result(NamedTuple):
    """What became of a mutant: "killed", "timeout", "survived", or why it could not be tried."""

    mutant: explained.Mutant
    outcome: str


def cosmic_ray(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run a command of cosmic-ray."""
    return subprocess.run([sys.executable, "-m", "cosmic_ray.cli", *arguments],
                          cwd=cwd,
                          check=True,
                          text=True,
                          stdout=subprocess.PIPE)


def command_of_tests(module: str) -> str:
    """Give the command that runs the tests of a module in a copy of the tree."""
    pytest = shlex.join([sys.executable, "-m", "pytest", "--assert=plain", *core.pytest_arguments(module)])
    return f"sh -c {shlex.quote(f'ulimit -d {core.DATA_KIB_MAX}; exec {pytest}')}"


def configuration(module: str, timeout_s: float, urls: Sequence[str]) -> str:
    """Give the configuration of cosmic-ray; JSON's strings and lists are TOML's."""
    return "\n".join([
        "[cosmic-ray]",
        f"module-path = {json.dumps(module)}",
        f"timeout = {timeout_s:.1f}",
        f"test-command = {json.dumps(command_of_tests(module))}",
        "excluded-modules = []",
        "[cosmic-ray.distributor]",
        'name = "http"',
        "[cosmic-ray.distributor.http]",
        f"worker-urls = {json.dumps(urls)}",
        "[cosmic-ray.filters.operators-filter]",
        f"exclude-operators = {json.dumps(core.LEFT_OUT)}",
        "",
    ])


def unmutated_s(module: str, tree: pathlib.Path) -> float:
    """Run the tests of a module as it is; give how long they take. What fails without a mutation kills nothing."""
    begun = time.monotonic()
    if subprocess.run(shlex.split(command_of_tests(module)), cwd=tree, check=False).returncode != 0:
        sys.exit("The tests fail without any mutation.")
    return time.monotonic() - begun


@contextlib.contextmanager
def workers(directory: pathlib.Path) -> Iterator[List[str]]:
    """Start the processes that test mutants, each in a copy of the tree; give their URLs."""
    urls: List[str] = []
    with contextlib.ExitStack() as stack:
        for number in range(WORKERS):
            tree = directory / f"tree{number}"
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
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
    """Give what is known so far."""
    found: List[Result] = []
    for line in cosmic_ray("dump", str(session), cwd=session.parent).stdout.splitlines():
        work, result = json.loads(line)
        # An exception means that there was no mutant: cosmic-ray stumbles over dotted names in a tuple after except.
        if result is None or result["worker_outcome"] in ("skipped", "exception"):
            continue
        outcome = result["test_outcome"] or result["worker_outcome"]
        if outcome == "killed" and result["output"] == "timeout":
            outcome = "timeout"
        mutation = work["mutations"][0]
        found.append(
            Result(explained.of_diff(mutation["module_path"], mutation["definition_name"], result["diff"] or ""),
                   outcome))
    return found


def run(module: str, urls: Sequence[str], directory: pathlib.Path) -> List[Result]:
    """Try all mutants of a module; print those that survive as they come."""
    tree, config = directory / "tree0", directory / "cosmic-ray.toml"
    session = directory / f"{pathlib.Path(module).stem}.sqlite"
    tests_s = unmutated_s(module, tree)
    print(f"{module}: its tests take {tests_s:.1f} s.", flush=True)
    timeout_s = max(core.MUTANT_S_MIN, core.PATIENCE * tests_s)
    config.write_text(configuration(module, timeout_s, urls), encoding="utf-8")
    cosmic_ray("init", str(config), str(session), cwd=tree)
    subprocess.run(
        [sys.executable, "-m", "cosmic_ray.tools.filters.operators_filter",
         str(session), str(config)],
        cwd=tree,
        check=True)
    printed: Set[explained.Mutant] = set(explained.read())
    with subprocess.Popen([sys.executable, "-m", "cosmic_ray.cli", "exec",
                           str(config), str(session)], cwd=tree) as trying, contextlib.ExitStack() as stack:
        stack.callback(trying.kill)
        while trying.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                trying.wait(LOOK_S)
            for mutant, outcome in results(session):
                if outcome not in ("killed", "timeout") and mutant not in printed:
                    printed.add(mutant)
                    print(f"{outcome}:\n{mutant}", flush=True)
    if trying.returncode != 0:
        sys.exit(f"cosmic-ray ended with exit status {trying.returncode}.")
    return results(session)


def report(found: Sequence[Result]) -> bool:
    """Print the score of each module, and which explanations are not needed; tell whether no survivor is left."""
    reasons = explained.read()
    print(f"{'module':28}{'mutants':>8}{'killed':>8}{'timeout':>8}{'explained':>10}{'survived':>9}{'score':>8}")
    unexplained = 0
    for module in sorted({mutant.module for mutant, _ in found}):
        counts: Counter[str] = collections.Counter()
        for mutant, outcome in found:
            if mutant.module == module:
                is_explained = outcome == "survived" and mutant in reasons
                counts["explained" if is_explained else outcome] += 1
        killed = counts["killed"] + counts["timeout"]
        rest = counts.total() - killed - counts["explained"]
        unexplained += rest
        print(f"{module:28}{counts.total():8}{counts['killed']:8}{counts['timeout']:8}{counts['explained']:10}{rest:9}"
              f"{100 * killed / counts.total():7.1f}%")
    survived = {mutant for mutant, outcome in found if outcome == "survived"}
    for mutant in reasons:
        if mutant not in survived and mutant.module in {mutant.module for mutant, _ in found}:
            print(f"Explained, but it did not survive:\n{mutant}")
    return not unexplained


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="module", help=f"one of {', '.join(core.TESTS)}")
    modules = parser.parse_args().modules or list(core.TESTS)
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
        with workers(directory) as urls:
            found = [result for module in modules for result in run(module, urls, directory)]
        return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
