"""Every command that installs the package is one that works."""

import pathlib
import re
import runpy
import subprocess
import sys
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import setuptools

pytestmark = pytest.mark.slow  # starts processes

ROOT = pathlib.Path(__file__).resolve().parents[2]

#: What is told to users: documents, the code with its errors, the scripts that install.
PLACES = ("*.rst", "*.py", ".readthedocs.yaml", ".ci/*", "docs/**/*.rst", "docs/**/*.rst.txt", "benchmarks/**/*.txt",
          "persipubsub/**/*.py", "examples/**/*", "benchmarks/**/*.py")

#: The arguments of a command up to what ends it: the command of a shell, the quotes or the backquotes around it.
INSTALL = re.compile(r"pip3? install((?: +(?:-[a-z] constraints\.txt|--?[a-z-]+|'[^'\s]+'|[\w.\[\],>=<-]+))+)")

#: Other packages that are told to be installed, by their own names.
OTHERS = {"grpcio-tools", "mypy-protobuf"}


def commands() -> Iterator[Tuple[str, List[str]]]:
    """Find each command, with the arguments that are not options."""
    for pattern in PLACES:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                text = re.sub(r"\s*\n\s*", " ", path.read_text(encoding="utf-8"))
                for found in INSTALL.finditer(text.replace("``pip install``", "")):
                    arguments = re.sub(r"-c constraints\.txt", "", found[1]).replace("'", "").split()
                    yield str(path.relative_to(ROOT)), [one for one in arguments if not one.startswith("-")]


@pytest.fixture(name="extras")
def extras_fixture(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Return the names of the extras in setup.py."""
    passed: Dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: passed.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return list(passed["extras_require"])


def test_every_extra_that_is_named_exists(extras: List[str]) -> None:
    """Each pip install of a document, an error or a script installs this package, with extras that it has."""
    found = list(commands())
    assert len(found) > 15 and {"README.rst", "docs/installation.rst", "persipubsub/metrics.py"
                                } <= {one[0]
                                      for one in found}
    for place, arguments in found:
        # Prose goes on after a command: its words are not packages.
        package = arguments[0] if arguments else ""
        if package in OTHERS:
            continue
        match = re.fullmatch(r"(?:(?:/[a-z/]+/)?persipubsub|\.)(?:\[([\w,-]+)\])?\.?", package)
        assert match is not None, (place, arguments)
        assert not set((match[1] or "").split(",")) - {"", *extras}, (place, package)


def test_an_extra_can_be_added_to_what_a_checkout_installed(extras: List[str]) -> None:
    """Where a checkout is installed, pip takes it for the package of that name, and asks no index for another one."""
    # The tools of a developer include what these need, so nothing is left to download.
    wanted = sorted({"nats", "prometheus", "examples"} & set(extras))
    done = subprocess.run([
        sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check",
        f"persipubsub[{','.join(wanted)}]"
    ],
                          check=False,
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout


def test_the_installation_page_lists_the_extras(extras: List[str]) -> None:
    """The table of the extras has each of them, and no other."""
    text = (ROOT / "docs" / "installation.rst").read_text(encoding="utf-8")
    table = text.split("\nextra  ", 1)[1].split("\n\n", 1)[0]
    assert sorted(re.findall(r"^``([\w-]+)`` ", table, re.MULTILINE)) == sorted(extras)
