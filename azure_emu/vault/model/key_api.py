"""The part of the vault's API that concerns its key, whose versions encrypt the keys of all data."""

from __future__ import annotations

from typing import Literal, Protocol

from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_BOTH_S, ASKING_S, deadline
from siterig.blockfs.core.wire_model import WireModel


class VaultKey(WireModel):
    """A version of the vault's key.

    ``current``: it encrypts new data keys.  ``changed``: the time of the last change of the state.  ``data_keys``: the
    number of data keys that it encrypts.
    """

    version: int
    state: Literal["Enabled", "Revoked"]
    current: bool
    created: str
    changed: str
    data_keys: int


class UnencryptedDisk(WireModel):
    """A disk of the recovery side that an older siterig made, and whose data are not encrypted.

    ``vm``: the protected VM of a managed disk, or the recovered VM.
    """

    kind: Literal["managed disk", "disk of a recovered VM"]
    vm: str
    disk: str


class KeyApi(Protocol):
    """The operations on the vault's key, whose versions encrypt the keys of all data.  Each returns all versions."""

    @deadline(ANSWER_S)
    async def vault_keys(self) -> list[VaultKey]:
        """Return the versions of the vault's key, oldest first."""
        ...

    @deadline(ASKING_BOTH_S)
    async def unencrypted_disks(self) -> list[UnencryptedDisk]:
        """Return the disks of the recovery side whose data are not encrypted."""
        ...

    @deadline(ASKING_S)
    async def rotate_key(self) -> list[VaultKey]:
        """Make a new version and encrypt all data keys with it; no data are written again.

        Raises:
            RigError: ``KeyVersionsFull``.
        """
        ...

    @deadline(ASKING_BOTH_S)
    async def revoke_key(self, *, version: int) -> list[VaultKey]:
        """Refuse all use of a version: what its data keys encrypt can be neither read nor written.

        Raises:
            RigError: ``KeyNotFound``.
        """
        ...

    @deadline(ANSWER_S)
    async def restore_key(self, *, version: int) -> list[VaultKey]:
        """Enable a revoked version again.

        Raises:
            RigError: ``KeyNotFound``.
        """
        ...
