"""The operations on the fences of source VMs."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.core.wire_model import WireModel


class Fence(WireModel):
    """The fence of a VM at the site.

    Attributes:
        fenced: True if its disks refuse every write.
        disks: the names of these disks.
    """

    vm: str
    fenced: bool
    disks: list[str]


class FenceApi(Protocol):
    """The operations that keep an old primary from writing."""

    async def fence_source(self, *, vm: str) -> Fence:
        """Refuse every write to the disks of a VM at the site (``EROFS``) until :meth:`unfence_source`, or a failback.

        The site keeps the fence over restarts.  The VM need not be protected.  Idempotent.

        Raises:
            RigError: ``VmNotFound``; ``JobInProgress`` if a job of the VM runs.
        """
        ...

    async def unfence_source(self, *, vm: str) -> Fence:
        """Allow writes to the disks of a VM at the site again.  Idempotent.

        Raises:
            RigError: ``VmNotFound``; ``JobInProgress`` if a job of the VM runs.
        """
        ...
