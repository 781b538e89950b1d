"""Start threads, or say why the machine refuses."""

import threading

from persipubsub import errors


def start(thread: threading.Thread) -> None:
    """Start a thread.

    :raise StorageError: the machine has no thread left
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise errors.StorageError(
            f"A worker needs threads to handle messages, and none can be started ({error}). Raise the limit of "
            "processes and threads (ulimit -u, TasksMax of systemd, pids of a container), or use fewer threads."
        ) from error
