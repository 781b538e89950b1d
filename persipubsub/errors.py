"""Every exception that persipubsub raises.

.. code-block:: text

    PersipubsubError
     |
     |  the caller's mistake: nothing was written, correct the call
     +-- ArgumentTypeError (TypeError)       an argument of the wrong type, or both spellings of one argument
     +-- ArgumentError (ValueError)          an argument outside its limits
     |    +-- MessageTooLargeError           a message over the limit or over the high-water mark
     |    +-- BatchTooLargeError             a batch over its limit of messages or bytes
     |    +-- MessageTypeError               another message type than the one the queue is bound to
     +-- ConfigError (ValueError)            a config file that cannot be deployed
     +-- ClosedError                         an object used after close()
     +-- ReentryError                        a signal handler or finalizer interrupted its thread's own use
     +-- ForkError                           a process that was forked during a transaction uses the queue
     +-- EmptyError (LookupError)            pop() where nothing is pending
     +-- SubscriberKindError (TypeError)     a method that this kind of subscriber does not support
     +-- UnsupportedError                    what the engine, or this thread or process, cannot do
     |
     |  the state of the queue: set it up, or find out what changed it
     +-- NotInitializedError                 no queue at this path
     +-- ReplacedError                       its files were deleted or replaced while it was open
     +-- UnknownSubscriberError (LookupError)  no such subscriber, or it was removed
     +-- DecodeError (ValueError)            a message that is not of the subscriber's message type
     +-- QueueFullError                      the queue has reached its high-water mark and refuses messages
     +-- TooManyDelayedError                 delayed messages have reached the high-water mark
     +-- LeaseLostError                      messages of a shared subscriber that another worker now holds
     +-- InUseError                          the queue is open, and the operation needs it closed
     |
     |  the location: the path, its permissions, its files
     +-- PathError (OSError)                 the path cannot be a queue: a file, no permission, no directory
     +-- FormatError                         the files are of another program or of a newer version
     +-- DamagedError                        the files are a queue's, but broken
     |
     |  the machine
     +-- StorageError                        LMDB or the operating system refused; the queue is unchanged
          +-- ReadersFullError               too many readers of the queue at one time
          +-- DiskFullError                  no space on the disk
          +-- CommitUnknownError             an error in the commit itself: the outcome is unknown
          +-- UnavailableError               the servers of a cluster did not answer

Catch :class:`PersipubsubError` for all of them. Each message names the cause, the limit and the remedy.
"""

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BatchTooLargeError",
    "ClosedError",
    "CommitUnknownError",
    "ConfigError",
    "DamagedError",
    "DecodeError",
    "DiskFullError",
    "EmptyError",
    "ForkError",
    "FormatError",
    "InUseError",
    "LeaseLostError",
    "MessageTooLargeError",
    "MessageTypeError",
    "NotInitializedError",
    "PathError",
    "PersipubsubError",
    "QueueFullError",
    "ReadersFullError",
    "ReentryError",
    "ReplacedError",
    "StorageError",
    "SubscriberKindError",
    "TooManyDelayedError",
    "UnavailableError",
    "UnknownSubscriberError",
    "UnsupportedError",
]


class PersipubsubError(Exception):
    """Base of all exceptions of this library."""


class ArgumentTypeError(PersipubsubError, TypeError):
    """Raised when an argument has the wrong type. The message names the right one."""


class ArgumentError(PersipubsubError, ValueError):
    """Raised when an argument is outside its limits. The message names the limit."""


class MessageTooLargeError(ArgumentError):
    """Raised by a send when a message is over the limit or over the queue's high-water mark. Nothing was sent."""


class BatchTooLargeError(ArgumentError):
    """Raised by ``send_many`` when the batch is over its limit of messages or bytes. Nothing was sent: send parts."""


class MessageTypeError(ArgumentError):
    """Raised when the queue is bound to a message type other than the given one. The message names both."""


class ConfigError(PersipubsubError, ValueError):
    """Raised when a config cannot be deployed. No queue was touched: the message names the file and the position."""


class ClosedError(PersipubsubError):
    """Raised when an object is used after its ``close()``. Open a new one."""


class ReentryError(PersipubsubError):
    """Raised when a signal handler or a finalizer uses the queue while it interrupts its own thread's use.

    It would have to wait for that use, or for a thread that may itself wait for that use. Nothing was written.
    """


class ForkError(PersipubsubError):
    """Raised in a child that was forked during a transaction. Fork when the queue is idle, or use spawn."""


class EmptyError(PersipubsubError, LookupError):
    """Raised by ``Subscriber.pop`` when nothing is pending. Look with ``front()`` first, or receive with a timeout."""


class SubscriberKindError(PersipubsubError, TypeError):
    """Raised when a method does not suit the kind of the subscriber, shared or not. The message names one that does."""


class UnsupportedError(PersipubsubError):
    """Raised when the engine of the queue, or this thread or process, cannot do this. The message says what can."""


class NotInitializedError(PersipubsubError):
    """Raised when there is no queue at the path. Set it up with ``Environment.new_control`` once, at deployment."""


class QueueFullError(PersipubsubError):
    """Raised by a send when the queue has reached its high-water mark and its strategy is ``refuse``.

    Nothing was sent. Give ``send`` a timeout to wait for room, have the subscribers receive, or raise the limit.
    """


class TooManyDelayedError(PersipubsubError):
    """Raised when the number of delayed messages has reached the high-water mark. Cancel some, wait, or raise it."""


class LeaseLostError(PersipubsubError):
    """Raised when a worker acknowledges or extends messages that it no longer holds, since their lease had ended.

    Another worker may have received them, so they may be processed twice. Set a longer lease, or call
    ``extend_lease``. It is also raised in a forked child for messages that its parent received: receive after the fork.
    """


class InUseError(PersipubsubError):
    """Raised when another process has the queue open, and the operation needs it closed. Close it there."""


class ReplacedError(PersipubsubError):
    """Raised when the files of a queue were deleted or replaced while it was open. Close it, and open it again.

    A relay also raises this if one of its queues was made anew, or restored from a backup, since it ran last.
    """


class UnknownSubscriberError(PersipubsubError, LookupError):
    """Raised when the queue has no such subscriber, or when it was removed while the object was open."""


class DecodeError(PersipubsubError, ValueError):
    """Raised when a message is not of the type that its subscriber was made with.

    The message is not acknowledged, and is delivered again. ``Subscriber.pop`` acknowledges it unread.
    """

    #: Id of the message.
    message_id: int = 0
    #: Its bytes.
    payload: bytes = b""


class PathError(PersipubsubError, OSError):
    """Raised when the path cannot hold a queue: it is a file, or its permissions forbid it."""


class FormatError(PersipubsubError):
    """Raised when the files at the path are not a queue of this version. They were not touched."""


class DamagedError(PersipubsubError):
    """Raised when the files are a queue's, but broken. They are not served."""


class StorageError(PersipubsubError):
    """Raised when LMDB or the operating system refuses an operation. The queue is unchanged."""


class ReadersFullError(StorageError):
    """Raised when more readers use the queue at the same time than its table holds. Try again, or use fewer."""


class DiskFullError(StorageError):
    """Raised when the disk is full. The queue is unchanged, and works again once there is space."""


class CommitUnknownError(StorageError):
    """Raised after an error of the disk or of a network in the commit: whether the change is stored is unknown."""


class UnavailableError(StorageError):
    """Raised when the servers of a cluster did not answer in time, and waiting was given up. Nothing was changed."""


def damaged(path: object, what: str) -> DamagedError:
    """Return the error that says that a queue is damaged, and what to do."""
    return DamagedError(f"The queue at {path} is damaged and is not served: {what}. Save what can be read with: "
                        f"persipubsub recover {path}")
