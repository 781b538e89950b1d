"""What the reference says of the code is what the code says."""

import ast
import importlib
import itertools
import pathlib
import pkgutil
import re
import struct
import sys
import xml.etree.ElementTree
from types import ModuleType
from typing import Dict, Iterator, List, Sequence, Tuple, Union

import pytest

import persipubsub
from persipubsub import errors
from persipubsub.engine.policies import Policy
from persipubsub.lmdb_engine.process import right_of_way, wakeup
from persipubsub.lmdb_engine.records import database, layouts
from persipubsub.lmdb_engine.records.layouts import SubDatabases
from persipubsub.lmdb_engine.rules import invariants

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

Number = Union[int, float]

WAKEUP_FIELD = re.compile(r"^(\d+) +(\d+) +\*(\w+)\* ", re.MULTILINE)

LIMIT = re.compile(r"``([a-z_]+(?:\.[A-Z]\w+)?\.[A-Z_]*(?:_MAX|_MIN|_DEFAULT|MAX_)[A-Z_]*)`` =\s+([\d,.]*\d)")


def modules(name: str = "") -> List[ModuleType]:
    """Return the modules of the package but the commands: those of a name, in whichever room, or all."""
    found = [
        module.name for module in pkgutil.walk_packages(persipubsub.__path__, f"{persipubsub.__name__}.")
        if not module.ispkg and "cli" not in module.name.split(".") and not module.name.endswith("__main__")
    ]
    return [importlib.import_module(one) for one in found if not name or one.rpartition(".")[2] == name]


def constant(name: str) -> object:
    """Return a constant that the documentation names by its module, class and name."""
    module, first, *attributes = name.split(".")
    value: object = next(getattr(one, first) for one in modules(module) if hasattr(one, first))
    for attribute in attributes:
        value = getattr(value, attribute)
    return value


def documented_limits() -> Dict[str, Number]:
    """Return the constants that the page on limits names, with their values there."""
    text = (DOCS / "limits.rst").read_text(encoding="utf-8")
    return {name: float(value) if "." in value else int(value.replace(",", "")) for name, value in LIMIT.findall(text)}


def limits_of_the_code() -> Iterator[Tuple[str, object]]:
    """Iterate over the limits of all modules but the commands, each by its documented name."""
    for module in modules():
        namespace = vars(module)
        source = pathlib.Path(str(namespace["__file__"])).read_text(encoding="utf-8")
        # What is imported belongs to the module that says its value.
        targets = [one for node in ast.parse(source).body if isinstance(node, ast.Assign) for one in node.targets]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and re.fullmatch(r"[A-Z][A-Z_]*_(MAX|MIN)", name.id):
                    yield f"{module.__name__.rpartition('.')[2]}.{name.id}", namespace[name.id]


def test_limits_have_the_values_of_the_documentation() -> None:
    """Every limit that the page names exists and has the value on the page."""
    limits = documented_limits()
    assert len(limits) > 30
    assert {name: constant(name) for name in limits} == limits


def test_every_limit_is_documented() -> None:
    """Every constant of the library that ends in _MAX or _MIN stands on the page of limits."""
    found, limits = dict(limits_of_the_code()), documented_limits()
    assert len(found) > 30
    assert not {name: value for name, value in found.items() if name not in limits}


def test_every_error_is_documented() -> None:
    """The page of errors has an entry for each exception, and for nothing else; each says when and what to do."""
    text = (DOCS / "errors.rst").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^(\w+Error)\n((?:    .*\n)+)", text, re.MULTILINE))
    assert sorted(entries) == sorted(errors.__all__)
    for name, entry in entries.items():
        if name != "PersipubsubError":
            assert "*When:*" in entry and "*What to do:*" in entry, name
        for base in getattr(errors, name).__bases__:
            if base.__module__ == "builtins" and base is not Exception:
                assert f"Also a ``{base.__name__}``" in entry or f"Also an ``{base.__name__}``" in entry, name


def documented_fields(title: str) -> List[Tuple[str, str, str]]:
    """Return the rows of a table of the format: offset, bytes and field."""
    text = (DOCS / "format.rst").read_text(encoding="utf-8")
    table = text.split(f".. list-table:: {title}\n")[1].split("\n\n", 2)[1]
    rows = [row.split("\n     -") for row in table.split("   * -")[2:]]
    return [(row[0].strip(), row[1].strip(), row[2].strip(" `")) for row in rows]


def fields_of_the_code(layout: struct.Struct, names: Sequence[str]) -> List[Tuple[str, str, str]]:
    """Return the same of a record; names beyond its bytes are of what may follow it."""
    sizes = [struct.calcsize(f">{item}") for item in re.findall(r"\d*[A-Za-z?]", layout.format)]
    assert len(sizes) <= len(names)
    return [(str(offset), str(size), name)
            for offset, size, name in zip(itertools.accumulate(sizes, initial=0), sizes, names)]


@pytest.mark.parametrize("title, layout, names", [
    ("header", "layouts._HEADER", layouts.Header._fields),
    ("run", "layouts._RUN", layouts.Run._fields),
    ("subscriber", "layouts._SUBSCRIBER", layouts.SubscriberRecord._fields),
    ("key of a part", "layouts.PART_KEY", ("message_id", "number")),
    ("key of the index", "delivery_layouts.ENTRY_KEY", ("number", "message_id")),
    ("key of a delayed message", "layouts.DELAYED_KEY", ("due_us", "number", "part")),
    ("deduplication", "layouts._DEDUPLICATED_DELAYED", layouts.Deduplicated._fields),
    ("key of the deduplication order", "layouts.DEDUPLICATION_ORDER_KEY", ("time_us", "message_id")),
    ("policy of a subscriber", "layouts._POLICY", (*Policy._fields, "in_flight", "requeued", "dead_letters")),
    ("delivery", "delivery_layouts._DELIVERY", ("deliveries", "token", "due_us")),
    ("key of a due message", "delivery_layouts.DUE_KEY", ("subscriber_number", "due_us", "message_id")),
    ("key of a letter", "delivery_layouts.DEAD_LETTER_KEY", ("subscriber_number", "message_id", "part")),
    ("letter", "delivery_layouts._DEAD_LETTER", ("sent_us", "size_bytes")),
    ("death", "delivery_layouts._DEATH", ("reason", "deliveries", "died_us")),
])
def test_the_format_is_that_of_the_code(title: str, layout: str, names: Sequence[str]) -> None:
    """The tables of the format have the fields of the records, in order, with their offsets and sizes."""
    documented, found = documented_fields(title), constant(layout)
    assert isinstance(found, struct.Struct)
    if title == "run":  # its first field is the key
        assert documented[0] == ("key", "8", "first_id")
        documented[1:] = [(str(int(offset) + 8), size, name) for offset, size, name in documented[1:]]
        documented[0] = ("0", "8", "first_id")
    assert documented == fields_of_the_code(found, names)


def test_every_sub_database_and_invariant_is_documented() -> None:
    """The format has a section for each sub-database, and every invariant by its number."""
    text = (DOCS / "format.rst").read_text(encoding="utf-8")
    for name in SubDatabases._fields:
        assert f"\n{name}\n~~~" in text, name
    assert re.findall(r"^- \*\*(I\d+)\*\*", text, re.MULTILINE) == list(invariants.INVARIANTS)
    assert f"This is format version {layouts.FORMAT_VERSION}," in text


def test_the_number_of_sub_databases_is_that_of_the_code() -> None:
    """The format and the decision count the sub-databases, and the decision has a row for each."""
    number = len(SubDatabases._fields)
    text = (DOCS / "format.rst").read_text(encoding="utf-8")
    assert f"LMDB is opened for {database.SUB_DATABASES_MAX} sub-databases, of which {number} are used." in text
    decision = (DOCS / "decisions" / "databases.rst").read_text(encoding="utf-8")
    assert f"**There are {number} named sub-databases," in decision
    assert sorted(re.findall(r"^   \* - ``(\w+)``$", decision, re.MULTILINE)) == sorted(SubDatabases._fields)


def test_the_words_of_the_wakeup_file_are_those_of_the_code() -> None:
    """The format has each word of the file and the map of bytes, with their offsets."""
    text = (DOCS / "format.rst").read_text(encoding="utf-8")
    found = {name: (int(offset), int(size)) for offset, size, name in WAKEUP_FIELD.findall(text)}
    # pylint: disable=protected-access  # the layout of the file is no one else's business, but documented
    words = {
        "published": wakeup._PUBLISHED,
        "waiting": wakeup._WAITING,
        "claimed": wakeup._CLAIMED,
        "wanted": wakeup._WANTED,
        "freed": wakeup._FREED
    }
    expected = {name: (4 * index, 4) for name, index in words.items()}
    for name, part in {"receiving": right_of_way.RECEIVING, "sending": right_of_way.SENDING}.items():
        expected[name] = (part.start, part.stop - part.start)
    assert found == expected


def test_every_check_is_documented() -> None:
    """The guide for contributors lists the checks of precommit.py in their order, and the least coverage."""
    text = (ROOT / "CONTRIBUTING.rst").read_text(encoding="utf-8")
    source = (ROOT / "precommit.py").read_text(encoding="utf-8")
    checks = re.findall(r'^    \("(\w+)", check_\w+\),$', source, re.MULTILINE)
    table = text.split("\ncheck  ", 1)[1].split("\n\n", 1)[0]
    assert checks and re.findall(r"^``(\w+)`` ", table, re.MULTILINE) == checks
    percent, = re.findall(r"^MIN_COVERAGE_PERCENT = (\d+)$", source, re.MULTILINE)
    assert f"must reach {percent} percent" in table


def test_pictures_stay_within_their_bounds() -> None:
    """Each picture is whole XML, has a text for those who do not see it, and nothing of it lies outside."""
    sys.path.insert(0, str(DOCS / "_extensions"))
    try:
        pictures = importlib.import_module("pictures").PICTURES
    finally:
        sys.path.pop(0)
    assert len(pictures) > 5
    for name, draw in pictures.items():
        root = xml.etree.ElementTree.fromstring(draw().svg(draw.__doc__))
        width, height = map(int, root.attrib["viewBox"].split()[2:])
        assert root.attrib["aria-label"], name
        for one in root.iter("{http://www.w3.org/2000/svg}rect"):
            left, top, wide, high = (float(one.attrib[key]) for key in ("x", "y", "width", "height"))
            assert 0 <= left and left + wide <= width and 0 <= top and top + high <= height, f"{name}: {one.attrib}"
        for one in root.iter("{http://www.w3.org/2000/svg}text"):
            # A letter of 13 pixels is less than 8 wide, on the whole.
            wide = 8 * len(one.text or "")
            left = float(one.attrib["x"]) - wide * {"start": 0, "middle": 0.5, "end": 1}[one.attrib["text-anchor"]]
            assert 0 <= left and left + wide <= width and float(one.attrib["y"]) <= height, f"{name}: {one.text}"


def test_every_picture_is_shown() -> None:
    """Each picture that can be drawn is on some page."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.rst"))
    source = (DOCS / "_extensions" / "pictures.py").read_text(encoding="utf-8")
    drawn = re.findall(r"@picture\ndef (\w+)", source)
    assert drawn and not [name for name in drawn if f".. picture:: {name}\n" not in text]
