"""A progress bar for what may take long, drawn only where somebody watches."""

import contextlib
import sys
from typing import Callable, Iterator, Optional

from persipubsub.cli import output


@contextlib.contextmanager
def progress_bar(description: str, in_bytes: bool = False) -> Iterator[Callable[[Optional[int], Optional[int]], None]]:
    """Show a bar on the terminal within the block; it is called with what is done and with the total, if known.

    :param description: what stands before it
    :param in_bytes: whether to show what is done as a size
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import DownloadColumn, Progress
    columns = (*Progress.get_default_columns(), *([DownloadColumn()] if in_bytes else []))
    with Progress(*columns, console=output.console(err=True), transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
