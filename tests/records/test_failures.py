"""What is kept of an exception, in the records of messages that were not acknowledged."""

import hypothesis
import hypothesis.strategies as st
import pytest

from persipubsub.engine.values import NO_FAILURE, Failure, failure_of
from persipubsub.lmdb_engine.records import delivery_layouts
from persipubsub.lmdb_engine.records.delivery_layouts import NO_TOKEN, Delivery

NUL = "\0"
TEXTS = st.text(st.characters(codec="utf-8"))


@hypothesis.given(TEXTS.filter(lambda text: text and NUL not in text), TEXTS,
                  TEXTS.filter(lambda text: NUL not in text))
def test_a_failure_is_decoded_as_it_was(kind: str, text: str, traceback: str) -> None:
    """A failure with or without a traceback, and none at all, come back from the bytes of a record."""
    for failure in (NO_FAILURE, Failure(kind, text), Failure(kind, text, traceback)):
        delivery = Delivery(1, NO_TOKEN, 2, failure)
        assert delivery_layouts.decode_delivery(delivery_layouts.encode_delivery(delivery)) == delivery


def test_the_innermost_frames_are_kept() -> None:
    """Of a long traceback, whole lines of its innermost frames are kept, up to 1,000 characters."""

    def fail(depth: int) -> None:
        if depth:
            fail(depth - 1)
        raise ValueError("deep")

    with pytest.raises(ValueError) as raised:
        fail(50)
    found = failure_of(raised.value).traceback
    assert 500 < len(found) <= 1000
    assert found.endswith('raise ValueError("deep")\n') and found.startswith("  ")
