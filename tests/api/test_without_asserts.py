"""What holds where Python runs without asserts, as with ``python -O``, where icontract switches contracts off."""

import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
# pytest rewrites the asserts of these files into other statements, which -O leaves in.
FILES = ["test_errors.py", "test_all_or_nothing.py"]


@pytest.mark.slow
def test_errors_do_not_depend_on_asserts() -> None:
    """Whatever is documented as an error is raised under ``python -O``, too, and leaves the queue as it was."""
    command = [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-W", "ignore::pytest.PytestConfigWarning", *(str(HERE / name) for name in FILES)]
    done = subprocess.run(command, check=False, cwd=HERE.parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
