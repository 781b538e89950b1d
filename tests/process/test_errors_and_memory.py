"""What an error refers to is freed with it, and need not wait for the garbage collector."""

import gc
import weakref
from typing import Any, Callable, Iterator, Type

import pytest

import persipubsub
from persipubsub import Environment, HighWaterMark, Strategy, errors

MakeEnvironment = Callable[..., Environment]
KIB = 1024


class Payload(bytearray):
    """A message to which there can be weak references."""


@pytest.fixture(name="no_gc", autouse=True)
def no_gc_fixture() -> Iterator[None]:
    """Switch the garbage collector off."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("mark, kind", [(HighWaterMark(hwm_db_size=100 * KIB), errors.MessageTooLargeError),
                                        (HighWaterMark(max_messages=1), errors.QueueFullError)])
def test_a_send_that_fails(mark: HighWaterMark, kind: Type[Exception], new_environment: MakeEnvironment) -> None:
    """Once the error of a send is handled, its message and its publisher are freed."""
    path = new_environment("a", high_watermark=mark, strategy=Strategy.refuse).path

    def send() -> Any:
        environment, payload = persipubsub.new_environment(path), Payload(200 * KIB)
        publisher = environment.new_publisher()
        publisher.send(b"fits", headers={"a": "b"})
        try:
            publisher.send(payload)
        except kind:
            pass
        return [weakref.ref(one) for one in (environment, publisher, payload)]

    assert [reference() for reference in send()] == [None, None, None]
