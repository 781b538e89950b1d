"""The results in the JSON: a setting, and figures with their units in their names."""

import dataclasses
import json
import pathlib
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

from benchmarks.machine import Machine

OURS = "persipubsub"


@dataclasses.dataclass(frozen=True)
class Setting:  # pylint: disable=too-many-instance-attributes  # what a workload can vary
    """What a workload was run with; what does not apply to it is None."""

    durability: Optional[str] = None
    payload_bytes: Optional[int] = None
    batch_messages: Optional[int] = None
    subscribers: Optional[int] = None
    backlog_messages: Optional[int] = None
    threads: Optional[int] = None
    tasks: Optional[int] = None
    processes: Optional[int] = None
    waiting_processes: Optional[int] = None
    mark_messages: Optional[int] = None
    inflight_messages: Optional[int] = None
    detail: Optional[str] = None

    def __str__(self) -> str:
        words = [self.durability, self.detail]
        words += [
            f"{name.split('_')[0]} {value:,}{' B' if name.endswith('_bytes') else ''}"
            for name, value in dataclasses.asdict(self).items() if isinstance(value, int)
        ]
        return ", ".join(word for word in words if word)


@dataclasses.dataclass(frozen=True)
class Rate:
    """How many messages went through. The floor of a workload is the contestant that is listed first."""

    workload: str
    contestant: str
    setting: Setting
    messages_per_s: float  # the median
    of_floor: float  # the median of what each round had beside the floor's round just before it
    rounds_messages_per_s: Tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Latency:  # pylint: disable=too-many-instance-attributes  # a distribution
    """How long single events took."""

    workload: str
    contestant: str
    setting: Setting
    samples: int
    p50_us: float
    p99_us: float
    p999_us: float
    p9999_us: float
    longest_us: float


@dataclasses.dataclass(frozen=True)
class Duration:
    """How long something took that happens once."""

    workload: str
    contestant: str
    setting: Setting
    median_ms: float
    rounds_ms: Tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Drain:
    """A backlog that one process receives completely, doing nothing else."""

    workload: str
    contestant: str
    setting: Setting
    drain_s: float
    rss_anon_mib: float  # the most that was seen; mapped pages of the file do not count


@dataclasses.dataclass(frozen=True)
class Idle:
    """What waiting costs."""

    workload: str
    contestant: str
    setting: Setting
    cpu_ms_per_s: float


@dataclasses.dataclass(frozen=True)
class FileSize:
    """The size of the data file on disk."""

    workload: str
    contestant: str
    setting: Setting
    stored_bytes: int  # of payloads
    file_bytes: int
    file_to_payload: float


@dataclasses.dataclass(frozen=True)
class Churn:
    """How the data file grows while as much is received as is sent."""

    workload: str
    contestant: str
    setting: Setting
    sent_messages: Tuple[int, ...]
    sent_bytes: Tuple[int, ...]
    file_mb: Tuple[float, ...]
    second_half_growth: float  # the last file size to that at half of the messages


R = TypeVar("R", Rate, Latency, Duration, Drain, Idle, FileSize, Churn)
Result = Rate | Latency | Duration | Drain | Idle | FileSize | Churn
_KINDS: Tuple[Type[Any], ...] = (Rate, Latency, Duration, Drain, Idle, FileSize, Churn)


@dataclasses.dataclass
class Document:
    """All results of one run."""

    machine: Machine
    scale: str
    took_s: float
    results: List[Result]
    peer_notes: Dict[str, str] = dataclasses.field(default_factory=dict)
    #: The peers that keep less than their column says: they are shown, but not compared with.
    weaker_peers: List[str] = dataclasses.field(default_factory=list)
    #: What a reader should know of the run, as reStructuredText; written by hand into the JSON.
    note: str = ""

    def of(self, kind: Type[R], workload: str) -> List[R]:
        """List the results of a workload."""
        return [result for result in self.results if isinstance(result, kind) and result.workload == workload]

    def find(self, kind: Type[R], workload: str, contestant: str = OURS, **setting: object) -> Optional[R]:
        """Return the first result of a workload and a contestant whose setting has these values."""
        for result in self.of(kind, workload):
            if result.contestant == contestant and all(
                    getattr(result.setting, name) == value for name, value in setting.items()):
                return result
        return None

    def write(self, file: pathlib.Path) -> None:
        """Write the JSON."""
        head = json.dumps(dataclasses.asdict(dataclasses.replace(self, results=[])), indent=1)
        lines = ",\n  ".join(json.dumps(_encode(result)) for result in self.results)
        # One line for each result, so that a difference of two files can be read.
        file.write_text(head.replace('"results": []', f'"results": [\n  {lines}\n ]') + "\n", encoding="utf-8")


def read(file: pathlib.Path) -> Document:
    """Read the JSON."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return Document(machine=Machine(**content["machine"]),
                    scale=content["scale"],
                    took_s=content["took_s"],
                    results=[_decode(entry) for entry in content["results"]],
                    peer_notes=content["peer_notes"],
                    weaker_peers=content["weaker_peers"],
                    note=content.get("note", ""))


def _encode(result: Result) -> Dict[str, Any]:
    entry = {"kind": type(result).__name__, **dataclasses.asdict(result)}
    entry["setting"] = {name: value for name, value in entry["setting"].items() if value is not None}
    return entry


def _decode(entry: Dict[str, Any]) -> Result:
    kind = {one.__name__: one for one in _KINDS}[entry.pop("kind")]
    setting = Setting(**entry.pop("setting"))
    figures = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    result: Result = kind(setting=setting, **figures)
    return result
