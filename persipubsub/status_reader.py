"""Read queues in another process, so that a damaged queue cannot end the caller.

LMDB maps a file and trusts its contents, so a damaged page can end the process that reads it by a signal. A program
that looks at several queues lets a child read them. The child is started once, and again after a queue has ended it.
"""

import logging
import os
import pathlib
import resource
import signal
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Tuple, TypeVar, Union

from persipubsub import environment, errors
from persipubsub.status import QueueStatus

if TYPE_CHECKING:
    import subprocess
    from multiprocessing.connection import Connection

#: A look that takes longer ends the child: some process holds the queue exclusively, or is stopped.
LOOK_S_MAX = 3
#: How long a child that has closed its connection may take to end.
_END_S_MAX = 5
#: The signals by which a damaged file ends a process.
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
# Not -m, which would import from the working directory, where others may write.
_PROGRAM = ("import sys; sys.path[:] = sys.argv[2:]; from persipubsub import status_reader; "
            "status_reader.serve(int(sys.argv[1]))")

#: An absolute path, or the URL of a queue on a cluster.
Location = Union[pathlib.Path, str]

T = TypeVar("T")
# Pickled by code of this very version, which runs as the same user.
_Answer = Tuple[Union[T, errors.PersipubsubError], List[logging.LogRecord]]


def read_status(path: Location) -> QueueStatus:
    """Read the status of a queue in this process.

    :raise NotInitializedError: there is none
    """
    with environment.new_environment(path) as opened:
        return opened.new_control(create=False).status()


class StatusReader:
    """Reads queues in a child, one at a time. Any thread may ask, and so may a forked process.

    A queue on a cluster has no files, so it is read in this process, which keeps its connection.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._child: Optional[_Child] = None
        self._on_clusters: Dict[str, environment.Environment] = {}

    def read_status(self, path: Location) -> QueueStatus:
        """Read the status of the queue at an absolute path, or at a URL.

        :raise NotInitializedError: there is none
        :raise DamagedError: the queue ended the child, or is known to be damaged
        :raise StorageError: the child did not answer in time, or cannot be started
        """
        return self._read_on_cluster(path) if isinstance(path, str) else self.run(read_status, path)

    def run(self, function: Callable[[pathlib.Path], T], path: pathlib.Path, timeout_s: int = LOOK_S_MAX) -> T:
        """Return what a function returns for the absolute path of a queue, in the child.

        :param function: can be pickled, and so can what it returns
        :param timeout_s: seconds after which the child is ended
        :raise PersipubsubError: the function raised it
        :raise DamagedError: the queue ended the child, or is known to be damaged
        :raise StorageError: the child did not answer in time, or cannot be started
        """
        if getattr(sys, "frozen", False) or not sys.executable:
            return function(path)  # there is no interpreter to start
        if self._owner != os.getpid():
            # After a fork, the child and the lock belong to the parent.
            self._owner, self._lock, self._child = os.getpid(), threading.Lock(), None
        with self._lock:
            found, logged = self._ask(function, path, timeout_s)
        for record in logged:
            logging.getLogger(record.name).handle(record)
        if isinstance(found, errors.PersipubsubError):
            raise found
        return found

    def close(self) -> None:
        """End the child, and close the connections. The next look starts them again."""
        with self._lock:
            if self._child is not None:
                self._child.end()
        while self._on_clusters:
            self._on_clusters.popitem()[1].close()

    def _read_on_cluster(self, url: str) -> QueueStatus:
        opened = self._on_clusters.get(url)
        if opened is None:
            opened = self._on_clusters[url] = environment.new_environment(url)
        try:
            with opened.new_control(create=False) as control:
                return control.status()
        except errors.PersipubsubError:
            # The queue may have been deleted, and set up again: the next look begins anew.
            self._on_clusters.pop(url, opened).close()
            raise

    def _ask(self, function: Callable[[pathlib.Path], T], path: pathlib.Path, timeout_s: int) -> "_Answer[T]":
        if self._child is None or self._child.has_ended():
            try:
                self._child = _Child()
            except OSError as error:
                raise errors.StorageError(
                    f"Cannot start a process to read the queue at {path}: {error.strerror}. Allow more processes "
                    "or descriptors (ulimit -u, ulimit -n).") from error
        child = self._child
        try:
            child.connection.send((function, path, timeout_s))
            answer: "_Answer[T]" = child.connection.recv()
            return answer
        except (EOFError, OSError) as error:
            raise child.obituary(path, timeout_s) from error
        except BaseException:
            # An interrupt: this answer must not be read as the answer to the next question.
            child.end()
            raise


class _Child:
    """The process that reads queues, and the connection to it. It ends when the connection does."""

    def __init__(self) -> None:
        # Imported here: a program that reads in its own process needs neither.
        import subprocess
        from multiprocessing.connection import Pipe
        self.connection, there = Pipe()
        try:
            self._process = subprocess.Popen(  # pylint: disable=consider-using-with  # it lives as long as this object
                [sys.executable, "-c", _PROGRAM, str(there.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[there.fileno()],
                start_new_session=True)  # Ctrl-C is the caller's
        except BaseException:
            self.connection.close()
            raise
        finally:
            there.close()
        #: Ends the process, as does deleting this object. In a forked child, only the copies are closed.
        self.end = weakref.finalize(self, _end, self._process, self.connection)

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def obituary(self, path: pathlib.Path, timeout_s: int) -> errors.PersipubsubError:
        """Return the error that says how a queue ended the process."""
        import subprocess
        try:
            self._process.wait(_END_S_MAX)
        except subprocess.TimeoutExpired:
            pass
        said = self.end()
        code = self._process.returncode
        if -code in CRASHES:
            return errors.damaged(path, f"reading it ended a process by {signal.Signals(-code).name}")
        if code == -signal.SIGALRM:
            return errors.StorageError(
                f"The queue at {path} could not be read within {timeout_s} s: some process keeps it locked, or reads "
                "all of it. Look for a stopped process, or wait.")
        return errors.StorageError(f"The process that read the queue at {path} ended with status {code}: {said}. "
                                   "Try again.")


def _end(process: "subprocess.Popen[bytes]", connection: "Connection") -> str:
    """End the process of a child; return the last line that it wrote to standard error."""
    connection.close()
    process.kill()
    _, written = process.communicate()
    lines = [line for line in written.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


class _Collecting(logging.Handler):
    """Keep records so that they can be sent to another process."""

    def __init__(self, records: List[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record with its formatted text, since its arguments may not be picklable."""
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)


def serve(descriptor: int) -> None:
    """Read the queues that the other end of a connection names, until it closes. The child runs this."""
    from multiprocessing.connection import Connection

    # A damaged queue ends this process at every look, and core dumps would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The kernel ends a look that takes too long, even while it waits in LMDB.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    logged: List[logging.LogRecord] = []
    logging.getLogger("persipubsub").addHandler(_Collecting(logged))
    with Connection(descriptor) as connection:
        while True:
            try:
                function, path, timeout_s = connection.recv()
            except (EOFError, OSError):
                return
            logged.clear()
            found: object
            signal.alarm(timeout_s)
            try:
                found = function(path)
            except errors.PersipubsubError as error:
                found = error
            signal.alarm(0)
            connection.send((found, logged))
