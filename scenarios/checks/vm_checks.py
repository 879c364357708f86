"""Checks of a recovered VM: its file systems, files and ledger; and the comparison of two disks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.checks.ledger_check import LedgerCheck, check_ledger
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.workloads import corpus
from siterig.scenarios.workloads.ack_log import read_acks
from siterig.scenarios.workloads.guest import Guest

OS_DB, DATA_DB = "ledger/os.db", "ledger/data.db"
_COMPARE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class VmCheckResult:
    """All findings for a VM, and the counts of its ledger."""

    findings: list[CheckFinding]
    ledger: LedgerCheck


async def check_vm(
    guest: Guest, manifests: Mapping[str, corpus.Manifest], acks: Path, cut_position: int | None
) -> VmCheckResult:
    """Recover an attached, unmounted VM and check all of it; the VM stays mounted."""
    findings = await guest.recover()
    for disk, manifest in manifests.items():
        findings.append(await check_corpus(disk, manifest, guest[disk]))

    def check() -> LedgerCheck:
        return check_ledger(guest["os"] / OS_DB, guest["data"] / DATA_DB, read_acks(acks), cut_position)

    ledger = await trio.to_thread.run_sync(check)
    return VmCheckResult([*findings, *ledger.findings], ledger)


async def check_corpus(disk: str, manifest: corpus.Manifest, where: Path) -> CheckFinding:
    """Check that the folder has every file of the manifest, unchanged, and no other file."""
    problems = await corpus.verify(manifest, where)
    name = f"files of disk {disk}"
    if problems:
        return CheckFinding(name, False, f"{len(problems)} of {len(manifest.files)} wrong, first: {'; '.join(problems[:3])}")
    mib = manifest.size_bytes / 2**20
    return CheckFinding(name, True, f"{len(manifest.files)} files, {mib:.0f} MiB, every SHA-256 as when they were written")


async def first_difference(one: Path, other: Path, progress: Callable[[int], None]) -> int | None:
    """Return the offset of the first difference, or None; files of different lengths differ at the end of the shorter.

    ``progress`` receives the number of bytes compared so far.

    Raises:
        RigError: ``DiskUnreadable`` names file and reason.
    """

    def compare() -> int | None:
        offset = 0
        with one.open("rb", buffering=0) as left, other.open("rb", buffering=0) as right:
            while True:
                trio.from_thread.check_cancelled()
                for file in (left, right):  # two servers: let both fetch at once
                    os.posix_fadvise(file.fileno(), offset, 2 * _COMPARE_BYTES, os.POSIX_FADV_WILLNEED)
                a, b = _block(left.read), _block(right.read)
                if a != b:
                    return offset + _differs_at(a, b)
                if not a:
                    return None
                offset += len(a)
                progress(offset)

    try:
        return await trio.to_thread.run_sync(compare)
    except OSError as error:
        raise RigError(Code.DiskUnreadable, f"{one} and {other} cannot be compared: {error}") from error


def _block(read: Callable[[int], bytes | None]) -> bytes:
    """Read ``_COMPARE_BYTES``, or less at the end of the file."""
    parts, wanted = [], _COMPARE_BYTES
    while wanted > 0 and (data := read(wanted)):
        parts.append(data)
        wanted -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _differs_at(one: bytes, other: bytes) -> int:
    """Find the first difference by halving: slices are compared by memcmp, single bytes are not."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
