"""Test what the shell completes, by the protocol that its script speaks."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import List

import pytest

import persipubsub
from persipubsub.cli.verbs import VERBS

PERSIPUBSUB = [sys.executable, "-m", "persipubsub"]
TIMEOUT_S = 60


def completed(*words: str) -> List[str]:
    """Return what is offered for the last word."""
    words = ("persipubsub", *words)
    result = subprocess.run(PERSIPUBSUB,
                            env={
                                **os.environ, "_PERSIPUBSUB_COMPLETE": "bash_complete",
                                "COMP_WORDS": " ".join(words),
                                "COMP_CWORD": str(len(words) - 1)
                            },
                            capture_output=True,
                            text=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert result.stderr == ""
    return result.stdout.splitlines()


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> str:
    """Set up a queue, some of whose subscribers have names that a shell would split."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["audit", "archive", "billing", "a b", "a\nb", "$(reboot)"])
    return str(tmp_path / "queue")


@pytest.mark.slow
def test_verbs_and_options_are_completed() -> None:
    """Every verb is offered, and the options and choices of a verb."""
    assert completed("") == [f"plain,{verb}" for verb in VERBS]
    assert completed("rec") == ["plain,receive", "plain,recover"]
    assert "plain,--follow" in completed("receive", "queue", "--")
    assert completed("receive", "queue", "--format", "h") == ["plain,hex"]


@pytest.mark.parametrize("verb", [["receive"], ["subscriber", "remove"]], ids=" ".join)
def test_subscribers_are_completed(verb: List[str], path: str) -> None:
    """Those of the named queue are offered, but no name that the shell would split."""
    assert completed(*verb, path, "") == ["plain,archive", "plain,audit", "plain,billing"]
    assert completed(*verb, path, "b") == ["plain,billing"]


def test_nothing_is_offered_of_what_cannot_be_read(tmp_path: pathlib.Path) -> None:
    """Without a queue there are no names, and none is made."""
    assert not any(completed("receive", str(tmp_path / "none"), ""))
    assert not (tmp_path / "none").exists()


def test_bash_completes_with_the_documented_line(path: str, tmp_path: pathlib.Path) -> None:
    """After the line of the documentation, bash itself completes a name."""
    bash = shutil.which("bash")
    assert bash is not None
    program = tmp_path / "persipubsub"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m persipubsub "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = f'''
eval "$(_PERSIPUBSUB_COMPLETE=bash_source persipubsub)"
complete -p persipubsub
COMP_WORDS=(persipubsub receive {path} bil) COMP_CWORD=3
_persipubsub_completion persipubsub
echo "${{COMPREPLY[@]}}"
'''
    result = subprocess.run([bash, "-c", script],
                            env={
                                **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"
                            },
                            capture_output=True,
                            text=True,
                            timeout=TIMEOUT_S,
                            check=False)
    assert result.stderr == ""
    registered, offered = result.stdout.splitlines()
    assert registered.endswith("-F _persipubsub_completion persipubsub")
    assert offered == "billing"
