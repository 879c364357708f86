"""The contract of the place that gives out data keys: the vault."""

from __future__ import annotations

import uuid
from typing import Protocol

from pydantic import ConfigDict, Field

from siterig.blockfs.core.deadlines import ANSWER_S, deadline
from siterig.blockfs.core.wire_model import UUID_PATTERN, Whole, WireModel
from siterig.blockfs.transfer.envelope import DataKey


class DataKeyGrant(WireModel):
    """A data key in an answer of the vault.  Neither ``repr`` nor an error of the validation shows the secret."""

    model_config = ConfigDict(hide_input_in_errors=True)

    key_id: str = Field(pattern=UUID_PATTERN)
    secret_hex: str = Field(pattern=r"^([0-9a-f]{64}){1,2}$", repr=False)

    def key(self) -> DataKey:
        """Return the key."""
        return DataKey(uuid.UUID(self.key_id), bytes.fromhex(self.secret_hex))


class DataKeys(Protocol):
    """The questions of the agent and the recovery side for data keys."""

    @deadline(ANSWER_S)
    async def part_key(self, *, disk_id: str, generation: Whole) -> DataKeyGrant:
        """Return the key of the parts of a disk's generation; the first call for them makes it.

        Raises:
            RigError: ``KeyRevoked``; ``KeyMissing`` if the file of the vault's keys lacks the one that is needed.
        """
        ...

    @deadline(ANSWER_S)
    async def disk_key(self, *, disk_id: str) -> DataKeyGrant:
        """Return the key that encrypts a managed disk at rest; the first call for it makes it.

        Raises:
            RigError: as :meth:`part_key`.
        """
        ...
