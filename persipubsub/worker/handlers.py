"""Find the function that handles messages, and what it expects."""

import importlib
import inspect
import operator
import re
import typing
from typing import Any, Callable, Optional, Union

from persipubsub import errors
from persipubsub.message import Delivery

#: An annotation that cannot be evaluated, such as one that is imported for type checkers only.
_DELIVERY = re.compile(r"(\w+\.)*Delivery\b")


def find(noun: str, name: str) -> Any:
    """Return the object that a name such as ``module:function`` stands for.

    :param noun: what the object is, for errors
    :raise ArgumentError: it cannot be imported
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise errors.ArgumentError(f"The {noun} must be named as module:name, such as shop.orders:pack, got {name!r}.")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # pylint: disable=broad-exception-caught  # a module raises what it likes
        raise errors.ArgumentError(
            f"The {noun} {name} cannot be imported: {type(error).__name__}: {error}. No message was received. Start in "
            "the directory of its module, or add that directory to PYTHONPATH.") from error


class Handler:
    """A function that handles messages, or deliveries if its parameter is annotated so.

    :param handler: the function, or its name, such as ``module:function``
    :raise ArgumentError: it cannot be imported
    :raise ArgumentTypeError: it cannot be called with one message
    """

    def __init__(self, handler: Union[str, Callable[[Any], object]]) -> None:
        function = find("handler", handler) if isinstance(handler, str) else handler
        self.name = handler if isinstance(handler, str) else _name(handler)
        if not callable(function):
            raise errors.ArgumentTypeError(f"The handler {self.name} must be a function, got {function!r}.")
        self.function: Callable[[Any], Any] = function
        parameter = self._parameter()
        self._wants_delivery = parameter is not None and _is_delivery(parameter.annotation)
        called = function if inspect.isroutine(function) else getattr(function, "__call__", function)
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)

    def argument(self, delivery: Delivery[Any]) -> Any:
        """Return what the function expects."""
        return delivery if self._wants_delivery else delivery.message

    def __call__(self, delivery: Delivery[Any]) -> None:
        """Handle a delivery, if the function is not a coroutine function."""
        result = self.function(self.argument(delivery))
        if inspect.isawaitable(result):
            raise errors.ArgumentTypeError(f"The handler {self.name} returned something to await. Define it with async "
                                           "def, so that it is awaited.")

    def _parameter(self) -> Optional[inspect.Parameter]:
        """Return the parameter for the message; None if Python does not know it, as for some functions written in C."""
        try:
            signature = _signature(self.function)
        except (TypeError, ValueError):
            return None
        try:
            signature.bind(None)
        except TypeError as error:
            raise errors.ArgumentTypeError(
                f"The handler {self.name} must take one argument, the message or a Delivery, but its parameters are "
                f"{signature}.") from error
        return next(iter(signature.parameters.values()))


def _name(handler: object) -> str:
    return f"{getattr(handler, '__module__', '')}:{getattr(handler, '__qualname__', repr(handler))}"


def _signature(function: Callable[[Any], Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # pylint: disable=broad-exception-caught  # an annotation raises what it likes
        return inspect.signature(function)


def _is_delivery(annotation: object) -> bool:
    if isinstance(annotation, str):
        return bool(_DELIVERY.match(annotation))
    return annotation is Delivery or typing.get_origin(annotation) is Delivery
