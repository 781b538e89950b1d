"""Every program in examples/ is run."""

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An example runs to its end, which its own assertions guard."""
    subprocess.run([sys.executable, str(example)], cwd=tmp_path, check=True, timeout=120)


def test_there_are_examples() -> None:
    """The examples are where this test looks for them."""
    assert EXAMPLES
