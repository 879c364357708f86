"""The prerequisites check of enabling protection: it looks for everything that hinders it, and reports all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.inventory import azure_vms, disk_limits
from siterig.azure_emu.vault.jobs import seeds
from siterig.azure_emu.vault.jobs.job_errors import CombinedError
from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import RigError


async def check_all(
    context: VaultContext, vm: str, images: Sequence[SeedSource] = (), excluded: Sequence[str] = ()
) -> list[DiskInfo]:
    """Check the site's disks, their sizes and seeds, and the name of a VM; return the disks without the excluded ones.

    Raises:
        RigError: ``VmNotFound``, or the error of the role that did not answer; :class:`CombinedError` with each prerequisite
            that is not met.
    """
    site = await context.site.check_prerequisites(vm=vm, excluded=list(excluded))
    disks = [disk for disk in site.disks if disk.name not in excluded]
    found = [unmet.error() for unmet in site.unmet]
    found += _raised_by(lambda: azure_vms.check_vm_name(vm))
    found += disk_limits.too_large(vm, disks)
    found += await seeds.unusable(context, vm, images, disks)
    if found:
        raise CombinedError.of(found)
    return disks


def _raised_by(check: Callable[[], None]) -> list[RigError]:
    try:
        check()
    except RigError as error:
        return [error]
    return []
