"""The table ``[topology]``: VMs with their disks, replication policy, and limits of a rig."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from siterig.blockfs.contracts.shares import KEPT_SHARE_MAX, STORE_SHARE_MAX, WhenFull
from siterig.blockfs.documents import quantities
from siterig.blockfs.documents.model_problems import misfit
from siterig.scenarios.faults.schema import FaultModel
from siterig.scenarios.faults.values import CountFrom1, Duration, Size, Text

SECOND_NS = 10**9
INTERVAL_MIN_NS = SECOND_NS // 10
Share = Annotated[float, Field(gt=0, le=1)]


class ScenarioTable(FaultModel):
    """Base of all tables of a scenario file: unknown keys are errors, and a table does not change."""


class TopologyDisk(ScenarioTable):
    """A disk of a VM."""

    name: Text = Field(description="name of the disk")
    size: Size = Field(description="size of the disk")
    filesystem: Literal["ext4", "xfs", "btrfs"] | None = Field(
        default=None, description="file system that it is formatted with: `ext4`, `xfs` or `btrfs`; none if left out"
    )
    backing: Text | None = Field(
        default=None,
        description="a raw image under a thin disk, which is used in place; a relative path begins in the folder "
        "`SITERIG_SCRATCH`, where an operation `run` can make it",
    )
    sector: Literal[512, 4096] = Field(default=512, description="logical sector size: 512 (default) or 4096")

    @field_validator("size")
    @classmethod
    def _whole_sectors(cls, size: int) -> int:
        if size <= 0 or size % 512:
            raise ValueError(f"{size} bytes is no size of a disk: it must be a positive multiple of 512")
        return size


class TopologyVm(ScenarioTable):
    """A VM of the site."""

    name: Text = Field(description="name of the VM")
    side: Literal["site"] = Field(default="site", description="the side on which it is created: `site`")
    protect: bool = Field(
        default=False, description="`true`: the VM is protected, with a recovery point, before the timeline begins"
    )
    interval: Duration | None = Field(default=None, description="replication interval; that of the topology if left out")
    disk: tuple[TopologyDisk, ...] = Field(description="its disks; at least one")

    @model_validator(mode="after")
    def _disks_fit(self) -> Self:
        if not self.disk:
            raise misfit((("disk",), "has no disk: write at least one"))
        names = [disk.name for disk in self.disk]
        for number, name in enumerate(names):
            if names.index(name) != number:
                raise misfit((("disk", number, "name"), f"{name!r} is the name of disk[{names.index(name) + 1}], too"))
        return self

    def filesystems(self) -> dict[str, str]:
        """Return the file system of each disk that has one."""
        return {disk.name: disk.filesystem for disk in self.disk if disk.filesystem is not None}


class TopologyLimits(ScenarioTable):
    """Limits on the host's space that each disk may use."""

    log_share_max: Share = Field(
        default=KEPT_SHARE_MAX, description="share of a disk's size that its unsent log may reach before it is abandoned"
    )
    when_log_full: WhenFull = Field(
        default="refuse",
        description="when the host has no space for the log: `refuse` writes, or `bitmap`: abandon the log",
    )
    snapshot_share_max: Share = Field(
        default=STORE_SHARE_MAX, description="share of a disk's size that old data of a snapshot may reach"
    )


class Topology(ScenarioTable):
    """A rig: its VMs, and how they are replicated."""

    vm: tuple[TopologyVm, ...] = Field(default=(), description="the VMs of the site")
    interval: Duration = Field(
        default=2 * SECOND_NS, description="replication interval; the service has 30 s, 5 min and 15 min; `2s` if left out"
    )
    retention: CountFrom1 = Field(default=24, description="hours for which recovery points are kept; 24 if left out")
    app_consistent_every: Duration | None = Field(
        default=None, description="time between application-consistent points; none if left out"
    )
    quick_retries: bool = Field(
        default=True,
        description="`true` (default): failed replication is retried after 1, 2, 4, 8 and 10 seconds; `false`: minutes",
    )
    resync_window: str = Field(
        default="never",
        pattern=r"^(never|\d\d:\d\d-\d\d:\d\d)$",
        description="hours in which a resync that is due begins by itself, like `00:00-24:00`; `never` if left out",
    )
    account: Text | None = Field(
        default=None,
        description="the secret of a storage account of yours, in place of Azurite, never itself: the absolute path of a "
        "file of mode 0600, or `env:NAME`. The blobs of the rig are deleted when the run has ended",
    )
    account_authority: Text | None = Field(
        default=None,
        description="absolute path of a PEM file with the authority of the account's certificate; those of the system if "
        "left out",
    )
    limits: TopologyLimits = TopologyLimits()

    @field_validator("interval", "app_consistent_every")
    @classmethod
    def _not_too_short(cls, value: int | None) -> int | None:
        if value is not None and value < INTERVAL_MIN_NS:
            raise ValueError(f"{quantities.duration_text(value)} is too short: the least interval is 100ms")
        return value

    @model_validator(mode="after")
    def _account_fits(self) -> Self:
        if self.account_authority is not None and self.account is None:
            raise misfit((("account_authority",), "belongs to account, which is missing"))
        for key in ("account", "account_authority"):
            text = getattr(self, key)
            if text is not None and not (text.startswith("/") or (key == "account" and text.startswith("env:"))):
                allowed = "an absolute path" + (", or env:NAME; never the secret itself" if key == "account" else "")
                raise misfit(((key,), f"is not understood; allowed: {allowed}"))
        return self

    @model_validator(mode="after")
    def _vms_fit(self) -> Self:
        names = [vm.name for vm in self.vm]
        for number, name in enumerate(names):
            if names.index(name) != number:
                raise misfit((("vm", number, "name"), f"{name!r} is the name of vm[{names.index(name) + 1}], too"))
        return self

    def vm_of(self, name: str) -> TopologyVm | None:
        """Return the VM of a name; None if there is none."""
        return next((vm for vm in self.vm if vm.name == name), None)

    def interval_s(self, vm: str) -> float:
        """Return the replication interval of a VM in seconds."""
        found = self.vm_of(vm)
        return (self.interval if found is None or found.interval is None else found.interval) / SECOND_NS
