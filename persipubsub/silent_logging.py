"""Keeps the loggers of the package silent in a program that did not configure logging.

Without a handler anywhere, Python writes warnings to standard error, where a program's own output may go. Every module
logs to a logger of its own name, below the one of the package; whoever configures logging gets all of it.
"""

import logging

logging.getLogger("persipubsub").addHandler(logging.NullHandler())
