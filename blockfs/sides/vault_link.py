"""The contract of the vault, as the agents of the site call it."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.deadlines import ANSWER_S, REPORT_S, deadline
from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.blockfs.transfer.part_name import Watermark

PATIENCE_S_MAX = 10.0
"""Limit of a wait for other watermarks; the answer must come before the deadline of the call."""


class ReplicationSettings(WireModel):
    """The user's settings of the replication of a VM.

    ``paused``: no cycle is to run.  ``interval_s``: seconds between two cycles.  ``app_consistent_every_s``: seconds between
    two application-consistent points; None for none.
    """

    paused: bool
    interval_s: float
    app_consistent_every_s: float | None


class VaultLink(Protocol):
    """The reports and questions of the agent to the vault."""

    @deadline(ANSWER_S)
    async def watermarks(self, *, vm: str, known: list[Watermark] | None = None, patience_s: float = 0.0) -> list[Watermark]:
        """Return the watermarks of a VM, one for each disk that has a managed disk; none if it is not protected.

        Args:
            vm: the VM.
            known: the watermarks that the caller has; the answer waits until there are others.
            patience_s: the limit of that wait, at most ``PATIENCE_S_MAX``.
        """
        ...

    @deadline(REPORT_S)
    async def parts_put(self, *, disk_ids: list[str]) -> None:
        """Report that parts of these disks are in the cache account, so that they are applied soon; returns at once."""
        ...

    @deadline(ANSWER_S)
    async def may_replicate(self, *, vm: str) -> bool:
        """Return True if the site is the active location of the VM; asked before cycles resume after a restart.

        The VM may have failed over while the agent was down, so that ``suspend`` did not reach the agent.  The result
        is False for a VM that is not protected, too.
        """
        ...

    @deadline(ANSWER_S)
    async def settings(self, *, vm: str) -> ReplicationSettings | None:
        """Return the settings of a VM; None if it is not protected.

        The agent asks after a restart, and at intervals while the VM is paused: a call of the vault may not have arrived.
        """
        ...

    @deadline(ANSWER_S)
    async def point_sent(
        self,
        *,
        vm: str,
        tag_id: str,
        kind: TagKind,
        name: str,
        position: int,
        time_ns: int,
        downgraded_because: str | None = None,
        age_s: float = 0.0,
        waiting_bytes: dict[str, int] | None = None,
        disk_bytes: dict[str, Whole] | None = None,
    ) -> None:
        """Report that all data up to ``position``, and its tags, are in the cache account: now the RPO is met.

        Args:
            vm: the VM.
            tag_id: id of the cut.
            kind: kind of the recovery point.
            name: its name.
            position: its position.
            time_ns: wall time of the cut, which may have been set since.
            downgraded_because: why it is crash-consistent, if it was to be application-consistent.
            age_s: seconds since the cut by a monotonic clock.
            waiting_bytes: bytes in the account that were not applied when it was sent, by disk id.
            disk_bytes: the size of each disk at the cut, by disk id.
        """
        ...

    @deadline(ANSWER_S)
    async def replication_error(
        self, *, vm: str, code: str, message: str, recoverable: bool, attempt: int, next_try_s: float | None
    ) -> None:
        """Report that a replication cycle failed; without a next try (``next_try_s`` None) the VM is Critical."""
        ...

    @deadline(ANSWER_S)
    async def app_point_failed(self, *, vm: str, code: str, message: str) -> None:
        """Report that a freeze or a script failed, before or after a cut; it becomes an event."""
        ...

    @deadline(ANSWER_S)
    async def replication_recovered(self, *, vm: str) -> None:
        """Report the first success after errors."""
        ...

    @deadline(ANSWER_S)
    async def resync_required(self, *, vm: str, reason: str) -> None:
        """Mark the VM for resynchronization, because the logs of its disks are not contiguous."""
        ...

    async def checksums(
        self,
        *,
        disk_id: str,
        comparison_id: str,
        key_hex: str,
        chunk_bytes: int,
        spans: list[tuple[int, int]],
        position: int | None = None,
        generation: int | None = None,
    ) -> ChunkTags:
        """Return keyed tags of chunks of a managed disk, of those that are not zeros.

        Args:
            disk_id: the managed disk.
            comparison_id: a random id that the caller chooses.  All calls with it read the same state of the disk.
            key_hex: the key of the tags, 32 random bytes in hexadecimal.
            chunk_bytes: bytes of a chunk, a multiple of 4096.
            spans: (first, count) of the chunks, in ascending order.
            position: the position of the state; None: the latest applied state, even of an unfinished resync.
            generation: the generation that the latest state must be of.

        Raises:
            RigError: ``InvalidChecksumRequest``, ``InvalidPosition``; ``ManagedDiskReplaced`` if it has another generation.
        """
        ...

    @deadline(ANSWER_S)
    async def end_comparison(self, *, comparison_id: str) -> None:
        """Close the states of a comparison; without this call they are closed after a minute without use."""
        ...
