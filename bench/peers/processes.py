"""What processes used, read from /proc: CPU time of everybody, peak memory of a tree.

- Linux only: elsewhere nothing is known, and that is what it says.
- CPU time counts in clock ticks, 10 ms; a process that came and went in between is not seen, but
  its time is in its parent's once that has waited for it, and in the machine's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuReading:
    """busy_s: of the whole machine since it started; by_pid: of each process, and its parent."""

    busy_s: float
    by_pid: Mapping[int, float]
    parents: Mapping[int, int]

    def of_tree(self, root: int) -> float:
        """Of a process and of all that descend from it."""
        return sum(self.by_pid.get(pid, 0.0) for pid in descendants(root, self.parents))


def read_cpu() -> CpuReading | None:
    """None where the system does not tell."""
    try:
        busy = parse_busy((_PROC / "stat").read_text())
    except OSError:
        return None
    seconds, parents = {}, {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            parents[int(folder.name)], seconds[int(folder.name)] = parse_stat(text)
    return CpuReading(busy, seconds, parents)


def parse_busy(text: str) -> float:
    """Seconds that any core spent on anything, waiting for disks aside; guests are in user's."""
    user, nice, system, _, _, irq, softirq, steal = map(int, text.split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def parse_stat(text: str) -> tuple[int, float]:
    """The parent, and seconds of CPU with those of children it waited for. A name may hold ')'."""
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), sum(map(int, fields[11:15])) / _TICKS


def descendants(root: int, parents: Mapping[int, int]) -> set[int]:
    """The root and whoever has it above."""
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def peak_memory_bytes(root: int) -> int | None:
    """Peak resident memory, summed over a process and its descendants; None where unknown.

    Peaks of several processes need not fall together: the sum is an upper bound.
    """
    reading = read_cpu()
    if reading is None:
        return None
    peaks = []
    for pid in descendants(root, reading.parents):
        try:
            peaks.append(parse_peak((_PROC / str(pid) / "status").read_text()))
        except OSError:
            continue  # it ended meanwhile
    return sum(peaks)


def parse_peak(status: str) -> int:
    """VmHWM of /proc/PID/status in bytes; 0 of a process without memory."""
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024
