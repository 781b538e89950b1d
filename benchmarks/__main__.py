"""Measure, and show what was measured: ``python -m benchmarks run`` and ``python -m benchmarks plot FILE``."""

import argparse
import pathlib
import signal
import sys
from typing import Optional, Sequence

from benchmarks import runner, scale, targets

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="measure, and print the figures")
    run.add_argument("--quick", action="store_true", help="measure everything within a minute; the figures are rough")
    run.add_argument("--peers", action="store_true", help="also measure other libraries and servers")
    run.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the figures to this file")
    run.add_argument("--only",
                     action="append",
                     default=[],
                     choices=[*runner.names(), "peers"],
                     metavar="NAME",
                     help=f"run only this workload; may be repeated; one of: {', '.join(runner.names())}, peers")
    run.add_argument("--directory",
                     type=pathlib.Path,
                     help="create the queues in a temporary directory in this one, which determines the measured disk")
    plot = verbs.add_parser("plot", help="write the tables and pictures of the documentation")
    plot.add_argument("file", type=pathlib.Path, metavar="FILE", help="what run --json has written")
    plot.add_argument("--docs", type=pathlib.Path, default=ROOT / "docs", help="write into this directory")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    args = _parser().parse_args(arguments)
    if args.verb == "plot":
        # Imported here: only this needs matplotlib.
        from benchmarks import report
        report.write(args.file, args.docs)
        return 0
    # Even if a signal ends it, it removes its queues and stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    peers = args.peers or "peers" in args.only
    only = [name for name in args.only if name != "peers"]
    workloads = only if args.only else runner.names()
    document = runner.run(scale.QUICK if args.quick else scale.FULL, workloads, peers, args.directory)
    if args.json:
        document.write(args.json)
    print(f"\n{targets.table(document)}\nThis took {document.took_s:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
