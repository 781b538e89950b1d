"""Habits from other libraries that are mistakes here: each is an error, or a warning, that names the remedy."""

import asyncio
import gc
import pathlib
import subprocess
import sys
import warnings
from typing import Any, Awaitable, Callable, Iterator, List

import pytest

from persipubsub import Durability, Environment, Subscriber, errors
from persipubsub.aio import AsyncSubscriber

MakeEnvironment = Callable[..., Environment]

RECEIVES = ["receive", "receive_to_top", "receive_many", "receive_delivery", "receive_deliveries"]
#: What a receipt says of itself.
REMEDY = r"with subscriber\.receive\(\) as message: \.\.\."
TASK_REMEDY = f"async {REMEDY}"


@pytest.fixture(autouse=True)
def collect_receipts() -> Iterator[None]:
    """Finalize the receipts that a test has left, whose warnings are not those of a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(name="environment")
def environment_fixture(new_environment: MakeEnvironment) -> Iterator[Environment]:
    """Set up a queue with a message; that a mistake has received or acknowledged nothing is checked afterwards."""
    environment = new_environment("a", durability=Durability.PROCESS_CRASH)
    environment.new_publisher().send(b"1")
    yield environment
    assert environment.new_subscriber("a").front() == b"1"


@pytest.fixture(name="subscriber")
def subscriber_fixture(environment: Environment) -> Subscriber:
    """Make a subscriber."""
    return environment.new_subscriber("a")


@pytest.fixture(name="task_subscriber")
def task_subscriber_fixture(environment: Environment) -> AsyncSubscriber[bytes]:
    """Make a subscriber for tasks."""
    return environment.new_async_subscriber("a")


def awaited(make: Callable[[], Any]) -> Any:
    """Await something in a loop."""

    async def main() -> Any:
        return await make()

    return asyncio.run(main())


# Receiving without a block


@pytest.mark.parametrize("method", RECEIVES)
def test_a_receipt_that_is_not_entered(method: str, subscriber: Subscriber) -> None:
    """A receive without ``with`` is a ResourceWarning where it was called, with the remedy."""
    with pytest.warns(ResourceWarning, match=f"<Subscriber 'a' .*{REMEDY}> was never entered, so it received") as found:
        getattr(subscriber, method)()
        gc.collect()
    assert [warning.filename for warning in found] == [__file__]


@pytest.mark.parametrize("method", RECEIVES)
def test_a_receipt_of_a_task_that_is_not_entered(method: str, task_subscriber: AsyncSubscriber[bytes]) -> None:
    """A receive of a task without ``async with`` is a ResourceWarning where it was called, with the remedy."""
    with pytest.warns(ResourceWarning, match=f"<AsyncSubscriber 'a' .*{TASK_REMEDY}> was never entered") as found:
        getattr(task_subscriber, method)()
        gc.collect()
    assert [warning.filename for warning in found] == [__file__]


@pytest.mark.filterwarnings("error")
def test_who_uses_a_block_is_not_warned(subscriber: Subscriber, task_subscriber: AsyncSubscriber[bytes]) -> None:
    """Nobody is warned of a block, of one that raised, of one that received nothing, of a look, or of a loop."""

    async def main() -> None:
        for kind in RECEIVES:
            with pytest.raises(ZeroDivisionError):
                async with getattr(task_subscriber, kind)(timeout=0):
                    raise ZeroDivisionError
        await task_subscriber.front()
        task_subscriber.messages()

    for method in RECEIVES:
        with pytest.raises(ZeroDivisionError), getattr(subscriber, method)(timeout=0):
            raise ZeroDivisionError
    subscriber.front()
    subscriber.messages()
    asyncio.run(main())
    subscriber.close()
    for method in RECEIVES[2:]:
        with pytest.raises(errors.ClosedError), getattr(subscriber, method)(timeout=0):
            pass
    with pytest.raises(errors.ArgumentError):
        subscriber.receive(timeout=-1)
    gc.collect()


def test_a_program_shows_the_warning(environment: Environment) -> None:
    """A program that runs with warnings on shows its line and the remedy on standard error."""
    program = ("import sys, persipubsub\n"
               "subscriber = persipubsub.new_environment(sys.argv[1]).new_subscriber('a')\n"
               "message = subscriber.receive()\n"
               "message = None\n")
    file = pathlib.Path(environment.path.parent) / "program.py"
    file.write_text(program, encoding="utf-8")
    done = subprocess.run([sys.executable, "-X", "dev", file, environment.path],
                          check=True,
                          capture_output=True,
                          text=True)
    assert f"{file}:4: ResourceWarning: " in done.stderr
    assert "with subscriber.receive() as message: ..." in done.stderr


# What a receipt is not


@pytest.mark.filterwarnings("ignore:.*never entered:ResourceWarning")
@pytest.mark.parametrize("method", RECEIVES)
@pytest.mark.parametrize("name", ["decode", "message", "id", "headers", "ack", "body", "value"])
def test_a_receipt_is_not_a_message(name: str, method: str, subscriber: Subscriber,
                                    task_subscriber: AsyncSubscriber[bytes]) -> None:
    """An attribute of a message, asked of a receipt, is an AttributeError with the remedy, for tasks too."""
    with pytest.raises(AttributeError, match=f"<Subscriber 'a' .*{REMEDY}> has no attribute '{name}'"):
        getattr(getattr(subscriber, method)(), name)
    with pytest.raises(AttributeError, match=f"<AsyncSubscriber 'a' .*{TASK_REMEDY}> has no attribute '{name}'"):
        getattr(getattr(task_subscriber, method)(), name)


@pytest.mark.filterwarnings("ignore:.*never entered:ResourceWarning")
def test_a_receipt_says_what_it_is(subscriber: Subscriber, task_subscriber: AsyncSubscriber[bytes]) -> None:
    """Whoever prints what receive returns sees the remedy; questions whether it has an attribute are answered."""
    assert repr(subscriber) in str(subscriber.receive()) and "with subscriber" in str(subscriber.receive())
    assert repr(task_subscriber) in str(task_subscriber.receive()) and "async with" in str(task_subscriber.receive())
    for receipt in (subscriber.receive(), task_subscriber.receive()):
        assert not hasattr(receipt, "decode") and getattr(receipt, "id", None) is None


def iterate(subscriber: Any) -> object:
    """Iterate over a subscriber."""
    return [message for message in subscriber]  # pylint: disable=unnecessary-comprehension  # the mistake


def iterate_as_a_task(subscriber: Any) -> object:
    """Iterate over a subscriber as a task."""

    async def main() -> List[object]:
        return [message async for message in subscriber]

    return asyncio.run(main())


@pytest.mark.parametrize("use", [iterate, list, set, iter])
def test_a_subscriber_is_not_iterated_over(use: Callable[[Any], object], subscriber: Subscriber,
                                           task_subscriber: AsyncSubscriber[bytes]) -> None:
    """``for message in subscriber`` is an error of type that names messages() and deliveries(), for tasks too."""
    for wrong in (subscriber, task_subscriber):
        with pytest.raises(errors.ArgumentTypeError, match=r"Subscriber 'a' .*messages\(\).*deliveries\(\)"):
            use(wrong)


def test_a_subscriber_for_tasks_is_not_iterated_over(task_subscriber: AsyncSubscriber[bytes]) -> None:
    """``async for message in subscriber`` is an error that names messages() and deliveries()."""
    with pytest.raises(errors.ArgumentTypeError, match=r"AsyncSubscriber 'a' .*messages\(\).*deliveries\(\)"):
        iterate_as_a_task(task_subscriber)


@pytest.mark.filterwarnings("ignore:.*never entered:ResourceWarning")
@pytest.mark.parametrize("method", RECEIVES)
def test_a_receipt_of_a_task_is_not_awaited(method: str, task_subscriber: AsyncSubscriber[bytes]) -> None:
    """To await a receive is an error that names ``async with``; so is ``with`` in place of ``async with``."""
    with pytest.raises(errors.ArgumentTypeError, match=f"{TASK_REMEDY}> cannot be awaited"):
        awaited(getattr(task_subscriber, method))
    with pytest.raises(errors.ArgumentTypeError, match=f"{TASK_REMEDY}> needs async with"):
        with getattr(task_subscriber, method)():
            raise AssertionError("it was entered")


@pytest.mark.filterwarnings("ignore:.*never entered:ResourceWarning")
def test_a_plain_receipt_in_a_task(subscriber: Subscriber) -> None:
    """A plain subscriber used as one for tasks raises an error of Python that names the type."""

    async def main() -> None:
        async with subscriber.receive():  # type: ignore[attr-defined]  # the mistake
            pass

    with pytest.raises((TypeError, AttributeError), match="Receipt|__aenter__"):
        asyncio.run(main())
    with pytest.raises(TypeError, match="__aiter__.*Subscriber"):
        iterate_as_a_task(subscriber)


def test_coroutines_that_are_not_awaited(environment: Environment, task_subscriber: AsyncSubscriber[bytes]) -> None:
    """Python itself warns of a send or a look of a task that is not awaited, and nothing is sent."""
    publisher = environment.new_async_publisher()
    calls: List[Callable[[], Awaitable[object]]] = [
        lambda: publisher.send(b"2"), task_subscriber.front, task_subscriber.pop
    ]
    for call in calls:
        with pytest.warns(RuntimeWarning, match="was never awaited"):
            call()
            gc.collect()
    assert environment.new_control().status().next_id == 2


@pytest.mark.parametrize("method", RECEIVES)
def test_nothing_runs_after_a_block(method: str, subscriber: Subscriber,
                                    task_subscriber: AsyncSubscriber[bytes]) -> None:
    """A receipt whose block has begun has no finalizer: an interrupt that came in it would be lost."""

    async def enter() -> object:
        receipt = getattr(task_subscriber, method)(timeout=0)
        with pytest.raises(ZeroDivisionError):
            async with receipt:
                1 / 0  # pylint: disable=pointless-statement  # so that the message stays
        return receipt

    receipt = getattr(subscriber, method)(timeout=0)
    with pytest.raises(ZeroDivisionError), receipt:
        1 / 0  # pylint: disable=pointless-statement  # as above
    for one in (receipt, asyncio.run(enter())):
        assert not hasattr(type(one), "__del__")


def test_warnings_in_a_finalizer_do_not_raise(subscriber: Subscriber) -> None:
    """Where warnings are errors, a receipt that was not entered ends nothing: Python reports it as unraisable."""
    found: List[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, found.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            subscriber.receive()
            gc.collect()
    finally:
        sys.unraisablehook = before
    assert [type(one.exc_value) for one in found] == [ResourceWarning]
