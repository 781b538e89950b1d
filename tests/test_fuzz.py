"""Test that no broken or hostile file does harm: the short form of ``python -m tests.faults.fuzz --cases 10000``."""

import pytest

from tests.faults import fuzz

CASES = 1000
#: Apart from what is cut off, which is never served.
OUTCOMES = {"served", "DamagedError", "FormatError"}


@pytest.mark.slow
def test_damaged_files_do_no_harm() -> None:
    """Every damaged file ends in DamagedError or FormatError, or is served without bytes from elsewhere."""
    outcomes = fuzz.run(CASES, seed=0)
    assert outcomes.total() == CASES
    assert {outcome for outcome in outcomes if outcome.rpartition(": ")[2] not in OUTCOMES} == set()
    # The damages are such that there is something to find.
    for way in ("check", "use_after_boot", "use_plainly"):
        assert outcomes[f"truncate/{way}: served"] == 0
    for damage in ("flip", "swap_pages", "break_meta", "craft"):
        assert outcomes[f"{damage}/check: DamagedError"] > 5
