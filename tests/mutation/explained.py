"""The mutants that survive for a reason, in ``survivors.txt``.

A paragraph there is a mutant and the reason, after ``=``, why no test can or need notice it::

    persipubsub/queue.py put
    - the line as it is
    + the line as the mutant has it
    = why

Lines are told by their text, so an explanation holds until its line is changed.
"""

import pathlib
from typing import Dict, Iterable, List, NamedTuple

FILE = pathlib.Path(__file__).with_name("survivors.txt")


class Mutant(NamedTuple):
    """A module with a line changed, in a function or class of it."""

    module: str
    definition: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.module} {self.definition}\n- {self.before}\n+ {self.after}".rstrip() + "\n"


def of_diff(module: str, definition: object, diff: str) -> Mutant:
    """Give the mutant that a unified diff makes."""
    lines: Dict[str, List[str]] = {"-": [], "+": []}
    for line in diff.splitlines():
        if line[:1] in lines and not line.startswith(("---", "+++")):
            lines[line[0]].append(line[1:])
    return Mutant(module, str(definition or "module"), _in_one_line(lines["-"]), _in_one_line(lines["+"]))


def _in_one_line(lines: Iterable[str]) -> str:
    return " ".join(" ".join(lines).split())


def read() -> Dict[Mutant, str]:
    """Read the explained mutants; give the reason for each."""
    reasons: Dict[Mutant, str] = {}
    for paragraph in filter(None, FILE.read_text(encoding="utf-8").strip().split("\n\n")):
        where, before, after, *reason = paragraph.splitlines()
        module, _, definition = where.partition(" ")
        mutant = Mutant(module, definition, _in_one_line([before[2:]]), _in_one_line([after[2:]]))
        reasons[mutant] = _in_one_line(line[2:] for line in reason)
    return reasons
