"""The contracts of the reports that other roles send to the vault: damage, applied parts, and the state of roles."""

from __future__ import annotations

from typing import Literal, Protocol

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core.deadlines import ANSWER_S, REPORT_S, deadline
from siterig.blockfs.core.waits import Wait
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.transfer.part_name import Watermark


class DamageReports(Protocol):
    """Reports of damage in managed disks; the vault ignores a disk that it does not know."""

    @deadline(ANSWER_S)
    async def vm_disk_changed(self, *, vm: str, disk: str, what: str) -> None:
        """Report that another program changed a VM's disk on the recovery side, or that it cannot be opened.  Idempotent."""
        ...

    @deadline(ANSWER_S)
    async def damage_met(self, *, disk_id: str, path: str, offset: int, position: int) -> None:
        """Report that a read of the state at ``position`` failed because of byte ``offset`` of a file.  Idempotent."""
        ...

    @deadline(ANSWER_S)
    async def scrubbed(self, *, disk_id: str, damages: list[Damage]) -> None:
        """Report the result of a scrub of the whole disk; it replaces all damage that was known."""
        ...


class SkippedBlob(WireModel):
    """A blob under a disk's prefix in the cache account that the applier skips."""

    name: str
    reason: str


class ApplierReports(Protocol):
    """Reports and requests of the applier to the vault."""

    @deadline(ANSWER_S)
    async def applied(
        self, *, watermark: Watermark, tags: list[TagSeen], waiting_bytes: int | None = None
    ) -> Watermark | None:
        """Report how far parts are durably applied, and the tags since the last report; repeated tags are harmless.

        Args:
            watermark: the state of the managed disk.
            tags: the tags.
            waiting_bytes: the bytes of the disk in the account that wait to be applied, if no blob is skipped; None: this
                report says nothing about the account.
        Returns:
            The watermark that the vault knows, if it is a later one.
        """
        ...

    @deadline(ANSWER_S)
    async def store_older(self, *, watermark: Watermark) -> None:
        """Report that the managed disk has only this and had more: its folder was restored from a copy, or lost frames."""
        ...

    @deadline(ANSWER_S)
    async def apply_failed(self, *, disk_id: str, code: str, message: str, recoverable: bool) -> None:
        """Report a part that was refused (checksum, gap, ...) or could not be applied yet; it stays in the cache account."""
        ...

    @deadline(ANSWER_S)
    async def replicating_disks(self) -> list[str]:
        """Return the ids of the managed disks that the applier must process."""
        ...

    @deadline(ANSWER_S)
    async def account_seen(
        self, *, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int
    ) -> None:
        """Report the disk's blobs in the cache account: bytes that wait to be applied, and blobs that are skipped.

        ``skipped`` has the first few of ``skipped_count`` blobs.
        """
        ...

    @deadline(ANSWER_S)
    async def send_again(self, *, disk_id: str, parts: list[str], is_temporary: bool) -> None:
        """Request these parts (names of blobs) from the site again, because the first cannot be used; returns at once.

        The list is empty if the next part is not in the account at all.  ``is_temporary``: the account did not give the
        part, which may be good, and readable later; otherwise it was read, and it is bad, or it is gone.
        """
        ...


RoleState = Literal["waiting", "starting", "ready", "hung", "restarting", "held", "failed", "stopped"]


class RoleStatus(WireModel):
    """The state of a role's process, as its supervisor sees it.

    ``hung``: the process exists but does not answer.  ``restarting``: it ended and is started again.  ``held``: it was
    killed on purpose and is kept down.  ``failed``: it ended too often and is not started again.

    ``restarts`` counts how often it ended by itself.  ``detail`` is the reason why it is not ready, the last line of its
    log.  ``since_ns`` is the wall time at which the state began.  ``waits`` are the things that the role waits for, as it
    reported last.
    """

    name: str
    state: RoleState
    pid: int | None
    restarts: int
    detail: str
    since_ns: int
    waits: list[Wait]


class RoleReports(Protocol):
    """Reports of the supervisor to the vault."""

    @deadline(REPORT_S)
    async def report_roles(self, *, roles: list[RoleStatus]) -> None:
        """Report the state of every role; sent when a state changes, and every few seconds."""
        ...
