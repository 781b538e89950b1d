"""The conformance suite: what the documentation promises of a queue, whichever engine keeps it.

It uses the public API alone. ``engines.py`` has the table of engines; a test that needs more than any engine can do
has the mark ``capability``, and is collected for those engines only that have it.
"""
