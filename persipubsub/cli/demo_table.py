"""The results of the demo, as a table and as a list of what is wrong."""

from typing import List, Sequence

from rich.table import Table

from persipubsub.cli.demo_crew import Crew, Worker
from persipubsub.cli.demo_lines import Source, Tally


class Results:
    """What the workers of a crew have reported, compared."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._publishers = crew.publishers
        self._subscribers = crew.subscribers
        # A publisher that died may have sent more than it could tell: what somebody received was sent.
        self._sent = [
            max(worker.report.messages, *(tally.end for tally in self._tallies_of(number)))
            for number, worker in enumerate(crew.publishers)
        ]

    def _tallies_of(self, publisher: int) -> List[Tally]:
        return [subscriber.report.tallies[publisher] for subscriber in self._subscribers]

    def _missing_by(self, subscriber: Worker) -> List[int]:
        return [sent - tally.distinct for sent, tally in zip(self._sent, subscriber.report.tallies)]

    def table(self) -> Table:
        """Draw a row for each worker. Each count of what is wrong stands with the sender and with the receiver."""
        table = Table()
        table.add_column("process", no_wrap=True)
        for heading in ("sent", "received", "missing", "duplicate", "out of order", "altered", "messages/s"):
            table.add_column(heading, justify="right")
        missing = [self._missing_by(subscriber) for subscriber in self._subscribers]
        for number, worker in enumerate(self._publishers):
            table.add_row(worker.name, f"{self._sent[number]:,}", "", f"{sum(row[number] for row in missing):,}",
                          *_wrong(self._tallies_of(number)), _rate(worker))
        table.add_section()
        for row, worker in zip(missing, self._subscribers):
            table.add_row(worker.name, "", f"{worker.report.messages:,}", f"{sum(row):,}",
                          *_wrong(worker.report.tallies), _rate(worker))
        return table

    def problems(self, source: Source) -> List[str]:
        """List what is wrong."""
        tallies = [tally for subscriber in self._subscribers for tally in subscriber.report.tallies]
        counts = {
            "messages are missing": sum(sum(self._missing_by(subscriber)) for subscriber in self._subscribers),
            "messages came more than once": sum(tally.duplicates for tally in tallies),
            "messages came out of order": sum(tally.out_of_order for tally in tallies),
            "messages were altered": sum(tally.altered for tally in tallies),
        }
        problems = [f"{count:,} {what}" for what, count in counts.items() if count]
        if sum(self._sent) != source.messages:
            why = "" if self._crew.failures else f": {source.path} was changed meanwhile"
            problems.insert(0, f"{sum(self._sent):,} of {source.messages:,} lines were sent{why}")
        return problems


def _wrong(tallies: Sequence[Tally]) -> List[str]:
    return [
        f"{sum(tally.duplicates for tally in tallies):,}",
        f"{sum(tally.out_of_order for tally in tallies):,}",
        f"{sum(tally.altered for tally in tallies):,}",
    ]


def _rate(worker: Worker) -> str:
    report = worker.report
    return f"{report.messages / report.seconds:,.0f}" if report.seconds else "-"
