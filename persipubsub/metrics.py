"""Metrics of queues for Prometheus: a collector for ``prometheus_client``, which needs the extra ``[prometheus]``."""

import logging
import math
import os
from typing import TYPE_CHECKING, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type, Union

try:
    from prometheus_client import core
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(f"{_error}. Run pip install 'persipubsub[prometheus]'", name=_error.name) from None

from persipubsub import errors, status_reader
from persipubsub.environment import new_environment
from persipubsub.status import QueueStatus
from persipubsub.status_reader import Location, StatusReader

if TYPE_CHECKING:
    from persipubsub.relay import Relay

__all__ = ["QueueCollector", "RelayCollector"]

_LOGGER = logging.getLogger(__name__)

_Family = Union[core.GaugeMetricFamily, core.CounterMetricFamily]


class Metric(NamedTuple):
    """A metric as it is registered and documented; a counter's name ends in ``_total``."""

    name: str
    kind: Type[_Family]
    labels: Sequence[str]
    help: str


_GAUGE, _COUNTER = core.GaugeMetricFamily, core.CounterMetricFamily
_QUEUE, _SUBSCRIBER = ("path", ), ("path", "subscriber")

#: All metrics. To add one, also write its samples in :func:`_samples`, and its row in ``docs/metrics.rst``.
METRICS = (
    Metric("persipubsub_up", _GAUGE, _QUEUE, "Whether the queue could be read: 1 or 0."),
    Metric("persipubsub_messages", _GAUGE, _QUEUE,
           "Messages that some subscriber has not acknowledged, and retained messages."),
    Metric("persipubsub_retained_messages", _GAUGE, _QUEUE,
           "Messages that all subscribers have acknowledged and that are kept for the retention."),
    Metric("persipubsub_delayed_messages", _GAUGE, _QUEUE,
           "Delayed messages, also those that are due and not appended yet."),
    Metric("persipubsub_size_bytes", _GAUGE, _QUEUE, "Bytes of the pages that the messages occupy."),
    Metric("persipubsub_reader_lag_commits", _GAUGE, _QUEUE,
           "Commits since the oldest current read began; if it only rises, the file grows."),
    Metric("persipubsub_oldest_message_age_seconds", _GAUGE, _QUEUE,
           "Time since the oldest message was sent; 0 if there is none."),
    Metric("persipubsub_high_watermark_messages", _GAUGE, _QUEUE,
           "Messages at which the queue is full; +Inf: no limit."),
    Metric("persipubsub_high_watermark_bytes", _GAUGE, _QUEUE, "Bytes at which the queue is full; +Inf: no limit."),
    Metric("persipubsub_message_timeout_seconds", _GAUGE, _QUEUE, "Age at which a message expires; +Inf: never."),
    Metric("persipubsub_sent_messages_total", _COUNTER, _QUEUE, "Messages sent since the queue was created."),
    Metric("persipubsub_pruned_messages_total", _COUNTER, ("path", "reason"),
           "Messages deleted before all subscribers had acknowledged them, by reason: timeout, overflow, dangling."),
    Metric("persipubsub_subscriber_pending_messages", _GAUGE, _SUBSCRIBER,
           "Messages that the subscriber has not acknowledged."),
    Metric("persipubsub_subscriber_oldest_pending_age_seconds", _GAUGE, _SUBSCRIBER,
           "Time since the oldest unacknowledged message of the subscriber was sent; 0 if there is none."),
    Metric("persipubsub_subscriber_taken_messages_total", _COUNTER, _SUBSCRIBER,
           "Messages that the subscriber has acknowledged since it was added."),
    Metric("persipubsub_subscriber_in_flight_messages", _GAUGE, _SUBSCRIBER,
           "Pending messages that workers hold or have given back, or that were requeued."),
    Metric("persipubsub_subscriber_dead_letters", _GAUGE, _SUBSCRIBER, "Dead letters of the subscriber."),
)

_RELAY = ("source", "target", "subscriber")
#: The metrics of a relay. To add one, also write its sample in :class:`RelayCollector`, and its row there.
RELAY_METRICS = (
    Metric("persipubsub_relay_up", _GAUGE, _RELAY,
           "Whether the last attempt to bring messages succeeded: 1, or 0 while the relay waits out an error."),
    Metric("persipubsub_relay_messages_total", _COUNTER, _RELAY, "Messages that this process has brought."),
    Metric("persipubsub_relay_backlog_messages", _GAUGE, _RELAY, "Messages that wait in the source."),
    Metric("persipubsub_relay_lag_seconds", _GAUGE, _RELAY,
           "Time since the oldest of them was sent; 0 if there is none."),
)


class _Sample(NamedTuple):
    """A value of a metric, and its labels except the path."""

    name: str
    value: float
    labels: Sequence[str] = ()


class QueueCollector(Collector):
    """Reports the status of queues to Prometheus at each scrape.

    A queue is open only while it is read, so it can be compacted, recovered or replaced between scrapes. A queue that
    cannot be read reports ``persipubsub_up`` 0 and nothing else; the other queues are still reported.

    Register it::

        prometheus_client.REGISTRY.register(QueueCollector(["queues/orders"]))
    """

    def __init__(self, paths: Iterable[Union[str, "os.PathLike[str]"]], isolated: bool = False) -> None:
        """Prepare to collect from the queues at paths; no disk is touched.

        :param paths: the directories or URLs of the queues, which need not exist yet
        :param isolated: read the queues in a separate process: a damaged file may end the process that reads it
        :raise ArgumentTypeError: it is not an iterable of str or PathLike
        :raise ArgumentError: a path is empty or contains a NUL
        """
        if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
            raise errors.ArgumentTypeError(
                f"paths must be an iterable of paths, got {type(paths).__name__}: for one path, pass a list of one.")
        # Without duplicates: Prometheus refuses a whole scrape that has a series twice.
        self._paths: Tuple[Location, ...] = tuple(dict.fromkeys(new_environment(path).location for path in paths))
        self._unreadable: Dict[Location, str] = {}
        self._read_status = StatusReader().read_status if isolated else status_reader.read_status

    def describe(self) -> List[core.Metric]:
        """Return all metrics without values: registering a collector reads no queue."""
        return list(_families(METRICS).values())

    def collect(self) -> Iterator[core.Metric]:
        """Read all queues and yield their metrics."""
        families = _families(METRICS)
        for path in self._paths:
            for sample in self._read(path):
                families[sample.name].add_metric([_label(path), *sample.labels], sample.value)
        yield from families.values()

    def _read(self, path: Location) -> List[_Sample]:
        try:
            found = self._read_status(path)
        except errors.PersipubsubError as error:
            if self._unreadable.get(path) != str(error):  # not at every scrape
                _LOGGER.warning("The queue at %s cannot be read: %s", path, error)
            self._unreadable[path] = str(error)
            return [_Sample("persipubsub_up", 0)]
        self._unreadable.pop(path, None)
        return list(_samples(found))


class RelayCollector(Collector):
    """Reports how far relays of this process have come to Prometheus at each scrape.

    If the source of a relay cannot be read, its backlog and its lag are missing. Register it::

        prometheus_client.REGISTRY.register(RelayCollector([relay]))
    """

    def __init__(self, relays: "Iterable[Relay]") -> None:
        """Prepare to collect from relays; no queue is touched."""
        self._relays = tuple(relays)

    def describe(self) -> List[core.Metric]:
        """Return all metrics without values."""
        return list(_families(RELAY_METRICS).values())

    def collect(self) -> Iterator[core.Metric]:
        """Ask all relays and yield their metrics."""
        families = _families(RELAY_METRICS)
        for relay in self._relays:
            labels = [_label(relay.source), _label(relay.target), relay.subscriber]
            for sample in self._read(relay):
                families[sample.name].add_metric(labels, sample.value)
        yield from families.values()

    def _read(self, relay: "Relay") -> Iterator[_Sample]:
        try:
            found = relay.status()
        except errors.PersipubsubError as error:
            _LOGGER.warning("The source of %r cannot be read: %s", relay, error)
            yield _Sample("persipubsub_relay_up", 0)
            return
        yield _Sample("persipubsub_relay_up", found.error is None)
        yield _Sample("persipubsub_relay_messages_total", found.relayed)
        yield _Sample("persipubsub_relay_backlog_messages", found.backlog)
        yield _Sample("persipubsub_relay_lag_seconds", found.lag_s)


def _families(metrics: Iterable[Metric]) -> Dict[str, _Family]:
    return {metric.name: metric.kind(metric.name, metric.help, labels=metric.labels) for metric in metrics}


def _label(path: Location) -> str:
    """Return the path as text that can be encoded, even if the name of a file cannot."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _limit(value: Optional[float]) -> float:
    return math.inf if value is None else value


def _samples(found: QueueStatus) -> Iterator[_Sample]:
    mark, pruned = found.high_watermark, found.pruned
    yield _Sample("persipubsub_up", 1)
    yield _Sample("persipubsub_messages", found.messages)
    yield _Sample("persipubsub_retained_messages", found.retained)
    yield _Sample("persipubsub_delayed_messages", found.delayed)
    yield _Sample("persipubsub_size_bytes", found.size_bytes)
    yield _Sample("persipubsub_reader_lag_commits", found.reader_lag)
    yield _Sample("persipubsub_oldest_message_age_seconds", found.oldest_age_s or 0)
    yield _Sample("persipubsub_high_watermark_messages", _limit(mark.max_messages))
    yield _Sample("persipubsub_high_watermark_bytes", _limit(mark.hwm_db_size))
    yield _Sample("persipubsub_message_timeout_seconds", _limit(mark.message_timeout))
    yield _Sample("persipubsub_sent_messages_total", found.sent)
    # Also report zeros, so that the first loss is an increase.
    yield _Sample("persipubsub_pruned_messages_total", pruned.timeout, ["timeout"])
    yield _Sample("persipubsub_pruned_messages_total", pruned.overflow, ["overflow"])
    yield _Sample("persipubsub_pruned_messages_total", pruned.dangling, ["dangling"])
    for identifier, one in sorted(found.subscribers.items()):
        yield _Sample("persipubsub_subscriber_pending_messages", one.pending, [identifier])
        yield _Sample("persipubsub_subscriber_oldest_pending_age_seconds", one.oldest_pending_age_s or 0, [identifier])
        yield _Sample("persipubsub_subscriber_taken_messages_total", one.taken, [identifier])
        yield _Sample("persipubsub_subscriber_in_flight_messages", one.in_flight, [identifier])
        yield _Sample("persipubsub_subscriber_dead_letters", one.dead_letters, [identifier])
