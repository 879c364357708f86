"""Start, watch and stop a ledger workload from a trio program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from siterig.blockfs.core.errors import Code
from siterig.scenarios.workloads.workload_process import WorkloadProcess


class LedgerProcess(WorkloadProcess):
    """A running ledger; ``found`` is the newest transaction in the databases at its start."""

    title = "ledger"

    @classmethod
    async def start(
        cls,
        *,
        os_db: Path,
        data_db: Path,
        acks: Path,
        position: Path,
        rate_per_s: float = 0,
        mounted: Sequence[Path] = (),
    ) -> LedgerProcess:
        """Start a ledger, and return when its first transaction can begin.

        It ends when a folder of ``mounted`` is no mount point.

        Raises:
            RigError: ``LedgerFailed`` if the databases cannot be opened.
        """
        return await cls.launch(
            "ledger",
            ["--os-db", os_db, "--data-db", data_db],
            acks=acks,
            position=position,
            rate_per_s=rate_per_s,
            mounted=mounted,
            code=Code.LedgerFailed,
        )
