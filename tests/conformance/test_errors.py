"""Errors: each is a PersipubsubError, and many are one of Python's as well."""

import inspect
import subprocess
import sys
from typing import Type

import pytest

import persipubsub
from persipubsub import errors

#: As docs/errors.rst says.
BASES = {
    "ArgumentTypeError": TypeError,
    "ArgumentError": ValueError,
    "MessageTooLargeError": errors.ArgumentError,
    "BatchTooLargeError": errors.ArgumentError,
    "MessageTypeError": errors.ArgumentError,
    "DecodeError": ValueError,
    "ConfigError": ValueError,
    "ClosedError": errors.PersipubsubError,
    "SubscriberKindError": TypeError,
    "UnsupportedError": errors.PersipubsubError,
    "ReentryError": errors.PersipubsubError,
    "ForkError": errors.PersipubsubError,
    "EmptyError": LookupError,
    "NotInitializedError": errors.PersipubsubError,
    "QueueFullError": errors.PersipubsubError,
    "UnknownSubscriberError": LookupError,
    "TooManyDelayedError": errors.PersipubsubError,
    "LeaseLostError": errors.PersipubsubError,
    "InUseError": errors.PersipubsubError,
    "ReplacedError": errors.PersipubsubError,
    "PathError": OSError,
    "FormatError": errors.PersipubsubError,
    "DamagedError": errors.PersipubsubError,
    "StorageError": errors.PersipubsubError,
    "ReadersFullError": errors.StorageError,
    "DiskFullError": errors.StorageError,
    "CommitUnknownError": errors.StorageError,
    "UnavailableError": errors.StorageError,
}


@pytest.mark.parametrize("name, base", BASES.items())
def test_an_error_is_ours_and_pythons(name: str, base: Type[Exception]) -> None:
    """Each documented error is a PersipubsubError, and of the kind that the documentation names."""
    kind = getattr(errors, name)
    assert issubclass(kind, errors.PersipubsubError) and issubclass(kind, base)


def test_there_are_no_other_errors() -> None:
    """Every public exception of ``persipubsub.errors`` is one that this suite knows."""
    public = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BaseException)}
    assert public == {"PersipubsubError", *BASES}


def test_the_base_is_no_error_of_python() -> None:
    """The base of all errors is an Exception, and nothing else of Python's."""
    assert errors.PersipubsubError.__bases__ == (Exception, )


def test_errors_are_raised_by_an_optimized_python() -> None:
    """``python -O`` switches no error off."""
    code = """
import persipubsub
from persipubsub import errors
environment = persipubsub.new_environment("never made")
for call in (lambda: persipubsub.new_environment(""), lambda: persipubsub.HighWaterMark(max_messages=0),
             lambda: persipubsub.new_environment(5), lambda: environment.new_control(subscriber_ids="a"),
             lambda: environment.new_control(strategy=5), lambda: environment.new_publisher(autosync=5),
             lambda: environment.close() or environment.new_control()):
    try:
        call()
    except (errors.ArgumentError, errors.ArgumentTypeError, errors.ClosedError):
        continue
    raise SystemExit("nothing was raised")
"""
    subprocess.run([sys.executable, "-O", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", [
    "Control", "Durability", "Environment", "HighWaterMark", "Publisher", "Strategy", "Subscriber", "initialize",
    "new_environment", "control.Control", "environment.Environment", "environment.initialize",
    "environment.new_environment", "errors.PersipubsubError", "publisher.Publisher", "queue.Durability",
    "queue.HighWaterMark", "queue.Strategy", "subscriber.Subscriber"
])
def test_names_after_a_plain_import(name: str) -> None:
    """The documented names are there after ``import persipubsub``."""
    found = persipubsub
    for part in name.split("."):
        found = getattr(found, part)
    assert found is not None
