"""Children of a test: forked ones, of which none returns into its parent's code, and programs."""

import os
import sys
import traceback
from typing import Callable, Dict


def unmeasured() -> Dict[str, str]:
    """Return the environment for a program whose coverage is not measured.

    It acts as another user, lacks threads or descriptors, or has errors injected: it could not write its measure.
    """
    return {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}


def start_child(function: Callable[[], int]) -> int:
    """Run a function in a forked child; return its process id.

    :param function: returns the exit status of the child, which is 1 where it raises
    """
    sys.stderr.flush()  # what is left in it would be written twice
    child = os.fork()
    if not child:
        status = 1
        try:
            status = function()
        except BaseException:  # pylint: disable=broad-exception-caught  # nothing may return into the parent's code
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)  # pylint: disable=protected-access  # what tests do at their end is their parent's
    return child


def status_of(child: int) -> int:
    """Wait for the end of a child; return its exit status, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
