"""Test the help of every command, and what it suggests for a mistake of habit."""

import pathlib
import re
from typing import Iterator, List, Tuple

import click
import click.testing
import pytest

import persipubsub
from persipubsub import cli
from persipubsub.cli.verbs import VERBS
from tests.cli.test_cli_operating import run as run_process

COLUMNS = 80


def commands() -> Iterator[List[str]]:
    """Return the words of each command, also of those in a group."""
    yield []
    for verb, load in VERBS.items():
        yield [verb]
        command = load()
        if isinstance(command, click.Group):
            yield from ([verb, name] for name in command.commands)


def run(*arguments: object) -> Tuple[int, str]:
    """Run the command in this process; return its exit status and what it wrote."""
    result = click.testing.CliRunner().invoke(cli.main, list(map(str, arguments)))
    return result.exit_code, result.output


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Set up a queue with two subscribers."""
    with persipubsub.new_environment(tmp_path / "queue") as env:
        env.new_control(["audit", "billing"])
    return tmp_path / "queue"


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_fits_the_terminal(command: List[str]) -> None:
    """No line of a help is longer than 80 columns or cut, however wide the terminal; the exit statuses are in it."""
    status, text = run(*command, "--help")
    assert status == 0
    assert [line for line in text.splitlines() if len(line) > COLUMNS or re.match(r"  \S+ {2,}.*\.\.\.$", line)] == []
    assert "\nExit status: 0 for success, 1 for a failure, 2 for wrong usage" in text


def test_a_similar_verb_is_suggested() -> None:
    """A verb that is misspelt is wrong usage, and a similar one is suggested, also in a group; no odd one is."""
    for words, suggested in ((["stats"], "Did you mean 'status'?"), (["recieve"], "Did you mean 'receive'?"),
                             (["subscriber", "rm"], None), (["subscriber",
                                                             "ad"], "Did you mean 'add'?"), (["xyzzy"], None)):
        status, text = run(*words)
        assert status == 2 and f"No such command {words[-1]!r}." in text
        assert ("Did you mean" in text) == (suggested is not None) and (suggested or "") in text


def test_a_similar_option_is_suggested(path: pathlib.Path) -> None:
    """An option that is misspelt is wrong usage, and a similar one is suggested."""
    status, text = run("receive", path, "audit", "--folow")
    assert status == 2 and "--folow" in text and "--follow" in text


@pytest.mark.slow
@pytest.mark.parametrize("words", [["receive", "{}", "adit"], ["receive", "{}", "adit", "--peek"],
                                   ["rewind", "{}", "adit", "earliest"], ["subscriber", "remove", "{}", "adit"],
                                   ["dead-letters", "list", "{}", "adit"]], ids=lambda words: words[0])  # yapf: disable
def test_a_similar_subscriber_is_suggested(words: List[str], path: pathlib.Path) -> None:
    """A subscriber that is misspelt is an error with a similar one, and all others."""
    result = run_process(*(str(path) if word == "{}" else word for word in words))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "it has: 'audit', 'billing'. Did you mean 'audit'?" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["status", "set", "history", "rewind", "send"])
def test_a_wrong_path(verb: str, path: pathlib.Path) -> None:
    """A path without a queue, and one of a file in a queue, are errors of one line that name it."""
    others = {"set": ["--max-messages", "1"], "rewind": ["audit", "1"], "send": [__file__]}
    for wrong, told in ((path.parent, "There is no queue at"), (path / "data.mdb", "data.mdb")):
        result = run_process(verb, wrong, *others.get(verb, []))
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert result.stderr.startswith("Error: ") and told in result.stderr
