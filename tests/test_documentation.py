"""What the reference tells of the code is what the code says."""

import importlib
import pathlib
import pkgutil
import re
from typing import Dict, Iterator, Tuple, Union

import persipubsub

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"

Number = Union[int, float]

LIMIT = re.compile(r"``([a-z_]+(?:\.[A-Z]\w+)?\.[A-Z_]*(?:_MAX|_MIN|_DEFAULT|MAX_)[A-Z_]*)`` =\s+([\d,.]*\d)")


def constant(name: str) -> object:
    """Give a constant that the documentation names by its module, class and name."""
    module, *attributes = name.split(".")
    value: object = importlib.import_module(f"persipubsub.{module}")
    for attribute in attributes:
        value = getattr(value, attribute)
    return value


def documented_limits() -> Dict[str, Number]:
    """Give the constants that the page on limits names, with the values that it gives them."""
    text = (DOCS / "limits.rst").read_text(encoding="utf-8")
    return {name: float(value) if "." in value else int(value.replace(",", "")) for name, value in LIMIT.findall(text)}


def limits_of_the_code() -> Iterator[Tuple[str, object]]:
    """Iterate over the limits of all modules but the commands, each by the name that the documentation gives it."""
    for module in pkgutil.iter_modules(persipubsub.__path__):
        if module.ispkg or module.name == "__main__":
            continue
        namespace = vars(importlib.import_module(f"persipubsub.{module.name}"))
        for name, value in namespace.items():
            # What is imported belongs to the module that says its value.
            source = pathlib.Path(str(namespace["__file__"])).read_text(encoding="utf-8")
            if re.search(rf"^{name} = ", source, re.MULTILINE) and re.fullmatch(r"[A-Z][A-Z_]*_(MAX|MIN)", name):
                yield f"{module.name}.{name}", value


def test_limits_have_the_values_of_the_documentation() -> None:
    """Every limit that the page names exists and has the value given there."""
    limits = documented_limits()
    assert len(limits) > 30
    assert {name: constant(name) for name in limits} == limits


def test_every_limit_is_documented() -> None:
    """Every constant of the library that ends in _MAX or _MIN stands on the page of limits."""
    limits = documented_limits()
    missing = {name: value for name, value in limits_of_the_code() if name not in limits}
    assert not missing
