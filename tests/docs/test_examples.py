"""Every program in examples/ is run."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # starts many processes, or waits

DIRECTORY = pathlib.Path(__file__).parents[2] / "examples"
EXAMPLES = sorted([*DIRECTORY.glob("*.py"), *DIRECTORY.glob("*/pipeline.py")])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.relative_to(DIRECTORY)))
def test_example(example: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An example runs to its end, which its own assertions guard."""
    # The delays of some of them are shorter than a user would choose.
    subprocess.run([sys.executable, str(example)],
                   cwd=tmp_path,
                   env={
                       **os.environ, "SECOND_S": "0.1"
                   },
                   check=True,
                   timeout=120)


def test_there_are_examples() -> None:
    """The examples are where this test looks for them."""
    assert EXAMPLES
