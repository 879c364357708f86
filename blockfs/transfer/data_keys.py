"""The contract of the place that gives out data keys: the vault."""

from __future__ import annotations

from typing import Protocol

from pydantic import ConfigDict, Field

from siterig.blockfs.core.deadlines import ANSWER_S, deadline
from siterig.blockfs.core.wire_model import UUID_PATTERN, Whole, WireModel


class DataKeyGrant(WireModel):
    """A data key in an answer of the vault.  Neither ``repr`` nor an error of the validation shows the secret."""

    model_config = ConfigDict(hide_input_in_errors=True)

    key_id: str = Field(pattern=UUID_PATTERN)
    secret_hex: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)


class DataKeys(Protocol):
    """The questions of the agent and the applier for data keys."""

    @deadline(ANSWER_S)
    async def part_key(self, *, disk_id: str, generation: Whole) -> DataKeyGrant:
        """Return the key of the parts of a disk's generation; the first call for them makes it.

        Raises:
            RigError: ``KeyRevoked``; ``KeyMissing`` if the file of the vault's keys lacks the one that is needed.
        """
        ...
