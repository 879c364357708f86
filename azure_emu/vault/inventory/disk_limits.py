"""What sizes of disks the service takes, looked at before a VM is protected.

As Microsoft's support matrix for Hyper-V has it, whose prerequisites check fails for what is unsupported: the disk of the
operating system up to 2,048 GiB (generation 1) or 4,095 GiB (generation 2); others as large as a managed disk may be,
32,767 GiB.  A managed disk is a fixed VHD of whole MiB.  What the service does with a source disk that is not is
unconfirmed: this rig replicates it as it is and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError

MIB, GIB = 1 << 20, 1 << 30
OS_DISK = "os"
"""The rig knows no roles of disks: this name, or a VM's only disk, is the operating system's."""
GIB_MAX = 32_767
OS_GIB_MAX = 4_095
OS_GIB_MAX_GENERATION_1 = 2_048


class SizedDisk(Protocol):
    """A disk of a VM."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


def _is_os(disk: SizedDisk, disks: Sequence[SizedDisk]) -> bool:
    return disk.name == OS_DISK or len(disks) == 1


def check(vm: str, disks: Sequence[SizedDisk]) -> None:
    """``DiskSizeUnsupported`` names the disk, its size and what is allowed."""
    for disk in disks:
        gib_max = OS_GIB_MAX if _is_os(disk, disks) else GIB_MAX
        if disk.size_bytes > gib_max * GIB:
            what = "the operating system's disk" if gib_max == OS_GIB_MAX else "a managed disk"
            raise RigError(
                Code.DiskSizeUnsupported,
                f"disk {disk.name!r} of VM {vm!r} has {disk.size_bytes / GIB:,.6g} GiB; {what} may have {gib_max:,} GiB",
            )


def remarks(vm: str, disks: Sequence[SizedDisk]) -> list[str]:
    """What to say of disks that are taken, but that the service has reservations about."""
    found = []
    for disk in disks:
        if disk.size_bytes % MIB:
            found.append(
                f"disk {disk.name!r} of VM {vm!r} has {disk.size_bytes} bytes, not whole MiB as the service's managed disks "
                "have: it is replicated as it is, and there is no VHD of it"
            )
        if _is_os(disk, disks) and disk.size_bytes > OS_GIB_MAX_GENERATION_1 * GIB:
            found.append(
                f"disk {disk.name!r} of VM {vm!r} has {disk.size_bytes / GIB:,.6g} GiB: the service takes an operating "
                f"system's disk of more than {OS_GIB_MAX_GENERATION_1:,} GiB of generation 2 VMs only"
            )
    return found


def check_chains(disks: Sequence[DiskInfo]) -> None:
    """``BrokenVhdChain`` if the parent of a thin disk is missing or not what it was."""
    for disk in disks:
        if disk.broken_chain is not None:
            raise RigError(Code.BrokenVhdChain, f"disk {disk.vm}/{disk.name}: {disk.broken_chain}")
