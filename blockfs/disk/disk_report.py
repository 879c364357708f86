"""Descriptions of a disk for other roles and for users.  They change nothing, except to record an abandoned log."""

from __future__ import annotations

from pathlib import Path

from siterig.blockfs.contracts import counters
from siterig.blockfs.contracts.control import DiskInfo, HydrationInfo
from siterig.blockfs.contracts.counters import DiskCounters
from siterig.blockfs.disk import parent_image
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.disk.replacing import kept_images
from siterig.blockfs.files.free_space import free_bytes


def describe(disk: Disk, mountpoint: Path) -> DiskInfo:
    """Return the description of a disk whose host is mounted at ``mountpoint``."""
    log = disk.tracking.log if disk.tracking.active else None
    promotion = None
    if disk.state.promoting:
        promotion = HydrationInfo.of(disk.hydration.done_bytes, disk.size_bytes, disk.hydration.stopped_by)
    return DiskInfo(
        vm=disk.paths.vm,
        name=disk.paths.name,
        disk_id=disk.state.disk_id,
        size_bytes=disk.size_bytes,
        path=str(mountpoint / disk.paths.vm / f"{disk.paths.name}.img"),
        folder=str(disk.paths.folder),
        tracked=log is not None,
        generation=disk.state.generation,
        last_seq=log.last_seq if log else 0,
        last_position=log.last_position if log else 0,
        unsent_log_bytes=log.unsent_bytes if log else 0,
        log_bytes_max=disk.tracking.log_bytes_max,
        dirty_bytes=disk.tracking.dirty_bytes,
        snapshot=disk.snapshot is not None,
        snapshot_bytes=disk.snapshot.store_bytes if disk.snapshot else 0,
        snapshot_bytes_max=disk.snapshot.store_bytes_max if disk.snapshot else None,
        needs_resync=disk.state.needs_resync,
        open_handles=disk.handles,
        promotion=promotion,
        sector_bytes=disk.state.sector_bytes,
        opening=disk.opening,
        opened_seq=disk.tracking.opened_seq,
        parent=disk.state.parent.path if disk.state.parent is not None else None,
        broken_chain=parent_image.broken_chain(disk.state, disk.layer),
        kept=kept_images(disk.paths.folder, disk.paths.name),
        fenced=disk.state.fenced,
        free_bytes=free_bytes(disk.paths.folder),
        encrypted=disk.state.key is not None,
    )


def count(disk: Disk) -> DiskCounters:
    """Return the counters of a disk since it was opened; this stops no request."""
    info, found = describe(disk, Path()), counters.read(disk.c)
    return DiskCounters(
        vm=info.vm,
        name=info.name,
        since_ns=disk.counted_since_ns,
        requests=counters.requests(found),
        log=counters.log(found, kept_bytes=info.unsent_log_bytes, kept_bytes_max=info.log_bytes_max),
        size_bytes=info.size_bytes,
        tracked=info.tracked,
        generation=info.generation,
        needs_resync=info.needs_resync,
        dirty_bytes=info.dirty_bytes,
        snapshot_bytes=info.snapshot_bytes,
        snapshot_bytes_max=info.snapshot_bytes_max,
    )


def describe_broken(paths: DiskPaths, state: DiskState, why: str, mountpoint: Path) -> DiskInfo:
    """Return the description of a thin disk that is not served because its parent image is missing or changed."""
    return DiskInfo(
        vm=paths.vm,
        name=paths.name,
        disk_id=state.disk_id,
        size_bytes=state.size_bytes,
        path=str(mountpoint / paths.vm / f"{paths.name}.img"),
        folder=str(paths.folder),
        tracked=False,
        generation=state.generation,
        last_seq=0,
        last_position=0,
        unsent_log_bytes=0,
        log_bytes_max=None,
        dirty_bytes=0,
        snapshot=False,
        snapshot_bytes=0,
        snapshot_bytes_max=None,
        needs_resync=parent_image.CODE,
        open_handles=0,
        sector_bytes=state.sector_bytes,
        parent=state.parent.path if state.parent is not None else None,
        broken_chain=why,
        fenced=state.fenced,
        encrypted=state.key is not None,
    )
