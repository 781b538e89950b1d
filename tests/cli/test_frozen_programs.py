"""Test that tools which pack a program into one file, such as PyInstaller, find all modules of the package."""

import modulefinder
import pathlib
import types

import persipubsub

PACKAGE = pathlib.Path(persipubsub.__file__).parent
#: What no verb needs: the entry of ``python -m``, and what a program's own tests import by a statement of theirs.
NOT_OF_THE_COMMAND = {"persipubsub.__main__", "persipubsub.testing"}


def test_import_statements_lead_to_every_module() -> None:
    """From the command line, statements that a tool can read import everything; nothing is imported by its name."""
    finder = modulefinder.ModuleFinder([str(PACKAGE.parent)])
    finder.import_hook("persipubsub.cli")
    paths = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    assert modules - set(finder.modules) == NOT_OF_THE_COMMAND


def test_import_statements_lead_from_the_package_to_its_public_names() -> None:
    """From the package alone, whose names are loaded on first use, statements lead to the modules of all of them."""
    finder = modulefinder.ModuleFinder([str(PACKAGE.parent)])
    finder.import_hook("persipubsub")
    public = (getattr(persipubsub, name) for name in persipubsub.__all__)
    modules = {one.__name__ if isinstance(one, types.ModuleType) else one.__module__ for one in public}
    assert modules <= set(finder.modules)
