"""The result of a prerequisites check: everything that hinders the protection of a VM, not only the first of it."""

from __future__ import annotations

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel


class UnmetPrerequisite(WireModel):
    """One reason for which a VM cannot be protected."""

    code: str
    message: str
    recoverable: bool = False

    @classmethod
    def of(cls, error: RigError) -> UnmetPrerequisite:
        """Return the reason for which a check failed."""
        return cls(code=error.code, message=error.message, recoverable=error.recoverable)

    def error(self) -> RigError:
        """Return the error that an operation would meet."""
        return RigError(Code.of(self.code), self.message, recoverable=self.recoverable)


class SiteReadiness(WireModel):
    """The disks of a VM that can be opened, and all reasons for which the site cannot replicate it."""

    disks: list[DiskInfo]
    unmet: list[UnmetPrerequisite]
