"""Test that the documentation of the command is complete, and that what it shows is what happens."""

import doctest
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Dict, Iterator, List, NamedTuple, Tuple

import click
import pytest

from persipubsub import cli
from persipubsub.cli import exit_status
from persipubsub.cli.verbs import VERBS

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = (ROOT / "docs" / "commands.rst").read_text(encoding="utf-8")
PAGES = ("commands.rst", "deployment.rst", "operating.rst")
#: For what takes a minute on a busy machine; only a hang takes longer.
TIMEOUT_S = 300


def sections() -> Dict[str, str]:
    """Return the text about each verb."""
    parts = re.split(r"^([\w-]+)\n~+\n", COMMANDS, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def commands(verb: str) -> Iterator[Tuple[str, click.Command]]:
    """Return a verb and, if it is a group, its commands."""
    command = cli.main.get_command(click.Context(cli.main), verb)
    assert command is not None
    yield verb, command
    if isinstance(command, click.Group):
        yield from ((f"{verb} {name}", one) for name, one in command.commands.items())


def options(command: click.Command) -> List[str]:
    """Return the long names of all options of a command."""
    return [
        name for option in command.params if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts) if name.startswith("--")
    ]


def test_every_verb_has_a_section() -> None:
    """The documentation has a section for each verb, and for nothing else."""
    assert sorted(sections()) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_documented(verb: str) -> None:
    """The section of a verb names each of its commands and options, and no option that it lacks."""
    text = sections()[verb]
    named = set(re.findall(r"``(--[a-z-]+)``", text))
    found = set()
    for name, command in commands(verb):
        assert f"``persipubsub {name} " in text or f"``persipubsub {name}``" in text
        found.update(options(command))
    assert found - named == set()
    assert named - found <= {option for _, one in sections().items() for option in re.findall(r"``(--[a-z-]+)``", one)}


def test_the_options_of_the_command_itself_are_documented() -> None:
    """The options before the verb are documented, too."""
    for option in options(cli.main):
        assert f"``{option}``" in COMMANDS


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_begins_with_an_example_of_that_command(verb: str) -> None:
    """Every help, of groups too, begins with an example whose options exist."""
    for name, command in commands(verb):
        context = click.Context(command, info_name=name)
        example = command.get_help(context).splitlines()[0]
        assert re.match(f"Example: persipubsub {name}( |$)", example)
        for option in re.findall(r"--[a-z-]+", example):
            assert any(option in options(one) for _, one in commands(verb))


def test_the_table_of_exit_statuses_is_complete() -> None:
    """Each status that the code names is in the table, and no other."""
    named = {value for name, value in vars(exit_status).items() if name.isupper()}
    rows = re.findall(r"^(\d+)(?:\+n)? +\w", COMMANDS, re.MULTILINE)
    assert {int(row) for row in rows} == named


class Step(NamedTuple):
    """A file to write, or a command to run and what it prints."""

    file: str
    command: str
    expected: str


def steps(page: str) -> Iterator[Step]:
    """Read the blocks of a page, in their order."""
    pattern = r"^\.\. code-block:: (\S+)\n((?:    :.*\n)*)\n((?:    .*\n|\n)+)"
    for language, fields, body in re.findall(pattern, page, re.MULTILINE):
        block = re.sub("^    ", "", body, flags=re.MULTILINE).strip() + "\n"
        if language == "console":
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                yield Step("", command, expected)
        elif language != "python":  # other tests run Python
            caption = re.search(":caption: (.*)", fields)
            assert caption is not None, f"what is to be done with this block? {block}"
            yield Step(caption[1], "", block)


def script(all_steps: List[Step], separator: str) -> str:
    """Write a program of the shell that does everything, with a line and the exit status after each command."""
    lines = ["trap 'kill $(jobs -p) 2>/dev/null' EXIT"]
    for step in all_steps:
        if step.file:
            lines.append(f"printf %s {shlex.quote(step.expected)} > {shlex.quote(step.file)}")
        else:
            # The status stays what it was, for the next command may ask.
            lines.append(f"{step.command}\n(s=$?; printf '\\n%s\\n' {separator}$s; exit $s)")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_the_pages_show_is_what_happens(page: str, tmp_path: pathlib.Path) -> None:
    """Every command of the page, in one shell in a fresh directory, prints what the page shows, and succeeds."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    all_steps = list(steps(text))
    assert len([step for step in all_steps if step.command]) == len(re.findall(r"^    \$ ", text, re.MULTILINE)) >= 10
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "persipubsub"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m persipubsub "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "app").mkdir()
    result = subprocess.run(["bash", "-c", script(all_steps, "end-of-step-")],
                            cwd=tmp_path / "app",
                            env={
                                **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                                "PYTHONPATH": str(ROOT)
                            },
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT,
                            text=True,
                            timeout=TIMEOUT_S,
                            check=False)
    output = result.stdout.replace(str(tmp_path / "app"), "/srv/app")
    parts = re.findall(r"(.*?)\nend-of-step-(\d+)\n", output, re.DOTALL)
    checker = doctest.OutputChecker()
    run = [step for step in all_steps if step.command]
    assert len(parts) == len(run), output
    for step, (printed, status) in zip(run, parts):
        got, want = (re.sub(r" +\n", "\n", what.strip("\n") + "\n") for what in (printed, step.expected))
        assert checker.check_output(want, got, doctest.ELLIPSIS), f"$ {step.command}\n{got}\ninstead of\n{want}"
    assert_statuses(run, [int(status) for _, status in parts])


def assert_statuses(run: List[Step], statuses: List[int]) -> None:
    """Assert that exactly the commands failed whose failure the page shows."""
    for step, following, status in zip(run, [*run[1:], None], statuses):
        if following is None or following.command != "echo $?":
            assert status == (exit_status.FAILED if step.expected.startswith("Error: ") else 0), step.command
