"""Nothing above the seam knows an engine, and what is built on the package uses what users use."""

import ast
import pathlib
from typing import Iterator, List, Set

import persipubsub

PACKAGE = pathlib.Path(persipubsub.__file__).parent
#: What opens an engine, and the tools for files of the LMDB engine.
KNOW_AN_ENGINE = {"engine/location.py", "compaction.py", "migration.py", "recovery.py"}
#: What users import: the other modules may change with every release.
PUBLIC = {
    "aio", "clock", "compaction", "control", "dead_letters", "delayed", "deployment", "environment", "errors",
    "local_cluster", "message", "metrics", "migration", "publisher", "queue", "recovery", "relay", "replay", "status",
    "subscriber", "testing", "typed", "worker"
}


def imported(file: pathlib.Path) -> Iterator[str]:
    """Return the modules of the package that a file imports, without the name of the package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == persipubsub.__name__ and module:
                yield module


def importing(files: List[pathlib.Path], room: str) -> Set[str]:
    """Return the files that import something of a room of the package."""
    return {
        file.relative_to(PACKAGE).as_posix()
        for file in files if any(name.split(".")[0] == room for name in imported(file))
    }


def test_nothing_above_the_seam_imports_an_engine() -> None:
    """Outside the LMDB engine, only what opens it and the tools for its files import it."""
    outside = [file for file in PACKAGE.rglob("*.py") if "lmdb_engine" not in file.relative_to(PACKAGE).parts]
    assert len(outside) > 50 and importing(outside, "lmdb_engine") == KNOW_AN_ENGINE


def test_only_what_opens_it_imports_the_engine_for_clusters() -> None:
    """Outside the engine for clusters, only what opens an engine imports it."""
    outside = [file for file in PACKAGE.rglob("*.py") if "nats_engine" not in file.relative_to(PACKAGE).parts]
    assert importing(outside, "nats_engine") == {"engine/location.py"}


def test_the_command_line_and_the_fixtures_use_the_public_api() -> None:
    """The command line, the dashboard, the metrics and the fixtures import what users import, and nothing else."""
    files = [
        *(PACKAGE / "cli").rglob("*.py"), *(PACKAGE / "dashboard").rglob("*.py"), PACKAGE / "metrics.py",
        PACKAGE / "testing.py"
    ]
    used = {name.split(".")[0] for file in files for name in imported(file)}
    assert "environment" in used
    # Reading a queue in another process is the metrics' own, shared with the command top and the dashboard.
    assert {name for name in used if name.islower()} - PUBLIC == {"cli", "dashboard", "status_reader"}
