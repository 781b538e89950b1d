"""Check what distributions say of themselves, and what is in them.

Run it with ``python -m tests.distribution.metadata FILE...``.
"""

import email
import email.message
import pathlib
import re
import sys
import tarfile
import zipfile
from typing import Dict, List, Sequence

EXTRAS = ("dashboard", "local-cluster", "nats", "otel", "prometheus", "benchmark", "examples", "dev")
URLS = ("Documentation", "Changelog")

#: What a distribution must have, and what a wheel must not have.
IN_SDIST = ("README.rst", "LICENSE", "CHANGELOG.rst", "docs/index.rst", "tests/conftest.py", "examples/typed.py",
            "constraints.txt")
IN_WHEEL = ("persipubsub/__init__.py", "persipubsub/py.typed", "pytest_persipubsub.py")
NOT_IN_WHEEL = ("tests/", "docs/", "benchmarks/", "examples/")


def contents(distribution: pathlib.Path) -> Dict[str, bytes]:
    """Return the files of a wheel or an sdist by their names, without the top folder of the sdist."""
    if distribution.suffix == ".whl":
        with zipfile.ZipFile(distribution) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(distribution) as sdist:
        opened = {one.name.partition("/")[2]: sdist.extractfile(one) for one in sdist.getmembers() if one.isfile()}
        return {name: file.read() for name, file in opened.items() if file is not None}


def message(files: Dict[str, bytes]) -> email.message.Message:
    """Return the metadata among the files of a distribution."""
    name = next(name for name in files if re.fullmatch(r"PKG-INFO|[^/]+\.dist-info/METADATA", name))
    return email.message_from_bytes(files[name])


def version(distribution: pathlib.Path) -> str:
    """Return the version that a distribution has in its metadata."""
    return str(message(contents(distribution))["Version"])


def problems(distribution: pathlib.Path) -> List[str]:
    """List what is missing in a distribution, or should not be there: files, and fields of its metadata."""
    files = contents(distribution)
    wheel = distribution.suffix == ".whl"
    found = [f"{name} is missing" for name in (IN_WHEEL if wheel else IN_SDIST) if name not in files]
    found += [f"{name} should not be there" for name in files if wheel and name.startswith(NOT_IN_WHEEL)]
    fields = message(files)
    for name in ("Summary", "Author", "License-Expression", "License-File", "Keywords", "Requires-Python",
                 "Description-Content-Type"):
        if not fields[name]:
            found.append(f"the metadata has no {name}")
    if len(str(fields.get_payload())) < 1000:
        found.append("the metadata has no readme")
    found += _missing("extra", EXTRAS, fields.get_all("Provides-Extra", []))
    found += _missing("URL", URLS, [one.partition(",")[0] for one in fields.get_all("Project-URL", [])])
    pythons = [f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)]
    found += _missing("classifier", pythons, fields.get_all("Classifier", []))
    return [f"{distribution.name}: {one}" for one in found]


def _missing(kind: str, wanted: Sequence[str], found: Sequence[str]) -> List[str]:
    return [f"the metadata lacks the {kind} {one}" for one in wanted if one not in found]


def main() -> None:
    """Check the distributions that are named, and exit with status 1 if one has problems."""
    found = [one for name in sys.argv[1:] for one in problems(pathlib.Path(name))]
    print(*found, sep="\n")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
