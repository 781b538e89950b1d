"""Test that checkers know the types of messages, as tests/api/typecheck says."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # starts many processes, or waits

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = "tests/api/typecheck"


@pytest.mark.parametrize("command", [
    ["mypy", "--strict", "--warn-unused-ignores"],
    ["pyright", "--warnings", "--pythonpath", sys.executable],
],
                         ids=lambda command: str(command[0]))
def test_checkers_know_the_messages(command: list[str]) -> None:
    """A checker finds the types that tests/api/typecheck asserts, and the mistakes that it makes, and no others."""
    done = subprocess.run([sys.executable, "-m", *command, CASES],
                          cwd=ROOT,
                          check=False,
                          stdout=subprocess.PIPE,
                          text=True,
                          timeout=240)
    assert done.returncode == 0, done.stdout
