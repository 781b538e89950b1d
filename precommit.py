#!/usr/bin/env python3
"""Check this checkout as it must be before a commit.

Every check runs with the interpreter that started this script.
``pip install -c constraints.txt -e .[dev]`` installs the tools.
"""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent

PACKAGE = "persipubsub"

PLUGIN = "pytest_persipubsub.py"

# What is formatted and checked; a directory without code would be an error to mypy.
CODE = [
    name for name in [PACKAGE, PLUGIN, "tests", "benchmarks", "examples", "precommit.py", "setup.py"]
    if (ROOT / name).is_file() or any((ROOT / name).rglob("*.py"))
]

MIN_COVERAGE_PERCENT = 95

# Tests start processes of their own, and wait for them and for disks: more at a time would disturb each other.
TEST_PROCESSES = 3


class CheckFailed(Exception):
    """A check found something. The message says what, in one line."""


def run(*command: str, env: dict[str, str] | None = None, cwd: pathlib.Path = ROOT) -> None:
    """Run ``command`` and fail unless its exit status is 0. Where pytest finds no tests, it is 5."""
    sys.stdout.flush()
    status = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, check=False).returncode
    if status != 0:
        raise CheckFailed(f"exit status {status} of: {' '.join(command)}")


def run_module(module: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run ``python -m module`` in the root of the checkout."""
    run(sys.executable, "-m", module, *arguments, env=env)


def check_yapf(overwrite: bool) -> None:
    """Check the layout of the code, or correct it."""
    run_module("yapf", "--in-place" if overwrite else "--diff", "--parallel", "--recursive", *CODE)


def check_isort(overwrite: bool) -> None:
    """Check the order of the imports, or correct it."""
    run_module("isort", *([] if overwrite else ["--check-only", "--diff"]), *CODE)


def check_mypy(_overwrite: bool) -> None:
    """Check the types; pyproject.toml makes mypy strict."""
    run_module("mypy", *CODE)


def check_pyright(_overwrite: bool) -> None:
    """Check the types as the other checker sees them, whom users of the package may have."""
    run_module("pyright", "--warnings", "--pythonpath", sys.executable)


def check_pylint(_overwrite: bool) -> None:
    """Check the code for mistakes."""
    run_module("pylint", *CODE)


def check_pydocstyle(_overwrite: bool) -> None:
    """Check the docstrings of the package."""
    run_module("pydocstyle", PACKAGE, PLUGIN)


def check_contracts(_overwrite: bool) -> None:
    """Check that the contracts fit the functions they stand at."""
    if importlib.util.find_spec("icontract_lint") is None:
        # With its dependencies it would bring an astroid that is too old for pylint.
        run_module("pip", "install", "--quiet", "--no-deps", "pyicontract-lint==2.1.4")
    run(sys.executable, "-c", "import sys, icontract_lint.main; sys.exit(icontract_lint.main.main())", PACKAGE)


def check_imports(_overwrite: bool) -> None:
    """Check the imports against the contracts in pyproject.toml."""
    run(sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")


def check_tests(_overwrite: bool) -> None:
    """Run the tests and measure which branches of the package they reach."""
    with tempfile.TemporaryDirectory(prefix="persipubsub-coverage-") as directory:
        # Several checkouts, or tox environments of one, may run at the same time.
        env = {"COVERAGE_FILE": str(pathlib.Path(directory) / "coverage")}
        run_module("coverage", "run", "-m", "pytest", "-n", str(TEST_PROCESSES), "--dist", "worksteal", env=env)
        run_module("coverage", "combine", "--quiet", env=env)
        run_module("coverage", "report", f"--fail-under={MIN_COVERAGE_PERCENT}", env=env)


def check_docs(_overwrite: bool) -> None:
    """Build the documentation; every warning and every broken reference is an error."""
    with tempfile.TemporaryDirectory(prefix="persipubsub-docs-") as directory:
        run_module("sphinx", "-n", "-W", "--keep-going", "-q", "-d", f"{directory}/doctrees", "docs",
                   f"{directory}/html")


def check_distribution(_overwrite: bool) -> None:
    """Build the distributions, and install the wheel where nothing else is installed."""
    with tempfile.TemporaryDirectory(prefix="persipubsub-distribution-") as name:
        directory = pathlib.Path(name)
        run_module("build", "--outdir", str(directory / "dist"), str(ROOT))
        distributions = sorted(str(path) for path in (directory / "dist").iterdir())
        run_module("twine", "check", "--strict", *distributions)
        run_module("tests.distribution.metadata", *distributions)

        wheels = [path for path in distributions if path.endswith(".whl")]
        run_module("venv", str(directory / "venv"))
        programs = directory / "venv" / "bin"
        python = str(programs / "python")
        # Run where the checkout is not the current directory: what is imported must be what was installed.
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wheels, cwd=directory)
        run(python, "-I", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__, {PACKAGE}.__version__)", cwd=directory)
        run(str(programs / PACKAGE), "--version", cwd=directory)


# The quick ones come first.
CHECKS: Sequence[tuple[str, Callable[[bool], None]]] = [
    ("yapf", check_yapf),
    ("isort", check_isort),
    ("imports", check_imports),
    ("mypy", check_mypy),
    ("pyright", check_pyright),
    ("pydocstyle", check_pydocstyle),
    ("contracts", check_contracts),
    ("pylint", check_pylint),
    ("docs", check_docs),
    ("distribution", check_distribution),
    ("tests", check_tests),
]


def main() -> int:
    """Run the chosen checks up to the first that fails."""
    names = [name for name, _ in CHECKS]
    parser = argparse.ArgumentParser(description="Check this checkout as it must be before a commit.")
    parser.add_argument("--overwrite", action="store_true", help="let yapf and isort rewrite the files")
    parser.add_argument("--only",
                        action="append",
                        choices=names,
                        metavar="NAME",
                        help=f"run only this check; may be repeated; one of: {', '.join(names)}")
    args = parser.parse_args()

    for name, check in CHECKS:
        if args.only and name not in args.only:
            continue
        print(f"=== {name}", flush=True)
        start = time.monotonic()
        try:
            check(args.overwrite)
        except CheckFailed as error:
            print(f"precommit: {name} failed: {error}", file=sys.stderr)
            return 1
        print(f"=== {name}: {time.monotonic() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
