"""Faults of every kind against real queues, with a table of what became of the messages.

``python -m tests.faults`` runs the short form of every campaign, and with ``--long`` the long one; names of campaigns
run only those. The exit status is 1 if anything was lost, duplicated or broken.
"""

import sys

from tests.faults import campaigns

if __name__ == "__main__":
    sys.exit(campaigns.main())
