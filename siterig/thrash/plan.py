"""The plan of a thrash, drawn from its seed: the VMs with their disks and writers, and an endless sequence of faults.

The plan is the same for the same seed and options.  The moments at which faults meet the operations of real processes are
not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

DiskKind = Literal["raw", "ext4", "xfs", "btrfs"]
WriterKind = Literal["raw", "files", "fio", "ledger", "ledger-postgresql"]
WRITERS: tuple[WriterKind, ...] = get_args(WriterKind)
_OF_ALL_DISKS: tuple[WriterKind, ...] = ("ledger", "ledger-postgresql")
"""The writers that use the first and the last disk of a VM."""
MIB = 1 << 20
SIZES: dict[DiskKind, int] = {"raw": 256 * MIB, "ext4": 256 * MIB, "xfs": 320 * MIB, "btrfs": 512 * MIB}
"""The sizes of the disks: a minute without replication on a busy machine does not fill half of one with log."""
ROLES = ("site", "agent", "azurite", "applier", "vault", "azure")
LINKS = ("agent-site", "agent-vault", "agent-azurite", "applier-vault", "applier-azurite", "vault-agent", "vault-applier")
_STORED = "PutBlob,GetBlob,ListBlobs,DeleteBlob"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk; ``kind`` is its file system, or ``raw``."""

    name: str
    kind: DiskKind

    @property
    def size_bytes(self) -> int:
        """The size at its creation."""
        return SIZES[self.kind]


@dataclass(frozen=True, slots=True)
class WriterPlan:
    """A writer, and the disks that it writes to."""

    kind: WriterKind
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VmPlan:
    """A VM."""

    name: str
    disks: tuple[DiskPlan, ...]
    writers: tuple[WriterPlan, ...]


@dataclass(frozen=True, slots=True)
class PlannedRule:
    """A fault: a rule in words, and for how long it is armed.

    Attributes:
        kind: the kind, for the counts.
        words: the rule.
        lasts_s: the time until the rule is removed.
        after_s: the time from the fault before it.
    """

    kind: str
    words: str
    lasts_s: float
    after_s: float


def draw_vms(
    seed: int, vms: int, disks: int, filesystems: Sequence[DiskKind], writers: Sequence[WriterKind] = WRITERS
) -> list[VmPlan]:
    """Return the VMs: each writer and each file system comes once before any comes again.

    A database uses the first and the last disk of its VM.  Every other disk has a writer of its own, and raw ones are twice
    as frequent among them as each other kind.

    Args:
        seed: the seed.
        vms: the number of VMs.
        disks: the number of disks of each.
        filesystems: the file systems that this machine can make and check.
        writers: the writers whose programs this machine has.
    """
    rng = random.Random(f"{seed} vms")  # noqa: S311 (no secrets)
    first, formats = _by_turns(rng, writers), _by_turns(rng, filesystems)
    single = _by_turns(rng, ["raw", *(kind for kind in writers if kind not in _OF_ALL_DISKS)])
    made = []
    for number in range(vms):
        names = [f"disk{disk + 1}" for disk in range(disks)]
        kind = next(first)
        used = tuple(dict.fromkeys((names[0], names[-1]))) if kind in _OF_ALL_DISKS else (names[0],)
        drawn = [WriterPlan(kind, used)]
        drawn += [WriterPlan(next(single), (name,)) for name in names if name not in used]
        raw = {name for writer in drawn if writer.kind == "raw" for name in writer.disks}
        planned = tuple(DiskPlan(name, "raw" if name in raw else next(formats)) for name in names)
        made.append(VmPlan(f"vm{number + 1}", planned, tuple(drawn)))
    return made


T = TypeVar("T")


def _by_turns(rng: random.Random, kinds: Sequence[T]) -> Iterator[T]:
    """Yield kinds without an end, in an order of chance; each comes once before any comes again."""
    while True:
        yield from rng.sample(kinds, len(kinds))


def draw_faults(seed: int) -> Iterator[PlannedRule]:
    """Yield faults without an end; each kind comes once before any comes again."""
    rng = random.Random(f"{seed} faults")  # noqa: S311 (no secrets)
    while True:
        kinds = [*FAULTS, *("kill",) * (len(ROLES) - 1)]
        rng.shuffle(kinds)
        for kind in kinds:
            words, lasts_s = FAULTS[kind](rng)
            yield PlannedRule(kind, words, round(lasts_s, 1), round(rng.uniform(0.2, 3.0), 1))


def _at_once(words: str) -> tuple[str, float]:
    return words, 1.0


def _for(rng: random.Random, words: str, longest_s: float = 8.0) -> tuple[str, float]:
    return words, rng.uniform(1.0, longest_s)


FAULTS: dict[str, Callable[[random.Random], tuple[str, float]]] = {
    "kill": lambda rng: _at_once(f"process {rng.choice(ROLES)} kill=SIGKILL"),
    "kill-in-log": lambda rng: _for(rng, f"log * append occurrence={rng.randint(1, 40)} kill=SIGKILL tear=true times=1"),
    "kill-in-store": lambda rng: _for(rng, f"store * write occurrence={rng.randint(1, 20)} kill=SIGKILL times=1"),
    "stop": lambda rng: _for(rng, f"process {rng.choice(ROLES)} pause=true"),
    "cut": lambda rng: _for(rng, f"link {rng.choice(LINKS)} connection={rng.choice(('reset', 'refuse'))}"),
    "black-hole": lambda rng: _for(
        rng, f"link {rng.choice(LINKS)} stream={rng.choice(('upstream', 'downstream', 'both'))} connection=black-hole"
    ),
    "latency": lambda rng: _for(rng, f"link {rng.choice(LINKS)} delay={rng.randint(20, 400)}ms jitter=20ms", 12.0),
    "slow-link": lambda rng: _for(rng, f"link {rng.choice(('agent-azurite', 'applier-azurite'))} send rate=200KiB/s"),
    "blob-errors": lambda rng: _for(
        rng,
        f"blob * {_STORED} error={rng.choice((500, 503))} probability={rng.choice((0.3, 0.8))} "
        f"timing={rng.choice(('before', 'after'))}",
    ),
    "blob-timeouts": lambda rng: _for(rng, f"blob * PutBlob,GetBlob delay={rng.randint(2, 40)}s probability=0.5"),
    "blob-lost": lambda rng: _for(rng, f"blob * PutBlob lost=true times={rng.randint(1, 3)}"),
    "blob-damaged": lambda rng: _for(
        rng, f"blob * {rng.choice(('PutBlob', 'GetBlob'))} flip.bits=1 times={rng.randint(1, 3)}"
    ),
    "log-no-space": lambda rng: _for(rng, "log * rotate error=ENOSPC"),
    "store-no-space": lambda rng: _for(rng, "store * write error=ENOSPC probability=0.5"),
    "store-error": lambda rng: _for(rng, f"store * {rng.choice(('checkpoint', 'sync'))} error=EIO times=2"),
}
"""The kinds of faults, each a function that draws a rule in words and its duration."""
