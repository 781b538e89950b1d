"""Show warnings of the package on standard error, one line each."""

import contextlib
import logging
from typing import Iterator

from persipubsub.cli import output


class _Echo(logging.Handler):
    """Writes each record to the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        output.line(f"{record.levelname.capitalize()}: {' '.join(record.getMessage().split())}", err=True)


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Show warnings within the block."""
    logger, handler = logging.getLogger("persipubsub"), _Echo(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def leave_to_python() -> None:
    """Leave records to the logging of the program, or else to Python, which also shows tracebacks on standard error."""
    logger = logging.getLogger("persipubsub")
    for handler in [one for one in logger.handlers if isinstance(one, _Echo)]:
        logger.removeHandler(handler)
