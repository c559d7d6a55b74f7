"""What the core and the disk say to each other: frozen values, nothing shared.

- Orders leave with the core's plans and answers, and are carried out beside the engine. Reports
  come back as commands do; one that nobody waits for any more is taken in and changes nothing.
- What is read was verified before it is told of. What could not be is `bad`, and gone.
- Every Read ends: by its last group, by one without a payload, or because nobody waits any more.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from sapwood.cache.prefix.blocks import Block, Names
from sapwood.cache.prefix.catalogue import DISK_KINDS, Catalogue, DiskFile, Key, Kind
from sapwood.cache.prefix.snapshot import Payload


@dataclass(frozen=True, slots=True)
class ReadGroup:
    """Tokens [start, end), to be read and handed over as one payload.

    full: of each block. sliding: of the last of them, none to all.
    """

    start: int
    end: int
    full: tuple[DiskFile, ...]
    sliding: tuple[DiskFile, ...]

    @property
    def files(self) -> tuple[DiskFile, ...]:
        """All that it takes."""
        return self.full + self.sliding


@dataclass(frozen=True, slots=True)
class Read:
    """Read these, in order, and report each. id: drawn by the core."""

    id: int
    groups: tuple[ReadGroup, ...]


@dataclass(frozen=True, slots=True)
class StopRead:
    """Nobody waits for that one any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Erase:
    """Remove files; reported by Erased where there is an id. files None: all there are.

    aside: and what lies there that the core does not know, of whomever: what was put aside, and
    what could not be removed or told of before.
    """

    files: tuple[DiskFile, ...] | None
    id: int | None = None
    aside: bool = False


@dataclass(frozen=True, slots=True)
class ForgottenPath:
    """Tokens under a root that nobody is to find on disk behind the first `kept` of them."""

    root: bytes
    tokens: array[int]
    kept: int


@dataclass(frozen=True, slots=True)
class Touch:
    """These were used, in this order: for who rebuilds the catalogue."""

    keys: tuple[Key, ...]


DiskOrder = Read | StopRead | Erase | Touch


@dataclass(frozen=True, slots=True)
class PageOut:
    """Copy a block's K/V of one kind out of these payloads, now, and write it.

    budget_bytes: what may be written yet, once this is.
    """

    file: DiskFile
    block: Block
    path: tuple[Payload, ...]
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class PagedIn:
    """A group of a Read. Owns its payload; None: it could not be read, and no more of it comes.

    bad: what is not there any more. quarantined: how much of that was damaged.
    """

    id: int
    payload: Payload | None
    read_bytes: int
    seconds: float
    bad: tuple[Key, ...] = ()
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """A PageOut is on disk, or is not."""

    key: Key
    whole: bool


@dataclass(frozen=True, slots=True)
class Erased:
    """left: how many files could not be removed, or lines that tell of them."""

    id: int
    left: int


@dataclass(frozen=True, slots=True)
class DiskFailed:
    """The folder cannot be written to or read from: from now on there is memory alone."""


@dataclass(frozen=True, slots=True)
class FilesFound:
    """Files that lie in the folder: least recently used first, in each report and over all.

    budget_bytes: what may be written yet, with the last of them; None: more come.
    """

    files: tuple[DiskFile, ...]
    budget_bytes: int | None = None


DiskReport = PagedIn | Written | Erased | DiskFailed | FilesFound


@dataclass(frozen=True, slots=True)
class DiskFolder:
    """A folder as it was found, for the core to own. bytes_a_day: that may be written.

    budget_bytes: what of it is left. loading: what lies in it is told of by FilesFound. tenants:
    as Names says them, of all who may come; None: nobody knows them all. kv_share: bytes of K/V on
    disk ÷ as the tree holds it, as a fraction.
    """

    names: Names
    catalogue: Catalogue
    bytes_a_day: int
    budget_bytes: int
    failed: bool = False
    loading: bool = False
    tenants: frozenset[bytes] | None = None
    kv_share: tuple[int, int] = 1, 1


def kv_on_disk(kv_bytes: int, share: tuple[int, int]) -> int:
    """What so many bytes of K/V take there (DiskFolder.kv_share), which has to be whole."""
    part, rest = divmod(kv_bytes * share[0], share[1])
    assert not rest, f"{kv_bytes} bytes x {share}"
    return part


DISK_STATES = ("off", "ok", "degraded")


@dataclass(frozen=True, slots=True)
class DiskStats:
    """The disk tier at one moment. Counts are of the process."""

    state: str = "off"  # one of DISK_STATES
    bytes: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(DISK_KINDS, 0))
    read_bytes: int = 0
    written_bytes: int = 0
    quarantined: int = 0
