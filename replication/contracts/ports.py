"""Contract of the vault, as the agents of the site call it."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.deadlines import ANSWER_S, deadline
from siterig.blockfs.transfer.part_name import Watermark


class VaultLink(Protocol):
    """What the agent tells the vault, and asks it."""

    @deadline(ANSWER_S)
    async def watermarks(self, *, vm: str) -> list[Watermark]:
        """The recovery side's durable progress of a protected VM's disks, one entry a disk that has a managed disk."""
        ...

    @deadline(ANSWER_S)
    async def may_replicate(self, *, vm: str) -> bool:
        """Whether the site is (still) the VM's active location: asked before cycles resume after a restart.

        The agent may have been dead while the VM was failed over; ``suspend`` did not reach it then.
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
    ) -> None:
        """All data up to ``position`` and its tags are in the cache account (this is when the RPO is met).

        ``downgraded_because``: why it is crash-consistent, if it was to be application-consistent.  ``age_s``: seconds since
        the cut by a monotonic clock; ``time_ns`` is wall time, which may have been set since.  ``waiting_bytes``: the bytes
        in the account that were not applied when it was sent, by disk id.
        """
        ...

    @deadline(ANSWER_S)
    async def replication_error(
        self, *, vm: str, code: str, message: str, recoverable: bool, attempt: int, next_try_s: float | None
    ) -> None:
        """A replication cycle failed.  ``next_try_s`` None: no retry, the VM is Critical."""
        ...

    @deadline(ANSWER_S)
    async def replication_recovered(self, *, vm: str) -> None:
        """The first success after errors."""
        ...

    @deadline(ANSWER_S)
    async def resync_required(self, *, vm: str, reason: str) -> None:
        """The disks' logs cannot be vouched for; mark the VM for resynchronization."""
        ...

    async def checksums(self, *, disk_id: str, key_hex: str, chunk_bytes: int, first: int, count: int) -> list[str]:
        """Keyed checksums (hex) of ``count`` chunks of the managed disk's latest state, from chunk ``first``."""
        ...
