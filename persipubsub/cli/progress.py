"""A progress bar for long work, drawn only on a terminal."""

import contextlib
import sys
from typing import Callable, Iterator, Optional

from persipubsub.cli import output


@contextlib.contextmanager
def progress_bar(description: str, in_bytes: bool = False) -> Iterator[Callable[[Optional[int], Optional[int]], None]]:
    """Show a bar on the terminal within the block. Call it with the amount done and the total, if known.

    :param description: the label of the bar
    :param in_bytes: whether to show the amount as a size
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import DownloadColumn, Progress
    columns = (*Progress.get_default_columns(), *([DownloadColumn()] if in_bytes else []))
    with Progress(*columns, console=output.console(err=True), transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
