"""Find values in a data file that extend beyond its end. Reading them through the memory map crashes the process.

LMDB may leave a file shorter than its meta page says, where the pages at the end are free. A large value has several
pages: the first may be in the file and the last not. The verification of pages looks only at the first.
"""

import pathlib
from typing import List

from persipubsub.lmdb_engine.records import page_file
from persipubsub.lmdb_engine.records.page_file import SUB_DATABASE, PageError, PageFile

#: LMDB's own lists of free pages are the largest values; no value is larger than a file.
_VALUE_BYTES_MAX = 2**46


def unreadable_values(file: pathlib.Path) -> List[str]:
    """Return what cannot be read in a truncated data file whose existing pages are sound."""
    problems: List[str] = []
    with PageFile(file) as opened:
        try:
            meta = opened.newest_meta()
            if opened.pages() > meta.last_page:
                return problems
            roots = [meta.free_root, meta.main_root, *_sub_databases(opened, meta.main_root, problems)]
        except PageError as error:
            return [str(error)]
        for root in roots:
            for _, page in opened.leaves(root, set(), problems):
                problems += _unreadable(opened, page)
    return problems


def _sub_databases(opened: PageFile, main_root: int, problems: List[str]) -> List[int]:
    return [
        page_file.decode_root(opened.value(page, node)) for _, page in opened.leaves(main_root, set(), problems)
        for node in opened.nodes(page) if node.flags & SUB_DATABASE
    ]


def _unreadable(opened: PageFile, page: bytes) -> List[str]:
    problems = []
    try:
        for node in opened.nodes(page):
            opened.value(page, node, _VALUE_BYTES_MAX)
    except PageError as error:
        problems.append(str(error))
    return problems
