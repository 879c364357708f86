"""The contract of the provider: the agent on the source host, as the vault calls it."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.contracts.control import CutInfo, DiskInfo, DownloadedDisk, SourceUse, TagKind
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.prerequisites import SiteReadiness
from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_S, deadline
from siterig.blockfs.core.progress import VmProgress


class Provider(Protocol):
    """The Azure Site Recovery Provider and the Recovery Services agent on the Hyper-V host."""

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> list[DiskInfo]:
        """Create a source VM with these disks; after a failure nothing of it remains.

        Raises:
            RigError: ``VmExists``, ``NotEnoughSpace``.
        """
        ...

    async def attach_disk(self, *, vm: str, disk: DiskSpec) -> list[DiskInfo]:
        """Add a disk to a source VM; it is not replicated.  After a failure nothing of it remains.

        Returns:
            All disks of the VM.

        Raises:
            RigError: ``VmNotFound``, ``DiskExists``, ``NotEnoughSpace``.
        """
        ...

    @deadline(ASKING_S)
    async def list_vms(self) -> list[DiskInfo]:
        """Return every disk of every source VM."""
        ...

    async def check_delete(self, *, vm: str) -> None:
        """Check that the VM can be deleted; a VM whose disks cannot be opened can be deleted, too.

        Raises:
            RigError: ``VmNotFound``, ``DiskInUse``; ``InvalidState`` if it has kept images.
        """
        ...

    async def delete_vm(self, *, vm: str) -> None:
        """Forget the VM, and delete its disks and logs.

        Raises:
            RigError: ``VmNotFound``, ``DiskInUse``.
        """
        ...

    async def rename_vm(self, *, vm: str, name: str) -> None:
        """Rename the VM and its relationship; no-op if that is done.

        Raises:
            RigError: ``VmNotFound``, ``VmExists``, ``DiskInUse``.
        """
        ...

    async def check_vm(self, *, vm: str, excluded: list[str] | None = None) -> list[DiskInfo]:
        """Check the prerequisites of protection: the VM exists, its disks are healthy, and snapshot and logs have space.

        ``excluded``: the names of disks that are not replicated, so they are not checked.

        Returns:
            The other disks of the VM.

        Raises:
            RigError: ``VmNotFound``, ``BrokenVhdChain``, ``DiskInUse``, ``DiskUnhealthy``, ``NotEnoughSpace``.
        """
        ...

    async def check_prerequisites(self, *, vm: str, excluded: list[str] | None = None) -> SiteReadiness:
        """Check the prerequisites of protection as :meth:`check_vm` does, and return all that are not met.

        ``excluded`` can name disks that the VM does not have.  The result has all disks, also these.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    async def create_relationship(
        self,
        *,
        vm: str,
        interval_s: float,
        app_consistent_every_s: float | None,
        tracked: bool = True,
        disks: list[str] | None = None,
    ) -> list[DiskInfo]:
        """Record the relationship durably and start tracking; a repeated call changes the schedule.

        Args:
            vm: the VM.
            interval_s: seconds between two cycles.
            app_consistent_every_s: seconds between two application-consistent points; None for none.
            tracked: False: tracking starts with the initial replication, which is to begin later.
            disks: the names of the disks to replicate; None for all disks, or for those of the present relationship.

        Returns:
            The replicated disks.
        """
        ...

    async def initial_replication(self, *, vm: str) -> None:
        """Take a snapshot, copy disk by disk and remove the snapshot; return when every part is in the cache account.

        A call while another runs joins it, and a call after a kill resumes the copy.  Delta replication starts afterwards.
        """
        ...

    async def resync(self, *, vm: str, limited: bool = False) -> None:
        """Begin a new generation and send the chunks that differ; return when every part is in the cache account.

        Delta replication starts afterwards.  A resync that was interrupted continues.  ``limited``: the managed disks are
        known to be intact, so only chunks are compared that changed after the log was abandoned, or that it did not send,
        if the host knows these.
        """
        ...

    async def verify(self, *, vm: str) -> Verification:
        """Compare both sides at one position while replication runs; no data of the disks travels.

        A cycle makes the recovery point ``verify``, so that this position is applied soon.

        Raises:
            RigError: ``InvalidState`` unless the VM is in delta replication; ``VmBusy`` if it is being verified;
                ``Interrupted`` if it was stopped, or if a resync or a failover began meanwhile.
        """
        ...

    async def stop_verification(self, *, vm: str) -> None:
        """Stop the verification of a VM; no-op if there is none."""
        ...

    async def stop_copy(self, *, vm: str) -> None:
        """Stop an initial replication or a resync of this VM; none runs on return.  Idempotent.

        The next initial replication continues where this one was; after a resync that was stopped, another one is due.
        """
        ...

    async def send_again(self, *, vm: str, parts: list[str]) -> None:
        """Replace these parts (names of blobs) in the cache account, because the recovery side cannot use them.

        All other parts that are missing in the account are sent afterwards.  A part that the host does not have any more
        marks the VM for a resync.  Parts that the VM has not sent are ignored.  After an error of the cache account nothing
        is changed, and the call can be repeated.
        """
        ...

    @deadline(ANSWER_S)
    async def progress(self, *, vm: str) -> VmProgress:
        """Return the progress of the current copy; its phase is None if there is none."""
        ...

    @deadline(ANSWER_S)
    async def progress_of_all(self) -> list[VmProgress]:
        """Return the progress of every VM that is replicated, comes back in a failback, or is being created."""
        ...

    async def replicate_now(self, *, vm: str, kind: TagKind, name: str, request_id: str | None = None) -> CutInfo:
        """Run one delta cycle at once; return when data and tag are in the cache account.

        A call that failed after its cut may be repeated with the same ``request_id``.  Then that cut is sent and no second
        one is made.  The agent remembers it until it ends.

        Raises:
            RigError: ``InvalidState`` unless the VM is in delta replication.
        """
        ...

    async def check_shutdown(self, *, vm: str) -> None:
        """Check whether :meth:`shutdown_vm` would succeed, as far as this can be known; it changes nothing.

        Raises:
            RigError: ``VmBusy``.
        """
        ...

    async def shutdown_vm(self, *, vm: str) -> None:
        """Unmount and detach everything on this host that uses the VM's disks.

        Raises:
            RigError: ``VmBusy``, which names the users of the disks.
        """
        ...

    async def suspend(self, *, vm: str) -> None:
        """Stop the cycles of this VM, which was failed over; none runs on return.  Tracking continues.  Idempotent."""
        ...

    @deadline(ANSWER_S)
    async def change_schedule(self, *, vm: str, interval_s: float, app_consistent_every_s: float | None) -> None:
        """Change the schedule of the cycles of this VM; a cycle runs at once.  Idempotent.

        Raises:
            RigError: ``VmNotProtected``.
        """
        ...

    @deadline(ANSWER_S)
    async def bandwidth(self) -> BandwidthLimit | None:
        """Return the limit of the host's uploads; None if there is none."""
        ...

    @deadline(ANSWER_S)
    async def set_bandwidth(self, *, limit: BandwidthLimit | None) -> None:
        """Change the limit of the host's uploads, durably and at once; None for no limit.

        Raises:
            RigError: ``InvalidLimit``.
        """
        ...

    @deadline(ANSWER_S)
    async def app_script(self, *, vm: str) -> AppScript | None:
        """Return the script of a VM for application-consistent points; None if it has none.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    @deadline(ANSWER_S)
    async def set_app_script(self, *, vm: str, script: AppScript | None) -> None:
        """Change the script of a VM, durably; it is called from the next application-consistent point on.

        Raises:
            RigError: ``VmNotFound``, ``AppScriptUnusable``.
        """
        ...

    async def pause(self, *, vm: str) -> None:
        """Stop the cycles of this VM until :meth:`resume`; none runs on return.  Tracking continues.  Idempotent.

        Raises:
            RigError: ``InvalidState`` unless the VM is in delta replication, or waits for a resync.
        """
        ...

    async def resume(self, *, vm: str) -> None:
        """Continue the cycles of a paused VM, at once.  Idempotent."""
        ...

    async def remove_disks(self, *, vm: str, disks: list[str]) -> int:
        """End the replication of some disks, with a last recovery point that has them; stop their tracking.  Idempotent.

        The point is applied on return.  If a resync is due there is none.

        Returns:
            The position of the last cut that can have the disks; a repeated call returns the same.

        Raises:
            RigError: ``VmNotProtected``; ``InvalidState`` if the VM is paused or copied.
        """
        ...

    async def add_disks(self, *, vm: str, disks: list[str]) -> int:
        """Copy disks, and replicate them from then on; return when every later cut has them.

        The other disks are replicated meanwhile.  A call while a copy runs joins it, and a call after a kill resumes it.
        Disks that are replicated already need nothing.

        Returns:
            A position: every cut after it has the disks.  A repeated call may return a later one.

        Raises:
            RigError: ``VmNotProtected``, ``DiskNotFound``; ``InvalidState`` before the initial replication has ended;
                ``Interrupted`` if the disks were withdrawn meanwhile.
        """
        ...

    async def withdraw_disks(self, *, vm: str, disks: list[str]) -> None:
        """End the join of disks, whether their copy has ended or not, and delete their logs; no point is to have them.

        Idempotent; does nothing for disks that are not replicated.
        """
        ...

    async def remove_relationship(self, *, vm: str) -> None:
        """Forget the VM: stop tracking and delete its logs.  Idempotent."""
        ...

    @deadline(ANSWER_S)
    async def forget_keys(self) -> None:
        """Drop all data keys, because one was revoked; each is asked for again when it is needed."""
        ...

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        """Return the use of the VM's disks after position ``after``, at which it was failed over.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    @deadline(ANSWER_S)
    async def fence(self, *, vm: str, fenced: bool) -> list[DiskInfo]:
        """Refuse every write to the VM's disks (``EROFS``), durably, or allow writes again.  Idempotent.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    async def check_failback(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        """Check that these disks can replace the VM's disks.

        Raises:
            RigError: ``VmNotFound``, ``DiskNotFound``, ``DiskInUse``, ``NotEnoughSpace``.
        """
        ...

    async def receive_disk(self, *, vm: str, disk: str, source_id: str, size_bytes: int, parts: int) -> None:
        """Download ``parts`` sync parts of ``source_id`` (generation 1) into a staging disk, durably, for a failback."""
        ...

    async def commit_failback(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        """Replace the old disks with the staged ones; the old disks that ``keep`` names remain as image files."""
        ...
