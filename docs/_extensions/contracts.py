"""Fold the contracts of a function, which sphinx_icontract writes among its parameters and errors.

A reader of the API looks for these first. Contracts repeat in code what the errors say in words.
"""

from typing import Any, Dict, List

from docutils import nodes
from sphinx.application import Sphinx

#: How the names of their fields begin.
NAMES = ("Requires", "Ensures", "Establishes", "Inherited")


def fold(_app: Sphinx, document: nodes.document) -> None:
    """Move the contracts of each function behind its other fields, where a click unfolds them."""
    for fields in list(document.findall(nodes.field_list)):
        contracts = [field for field in fields if field[0].astext().startswith(NAMES)]
        if contracts:
            for field in contracts:
                fields.remove(field)
            fields.parent.insert(fields.parent.index(fields) + 1, _folded(contracts))
            if not fields.children:
                fields.parent.remove(fields)


def _folded(contracts: List[nodes.Node]) -> List[nodes.Node]:
    return [
        nodes.raw("", '<details class="contracts"><summary>Contracts</summary>', format="html"),
        nodes.field_list("", *contracts),
        nodes.raw("", "</details>", format="html"),
    ]


def setup(app: Sphinx) -> Dict[str, Any]:
    """Add it to Sphinx."""
    app.connect("doctree-read", fold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
