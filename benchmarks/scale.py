"""The scale of a run: complete, or everything within a minute."""

import dataclasses
from typing import Dict, Tuple

#: The most that one round of a sender stores, so that it fits on the disk.
ROUND_BYTES_MAX = 256 * 1024**2


@dataclasses.dataclass(frozen=True)
class Scale:  # pylint: disable=too-many-instance-attributes  # one per thing that is measured
    """The bounds of all workloads."""

    name: str
    rounds: int
    few_rounds: int  # of what takes long, or sweeps over many values
    round_s: float
    round_messages_max: int
    payloads_bytes: Tuple[int, ...]
    batches_messages: Tuple[int, ...]
    subscribers: Tuple[int, ...]
    backlogs_messages: Tuple[int, ...]
    threads: Tuple[int, ...]
    tasks: Tuple[int, ...]
    processes: Tuple[int, ...]
    waiting_processes: Tuple[int, ...]
    end_to_end_s: float
    waiting_s: float
    wake_ups: int  # each of them is one sample for each waiting process
    million: int
    marks_messages: Tuple[int, ...]
    sends_at_the_mark: int
    churn_bytes: int

    def with_few_rounds(self) -> "Scale":
        """Return the same with few rounds."""
        return dataclasses.replace(self, rounds=self.few_rounds)


FULL = Scale(name="full",
             rounds=7,
             few_rounds=5,
             round_s=0.25,
             round_messages_max=300_000,
             payloads_bytes=(100, 10 * 1024, 1024**2),
             batches_messages=(1, 10, 100, 1000, 10_000),
             subscribers=(1, 10, 100, 1000),
             backlogs_messages=(0, 1000, 100_000, 1_000_000),
             threads=(1, 4, 16, 64),
             tasks=(1, 16, 1000),
             processes=(1, 2, 4),
             waiting_processes=(1, 50),
             end_to_end_s=5.0,
             waiting_s=1.2,
             wake_ups=400,
             million=1_000_000,
             marks_messages=(65_536, 5_000_000),
             sends_at_the_mark=400_000,
             churn_bytes=2 * 1024**3)

QUICK = Scale(name="quick",
              rounds=3,
              few_rounds=3,
              round_s=0.06,
              round_messages_max=50_000,
              payloads_bytes=(100, 1024**2),
              batches_messages=(10, ),
              subscribers=(1, 100),
              backlogs_messages=(0, 100_000),
              threads=(1, 16),
              tasks=(1, 100),
              processes=(1, 2),
              waiting_processes=(1, 10),
              end_to_end_s=0.2,
              waiting_s=0.3,
              wake_ups=60,
              million=100_000,
              marks_messages=(65_536, ),
              sends_at_the_mark=40_000,
              churn_bytes=128 * 1024**2)

SCALES: Dict[str, Scale] = {scale.name: scale for scale in (FULL, QUICK)}
