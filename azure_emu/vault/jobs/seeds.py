"""Offline seeds of a protection: the images that its managed disks begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import DiskRow
from siterig.azure_emu.vault.jobs.engine import PROGRESS_ANSWER_S, JobContext, site_progress
from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.azure_emu.vault.points import points
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import DiskProgress, VmProgress

SEEDS = "seeds"
"""The key of a job's variables with the seeds: a list of :class:`SeedSource` as JSON."""
SEEDING = "seeding"
"""The key of a job's variables with the disk that is being seeded: its id, name, size and image."""


def named(vm: str, seeds: Sequence[SeedSource], disks: Sequence[DiskInfo]) -> list[SeedSource]:
    """Return the seeds with the names of their disks; a seed without a name is of the VM's only disk.

    Raises:
        RigError: ``InvalidDisk`` if a name is missing, unknown or given twice.
    """
    names = ", ".join(disk.name for disk in disks)
    found: dict[str, SeedSource] = {}
    for seed in seeds:
        if seed.disk is None and len(disks) != 1:
            raise RigError(
                Code.InvalidDisk, f"seed {seed.image}: VM {vm!r} has the disks {names}: write NAME=IMAGE, with one of them"
            )
        name = seed.disk or disks[0].name
        if name not in {disk.name for disk in disks}:
            raise RigError(Code.InvalidDisk, f"seed {name}={seed.image}: VM {vm!r} has no such disk; it has: {names}")
        if name in found:
            raise RigError(
                Code.InvalidDisk, f"seed {name}={seed.image}: disk {name!r} has the seed {found[name].image} already"
            )
        found[name] = seed.model_copy(update={"disk": name})
    return list(found.values())


def of_job(job: JobContext) -> list[SeedSource]:
    """Return the seeds of a job."""
    return [SeedSource.model_validate(each) for each in job.variables.get(SEEDS, [])]


async def unusable(context: VaultContext, vm: str, seeds: Sequence[SeedSource], disks: Sequence[DiskInfo]) -> list[RigError]:
    """Return the errors of all seeds that cannot be used; raise that of a role that does not answer."""
    sizes = {disk.name: disk.size_bytes for disk in disks}
    found = []
    for seed in seeds:
        if seed.disk is None or seed.disk not in sizes:
            found.append(RigError(Code.InvalidDisk, f"seed {seed.image}: VM {vm!r} has no disk {seed.disk!r} any more"))
            continue
        try:
            await context.recovery.check_seed(image=seed.image, image_format=seed.format, size_bytes=sizes[seed.disk])
        except RigError as error:
            if context.roles.role_cause(error) is not None:
                raise
            found.append(RigError(error.code, f"seed of disk {seed.disk!r}: {error.message}", recoverable=error.recoverable))
    return found


async def fill_all(job: JobContext) -> None:
    """Fill the managed disks of a job from their seeds, and record how far they are.

    The record is there before the site begins: a resync takes a generation after those that the vault knows.
    """
    images = {seed.disk: seed for seed in of_job(job)}
    disks = await job.change(lambda _session, item: sorted((d.name, d.disk_id, d.size_bytes) for d in item.disks))
    for name, disk_id, size_bytes in disks:
        seed = images.get(name)
        if seed is None:
            continue
        job.variables[SEEDING] = {"disk_id": disk_id, "disk": name, "size_bytes": size_bytes, "image": seed.image}
        await job.save_variables()
        mark = await job.context.recovery.seed_disk(disk_id=disk_id, image=seed.image, image_format=seed.format)

        def note(session: Session, _item: object, mark: Any = mark) -> None:
            points.take_watermark(session.get_one(DiskRow, mark.disk_id), mark)

        await job.change(note)
    if job.variables.pop(SEEDING, None) is not None:
        await job.save_variables()


async def enable_progress(context: VaultContext, vm: str, variables: dict[str, Any]) -> VmProgress:
    """Return the progress of enabling protection: of the seed that is being read, otherwise that of the site."""
    seeding = variables.get(SEEDING)
    if seeding is None:
        return await site_progress(context, vm, variables)
    done = 0
    if context.roles.role_error("applier") is None:
        with context.clock.real.move_on_after(PROGRESS_ANSWER_S):
            done = await context.recovery.seed_progress(disk_id=seeding["disk_id"])
    size_bytes = seeding["size_bytes"]
    disk = DiskProgress(disk=seeding["disk"], done_bytes=min(done, size_bytes), total_bytes=size_bytes, sent_bytes=0)
    return VmProgress(vm=vm, phase="OfflineSeed", disks=[disk], detail=f"reading {seeding['image']}")
