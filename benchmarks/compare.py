"""Compare two runs: ``python benchmarks/compare.py OLD.json NEW.json``.

Each ratio says how many times better NEW is than OLD; the worst come first. The speed of the machine may differ between
two runs, so look at the ratios to the floor (``of_floor``) before those of speeds.
"""

import argparse
import json
import pathlib
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

#: Of these figures more is better; of all others, less.
MORE_IS_BETTER = ("messages_per_s", "of_floor")
#: They are neither good nor bad.
NO_FIGURES = ("samples", "stored_bytes")

#: Workload, contestant, setting and name of a figure.
Key = Tuple[str, str, str, str]


def figures(file: pathlib.Path) -> Dict[Key, float]:
    """Read all figures of a run."""
    found: Dict[Key, float] = {}
    for entry in json.loads(file.read_text(encoding="utf-8"))["results"]:
        entry.pop("kind")
        setting = ", ".join(f"{name} {value}" for name, value in entry.pop("setting").items())
        names = (entry.pop("workload"), entry.pop("contestant"), setting)
        for figure, value in _numbers(entry).items():
            found.setdefault((*names, figure), value)
    return found


def _numbers(entry: Dict[str, Any]) -> Dict[str, float]:
    return {
        name: value
        for name, value in entry.items() if isinstance(value, (int, float)) and name not in NO_FIGURES and value
    }


def ratios(old: Dict[Key, float], new: Dict[Key, float]) -> List[Tuple[float, Key]]:
    """List how many times better each common figure became, the worst first."""
    found = [(new[key] / old[key] if key[3] in MORE_IS_BETTER else old[key] / new[key], key) for key in old
             if key in new]
    return sorted(found)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=pathlib.Path, metavar="OLD.json")
    parser.add_argument("new", type=pathlib.Path, metavar="NEW.json")
    parser.add_argument("--all", action="store_true", help="show the floors and the peers as well")
    args = parser.parse_args(arguments)
    old, new = figures(args.old), figures(args.new)
    for ratio, key in ratios(old, new):
        workload, contestant, setting, figure = key
        if args.all or contestant == "persipubsub":
            who = f"{contestant}: " if args.all else ""
            print(f"{ratio:6.2f}  {who}{workload} {figure}: {old[key]:g} -> {new[key]:g}  ({setting})")
    missing = len(old.keys() ^ new.keys())
    if missing:
        print(f"{missing} figures stand in one of the files only.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
