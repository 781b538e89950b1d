"""Headers as JSON: what is encoded is decoded, and what cannot be a header is refused or reported as damage."""

import json
from typing import Dict

import hypothesis
import pytest
from hypothesis import strategies as st

from persipubsub import errors
from persipubsub.engine import headers
from persipubsub.engine.headers import HEADERS_BYTES_MAX, HEADERS_MAX, NAME_BYTES_MAX

#: Visible ASCII without a colon.
NAMES = st.text(st.sampled_from([chr(code) for code in range(0x21, 0x7f) if chr(code) != ":"]), min_size=1, max_size=9)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@hypothesis.given(st.dictionaries(NAMES, TEXTS, max_size=HEADERS_MAX))
def test_what_is_encoded_is_decoded(sent: Dict[str, str]) -> None:
    """Any headers within the limits are decoded as they were encoded; other programs can read them as JSON."""
    encoded = headers.encoded(sent)
    assert headers.decoded(encoded) == sent
    assert not sent and not encoded or json.loads(encoded) == sent


def test_no_headers_are_no_bytes() -> None:
    """Neither None nor an empty mapping is stored."""
    assert headers.encoded(None) == headers.encoded({}) == b"" and headers.decoded(b"") == {}


@pytest.mark.parametrize("sent", [{
    str(number): ""
    for number in range(HEADERS_MAX)
}, {
    "n" * NAME_BYTES_MAX: ""
}, {
    "n": "x" * (HEADERS_BYTES_MAX - len('{"n":""}'))
}, {
    "n": "é" * ((HEADERS_BYTES_MAX - len('{"n":""}')) // 2)
}],
                         ids=["number", "name", "bytes", "bytes of UTF-8"])
def test_the_largest_headers(sent: Dict[str, str]) -> None:
    """Headers at each limit are accepted."""
    assert headers.decoded(headers.encoded(sent)) == sent


@pytest.mark.parametrize("sent, match", [
    ({
        str(number): ""
        for number in range(HEADERS_MAX + 1)
    }, "at most 64 headers, got 65"),
    ({
        "n" * (NAME_BYTES_MAX + 1): ""
    }, "1 to 255 visible ASCII"),
    ({
        "n": "x" * (HEADERS_BYTES_MAX - len('{"n":""}') + 1)
    }, "at most 65536 bytes as JSON, got 65537"),
    ({
        "n": '"' * 40_000
    }, "at most 65536 bytes as JSON, got 80008"),
    ({
        "": "x"
    }, "visible ASCII"),
    ({
        "a:b": "x"
    }, "without a colon"),
    ({
        "a b": "x"
    }, "visible ASCII"),
    ({
        "a\n": "x"
    }, "visible ASCII"),
    ({
        "größe": "x"
    }, "visible ASCII"),
    ({
        "n": "\ud800"
    }, "encodable as UTF-8"),
],
                         ids=lambda value: value if isinstance(value, str) else "")
def test_headers_outside_the_limits(sent: Dict[str, str], match: str) -> None:
    """What is outside a limit is refused, with the limit."""
    with pytest.raises(errors.ArgumentError, match=match):
        headers.encoded(sent)


@pytest.mark.parametrize("sent", [[("a", "b")], "a=b", b"{}", {"a": 1}, {"a": None}, {1: "a"}, {"a": b"b"}])
def test_what_is_not_a_mapping_of_texts(sent: object) -> None:
    """What is not a mapping of str to str is refused by its type."""
    with pytest.raises(errors.ArgumentTypeError, match="a mapping of str to str, got"):
        headers.encoded(sent)  # type: ignore[arg-type]  # which is the mistake


@hypothesis.given(
    st.one_of(
        st.binary(max_size=50),
        st.builds(lambda value: json.dumps(value).encode(), st.recursive(st.none() | st.text() | st.integers(),
                                                                         st.lists))))
def test_any_bytes_are_decoded_or_damaged(value: bytes) -> None:
    """Whatever a damaged file has in place of headers is either headers or a DamagedError."""
    try:
        decoded = headers.decoded(value)
    except errors.DamagedError:
        return
    assert all(isinstance(text, str) for pair in decoded.items() for text in pair)


@pytest.mark.parametrize("value", [b"[" * 65_000, b'{"a":' * 10_000, b'{"a":1}', b'["a"]', b'"a"', b"null", b"\xff"])
def test_hostile_bytes_are_damage(value: bytes) -> None:
    """What is no object of texts is damage, however deep it is."""
    with pytest.raises(errors.DamagedError, match="headers of a message cannot be read"):
        headers.decoded(value)
