"""Test that text from others cannot command the terminal of whoever runs a command."""

import ast
import contextlib
import os
import pathlib
import subprocess
import sys
from typing import Dict, Iterator, List, Sequence

import click.testing
import hypothesis
import pytest
from hypothesis import strategies as st
from rich.console import Console

import persipubsub
from persipubsub import cli
from persipubsub.cli import formats, output, top_frame
from persipubsub.cli.opening import read_status
from persipubsub.cli.top_rates import Rates
from persipubsub.cli.verbs import VERBS
from persipubsub.lmdb_engine import open_queues

CLI = pathlib.Path(cli.__file__).parent
#: Only these write to standard output and standard error.
WRITERS = {"output.py", "message_output.py"}
#: A title of the window, a clear screen, a colour in one character, a turn of the direction, a delete, line breaks.
ESCAPES = "x\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\x7f\u2028\u2066\r\n"
#: A directory of that name, which is not even UTF-8.
DIRECTORY = os.fsencode(ESCAPES.replace("\n", "")) + b"\xff"
TIMEOUT_S = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.damages_queues,  # a message type with escapes is damage
]


def called(tree: ast.AST) -> Iterator[str]:
    """Name what a module calls: the last two parts of each dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:])


def test_only_the_output_writes() -> None:
    """No verb bypasses the functions that escape what others wrote."""
    forbidden = {"print", "Console", "os.write", "stdout.write", "stderr.write", "buffer.write"}
    for path in sorted(CLI.rglob("*.py")):
        names = set(called(ast.parse(path.read_text())))
        click_ones = {f"click.{name}" for name in ("echo", "secho", "confirm", "prompt", "echo_via_pager")}
        if path.name not in WRITERS:
            assert not names & (forbidden | click_ones), path.name


@hypothesis.given(st.text())
def test_shown_is_printable(text: str) -> None:
    """What is shown is one printable line, which Python can encode; what was printable is not changed."""
    shown = output.shown(text)
    assert shown.isprintable() and shown.encode() is not None
    assert shown == text or not text.isprintable()


def test_shown_is_what_python_would_write() -> None:
    """An escape is that of a literal of Python; a byte of a path that is not UTF-8 is that byte."""
    assert output.shown("a\x1b\n\u202e\U000e0001\udcff\ud800") == "a\\x1b\\n\\u202e\\U000e0001\\xff\\ud800"


@hypothesis.given(st.binary())
def test_a_message_on_a_terminal_is_text(payload: bytes) -> None:
    """Of unprintable characters, a terminal shows only the tabs and line feeds of a message."""
    shown = formats.shown_lines(payload).decode()
    assert shown.replace("\t", "").replace("\n", "").isprintable()
    assert shown.count("\n") == payload.count(b"\n") + 1
    with contextlib.suppress(UnicodeDecodeError):
        text = payload.decode()
        assert shown == text + "\n" or not text.replace("\t", "").replace("\n", "").isprintable()


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path) -> str:
    """Set up a queue in which every name has escapes."""
    path = os.path.join(str(tmp_path), os.fsdecode(DIRECTORY))
    with persipubsub.new_environment(path) as env:
        control = env.new_control([ESCAPES])
        control.add_subscriber(f"dying{ESCAPES}", max_deliveries=1, dead_letters_max=1)
        kind = type(f"Error{ESCAPES}", (Exception, ), {})
        for _ in range(2):
            env.new_publisher().send(ESCAPES.encode())
            with contextlib.suppress(kind), env.new_subscriber(f"dying{ESCAPES}").receive(timeout=0):
                raise kind(ESCAPES)
    # The library refuses such a message type, but a file may have it.
    opened = open_queues.acquire(pathlib.Path(path))
    opened.change(lambda txn: txn.put_message_type(f"shop.{ESCAPES}[red]"))
    open_queues.release(opened)
    return path


def runs(path: str, directory: pathlib.Path) -> Dict[str, List[Sequence[str]]]:
    """Return the arguments with which each verb is run: correct ones and wrong ones."""
    broken = str(directory / f"broken{ESCAPES}")
    os.mkdir(broken)
    (pathlib.Path(broken) / "data.mdb").write_bytes(b"x" * 100_000)
    config = directory / f"config{ESCAPES}"
    config.write_text('{"queues": [{"path": "\\u001b[2J", "subscribers": ["\\u001b]0;x", 5]}]}')
    works = directory / "works"
    works.write_text('{"queues": [{"path": "new\\u001b[2J", "subscribers": ["\\u001b]0;x"]}]}')
    dying, other = f"dying{ESCAPES}", str(directory / f"other{ESCAPES}")
    text = directory / f"text{ESCAPES}"
    text.write_text("1\n2\n")
    return {
        "create": [[path, "--subscriber", f"2{ESCAPES}"], [broken], [path, "--max-messages", ESCAPES]],
        "deploy": [["-"], [str(config)], [other], [str(works), "--plan"], [str(works)]],
        "describe": [[path], [other]],
        "schema": [[]],
        "send": [[path, other], [path, str(text), ESCAPES], [broken, str(text)], [path, "--header", ESCAPES],
                 [path, "--header", f"{ESCAPES}=1"], [path, str(text), "--header", f"a={ESCAPES}"]],
        "receive": [[path, ESCAPES + "2"], [path, ESCAPES, "--format", "protobuf-json"],
                    [path, ESCAPES, "--format", ESCAPES], [path, ESCAPES, "--format", "json"]],
        "history": [[path, "--headers"], [path, "--from", ESCAPES], [path, "--format", "json"], [other]],
        "rewind": [[path, ESCAPES, "earliest"], [path, other, "1"], [path, ESCAPES, ESCAPES]],
        "status": [[path, broken, other], [path, "--json"], [path, f"--{ESCAPES}"]],
        "top": [[path, broken, "--interval", "0.1"], [path, "--interval", ESCAPES]],
        "metrics": [[path, "--listen", ESCAPES], [path, "--listen", "a..b:1"]],
        "dashboard": [[path, "--listen", ESCAPES], [path, "--listen", "a..b:1"], [path, "--token", ESCAPES]],
        "subscriber": [["list", path], ["list", path, "--json"], [f"no verb {ESCAPES}"], ["add", path, f"3{ESCAPES}"],
                       ["add", path, ESCAPES, "--lease-s", "1"], ["remove", path, dying], ["remove", path, other]],
        "set": [[path, "--max-messages", "7"], [path, "--mode", ESCAPES], [broken, "--max-messages", "7"]],
        "work": [[path, ESCAPES, f"os:{ESCAPES}"], [path, other, "os:getpid"], [other, ESCAPES, "os:getpid"],
                 [path, ESCAPES, "os:getpid", "--message-type", ESCAPES],
                 [path, ESCAPES, "os:getpid", "--grace", ESCAPES]],
        "relay": [[path, broken], [path, other, "--subscriber", ESCAPES], [other, path], [path, path],
                  [path, f"nats://{ESCAPES}/x"]],
        "prune": [[path], [other]],
        "clear": [[path], [path, "--yes"]],
        "dead-letters": [["list", path, dying], ["list", path, dying, "--json"], ["list", path, other],
                         ["show", path, dying, "2"], ["show", path, dying, "9"], ["discard", path, dying, "--all"],
                         ["requeue", path, dying, "7"]],
        "demo": [[str(text), "--publishers", "1", "--subscribers", "1", "--path", other],
                 [str(text), "--path", path], [path]],
        "check": [[path], [broken]],
        "recover": [[broken], [other]],
        "backup": [[path, f"{other}2"], [path, path]],
        "compact": [[path], [broken]],
        "migrate": [[path, f"{other}3"], [broken, f"{other}4"]],
        f"no verb {ESCAPES}": [[]],
    }  # yapf: disable


@pytest.mark.parametrize("verb", [*VERBS, f"no verb {ESCAPES}"])
def test_no_escape_reaches_the_terminal(verb: str, path: str, tmp_path: pathlib.Path) -> None:
    """However a verb is called, and whatever goes wrong, no control character of a name is in what it writes."""
    for arguments in runs(path, tmp_path)[verb]:
        for options in ([], ["--debug"]):
            result = click.testing.CliRunner().invoke(cli.main, [*options, verb, *arguments], input="n\n")
            assert isinstance(result.exception, (SystemExit, type(None)))
            assert result.output.replace("\n", "").isprintable(), (arguments, result.output)
            assert "owned" not in result.output or "\\x1b" in result.output or "\\u001b" in result.output


def test_warnings_have_no_escapes(path: str) -> None:
    """A warning of the library that names a subscriber is one printable line."""
    with persipubsub.new_environment(path) as env:
        with contextlib.suppress(ValueError), env.new_subscriber(f"dying{ESCAPES}").receive(timeout=0):
            raise ValueError
        env.new_publisher().send(b"x")
    result = click.testing.CliRunner().invoke(cli.main, ["subscriber", "remove", path, f"dying{ESCAPES}", "--yes"])
    assert "Warning" in result.output and result.output.replace("\n", "").isprintable()


def test_top_draws_no_escapes(path: str) -> None:
    """On a terminal with colours, the only escapes are those of colours; markup in a name is no markup."""
    all_rates = [Rates(path), Rates(path + "2")]
    all_rates[0].add(0, read_status(path))
    all_rates[1].fail(ESCAPES)
    console = Console(force_terminal=True, width=200, color_system="standard", highlight=False)
    with console.capture() as capture:
        console.print(top_frame.frame(all_rates, 200))
    drawn = capture.get()
    for colour in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[1;31m"):
        drawn = drawn.replace(colour, "")
    assert drawn.replace("\n", "").isprintable() and "[red]" in drawn


@pytest.mark.parametrize("options", [[], ["--peek"]])
def test_a_terminal_gets_no_escapes_of_messages(options: List[str], path: str) -> None:
    """As lines, a message is escaped where a terminal shows it, and goes byte by byte into a pipe or as raw."""
    command = [sys.executable, "-m", "persipubsub", "receive", path, ESCAPES, "--max", "1"]
    for form, expected in (([], True), (["--format", "raw"], False)):
        master, side = os.openpty()
        subprocess.run([*command, *form, *options], stdout=side, timeout=TIMEOUT_S, check=True)
        os.close(side)
        drawn = os.read(master, 65536)
        os.close(master)
        assert (b"\x1b" not in drawn and b"\\x1b" in drawn) == expected
    piped = subprocess.run([*command, "--peek"], stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True).stdout
    assert piped == (ESCAPES.encode() + b"\n" if options else b"")
