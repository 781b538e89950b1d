"""Settings of Sphinx for the documentation of persipubsub."""

import pathlib
import sys

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import persipubsub

project = "persipubsub"
author = "The persipubsub authors"
project_copyright = "2026, The persipubsub authors"
release = persipubsub.__version__
version = release

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "_extensions"))

extensions = [
    "contracts",
    "pictures",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_icontract",
]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

# The inventory is kept here so that the documentation builds without a network.
_INVENTORY = pathlib.Path(__file__).resolve().parent / "_inventory" / "python.inv"
intersphinx_mapping = {"python": ("https://docs.python.org/3.11", str(_INVENTORY))}

nitpicky = True
nitpick_ignore_regex = [
    # A type variable has no documentation of its own.
    ("py:.*", r"persipubsub\.[\w.]+\.(T|T_co|M|Msg|Sendable)"),
    # The documentation of protobuf has no inventory.
    ("py:class", r"google\.protobuf\..*"),
    # This is how Python 3.13 calls pathlib.Path where it is used as a type.
    ("py:class", r"pathlib\._local\.Path"),
    # It publishes no inventory.
    ("py:class", r"prometheus_client\..*"),
    # Nor does the documentation of OpenTelemetry here.
    ("py:class", r"(opentelemetry\..*|TracerProvider)"),
]

# Of what a terminal shows, only the commands are copied.
copybutton_prompt_text = "$ "

# A footnote stands at its word, without a space.
trim_footnote_reference_space = True

html_theme = "furo"
html_static_path = ["_static"]
html_title = f"persipubsub {release}"
html_search_scorer = str(pathlib.Path(__file__).resolve().parent / "_extensions" / "scorer.js")


def _resolve_short_name(app: Sphinx, env: BuildEnvironment, node: pending_xref,
                        contnode: nodes.Element) -> nodes.Element | None:
    """Find a name that is written as the code writes it: ``errors.ClosedError``, ``Environment.close``."""
    if node.get("refdomain") != "py":
        return None
    node["refspecific"] = True
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], node["reftarget"], node, contnode)


def setup(app: Sphinx) -> None:
    """Add what is ours to Sphinx."""
    app.connect("missing-reference", _resolve_short_name)
