"""The pages of a data file: which sub-database they are of, and how they are destroyed."""

import pathlib
import struct
from typing import Dict, Iterable, Set

import lmdb

from persipubsub.lmdb_engine.process import files
from persipubsub.lmdb_engine.records.page_file import PageFile

PAGE_BYTES = 4096


def sub_databases(path: pathlib.Path) -> Dict[str, Set[int]]:
    """Return the leaf pages of each sub-database."""
    with PageFile(path / files.DATA_FILE) as opened:
        found: Dict[str, Set[int]] = {}
        for _, main in opened.leaves(opened.newest_meta().main_root, set(), []):
            for node in opened.nodes(main):
                root = struct.unpack_from("=Q", opened.value(main, node), 40)[0]
                found[node.key.decode()] = {number for number, _ in opened.leaves(root, set(), [])}
        return found


def destroy(path: pathlib.Path, pages: Iterable[int]) -> None:
    """Zero pages."""
    with open(path / files.DATA_FILE, "r+b") as file:
        for page in pages:
            file.seek(page * PAGE_BYTES)
            file.write(bytes(PAGE_BYTES))


def destroy_trees(path: pathlib.Path) -> None:
    """Zero both meta pages and the root of all trees."""
    with PageFile(path / files.DATA_FILE) as opened:
        root = opened.newest_meta().main_root
    destroy(path, {0, 1, root})


def compacted(path: pathlib.Path) -> None:
    """Remove pages of older commits from the file, so that only the destroyed ones matter."""
    with lmdb.Environment(str(path), max_dbs=32) as raw:
        raw.copy(str(path.parent), compact=True)
    (path.parent / files.DATA_FILE).replace(path / files.DATA_FILE)
