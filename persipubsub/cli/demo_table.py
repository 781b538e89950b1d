"""The results of the demo, as a table and as a list of what is wrong."""

from typing import Iterable, List, Tuple

from rich.table import Table

from persipubsub.cli.demo_crew import Crew, Worker
from persipubsub.cli.demo_lines import Source, Tally

FAULTS = ("messages are missing", "messages came more than once", "messages came out of order", "messages were altered")


def results(crew: Crew, source: Source) -> Tuple[Table, List[str]]:
    """Compare what the workers reported: as a table, and as a list of what is wrong."""
    # A publisher that died may have sent more than it could report: what somebody received was sent.
    sent = [
        max(publisher.report.messages, *(subscriber.report.tallies[number].end for subscriber in crew.subscribers))
        for number, publisher in enumerate(crew.publishers)
    ]
    pairs = [list(zip(sent, subscriber.report.tallies)) for subscriber in crew.subscribers]
    wrong = _wrong(pair for row in pairs for pair in row)
    problems = [f"{count:,} {fault}" for count, fault in zip(wrong, FAULTS) if count]
    if sum(sent) != source.messages:
        why = "" if crew.failures else f": {source.path} was changed meanwhile"
        problems.insert(0, f"{sum(sent):,} of {source.messages:,} lines were sent{why}")
    return _table(crew, sent, pairs), problems


def _table(crew: Crew, sent: List[int], pairs: List[List[Tuple[int, Tally]]]) -> Table:
    """Draw a row for each worker. Each count of what is wrong stands with the sender and with the receiver."""
    table = Table()
    table.add_column("process", no_wrap=True)
    for heading in ("sent", "received", "missing", "duplicate", "out of order", "altered", "messages/s"):
        table.add_column(heading, justify="right")
    for publisher, count, column in zip(crew.publishers, sent, zip(*pairs)):
        table.add_row(publisher.name, f"{count:,}", "", *(f"{fault:,}" for fault in _wrong(column)), _rate(publisher))
    table.add_section()
    for subscriber, row in zip(crew.subscribers, pairs):
        counts = subscriber.report.messages, *_wrong(row)
        table.add_row(subscriber.name, "", *(f"{count:,}" for count in counts), _rate(subscriber))
    return table


def _wrong(pairs: Iterable[Tuple[int, Tally]]) -> List[int]:
    """Count what is missing, duplicate, out of order and altered, from what was sent and what was received of it."""
    counts = [(sent - tally.distinct, tally.duplicates, tally.out_of_order, tally.altered) for sent, tally in pairs]
    return [sum(column) for column in zip(*counts)]


def _rate(worker: Worker) -> str:
    report = worker.report
    return f"{report.messages / report.seconds:,.0f}" if report.seconds else "-"
