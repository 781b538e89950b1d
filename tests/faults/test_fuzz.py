"""Test that no broken or hostile file does harm: the short form of ``python -m tests.faults.fuzz --cases 10000``."""

import signal

import pytest

from persipubsub import status_reader
from tests.faults import file_damages, fuzz

CASES = 400
#: Apart from what is cut off, which is never served.
OUTCOMES = {"served", "DamagedError", "FormatError"}
#: Where a file is something else, or somebody else's.
REFUSALS = OUTCOMES | {"PathError", "StorageError", "NotInitializedError"}
#: What LMDB may do to a process that uses a large damaged queue: SECURITY.rst says so.
ENDS = OUTCOMES | {signal.Signals(end).name for end in status_reader.CRASHES} | {"SIGALRM"}


@pytest.mark.slow
def test_damaged_files_do_no_harm() -> None:
    """Damaged files are refused or served without foreign bytes; only plain use of large ones may end a process."""
    outcomes = fuzz.run(CASES, seed=0)
    assert outcomes.total() == CASES
    allowed = {str(kind): OUTCOMES for kind in fuzz.KINDS}
    allowed.update((str(kind), ENDS) for kind in fuzz.KINDS if kind.may_end)
    allowed.update((str(kind), REFUSALS) for kind in fuzz.KINDS
                   if kind.damage in (file_damages.break_side_files, file_damages.break_type))
    found = [outcome.rpartition(": ") for outcome in outcomes]
    assert [(kind, end) for kind, _, end in found if end not in allowed.get(kind, ())] == []
    # The damages are such that there is something to find.
    for way in ("check", "use_after_boot", "use_plainly"):
        assert outcomes[f"truncate/{way}: served"] == 0
    for damage in ("flip", "swap_pages", "break_meta", "craft"):
        assert outcomes[f"{damage}/check: DamagedError"] >= 1
    for way in ("use_plainly", "read_plainly"):
        assert outcomes[f"swap_pages/{way} (small): DamagedError"] >= 1
