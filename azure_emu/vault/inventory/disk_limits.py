"""The sizes of disks that the service supports, checked before a VM is protected.

The limits are those of Microsoft's support matrix for Hyper-V; the service's prerequisites check fails beyond them: the disk
of the operating system has up to 2,048 GiB (generation 1) or 4,095 GiB (generation 2), other disks as much as a managed
disk, 32,767 GiB.  A managed disk is a fixed VHD of whole MiB.  It is unconfirmed how the service treats a source disk of
another size; this rig replicates it as it is and records an event.
"""

from __future__ import annotations

from collections.abc import Sequence

from siterig.azure_emu.vault.model.resources import VmDisk
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError

MIB, GIB = 1 << 20, 1 << 30
OS_DISK = "os"
"""The name of the operating system's disk; a VM's only disk is also taken for it."""
GIB_MAX = 32_767
OS_GIB_MAX = 4_095
OS_GIB_MAX_GENERATION_1 = 2_048


def _is_os(disk: DiskInfo | VmDisk, disks: Sequence[DiskInfo | VmDisk]) -> bool:
    return disk.name == OS_DISK or len(disks) == 1


def too_large(vm: str, disks: Sequence[DiskInfo]) -> list[RigError]:
    """Return an error for each disk that is too large; ``DiskSizeUnsupported`` names the disk, its size and the limit."""
    found = []
    for disk in disks:
        gib_max = OS_GIB_MAX if _is_os(disk, disks) else GIB_MAX
        if disk.size_bytes > gib_max * GIB:
            what = "the operating system's disk" if gib_max == OS_GIB_MAX else "a managed disk"
            text = f"disk {disk.name!r} of VM {vm!r} has {disk.size_bytes / GIB:,.6g} GiB; {what} may have {gib_max:,} GiB"
            found.append(RigError(Code.DiskSizeUnsupported, text))
    return found


def remarks(vm: str, disks: Sequence[DiskInfo | VmDisk]) -> list[str]:
    """Return remarks about disks that the rig replicates but that the service supports only in part."""
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
