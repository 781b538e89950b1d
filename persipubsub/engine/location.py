"""From the location of a queue to the engine that stores it: a directory, or the URL of another engine."""

import os
import pathlib
from typing import Any, Callable, Dict, Optional

from persipubsub import errors, lazy_imports
from persipubsub.engine.clusters import CLUSTER_SCHEMES
from persipubsub.engine.protocols import Access

#: By URL scheme: a function that returns the access to the queue at a URL.
ACCESSES: Dict[str, Callable[[str], Access]] = {}


def access(location: str, allow_remote: bool, credentials: Optional[Any] = None, tls: Optional[Any] = None) -> Access:
    """Return the access to the queue at a location; nothing is touched.

    :param location: a directory, for the LMDB engine, or the URL of another engine
    :param allow_remote: whether a directory may lie on a file system that other machines can use
    :param credentials: the path of a .creds file, for a cluster
    :param tls: certificates, for a cluster
    :raise ArgumentError: the URL is not that of a queue
    :raise UnsupportedError: the library for clusters is not installed
    """
    scheme, separator, _ = location.partition("://")
    if separator and scheme in ACCESSES:
        return ACCESSES[scheme](location)
    if separator and scheme in CLUSTER_SCHEMES:
        return _on_cluster(location, credentials, tls)
    if credentials is not None or tls is not None:
        raise errors.ArgumentError(
            f"credentials and tls are for the URL of a queue on a cluster, not for {location!r}.")
    with lazy_imports.NoFork():
        from persipubsub.lmdb_engine.open_queues import LmdbAccess  # here, so that only the engines in use load

    # Absolute, so that a later change of the working directory does not make it another queue.
    return LmdbAccess(pathlib.Path(os.path.abspath(location)), allow_remote)


def is_url(location: str) -> bool:
    """Return whether a location is the URL of a queue, and not a directory."""
    scheme, separator, _ = location.partition("://")
    return bool(separator) and (scheme in ACCESSES or scheme in CLUSTER_SCHEMES)


def _on_cluster(location: str, credentials: Optional[Any], tls: Optional[Any]) -> Access:
    try:
        with lazy_imports.NoFork():
            from persipubsub.nats_engine.access import NatsAccess
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "nats":
            raise
        raise errors.UnsupportedError("The library for queues on a cluster is not installed. Install it with: "
                                      "pip install 'persipubsub[nats]'") from error
    return NatsAccess(location, credentials, tls)
