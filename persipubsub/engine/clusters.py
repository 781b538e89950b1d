"""Which locations are those of queues on a cluster, and what such a queue does not have."""

import os
import pathlib

from persipubsub import errors
from persipubsub.engine import checks

#: Of the URLs of queues on a cluster.
CLUSTER_SCHEMES = ("nats", "tls")


def local_directory(location: object, verb: str, remedy: str) -> pathlib.Path:
    """Return the absolute path of a queue's directory, whose files are to be worked on themselves.

    :param verb: what is done to them
    :param remedy: what to do instead on a cluster
    :raise ArgumentTypeError: it is not a str or PathLike of str
    :raise ArgumentError: it is empty, or contains a NUL
    :raise UnsupportedError: it is the URL of a queue on a cluster
    """
    path = checks.directory(location)
    scheme, separator, _ = path.partition("://")
    if separator and scheme in CLUSTER_SCHEMES:
        raise without_files(f"{verb} it", remedy)
    return pathlib.Path(os.path.abspath(path))


def without_files(what: str, remedy: str) -> errors.UnsupportedError:
    """Return the error of what a queue on a cluster cannot do, with how it is done there."""
    return errors.UnsupportedError(f"A queue on a cluster has no files here, so persipubsub cannot {what}. {remedy}.")
