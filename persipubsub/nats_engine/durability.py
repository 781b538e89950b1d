"""Warn if the servers do not write messages to the disk before they confirm them.

A client can neither choose that nor ask for it. Only the monitoring port of a server tells, which the location of the
queue has to name: ``nats://host:4222/orders?monitoring=8222``.
"""

import contextlib
import http.client
import json
import logging
import os
from typing import Any, Dict, Set, Tuple

from persipubsub.nats_engine.url import Target

_LOGGER = logging.getLogger("persipubsub.nats")
#: How long a server may take to answer.
ANSWER_S = 1.0

_CHECKED: Set[Tuple[int, str, int]] = set()


def check(target: Target) -> None:
    """Warn once per process of each server that confirms messages before they are on the disk."""
    if target.monitoring is None:
        return
    for host in target.hosts:
        name = host.rpartition(":")[0]
        key = (os.getpid(), name, target.monitoring)
        if key in _CHECKED:
            continue
        _CHECKED.add(key)
        settings = _settings(name, target.monitoring)
        if settings and not settings.get("sync_always"):
            _LOGGER.warning(
                "The server %s writes messages to its disk every %g seconds, after it has confirmed them. If it loses "
                "power, confirmed messages may be lost, and replicas may differ. Set sync_interval: always in the "
                "jetstream section of the configuration of each server.", name,
                settings.get("sync_interval", 0) / 1e9)


def _settings(host: str, port: int) -> Dict[str, Any]:
    """Return the settings of JetStream on a server; empty if it does not answer."""
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=ANSWER_S)) as connection:
            connection.request("GET", "/varz")
            found = json.load(connection.getresponse())
        settings: Dict[str, Any] = found["jetstream"]["config"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        _LOGGER.info(
            "The monitoring port of the server %s:%d does not answer as expected (%s), so it is unknown whether "
            "it writes messages to the disk before it confirms them.", host, port, error)
        return {}
    return settings
