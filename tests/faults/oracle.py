"""The oracle: what became of each message, by the notes of its senders and receivers.

Every message is of exactly one class, for each subscriber on its own:

========== ==========================================================================================================
ok         its send returned, and it was handed out, and never again after it had been acknowledged
lost       its send returned, and it was not handed out although nothing allowed it to be dropped
pruned     its send returned, and it was among the oldest, of which that many were allowed to be dropped
duplicated it was handed out again although its acknowledgement had returned, or twice in one draining
unknown    its send neither returned nor refused it (a kill, an interrupt, CommitUnknownError): either is right
========== ==========================================================================================================

What was handed out though nobody sent it, though its send was refused, or with other bytes than were sent, is
*invented*. What was handed out before an earlier message of its sender is *misplaced*.
"""

import collections
import dataclasses
from typing import Dict, FrozenSet, List, Sequence, Set

from tests.faults.journal import Event, sender_and_number

#: The words of journals. Those marked with * are to be noted durably.
SENDING = "sending"  # names of messages: before the call
SENT = "sent"  # * the first id, names of messages: after the call
REFUSED = "refused"  # * names of messages: the call raised what promises that nothing of it is there
HANDED = "handed"  # subscriber, names of messages: in its hands, not acknowledged
TAKEN = "taken"  # * subscriber, names of messages: their acknowledgement returned
LEFT = "left"  # subscriber, names of messages: found by draining in the end
JOINED = "joined"  # * subscriber: added, awaits what is sent from now on
MAY_GO = "may-go"  # subscriber, number: that many of its oldest messages may be dropped


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of the messages for one subscriber."""

    ok: FrozenSet[str]
    lost: FrozenSet[str]
    pruned: FrozenSet[str]
    duplicated: FrozenSet[str]
    unknown: FrozenSet[str]
    #: Names of messages, none of which may be.
    invented: FrozenSet[str]
    misplaced: FrozenSet[str]

    def faults(self) -> List[str]:
        """Return what is wrong, a line for each kind."""
        return [
            f"{len(names)} {kind}: {', '.join(sorted(names)[:5])}"
            for kind, names in (("lost", self.lost), ("duplicated", self.duplicated), ("invented", self.invented),
                                ("misplaced", self.misplaced)) if names
        ]


class Oracle:
    """Knows what was sent, and judges what subscribers got."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._sending_ns: Dict[str, int] = {}
        self._refused: Set[str] = set()
        #: The id of each message whose send returned.
        self.ids: Dict[str, int] = {}
        self._by_subscriber: Dict[str, List[Event]] = collections.defaultdict(list)
        for event in events:
            if event.what == SENDING:
                self._sending_ns.update(dict.fromkeys(event.words, event.at_ns))
            elif event.what == SENT:
                self.ids.update((name, int(event.words[0]) + place) for place, name in enumerate(event.words[1:]))
            elif event.what == REFUSED:
                self._refused.update(event.words)
            elif event.what in (HANDED, TAKEN, LEFT, JOINED, MAY_GO):
                self._by_subscriber[event.words[0]].append(event)

    def verdict(self, subscriber: str) -> Verdict:
        """Judge every message that a subscriber awaited."""
        joined_ns, may_go = 0, 0
        order: Dict[str, None] = {}  # in which messages were first handed out
        taken: Set[str] = set()
        left: Set[str] = set()
        duplicated: Set[str] = set()
        for event in self._by_subscriber[subscriber]:
            names = event.words[1:]
            if event.what == JOINED:
                joined_ns = event.at_ns
            elif event.what == MAY_GO:
                may_go += int(names[0])
            elif event.what == TAKEN:
                taken.update(names)
            else:
                for name in names:
                    if name in taken or name in left:
                        duplicated.add(name)
                    if event.what == LEFT:
                        left.add(name)
                    order.setdefault(name)
        awaited = {name for name, at_ns in self._sending_ns.items() if at_ns > joined_ns}
        known = awaited & self.ids.keys() - duplicated
        pruned = self._pruned(known - order.keys(), left, may_go)
        return Verdict(ok=frozenset(known & order.keys()),
                       lost=frozenset(known - order.keys() - pruned),
                       pruned=frozenset(pruned),
                       duplicated=frozenset(duplicated),
                       unknown=frozenset(awaited - self.ids.keys() - self._refused - duplicated),
                       invented=frozenset(name for name in order
                                          if name not in self._sending_ns or name in self._refused),
                       misplaced=frozenset(_misplaced([name for name in order if name in self._sending_ns])))

    def _pruned(self, missing: Set[str], left: Set[str], may_go: int) -> Set[str]:
        """Return those of the missing messages that were allowed to be dropped: only the oldest are."""
        oldest_left = min((self.ids[name] for name in left if name in self.ids), default=None)
        gone = [name for name in missing if oldest_left is None or self.ids[name] < oldest_left]
        return set(sorted(gone, key=lambda name: self.ids[name])[:may_go])


def _misplaced(order: Sequence[str]) -> Set[str]:
    """Return the messages that came after a later one of the same sender."""
    latest: Dict[str, int] = {}
    found = set()
    for name in order:
        sender, number = sender_and_number(name)
        if number < latest.get(sender, -1):
            found.add(name)
        latest[sender] = max(number, latest.get(sender, -1))
    return found
