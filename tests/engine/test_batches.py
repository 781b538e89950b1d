"""Batches: their sizes, and those of their parts, include the headers."""

from typing import List, Optional, Tuple

import hypothesis
from hypothesis import strategies as st

from persipubsub.engine.values import Batch, batch_of

MESSAGES = st.lists(st.tuples(st.binary(max_size=9), st.sampled_from([b"", b'{"a":"b"}'])), max_size=9)


def batch(messages: List[Tuple[bytes, bytes]]) -> Batch:
    """Return a batch of messages with their headers."""
    return batch_of([payload for payload, _ in messages], [headers for _, headers in messages])


def listed(found: Batch) -> List[Tuple[bytes, bytes]]:
    """Return the messages of a batch with their headers."""
    return list(zip(found.payloads, found.headers or [b""] * len(found.payloads)))


@hypothesis.given(MESSAGES)
def test_the_sizes_of_a_batch(messages: List[Tuple[bytes, bytes]]) -> None:
    """The size of a message is that of its payload and its headers; headers are left out if no message has any."""
    found, sizes = batch(messages), [len(payload) + len(headers) for payload, headers in messages]
    assert listed(found) == messages and found.sizes() == sizes
    assert (found.size_bytes, found.largest_bytes) == (sum(sizes), max(sizes, default=0))
    assert (found.headers is None) == (not any(headers for _, headers in messages))


@hypothesis.given(MESSAGES, st.integers(-9, 9), st.none() | st.integers(-9, 9))
def test_a_part_of_a_batch(messages: List[Tuple[bytes, bytes]], start: int, stop: Optional[int]) -> None:
    """A part of a batch is the batch of these messages."""
    assert batch(messages).part(start, stop) == batch(messages[start:stop])


@hypothesis.given(MESSAGES, st.data())
def test_selected_messages_of_a_batch(messages: List[Tuple[bytes, bytes]], data: st.DataObject) -> None:
    """Messages that are selected by their indexes keep their order and their headers."""
    indexes = sorted(data.draw(st.sets(st.sampled_from(range(len(messages))))) if messages else [])
    assert batch(messages).selected(indexes) == batch([messages[index] for index in indexes])
